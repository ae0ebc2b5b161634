"""Converts checkpoints of other code bases: unwraps them and renames tensors to timm's names."""

from __future__ import annotations

import contextlib
import io
import re
from collections.abc import Mapping
from functools import partial
from typing import Any

import torch
from timm.models import eva, vision_transformer, vision_transformer_sam
from timm.models.eva import Eva
from timm.models.vision_transformer_sam import VisionTransformerSAM
from torch import Tensor

StateDict = dict[str, Tensor]

# Keys under which training scripts store a state dict, outermost first (EVA, DINOv2's teacher, MAE, Lightning, FSDP).
_ENVELOPES = ("model_ema", "teacher", "model", "state_dict", "module")
# Prefixes added by wrappers (data parallel, compile, DINOv2's training, transformers).
_PREFIXES = ("module.", "_orig_mod.", "backbone.", "dinov2.", "dinov2_with_registers.")

# Hugging Face's Dinov2Model to timm, applied in order. Published files have the older names of attention and SwiGLU;
# state dicts from transformers >= 5 have the newer ones.
_HF_RENAMES = (
    (r"^embeddings\.patch_embeddings\.projection\.", "patch_embed.proj."),
    (r"^encoder\.layer\.(\d+)\.", r"blocks.\1."),
    (r"\.attention\.(output\.dense|o_proj)\.", ".attn.proj."),
    (r"\.attention\.(attention\.)?(query|key|value|[qkv]_proj)\.", r".attn.\2."),
    (r"\.layer_scale([12])\.lambda1$", r".ls\1.gamma"),
    (r"\.mlp\.weights_in\.", ".mlp.fc1."),
    (r"\.mlp\.(weights_out|down_proj)\.", ".mlp.fc2."),
    (r"^layernorm\.", "norm."),
)
# Matrices that timm concatenates, in this order.
_HF_STACKS = (
    ("attn.qkv", ("attn.query", "attn.key", "attn.value")),
    ("attn.qkv", ("attn.q_proj", "attn.k_proj", "attn.v_proj")),
    ("mlp.fc1", ("mlp.gate_proj", "mlp.up_proj")),
)


def unwrap(checkpoint: Mapping[str, Any]) -> StateDict:
    """The tensors of a checkpoint, without enclosing keys and prefixes of wrappers."""
    for envelope in _ENVELOPES:
        if isinstance(checkpoint.get(envelope), Mapping):
            checkpoint = checkpoint[envelope]
    state = {name: value for name, value in checkpoint.items() if isinstance(value, Tensor)}
    for prefix in _PREFIXES:
        if any(name.startswith(prefix) for name in state):
            state = {name.removeprefix(prefix): value for name, value in state.items() if name.startswith(prefix)}
    return state


def from_hugging_face(state: StateDict) -> StateDict:
    """Renames transformers' ``Dinov2Model`` (with or without registers) to timm's names.

    Query, key and value become one ``qkv``; the mask token is dropped. With registers, the class token's position
    embedding is added to the token, as in timm.
    """
    renamed: StateDict = {}
    for name, value in state.items():
        for pattern, replacement in _HF_RENAMES:
            name = re.sub(pattern, replacement, name)
        renamed[name] = value
    renamed = stacked(renamed)
    renamed.pop("embeddings.mask_token", None)
    class_11D, position_1ND = renamed.pop("embeddings.cls_token"), renamed.pop("embeddings.position_embeddings")
    registers_1RD = renamed.pop("embeddings.register_tokens", None)
    if registers_1RD is not None:
        renamed["reg_token"] = registers_1RD
        class_11D, position_1ND = class_11D + position_1ND[:, :1], position_1ND[:, 1:]
    return renamed | {"cls_token": class_11D, "pos_embed": position_1ND}


def stacked(state: StateDict) -> StateDict:
    """Query, key and value, and gated MLPs, as the one matrix (and bias) that timm has."""
    state = dict(state)
    for whole, parts in _HF_STACKS:
        for first in [name for name in state if f".{parts[0]}." in name]:
            names = [first.replace(parts[0], part) for part in parts]
            if all(name in state for name in names):
                state[first.replace(parts[0], whole)] = torch.cat([state.pop(name) for name in names])
    return state


def to_timm(model: Any, state: StateDict) -> StateDict:
    """Renames a state dict of timm, the original release or (DINOv2) transformers to the model's names."""
    if {"embeddings.cls_token", "embeddings.position_embeddings"} <= state.keys():
        state = from_hugging_face(state)
    if isinstance(model, VisionTransformerSAM):
        convert = vision_transformer_sam.checkpoint_filter_fn
    elif isinstance(model, Eva):
        convert = eva.checkpoint_filter_fn
    else:
        convert = partial(vision_transformer.checkpoint_filter_fn, adapt_layer_scale=True)
    # timm's filter for DINOv3 prints each bias that it omits.
    with contextlib.redirect_stdout(io.StringIO()):
        return dict(convert(dict(state), model))
