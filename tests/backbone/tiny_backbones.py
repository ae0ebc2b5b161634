"""One small model of every kind, with random values in every parameter, so that no part is the identity."""

import torch

from vitsplit.backbone.backbone import Backbone, BackboneInfo
from vitsplit.backbone.models import build_model

MEAN, STD = (0.5, 0.4, 0.3), (0.2, 0.25, 0.3)
_SMALL = {"depth": 4, "embed_dim": 48, "num_heads": 3}
KINDS = {
    "dinov2-small": {"img_size": 70},
    "dinov2-small-reg": {"img_size": 70},
    "clip-large-336": {"img_size": 70},
    "siglip-base": {"img_size": 64},
    "mae-base": {"img_size": 64},
    "deit3_small_patch16_224": {"img_size": 64},
    "vit_base_patch16_gap_224": {"img_size": 64, "fc_norm": True},
    "eva02-large": {"img_size": 70},
    "dinov3-small": {"img_size": 64},
    "sam-base": {"img_size": 64, "window_size": 3, "global_attn_indexes": (1, 3)},
}


def tiny_model(kind, seed=0, **overrides):
    with torch.random.fork_rng(devices=[]), torch.no_grad():
        torch.manual_seed(seed)
        model = build_model(kind, **{**_SMALL, **KINDS[kind], **overrides})
        for value in model.parameters():
            value.add_(torch.randn_like(value) * 0.1)
    return model


def tiny_backbone(kind, seed=0, **overrides):
    info = BackboneInfo(kind, kind, "none", "a test", "", MEAN, STD)
    return Backbone(tiny_model(kind, seed, **overrides), info)


def image(height, width, batch=2, seed=1):
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(0, 256, (batch, 3, height, width), dtype=torch.uint8, generator=generator)
