"""The release's models stated again in plain PyTorch, with the names of its tensors, and its checkpoints of them.

DINOv2, the head of ViT-Split (with and without gate), and the decoders of segmentation and depth. Every parameter and
statistic is random, so that no part is the identity.
"""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import nn
from torchvision.ops import deform_conv2d

import vitsplit
from vitsplit.backbone.models import build_model

WIDTH, LAYERS, HEADS, SIDE = 64, 4, 2, 70
TUNED, PRIOR = 2, (0, 1, 3)
CLASSES = ("floor", "wall", "ball", "box", "sky")
PALETTE = [[9, 9, 9], [200, 30, 30], [30, 30, 200], [30, 200, 30], [90, 90, 250]]
MEAN, STD = (123.675, 116.28, 103.53), (58.395, 57.12, 57.375)


def build_tiny(name, **overrides):
    """timm's model of a catalog entry in the size of ``Dino``."""
    side = SIDE if name.startswith("dinov2-") else 336
    sizes = {"depth": LAYERS, "embed_dim": WIDTH, "num_heads": HEADS, "img_size": side}
    return build_model(name, **(sizes | overrides))


class LayerScale(nn.Module):
    def __init__(self, width):
        super().__init__()
        self.gamma = nn.Parameter(torch.ones(width))

    def forward(self, x):
        return x * self.gamma


class Attention(nn.Module):
    def __init__(self, width, heads):
        super().__init__()
        self.heads, self.qkv, self.proj = heads, nn.Linear(width, 3 * width), nn.Linear(width, width)

    def forward(self, x):
        q, k, v = self.qkv(x).unflatten(-1, (3, self.heads, -1)).permute(2, 0, 3, 1, 4)
        shares = (q @ k.mT / math.sqrt(q.shape[-1])).softmax(-1)
        return self.proj((shares @ v).transpose(1, 2).flatten(2))


class Mlp(nn.Module):
    def __init__(self, width):
        super().__init__()
        self.fc1, self.fc2 = nn.Linear(width, 4 * width), nn.Linear(4 * width, width)

    def forward(self, x):
        return self.fc2(F.gelu(self.fc1(x)))


class Block(nn.Module):
    def __init__(self, width, heads):
        super().__init__()
        self.norm1, self.attn, self.ls1 = nn.LayerNorm(width, eps=1e-6), Attention(width, heads), LayerScale(width)
        self.norm2, self.mlp, self.ls2 = nn.LayerNorm(width, eps=1e-6), Mlp(width), LayerScale(width)

    def forward(self, x):
        x = x + self.ls1(self.attn(self.norm1(x)))
        return x + self.ls2(self.mlp(self.norm2(x)))


class PatchEmbed(nn.Module):
    def __init__(self, width, patch_size):
        super().__init__()
        self.proj = nn.Conv2d(3, width, patch_size, patch_size)


class Dino(nn.Module):
    """DINOv2 without registers: patches of ``patch_size`` pixels, positions of a grid of ``side`` patches."""

    def __init__(self, patch_size=14, side=SIDE // 14):
        super().__init__()
        self.patch_size, self.side = patch_size, side
        self.patch_embed = PatchEmbed(WIDTH, patch_size)
        self.cls_token = nn.Parameter(torch.zeros(1, 1, WIDTH))
        self.pos_embed = nn.Parameter(torch.zeros(1, 1 + side**2, WIDTH))
        self.mask_token = nn.Parameter(torch.zeros(1, WIDTH))
        self.blocks = nn.ModuleList(Block(WIDTH, HEADS) for _ in range(LAYERS))
        self.norm = nn.LayerNorm(WIDTH, eps=1e-6)

    def forward(self, x):
        """The token sequences before the first and after every block."""
        x = self.patch_embed.proj(x)
        grid = x.shape[2:]
        position = self.pos_embed[:, 1:].unflatten(1, (self.side, self.side)).permute(0, 3, 1, 2)
        if tuple(grid) != (self.side, self.side):
            scale = tuple((n + 0.1) / self.side for n in grid)
            position = F.interpolate(position, scale_factor=scale, mode="bicubic")
        position = torch.cat([self.pos_embed[:, :1], position.flatten(2).mT], 1)
        tokens = [torch.cat([self.cls_token.expand(len(x), -1, -1), x.flatten(2).mT], 1) + position]
        for block in self.blocks:
            tokens.append(block(tokens[-1]))
        return tokens, grid


class DeformConv(nn.Module):
    def __init__(self, width):
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(width, width, 3, 3))


class DeformableConvNet(nn.Module):
    def __init__(self, width):
        super().__init__()
        self.offsets, self.deform_conv = nn.Conv2d(width, 18, 3, padding=1), DeformConv(width)

    def forward(self, x):
        return deform_conv2d(x, self.offsets(x), self.deform_conv.weight, padding=1)


def conv_block(channels):
    return nn.Sequential(nn.Conv2d(channels, WIDTH, 1), nn.GELU(), DeformableConvNet(WIDTH), nn.GELU())


class Gate(nn.Module):
    def __init__(self, layers, kept):
        super().__init__()
        self.scores = nn.Parameter(torch.zeros(layers, kept))

    def forward(self, maps):
        soft = (self.scores / 0.5).softmax(0)
        least = soft.topk(self.scores.shape[1], dim=0).values[-1]
        shares = torch.where(soft >= least, soft, 0.0)
        shares = shares / shares.sum(0)
        return [sum(share * each for share, each in zip(column, maps, strict=True)) for column in shares.T]


class SplitBackbone(nn.Module):
    """The release's backbone: frozen model, task head, prior head and fusion net."""

    def __init__(self, dino=None, *, tuned=TUNED, prior=PRIOR, gate=0, fusion="fusion_conv", dead_norm=True):
        super().__init__()
        self.backbone = dino or Dino()
        self.split_head = nn.Sequential(*(Block(WIDTH, HEADS) for _ in range(tuned)))
        self.frozen_conv = conv_block(WIDTH * (gate or len(prior)))
        self.prior, self.fusion = prior, fusion
        setattr(self, fusion, conv_block(2 * WIDTH))
        if gate:
            self.learnable_gate = Gate(LAYERS, gate)
        if dead_norm:
            self.bn_norm = nn.BatchNorm2d(WIDTH)

    def forward(self, x):
        """Normalized pixels to the fused map."""
        size = self.backbone.patch_size
        extra = [-side % size for side in x.shape[2:]]
        (top, left) = (each // 2 for each in extra)
        tokens, grid = self.backbone(F.pad(x, (left, extra[1] - left, top, extra[0] - top)))

        def as_map(sequence):
            return self.backbone.norm(sequence)[:, 1:].mT.unflatten(2, grid)

        maps = [as_map(each) for each in tokens[1:]]
        read = self.learnable_gate(maps) if hasattr(self, "learnable_gate") else [maps[layer] for layer in self.prior]
        tuned = as_map(self.split_head(tokens[LAYERS - len(self.split_head)]))
        return getattr(self, self.fusion)(torch.cat([self.frozen_conv(torch.cat(read, 1)), tuned], 1))


def upsampling(widths):
    first, second, third = widths
    return nn.Sequential(
        nn.ConvTranspose2d(first, second, 2, 2), nn.GroupNorm(32, second), nn.GELU(),
        nn.ConvTranspose2d(second, third, 2, 2), nn.GroupNorm(32, third), nn.GELU(),
    )  # fmt: skip


class SegmentationHead(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv_seg, self.bn = nn.Conv2d(WIDTH, len(CLASSES), 1), nn.BatchNorm2d(WIDTH)
        self.up = upsampling((WIDTH,) * 3)

    def forward(self, x):
        return self.conv_seg(self.bn(self.up(x)))


class DepthHead(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv_depth, self.bn = nn.Conv2d(64, 1, 3, padding=1), nn.BatchNorm2d(64)
        self.up = upsampling((WIDTH, WIDTH // 2, 64))

    def forward(self, x):
        return F.relu(self.conv_depth(self.bn(self.up(x)))) + 1e-3


class Dense(nn.Module):
    """mmseg's and the toolbox's EncoderDecoder."""

    def __init__(self, backbone, decode_head):
        super().__init__()
        self.backbone, self.decode_head = backbone, decode_head

    def whole(self, image_BCHW):
        """uint8 images to the decoder's map, stretched over the image."""
        out = self.decode_head(self.backbone(normalized(image_BCHW, self.decode_head.bn.weight.dtype)))
        return F.interpolate(out, size=image_BCHW.shape[2:], mode="bilinear")

    def slide(self, image_BCHW, crop, stride):
        """Averages of overlapping windows, as in mmseg."""
        height, width = image_BCHW.shape[2:]
        total, count = 0, 0
        for row in range(max(height - crop + stride - 1, 0) // stride + 1):
            for column in range(max(width - crop + stride - 1, 0) // stride + 1):
                bottom, right = min(row * stride + crop, height), min(column * stride + crop, width)
                top, left = max(bottom - crop, 0), max(right - crop, 0)
                window = self.whole(image_BCHW[..., top:bottom, left:right])
                pads = (left, width - right, top, height - bottom)
                total, count = total + F.pad(window, pads), count + F.pad(torch.ones_like(window), pads)
        return total / count


def normalized(image_BCHW, dtype=torch.float32):
    return ((image_BCHW - torch.tensor(MEAN).view(3, 1, 1)) / torch.tensor(STD).view(3, 1, 1)).to(dtype)


@torch.no_grad()
def randomized(model, seed=0):
    """The model in eval mode with random numbers in every tensor, whatever its initial values."""
    generator = torch.Generator().manual_seed(seed)
    for name, tensor in model.state_dict().items():
        noise = torch.randn(tensor.shape, generator=generator)
        if name.endswith("num_batches_tracked"):
            tensor.fill_(40_000)
        elif name.endswith("running_var"):
            tensor.copy_(noise.abs() + 0.5)
        elif name.endswith("scores"):
            tensor.copy_(torch.rand(tensor.shape, generator=generator))
        elif tensor.dim() > 1:
            tensor.copy_(noise / math.sqrt(tensor[0].numel()))
        else:
            tensor.copy_(0.3 * noise + name.endswith(("weight", "gamma")))  # of norms and layer scale around one
    return model.eval()


OTHERS = """gpu_ids = range(0, 4)
optimizer = dict(
    type='AdamW',
    paramwise_cfg=dict(
        custom_keys=dict({'backbone.split_head': dict(lr_mult=0.1)})))"""
"""What mmcv writes of the release's settings of training."""


def meta(backbone: str, test_cfg: str = "dict(mode='whole')", **settings: str) -> dict[str, Any]:
    """What mmcv's hooks store: the configuration's text, and with ``save_best`` a number of numpy."""
    head = f"decode_head=dict(type='Head', channels={WIDTH}, align_corners=False)"
    lines = [f"model = dict(\n    type='EncoderDecoder',\n    backbone=dict({backbone}),\n    {head},"]
    lines += [f"    test_cfg={test_cfg})", OTHERS, *(f"{name} = {value}" for name, value in settings.items())]
    hooks = {"best_score": np.float64(0.51), "best_ckpt": "best_mIoU.pth"}
    return {"mmcv_version": "1.4.2", "config": "\n".join(lines) + "\n", "hook_msgs": hooks, "iter": 40_000}


def backbone_text(prior=PRIOR, tuned=TUNED) -> str:
    copied = list(range(LAYERS - tuned, LAYERS))
    return f"type='DINOViTSplitFusion', out_indices={[*prior]}, select_layers={copied}, tuning_type='frozen'"


def write(file: Path, model: nn.Module, meta: Any, **state: Any) -> Path:
    """A checkpoint as mmcv writes it; ``state`` replaces tensors."""
    optimizer = {"state": {0: {"step": 1}}, "param_groups": [{"lr": 1e-4}]}
    tensors = model.state_dict()  # has an attribute with versions of modules, which mmcv keeps
    tensors.update(state)
    torch.save({"meta": meta, "state_dict": tensors, "optimizer": optimizer}, file)
    return file


def write_frozen(file: Path, dino: nn.Module) -> Path:
    """The frozen model as DINOv2's release writes it."""
    torch.save(dino.state_dict(), file)
    return file


def imported(model: nn.Module, record: Any, folder: Path, **options: Any) -> Any:
    """The bundle of a model's checkpoint, and the predictor of the bundle."""
    weights = write_frozen(folder / "dinov2.pth", model.backbone.backbone)
    file = write(folder / "iter_40000.pth", model, record)
    options = {"out": folder / "bundle", "backbone": "dinov2-small", "weights": weights} | options
    bundle = vitsplit.import_checkpoint(file, **options)
    return bundle, vitsplit.load(bundle, weights=weights, device="cpu")
