"""Attention is fused in every family: no block materializes a tokens x tokens matrix if it can be avoided."""

import copy

import pytest
import torch
from timm.layers import set_fused_attn, use_fused_attn
from tiny_backbones import KINDS, image, tiny_backbone
from torch.nn import functional
from torch.utils._python_dispatch import TorchDispatchMode

from vitsplit.methods.split.task_head import TaskHead
from vitsplit.types import TapRequest

ABSOLUTE = [kind for kind in KINDS if kind != "sam-base"]


class Largest(TorchDispatchMode):
    """Number of elements of the largest output of any operation."""

    numel = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        out = func(*args, **(kwargs or {}))
        for value in out if isinstance(out, tuple | list) else (out,):
            if isinstance(value, torch.Tensor):
                self.numel = max(self.numel, value.numel())
        return out


def largest_of_a_pass_and_a_step(backbone):
    """The frozen pass and forward and backward of two copied blocks, on 48 x 48 patches."""
    side = 48 * backbone.patch_size
    with Largest() as largest:
        taps = backbone(image(side, side, batch=1), TapRequest(tokens=frozenset({2}), maps=frozenset({3})))
        TaskHead(backbone, 2)(taps).sum().backward()
    return largest.numel, (48 * 48 + backbone.num_prefix_tokens) ** 2


@pytest.mark.parametrize("kind", ABSOLUTE)
def test_no_attention_matrix_is_materialized(kind):
    numel, tokens_squared = largest_of_a_pass_and_a_step(tiny_backbone(kind))
    assert numel < tokens_squared


def test_the_attention_matrix_is_detected_without_fusion():
    was = use_fused_attn()
    set_fused_attn(False)
    try:
        backbone = tiny_backbone("dinov2-small")
    finally:
        set_fused_attn(bool(was))
    numel, tokens_squared = largest_of_a_pass_and_a_step(backbone)
    assert numel >= 3 * tokens_squared  # three heads


@pytest.mark.parametrize("kind", KINDS)
def test_every_block_and_every_copy_calls_the_fused_function_once(kind, monkeypatch):
    # SAM's relative positions are a heads x tokens x tokens bias, so the matrix is needed even with fused attention.
    calls = []
    fused = functional.scaled_dot_product_attention
    monkeypatch.setattr(
        functional, "scaled_dot_product_attention", lambda *args, **kwargs: calls.append(1) or fused(*args, **kwargs)
    )
    backbone = tiny_backbone(kind)
    taps = backbone(image(64, 64), TapRequest(tokens=frozenset({1, 4})))
    assert len(calls) == 4
    TaskHead(copy.deepcopy(backbone), 1)(taps)
    assert len(calls) == 7
