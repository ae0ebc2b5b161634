"""Windows and checkpointing in the task head: equal results, and memory saved."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from vitsplit.backbone.backbone import Backbone
from vitsplit.errors import ConfigError
from vitsplit.methods.split.config import SplitConfig
from vitsplit.methods.split.head import SplitHead
from vitsplit.methods.split.task_head import TaskHead
from vitsplit.nn.windows import Windows
from vitsplit.types import LayerTaps, TapRequest

WINDOWED = ("plain", "plain-registers", "rotary")


def taps_of(backbone: Backbone, image_BCHW: Tensor, depth: int) -> LayerTaps:
    return backbone(image_BCHW, TapRequest(tokens=frozenset({depth})))


def windows_one_by_one(task_head: TaskHead, taps: LayerTaps, side: int) -> Tensor:
    """Each window separately, without zero padding or masks."""
    (h, w), prefix = taps.grid, taps.num_prefix_tokens
    x_BTD = taps.tokens[task_head.depth]
    for block in task_head.blocks[:-1]:
        patches = x_BTD[:, prefix:].unflatten(1, (h, w))
        out, prefixes = torch.empty_like(patches), []
        for top in range(0, h, side):
            for left in range(0, w, side):
                inside = patches[:, top : top + side, left : left + side]
                tokens = torch.cat([x_BTD[:, :prefix], inside.flatten(1, 2)], dim=1)
                if taps.rope is None:
                    tokens = block(tokens)
                else:
                    rope = taps.rope.unflatten(0, (h, w))[top : top + side, left : left + side]
                    tokens = block(tokens, rope=rope.flatten(0, 1))
                prefixes.append(tokens[:, :prefix])
                out[:, top : top + side, left : left + side] = tokens[:, prefix:].unflatten(1, inside.shape[1:3])
        x_BTD = torch.cat([torch.stack(prefixes).mean(0), out.flatten(1, 2)], dim=1)
    last = task_head.blocks[-1]
    x_BTD = last(x_BTD) if taps.rope is None else last(x_BTD, rope=taps.rope)
    return task_head.final_norm(x_BTD)[:, prefix:].unflatten(1, (h, w)).permute(0, 3, 1, 2)


@pytest.mark.parametrize("backbone", WINDOWED, indirect=True)
@pytest.mark.parametrize("side", [1, 2, 3])
def test_windows_equal_separate_windows(backbone: Backbone, image_BCHW: Tensor, side: int):
    taps = taps_of(backbone, image_BCHW, 1)
    assert taps.grid[0] % 2 and taps.grid[1] > 3  # some sides leave the grid
    task_head = TaskHead(backbone, 1, window=side)
    with torch.no_grad():
        have, want = task_head(taps), windows_one_by_one(task_head, taps, side)
        torch.testing.assert_close(have, want, rtol=1e-4, atol=1e-4)
        assert not torch.allclose(have, TaskHead(backbone, 1)(taps), atol=1e-3)


@pytest.mark.parametrize("backbone", WINDOWED, indirect=True)
@pytest.mark.parametrize("side", [5, 64])
def test_a_window_covering_the_grid_is_global_attention(backbone: Backbone, image_BCHW: Tensor, side: int):
    taps = taps_of(backbone, image_BCHW, 1)
    with torch.no_grad():
        assert torch.equal(TaskHead(backbone, 1, window=side)(taps), TaskHead(backbone, 1)(taps))


def test_partition_and_merge_are_inverse():
    tokens_BTD = torch.randn(2, 3 + 7 * 10, 4)
    for side in (1, 2, 3, 7, 8, 20):
        windows = Windows((7, 10), side, 3)
        cut_XTD = windows.cut(tokens_BTD)
        assert cut_XTD.shape == (2 * windows.count, 3 + min(side, 7) * min(side, 10), 4)
        torch.testing.assert_close(windows.join(cut_XTD), tokens_BTD)
        mask = windows.mask(2, torch.device("cpu"))
        attended = cut_XTD.shape[0] * cut_XTD.shape[1] if mask is None else int(mask.sum())
        assert attended == 2 * (windows.count * 3 + 70)  # every patch once, the prefix in every window


def test_checkpointing_gives_equal_gradients(backbone: Backbone, image_BCHW: Tensor):
    taps = taps_of(backbone, image_BCHW, 1)
    weight = torch.randn(2, backbone.width, *taps.grid)
    for window in (None,) if backbone.family.name == "sam" else (None, 2):
        gradients = []
        for checkpointed in (True, False):
            task_head = TaskHead(backbone, 1, checkpointed=checkpointed, window=window)
            (task_head(taps) * weight).sum().backward()
            gradients.append([parameter.grad for parameter in task_head.blocks.parameters()])
        for one, two in zip(*gradients, strict=True):
            torch.testing.assert_close(one, two, rtol=1e-5, atol=1e-5)
            assert one.abs().max() > 0


def kept_bytes(task_head: TaskHead, taps: LayerTaps) -> int:
    """Memory of the tensors saved for the backward pass, each storage once, without parameters and the input."""
    known = {tensor.untyped_storage().data_ptr() for tensor in (*task_head.parameters(), *taps.tokens.values())}
    kept: dict[int, int] = {}

    def pack(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in known:
            kept[storage.data_ptr()] = storage.nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        out = task_head(taps)
    assert out.requires_grad
    return sum(kept.values())


def test_checkpointing_saves_one_sequence_per_block(plain_backbone: Backbone):
    image = torch.zeros(2, 3, 280, 280, dtype=torch.uint8)
    taps = taps_of(plain_backbone, image, 0)
    sequence = taps.tokens[0].nbytes
    plain, checkpointed = (
        kept_bytes(TaskHead(plain_backbone, 0, checkpointed=option), taps) for option in (False, True)
    )
    # Between the four blocks three sequences, and what the final norm keeps. A block itself keeps: queries, keys and
    # values, attention's output, two normed inputs, and an MLP four times as wide.
    assert checkpointed < 5 * sequence
    assert plain > 4 * 10 * sequence


def test_the_head_passes_its_settings_on(plain_backbone: Backbone, image_BCHW: Tensor):
    head = SplitHead(
        plain_backbone,
        SplitConfig(
            num_tuned_layers=3,
            num_prior_layers=2,
            first_prior_layer=1,
            checkpoint_task_head=True,
            task_head_window=2,
        ),
    )
    assert (head.task_head.checkpointed, head.task_head.window) == (True, 2)
    map_BDhw = head(plain_backbone(image_BCHW, head.request(train=True)))
    map_BDhw.sum().backward()
    assert map_BDhw.isfinite().all()
    assert all(parameter.grad.isfinite().all() for parameter in head.task_head.blocks.parameters())


@pytest.mark.parametrize(
    ("backbone", "depth", "window", "message"),
    [
        ("sam", 1, 2, "--task-head-window 2: tiny-sam"),
        ("plain", 1, 0, "--task-head-window 0"),
        ("plain", 3, 2, "--task-head-window 2: .*--num-tuned-layers"),
    ],
    indirect=["backbone"],
)
def test_invalid_windows_are_rejected(backbone: Backbone, depth: int, window: int, message: str):
    with pytest.raises(ConfigError, match=message):
        TaskHead(backbone, depth, window=window)
