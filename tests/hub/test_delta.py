"""Pushed differences to the backbone: restored bit for bit, and only with the backbone."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from bundles import BACKBONE, write_bundle, write_depth_bundle, write_segmentation_bundle
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

import vitsplit
from vitsplit.backbone import load_backbone
from vitsplit.backbone.config import BackboneConfig
from vitsplit.bundle import find_bundle, find_bundles, read_card
from vitsplit.bundle_delta import from_delta, to_delta
from vitsplit.cli.main import main
from vitsplit.engine.start_from import start_from
from vitsplit.errors import BundleError, ConfigError
from vitsplit.methods.finetune import FullFineTuneConfig
from vitsplit.model import Head, build_head
from vitsplit.tasks import bare_task
from vitsplit.tasks.depth.config import DepthConfig
from vitsplit.train_config import LoopConfig, one_head

WEIGHTS = "head.safetensors"
UNSIGNED = {torch.float32: np.uint32, torch.int32: np.uint32, torch.bfloat16: np.uint16, torch.int16: np.uint16}


def trained(folder: Path, *, matrices: torch.dtype = torch.float32) -> Path:
    """Changes the weights of a bundle as training does, each a little."""
    generator = torch.Generator().manual_seed(0)
    state = load_file(folder / WEIGHTS)
    for name, tensor in state.items():
        if tensor.is_floating_point():
            state[name] = tensor * (1 + 0.01 * torch.randn(tensor.shape, generator=generator))
            if tensor.dim() > 1:
                state[name] = state[name].to(matrices)
    save_file(state, folder / WEIGHTS)
    return folder


@pytest.fixture(scope="module")
def rooms(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return trained(write_segmentation_bundle(tmp_path_factory.mktemp("delta") / "rooms"))


def bits(tensor: Tensor) -> np.ndarray[Any, Any]:
    """The bits of a tensor as unsigned integers, by the dtype that numpy has for them."""
    signed = {torch.bfloat16: torch.int16}.get(tensor.dtype)
    array = (tensor if signed is None else tensor.view(signed)).detach().cpu().numpy()
    return array.view(UNSIGNED[tensor.dtype])


def equal_bits(one: Tensor, other: Tensor) -> bool:
    if not one.is_floating_point():
        return torch.equal(one, other)
    return one.dtype == other.dtype and np.array_equal(bits(one), bits(other))


def originals(prefix: str, first: int) -> dict[str, Tensor]:
    """The parameters of timm's blocks, by the name of their copy."""
    blocks = list(load_backbone(BACKBONE, random_weights=True).model.blocks)[first:]
    return {f"{prefix}.{name}": value.detach() for name, value in nn.ModuleList(blocks).named_parameters()}


@pytest.mark.parametrize("matrices", [torch.float32, torch.bfloat16])
def test_a_task_head_is_stored_as_xor_and_restored_bit_for_bit(hub, tmp_path, matrices):
    bundle = trained(write_segmentation_bundle(tmp_path / "rooms"), matrices=matrices)
    vitsplit.push(bundle, "me/rooms", delta=True)
    written, stored = load_file(bundle / WEIGHTS), load_file(find_bundle("hf://me/rooms") / WEIGHTS)
    copied = originals("head.task_head.blocks", 10)  # K_t = 2 of 12
    assert {name for name, tensor in stored.items() if tensor.dtype in (torch.int32, torch.int16)} == copied.keys()
    for name, tensor in written.items():
        if name in copied:
            expected = bits(tensor) ^ bits(copied[name].to(tensor.dtype))
            assert np.array_equal(bits(stored[name]), expected), name
        else:
            assert torch.equal(stored[name], tensor), name
    loaded = vitsplit.load("hf://me/rooms").model.state_dict()
    for name, tensor in written.items():
        assert equal_bits(loaded[name], tensor.float() if tensor.is_floating_point() else tensor), name


def test_a_tuned_transformer_is_restored_bit_for_bit(hub, tmp_path):
    config = one_head(
        task=DepthConfig(crop_size=(48, 64), image_scale=(64, 48), test_flip=False),
        backbone=BackboneConfig(backbone=BACKBONE, random_weights=True),
        method=FullFineTuneConfig(),
        loop=LoopConfig(precision="fp32"),
    )
    bundle = trained(write_bundle(tmp_path / "depth", config, {}))
    vitsplit.push(bundle, "me/depth", delta=True)
    stored = load_file(find_bundle("hf://me/depth") / WEIGHTS)
    prefix = "head.trunk.model."
    assert all(tensor.dtype == torch.int32 for name, tensor in stored.items() if name.startswith(prefix))
    loaded = vitsplit.load("hf://me/depth").model.state_dict()
    assert all(equal_bits(loaded[name], tensor) for name, tensor in load_file(bundle / WEIGHTS).items())


class Copy(nn.Module):
    """A method that is one copied parameter."""

    def __init__(self, original: Tensor) -> None:
        super().__init__()
        self.weight = nn.Parameter(original)

    def pretrained_parameters(self) -> dict[int | None, list[nn.Parameter]]:
        return {0: [self.weight]}


@pytest.mark.parametrize("kind", [torch.float32, torch.bfloat16])
def test_every_pair_of_special_values_is_restored(kind):
    values = [0.0, -0.0, 1.0, -1.0, 1e-45, 1.1754942e-38, 3.4028235e38, float("inf"), float("nan"), 1.0 + 2**-23]
    pairs = torch.cartesian_prod(torch.tensor(values), torch.tensor(values))
    original, copy = pairs[:, 0].contiguous(), pairs[:, 1].to(kind).contiguous()
    head = Head(Copy(original), nn.Identity())
    stored, digest = to_delta({"head.weight": copy}, head)
    assert np.array_equal(bits(stored["head.weight"]), bits(copy) ^ bits(original.to(kind)))
    restored, found = from_delta(stored, head)
    assert equal_bits(restored["head.weight"], copy) and found == digest


def test_other_weights_of_the_backbone_are_refused(hub, rooms, tmp_path):
    vitsplit.push(rooms, "me/rooms", delta=True)
    bundle = tmp_path / "copy"
    bundle.mkdir()
    card = json.loads((find_bundle("hf://me/rooms") / "head.json").read_text())
    stored = load_file(find_bundle("hf://me/rooms") / WEIGHTS)
    save_file(stored, bundle / WEIGHTS)
    (bundle / "head.json").write_text(json.dumps(card | {"backbone": card["backbone"] | {"weights_hash": "0" * 64}}))
    with pytest.raises(BundleError, match="0" * 16):
        vitsplit.load(bundle)
    # Differences of one bit, as after another resampling of the backbone.
    (bundle / "head.json").write_text(json.dumps(card))
    stored["head.task_head.blocks.0.norm1.weight"][3] ^= 1
    save_file(stored, bundle / WEIGHTS)
    with pytest.raises(BundleError, match=card["delta"][:16]):
        vitsplit.load(bundle)
    # Without the record of differences, integers are not weights.
    (bundle / "head.json").write_text(json.dumps({key: value for key, value in card.items() if key != "delta"}))
    with pytest.raises(BundleError, match="I32"):
        vitsplit.load(bundle)


def test_a_rounded_backbone_cannot_restore(hub, rooms):
    vitsplit.push(rooms, "me/rooms", delta=True)
    with pytest.raises(BundleError, match="--precision fp32"):
        vitsplit.load(rooms, precision="bf16").add("hf://me/rooms", "other")
    model = vitsplit.load({"a": rooms, "b": "hf://me/rooms"}, precision="bf16")
    first, second = (model[name].model.state_dict() for name in "ab")
    assert all(torch.equal(first[name], second[name]) for name in first)


def test_low_rank_heads_have_no_copies(hub, rooms, tmp_path):
    run = tmp_path / "run"
    low_rank = write_depth_bundle(run / "best" / "depth", tune_blocks="lora")
    with pytest.raises(ConfigError, match="--delta"):
        vitsplit.push(low_rank, "me/depth", delta=True)
    assert hub.repositories == {}
    trained(write_segmentation_bundle(run / "best" / "segmentation"))
    vitsplit.push(run, "me/both", delta=True)
    cards = {folder.name: read_card(folder) for folder in find_bundles("hf://me/both")}
    assert cards["segmentation"].delta and not cards["depth"].delta
    assert list(vitsplit.load("hf://me/both")) == ["segmentation", "depth"]


def test_a_run_can_start_from_differences(hub, rooms):
    vitsplit.push(rooms, "me/rooms", delta=True)
    card, backbone = read_card(rooms), load_backbone(BACKBONE, random_weights=True)
    head = build_head(card.config, backbone, bare_task(card.config.task, card.description))
    start_from("hf://me/rooms", head, backbone, SimpleNamespace(check_start=lambda *_: None))
    state = head.state_dict()
    assert all(torch.equal(state[name], tensor) for name, tensor in load_file(rooms / WEIGHTS).items())


def test_the_command_and_a_second_push(hub, rooms, capsys):
    assert main(["push", str(rooms), "me/rooms", "--delta"]) == 0
    folder = find_bundle("hf://me/rooms")
    assert "bitwise differences" in hub.repositories["me/rooms"].commits[folder.name]["README.md"].decode()
    assert main(["push", str(folder), "me/again", "--delta"]) == 0
    again = find_bundle("hf://me/again")
    assert (again / WEIGHTS).read_bytes() == (folder / WEIGHTS).read_bytes()
    assert (again / "head.json").read_bytes() == (folder / "head.json").read_bytes()
