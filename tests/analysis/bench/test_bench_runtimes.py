"""``vitsplit bench runtimes``: ratios by hand, and the differences of a graph whose weights were changed."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import onnx
import pytest
from bundles import SMALL, write_depth_bundle, write_segmentation_bundle
from tiny_predictor import tiny_predictor

import vitsplit
from vitsplit.analysis.bench.runtimes import RuntimesResult, RuntimeTimes, measure_runtimes, table, to_json
from vitsplit.cli.main import main
from vitsplit.errors import ConfigError, ExportError
from vitsplit.exporting.formats import file_hash
from vitsplit.inference.predictor import Predictor


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    root = tmp_path_factory.mktemp("bundles")
    for name, write in {"segmentation": write_segmentation_bundle, "depth": write_depth_bundle}.items():
        write(root / name / "best", backbone=SMALL, num_tuned_layers=1, num_prior_layers=1)
    return [str(root / "segmentation"), str(root / "depth")]


@pytest.fixture(scope="module")
def exported(runs: list[str], tmp_path_factory: pytest.TempPathFactory) -> tuple[Predictor, Path]:
    """The bundles, and the folder of their graph, beside one of PyTorch, which is not measured."""
    predictor = vitsplit.load(*runs, precision="fp32", device="cpu")
    folder = tmp_path_factory.mktemp("exports") / "whole"
    vitsplit.export(predictor, out=folder, size=(50, 66))
    card = json.loads((folder / "card.json").read_text())
    card["graphs"]["pt2"] = card["graphs"]["onnx"]
    (folder / "card.json").write_text(json.dumps(card))
    return predictor, folder


def test_ratios_are_of_the_same_turns() -> None:
    result = RuntimesResult(
        heads=("rooms",),
        size=(28, 42),
        batch_size=1,
        machine={"device": "cpu", "cpu": "a CPU", "threads": 1, "torch": "2"},
        runtimes={
            "PyTorch": RuntimeTimes(precision="fp32", seconds=[1.0, 2.0, 3.0], cpu_seconds=[2.0, 4.0, 6.0]),
            "graph": RuntimeTimes(
                precision="int8",
                size_bytes=2_500_000,
                differences={"rooms.classes": {"agreement": 0.75}, "far.depth": {"max_error": 1.0, "abs_rel": 0.125}},
                seconds=[0.5, 0.5, 0.5],
                cpu_seconds=[1.0, 1.0, 4.0],
            ),
        },
    )
    assert result.speedup("graph", cpu=False).median == 4.0
    assert result.speedup("graph", cpu=True).median == 2.0
    assert to_json(result)["runtimes"]["graph"]["cpu_speedup"] == {"median": 2.0, "q1": 1.75, "q3": 3.0}
    head, _, row = table(result)
    assert dict(zip(head, row, strict=True))["size, MB"] == "2.5"
    assert row[-1] == "rooms.classes 75.0 % equal, far.depth 12.50 %"


def test_a_graph_that_computes_otherwise_is_seen(exported: tuple[Predictor, Path], tmp_path: Path) -> None:
    predictor, folder = exported
    other = tmp_path / "other"
    other.mkdir()
    model = onnx.load(folder / "graph.onnx")
    for each in model.graph.initializer:  # an unfaithful graph: its first bias of a norm is large
        if "norm1.bias" in each.name:
            value = onnx.numpy_helper.to_array(each) + 3
            each.CopyFrom(onnx.numpy_helper.from_array(value.astype(np.float32), each.name))
    onnx.save(model, other / "graph.onnx")
    card = json.loads((folder / "card.json").read_text())
    card["graphs"] = {"onnx": card["graphs"]["onnx"] | {"files": {"graph.onnx": file_hash(other / "graph.onnx")}}}
    (other / "card.json").write_text(json.dumps(card))
    result = measure_runtimes(predictor, [folder, other], size=(50, 66), batch_size=2, turns=2, warmup=0)
    assert list(result.runtimes) == ["PyTorch", "whole, onnx", "other, onnx"]
    for label, found in result.runtimes.items():
        assert len(found.seconds) == len(found.cpu_seconds) == 2 and min(found.seconds) > 0
        if label.startswith("whole"):
            assert found.differences["segmentation.classes"]["agreement"] > 0.999
            assert found.differences["depth.depth"]["abs_rel"] < 1e-5
    assert result.runtimes["other, onnx"].differences["depth.depth"]["abs_rel"] > 1e-3
    size = (folder / "graph.onnx").stat().st_size
    assert result.runtimes["whole, onnx"].size_bytes == size
    (other / "graph.onnx").write_bytes(b"changed")
    with pytest.raises(ExportError, match="hash"):
        measure_runtimes(predictor, [other], size=(50, 66), turns=1, warmup=0)


def test_folders_of_other_heads_and_sizes(exported: tuple[Predictor, Path], tmp_path: Path) -> None:
    predictor, folder = exported
    with pytest.raises(ConfigError, match="segmentation, depth"):
        measure_runtimes(tiny_predictor(tasks=("depth",), depth=2), [folder], size=(50, 66), turns=1)
    fixed = Path(shutil.copytree(folder, tmp_path / "fixed"))
    card = json.loads((fixed / "card.json").read_text())
    card["input"]["shape"] = ["batch", 3, 42, 56]
    (fixed / "card.json").write_text(json.dumps(card))
    with pytest.raises(ConfigError, match="42 x 56"):
        measure_runtimes(predictor, [fixed], size=(50, 66), turns=1)


def test_command(runs: list[str], exported: tuple[Predictor, Path], capsys: pytest.CaptureFixture[str]) -> None:
    folder = str(exported[1])
    command = ["bench", "runtimes", *runs, folder, "--turns", "1", "--warmup", "0"]
    assert main([*command, "--size", "50", "66", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["size"] == [50, 66] and list(found["runtimes"]) == ["PyTorch", "whole, onnx"]
    assert main(["bench", "runtimes", runs[0]]) == 2
    assert main(["bench", "runtimes", folder]) == 2
