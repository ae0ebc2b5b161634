"""Backbones of each family, so small that tests take milliseconds, with weights such that every part has an effect."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from timm.models.eva import Eva
from timm.models.vision_transformer import VisionTransformer
from timm.models.vision_transformer_sam import VisionTransformerSAM
from torch import nn

from vitsplit.backbone.backbone import Backbone, BackboneInfo

DEPTH, WIDTH = 4, 32
FAMILIES = ("plain", "plain-registers", "rotary", "sam")

BackboneMaker = Callable[[str], Backbone]


def _model(family: str) -> nn.Module:
    size = {"embed_dim": WIDTH, "depth": DEPTH, "num_heads": 2, "num_classes": 0, "global_pool": ""}
    match family:
        case "plain" | "plain-registers":
            registers = 2 if family == "plain-registers" else 0
            return VisionTransformer(
                img_size=28, patch_size=14, init_values=0.5, reg_tokens=registers, dynamic_img_size=True, **size
            )
        case "rotary":
            return Eva(img_size=32, patch_size=16, use_rot_pos_emb=True, dynamic_img_size=True, **size)
        case "sam":
            model = VisionTransformerSAM(
                img_size=32, patch_size=16, use_rel_pos=True, window_size=2, global_attn_indexes=(1, 3), **size
            )
            model.neck = nn.Identity()
            return model
    raise ValueError(family)


def make_backbone(family: str) -> Backbone:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(1)
        model = _model(family)
        for parameter in model.parameters():
            # Random everywhere: timm starts relative positions at zero, which would hide that they are used.
            nn.init.normal_(parameter, std=0.15) if parameter.dim() > 1 else nn.init.uniform_(parameter, 0.2, 1.0)
    info = BackboneInfo(
        name=f"tiny-{family}",
        timm_name="none",
        license="none",
        source="test",
        weights_hash="",
        mean=(0.485, 0.456, 0.406),
        std=(0.229, 0.224, 0.225),
    )
    return Backbone(model, info)


@pytest.fixture(params=FAMILIES)
def backbone(request: pytest.FixtureRequest) -> Backbone:
    """A tiny backbone of every family."""
    return make_backbone(request.param)


@pytest.fixture
def plain_backbone() -> Backbone:
    """A tiny plain ViT, where the family does not matter."""
    return make_backbone("plain")


@pytest.fixture
def image_BCHW() -> torch.Tensor:  # noqa: N802
    """Two images, neither square nor a multiple of the patch size."""
    return torch.randint(0, 256, (2, 3, 40, 61), dtype=torch.uint8, generator=torch.Generator().manual_seed(3))
