"""Names of the release's tensors by pattern, with the names they have in a bundle.

Patterns match whole names. Tensors are copied as they are, except those of ``CONVERSIONS``.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping

import torch
from torch import Tensor

from vitsplit.errors import WeightsError

Table = tuple[tuple[str, str], ...]

DEAD = re.compile(
    r"backbone\.bn_norm\..+|model\.layers\.\d+\.self_attn\.rotary_emb\.inv_freq"
    r"|vision_model\.embeddings\.position_ids"
)
"""A norm that the release creates and never uses, and constants that earlier transformers wrote."""

_AFFINE = r"(weight|bias)"
_NORM = r"(weight|bias|running_mean|running_var|num_batches_tracked)"


def _conv_block(release: str, ours: str) -> Table:
    """1x1 and 3x3 deformable convolution."""
    return (
        (rf"backbone\.{release}\.0\.{_AFFINE}", rf"{ours}.block.reduce.\1"),
        (rf"backbone\.{release}\.2\.offsets\.{_AFFINE}", rf"{ours}.block.mix.offset.\1"),
        (rf"backbone\.{release}\.2\.deform_conv\.weight", rf"{ours}.block.mix.weight"),
    )


_SPLIT: Table = (
    # SwiGLU of the giant model, by the names of DINOv2 and of timm.
    (rf"backbone\.split_head\.(\d+)\.mlp\.w12\.{_AFFINE}", r"head.task_head.blocks.\1.mlp.fc1.\2"),
    (rf"backbone\.split_head\.(\d+)\.mlp\.w3\.{_AFFINE}", r"head.task_head.blocks.\1.mlp.fc2.\2"),
    (r"backbone\.split_head\.(\d+)\.(.+)", r"head.task_head.blocks.\1.\2"),
    *_conv_block("frozen_conv", "head.prior_head"),
    *_conv_block("fusion_(?:conv|net)", "head.fusion"),
    (r"backbone\.learnable_gate\.scores", "head.gate.scores_LJ"),
)
_UPSAMPLING: Table = (
    (rf"decode_head\.up\.0\.{_AFFINE}", r"decoder.up1.\1"),
    (rf"decode_head\.up\.1\.{_AFFINE}", r"decoder.norm1.\1"),
    (rf"decode_head\.up\.3\.{_AFFINE}", r"decoder.up2.\1"),
    (rf"decode_head\.up\.4\.{_AFFINE}", r"decoder.norm2.\1"),
    (rf"decode_head\.bn\.{_NORM}", r"decoder.last_norm.\1"),
)
_ROI = "decoder.roi_heads"
_DETECTOR: Table = (
    (rf"backbone\.up1\.([0134])\.{_AFFINE}", r"decoder.pyramid.up4.\1.\2"),
    (rf"backbone\.up2\.([01])\.{_AFFINE}", r"decoder.pyramid.up2.\1.\2"),
    *((rf"backbone\.norm{level + 1}\.{_NORM}", rf"decoder.pyramid.norms.{level}.\1") for level in range(4)),
    (rf"neck\.lateral_convs\.(\d+)\.conv\.{_AFFINE}", r"decoder.pyramid.fpn.inner_blocks.\1.0.\2"),
    (rf"neck\.fpn_convs\.(\d+)\.conv\.{_AFFINE}", r"decoder.pyramid.fpn.layer_blocks.\1.0.\2"),
    (rf"rpn_head\.rpn_conv\.{_AFFINE}", r"decoder.rpn.head.conv.0.0.\1"),
    (rf"rpn_head\.rpn_cls\.{_AFFINE}", r"decoder.rpn.head.cls_logits.\1"),
    (rf"rpn_head\.rpn_reg\.{_AFFINE}", r"decoder.rpn.head.bbox_pred.\1"),
    (rf"roi_head\.bbox_head\.shared_fcs\.0\.{_AFFINE}", rf"{_ROI}.box_head.fc6.\1"),
    (rf"roi_head\.bbox_head\.shared_fcs\.1\.{_AFFINE}", rf"{_ROI}.box_head.fc7.\1"),
    (rf"roi_head\.bbox_head\.fc_cls\.{_AFFINE}", rf"{_ROI}.box_predictor.cls_score.\1"),
    (rf"roi_head\.bbox_head\.fc_reg\.{_AFFINE}", rf"{_ROI}.box_predictor.bbox_pred.\1"),
    (rf"roi_head\.mask_head\.convs\.(\d+)\.conv\.{_AFFINE}", rf"{_ROI}.mask_head.\1.0.\2"),
    (rf"roi_head\.mask_head\.upsample\.{_AFFINE}", rf"{_ROI}.mask_predictor.conv5_mask.\1"),
    (rf"roi_head\.mask_head\.conv_logits\.{_AFFINE}", rf"{_ROI}.mask_predictor.mask_fcn_logits.\1"),
)


def _clip_block(theirs: str, ours: str) -> Table:
    """A block of transformers' CLIP; query, key and value are stacked later (``conversion.stacked``)."""
    kind = r"(?P<kind>weight|bias)"
    return (
        (rf"{theirs}\.layer_norm(?P<index>[12])\.{kind}", rf"{ours}.norm\g<index>.\g<kind>"),
        (rf"{theirs}\.mlp\.fc(?P<index>[12])\.{kind}", rf"{ours}.mlp.fc\g<index>.\g<kind>"),
        (rf"{theirs}\.self_attn\.(?P<part>[qkv])_proj\.{kind}", rf"{ours}.attn.\g<part>_proj.\g<kind>"),
        (rf"{theirs}\.self_attn\.out_proj\.{kind}", rf"{ours}.attn.proj.\g<kind>"),
    )


CLIP: Table = (
    (r"vision_model\.embeddings\.class_embedding", "cls_token"),
    (r"vision_model\.embeddings\.position_embedding\.weight", "pos_embed"),
    (r"vision_model\.embeddings\.patch_embedding\.weight", "patch_embed.proj.weight"),
    (rf"vision_model\.pre_layrnorm\.{_AFFINE}", r"norm_pre.\1"),
    (rf"vision_model\.post_layernorm\.{_AFFINE}", r"norm.\1"),
    *_clip_block(r"vision_model\.encoder\.layers\.(?P<block>\d+)", r"blocks.\g<block>"),
)
"""Transformers' ``CLIPVisionModel`` to timm."""
_PROJECTOR = r"model\.mm_projector"
_LLAVA: Table = (
    *_clip_block(rf"{_PROJECTOR}\.tuned_head\.0", "head.block"),
    *(
        (rf"{_PROJECTOR}\.{part}_conv\.{index}\.{_AFFINE}", rf"head.{ours}.{layer}.\1")
        for part, ours in (("frozen", "prior"), ("fusion", "fusion"))
        for index, layer in ((0, "reduce"), (2, "mix"))
    ),
    (r"(lm_head\..+|model\.(?:embed_tokens|layers|norm)\..+)", r"decoder.language_model.\1"),
)
TABLES: Mapping[str, Table] = {
    "segmentation": (*_SPLIT, *_UPSAMPLING, (rf"decode_head\.conv_seg\.{_AFFINE}", r"decoder.classify.\1")),
    "depth": (*_SPLIT, *_UPSAMPLING, (rf"decode_head\.conv_depth\.{_AFFINE}", r"decoder.regress.\1")),
    "detection": (*_SPLIT, *_DETECTOR),
    "vqa": _LLAVA,
}
"""Task to table."""
CONVERSIONS: Mapping[str, Callable[[Tensor], Tensor]] = {
    # mmdet has the background last; torchvision first, and with a box and a mask of its own, which are not used.
    f"{_ROI}.box_predictor.cls_score": lambda rows: rows.roll(1, 0),
    f"{_ROI}.box_predictor.bbox_pred": lambda rows: torch.cat([torch.zeros_like(rows[:4]), rows]),
    f"{_ROI}.mask_predictor.mask_fcn_logits": lambda rows: torch.cat([torch.zeros_like(rows[:1]), rows]),
}
"""Layer of a bundle to the function of the release's weight and bias, whose first dimension are the outputs."""
MARKS: Mapping[str, str] = {
    "segmentation": r"decode_head\.conv_seg\..+",
    "depth": r"decode_head\.conv_depth\..+",
    "detection": r"roi_head\.bbox_head\..+",
    "vqa": rf"{_PROJECTOR}\..+",
}
"""Task to names that only its checkpoints have."""


def task_of(names: Iterable[str], source: str) -> str:
    """The task of a checkpoint.

    Raises:
        WeightsError: It is of none that can be imported.
    """
    names = list(names)
    for task, mark in MARKS.items():
        if any(re.fullmatch(mark, name) for name in names):
            return task
    raise WeightsError(
        f"{source}: not a checkpoint of the release for {' or '.join(MARKS)}; its tensors are "
        f"{listed(names) or 'none'}. Give the file that training wrote."
    )


def renamed(state: Mapping[str, Tensor], table: Table) -> tuple[dict[str, Tensor], list[str]]:
    """Tensors by the names of a bundle, and the names that are not in the table."""
    found: dict[str, Tensor] = {}
    left_over = []
    for name, tensor in state.items():
        if DEAD.fullmatch(name):
            continue
        ours = next((match.expand(new) for old, new in table if (match := re.fullmatch(old, name))), None)
        if ours is None or ours in found:
            left_over.append(name)
        else:
            convert = CONVERSIONS.get(ours.rpartition(".")[0])
            found[ours] = convert(tensor) if convert is not None and tensor.dim() else tensor
    return found, left_over


def check(found: Mapping[str, Tensor], left_over: Iterable[str], expected: Mapping[str, Tensor], source: str) -> None:
    """Compares renamed tensors with those that a head has.

    Raises:
        WeightsError: Tensors are missing, left over, of other shapes or not finite; the message lists them.
    """
    unknown = [*left_over, *(found.keys() - expected.keys())]
    shapes, numbers = [], []
    for name in expected.keys() & found.keys():
        tensor, wanted = found[name], expected[name]
        if tensor.shape != wanted.shape or tensor.is_floating_point() != wanted.is_floating_point():
            kinds = [f"{each.dtype} {tuple(each.shape)}".removeprefix("torch.") for each in (tensor, wanted)]
            shapes.append(f"{name} is {kinds[0]} instead of {kinds[1]}")
        elif not torch.isfinite(tensor).all():
            numbers.append(name)
    missing = expected.keys() - found.keys()
    refuse(source, missing=missing, left_over=unknown, other_shapes=shapes, not_finite=numbers)


def require(found: Mapping[str, Tensor], dimensions: Mapping[str, int], source: str) -> None:
    """Refuses tensors, from which sizes are read, that are missing or have other numbers of dimensions.

    Raises:
        WeightsError: The message lists them.
    """
    shapes = [
        f"{name} is {tuple(found[name].shape)}, not of {count} dimensions"
        for name, count in dimensions.items()
        if name in found and found[name].dim() != count
    ]
    refuse(source, missing=dimensions.keys() - found.keys(), other_shapes=shapes)


def refuse(source: str, **wrong: Iterable[str]) -> None:
    """Raises a WeightsError if any of the lists of tensors is not empty."""
    parts = [f"{kind.replace('_', ' ')}: {listed(names)}" for kind, each in wrong.items() if (names := sorted(each))]
    if parts:
        raise WeightsError(
            f"{source}: its tensors are not those of the release's model ({'; '.join(parts)}). Only models of the "
            "release can be imported, without changes."
        )


def listed(names: Iterable[str], most: int = 20) -> str:
    """Names in one line."""
    names = list(names)
    return ", ".join(name[:200] for name in names[:most]) + f" and {len(names) - most} more" * (len(names) > most)
