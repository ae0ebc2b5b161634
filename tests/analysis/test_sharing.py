"""Shared against separate: the oracle is arithmetic with the paper's counts and with the bundles' own files."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from bundles import write_bundle, write_depth_bundle, write_segmentation_bundle

from vitsplit.bundle import read_card
from vitsplit.cli.main import main
from vitsplit.engine.override import override

# DINOv2-S, patch 14, without its mask token (the release counts one vector of 384 more).
BACKBONE = 22_056_192
# A block multiplies 12 D^2 weights per token, and attention 2 D per pair of tokens.
D = 384


def info(capsys: pytest.CaptureFixture[str], *words: object) -> dict[str, Any]:
    assert main(["info", *map(str, words), "--json"]) == 0
    result: dict[str, Any] = json.loads(capsys.readouterr().out)
    return result


def backbone_gmacs(height: int, width: int) -> float:
    patches = (height // 14) * (width // 14)
    tokens = patches + 1
    return (12 * (12 * D * D * tokens + 2 * D * tokens**2) + patches * 3 * 14 * 14 * D) / 1e9


def test_recipes_with_the_same_input_share_a_pass(capsys: pytest.CaptureFixture[str]) -> None:
    names = ("laptop-segmentation", "laptop-detection")
    facts = info(capsys, *names, "--size", 252, 336)
    alone = {name: info(capsys, name, "--size", 252, 336) for name in names}
    heads = sum(each["parameters"]["trainable"] for each in alone.values())
    norms = 2 * 2 * D  # each task head holds a copy of the final norm
    assert facts["parameters"] == {"shared": BACKBONE + heads + norms, "separate": 2 * BACKBONE + heads + norms}
    assert facts["bytes"]["fp32"]["separate"] - facts["bytes"]["fp32"]["shared"] == 4 * BACKBONE
    frozen = backbone_gmacs(252, 336)
    assert facts["passes"] == [{"size": [252, 336], "bundles": list(names), "gmacs": pytest.approx(frozen, rel=1e-3)}]
    separate = sum(each["gmacs"]["total"] for each in alone.values())
    assert facts["gmacs"]["separate"] == pytest.approx(separate)
    assert facts["gmacs"]["shared"] == pytest.approx(separate - frozen, rel=1e-3)
    assert facts["time_bound"] == pytest.approx(separate / (separate - frozen), rel=1e-3)


def test_a_mirrored_view_is_a_separate_pass(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    rooms = write_segmentation_bundle(tmp_path / "rooms")
    flipped, plain = (write_depth_bundle(tmp_path / str(flip), task={"test_flip": flip}) for flip in (True, False))
    facts = info(capsys, rooms, flipped)
    assert [each["bundles"] for each in facts["passes"]] == [["segmentation", "depth"], ["depth"]]
    # All run the 12 blocks, and one of the depth's two passes is segmentation's too.
    one_pass = facts["bundles"]["segmentation"]["gmacs"]["backbone"]
    assert facts["bundles"]["depth"]["gmacs"]["backbone"] == pytest.approx(2 * one_pass)
    assert facts["gmacs"]["separate"] - facts["gmacs"]["shared"] == pytest.approx(one_pass)
    without = info(capsys, rooms, plain)["bundles"]["depth"]["gmacs"]
    assert facts["bundles"]["depth"]["gmacs"]["head"] == pytest.approx(2 * without["head"])


def test_bf16_halves_only_the_matrices_of_the_backbone(capsys: pytest.CaptureFixture[str]) -> None:
    facts = info(capsys, "ade20k-small", "cityscapes-small")
    # Per block: qkv, projection and both layers of the MLP with their biases; and the patch embedding.
    matrices = 12 * (12 * D * D + (3 + 1 + 4 + 1) * D) + 3 * 14 * 14 * D + D
    for way, copies in (("shared", 1), ("separate", 2)):
        assert facts["bytes"]["fp32"][way] - facts["bytes"]["bf16"][way] == 2 * matrices * copies


def test_different_sizes_share_weights_but_no_pass(capsys: pytest.CaptureFixture[str]) -> None:
    facts = info(capsys, "ade20k-small", "cityscapes-small", "--size", 512, 512)
    # ADE20K: shorter side 512, in one window. Cityscapes: 1024 x 1024, in windows of 896 every 597, four in a pass.
    assert [each["size"] for each in facts["passes"]] == [[512, 512], [896, 896]]
    assert facts["passes"][1]["gmacs"] == pytest.approx(4 * backbone_gmacs(896, 896), rel=1e-3)
    assert facts["gmacs"]["shared"] == pytest.approx(facts["gmacs"]["separate"]) and facts["time_bound"] == 1
    assert facts["parameters"]["shared"] < facts["parameters"]["separate"]


def test_a_shared_pass_runs_up_to_the_deepest_requested_layer(
    capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    shallow = write_segmentation_bundle(
        tmp_path / "shallow", task_head=False, selection="explicit", prior_layers=(1, 3), num_prior_layers=2
    )
    deep = write_segmentation_bundle(tmp_path / "deep")
    facts = info(capsys, shallow, deep)
    costs = {name: bundle["gmacs"]["backbone"] for name, bundle in facts["bundles"].items()}
    assert list(costs) == ["shallow", "deep"]
    assert facts["passes"][0]["gmacs"] == costs["deep"]
    # 4 of 12 blocks, and the embedding of 12 patches of 16 x 16.
    embedding = 12 * 3 * 16 * 16 * 192 / 1e9
    assert costs["shallow"] - embedding == pytest.approx((costs["deep"] - embedding) / 3)


def test_a_gate_counts_as_its_selected_layers(capsys: pytest.CaptureFixture[str]) -> None:
    facts = info(capsys, "ade20k-small-gate", "ade20k-small", "--size", 512, 512)
    alone = info(capsys, "ade20k-small-gate", "--size", 512, 512)
    bundle = facts["bundles"]["ade20k-small-gate"]
    assert sum(bundle["gmacs"].values()) == pytest.approx(alone["gmacs"]["total"])


def test_the_table_agrees_with_the_json(capsys: pytest.CaptureFixture[str]) -> None:
    names = ("laptop-segmentation", "laptop-depth", "laptop-detection")
    facts = info(capsys, *names)
    assert main(["info", *names]) == 0
    text = capsys.readouterr().out
    assert f"{facts['time_bound']:.2f}" in text
    for way in ("shared", "separate"):
        assert f"{facts['gmacs'][way]:.1f} G" in text and f"{facts['parameters'][way] / 1e6:.1f} M" in text
    assert "480 x 640" in text


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (["ade20k-small", "ade20k-base"], "ade20k-base on dinov2-base"),
        (["ade20k-small", "ade20k-small"], "ade20k-small"),
        (["ade20k-small", "nowhere"], "nowhere"),
        (["ade20k-small", "coco-small"], "patch 16"),
    ],
)
def test_invalid_arguments_give_one_message(
    words: list[str], expected: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["info", *words]) == 2
    shown = capsys.readouterr().err
    assert expected in shown and "Traceback" not in shown


def test_adapters_in_a_copy_of_the_backbone_share_its_weights(
    capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    rooms = write_segmentation_bundle(tmp_path / "rooms")
    card = read_card(rooms)
    lora = write_bundle(tmp_path / "lora", override(card.config, {"method": "lora"}), card.description)
    facts = info(capsys, rooms, lora)
    trained = info(capsys, lora)["parameters"]
    # The low-rank matrices and the decoder, and a copy of the final norm of the tiny backbone.
    assert facts["bundles"]["lora"]["parameters"] == trained["trainable"] + 2 * 192
    own = sum(each["parameters"] for each in facts["bundles"].values())
    assert facts["parameters"]["shared"] == trained["frozen"] + own
