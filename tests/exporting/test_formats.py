"""Written graphs in their own runtimes; the oracle is the predictor that they are made of."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import onnx
import pytest
import torch
from bundles import SMALL, write_depth_bundle, write_segmentation_bundle
from PIL import Image
from tiny_backbones import image
from tiny_predictor import SMALLEST, tiny_predictor

import vitsplit
from vitsplit.cli.main import main
from vitsplit.errors import ConfigError, DataError, ExportError
from vitsplit.exporting import onnx_format, writing
from vitsplit.exporting.formats import Traced, Written, open_format, open_graphs, trace
from vitsplit.exporting.graph import ExportGraph
from vitsplit.exporting.onnx_format import OnnxFormat
from vitsplit.exporting.parity import model_outputs
from vitsplit.methods.split.config import SplitConfig

SIZES = [(42, 56), (50, 66), (71, 43), (15, 15)]
FORMATS = ("onnx", "openvino", "pt2")
WRITERS = {"rooms": write_segmentation_bundle, "far": write_depth_bundle}


def open_card(folder: Path, card: Any, format_name: Any) -> Any:
    """The graphs of a folder in their runtime, as one function."""
    graph = card["graphs"][format_name]
    written = [Written(folder / part["files"][0], part["inputs"], part["outputs"]) for part in graph["parts"]]
    return open_graphs(open_format(format_name), written, graph["settings"])


def assert_outputs(
    folder: Path, format_name: Any, predictor: Any, sizes: Any = SIZES, nhwc: bool = False, limit: float = 2e-4
) -> None:
    card = json.loads((folder / "card.json").read_text())
    run = open_card(folder, card, format_name)
    for batch, size in enumerate(sizes, 1):
        images = image(*size, batch=batch)
        expected = model_outputs(predictor, images)
        found = run(np.ascontiguousarray(images.permute(0, 2, 3, 1).numpy()) if nhwc else images.numpy())
        assert list(found) == list(expected)
        for name, value in expected.items():
            assert found[name].dtype == value.dtype and found[name].shape == value.shape
            difference = np.abs(found[name].astype(float) - value)
            assert (difference.mean() < 1e-3) if name.endswith("classes") else (difference.max() < limit), (name, size)


@pytest.fixture(scope="module")
def exported(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Any]:
    predictor = tiny_predictor(depth=2, method=SMALLEST)
    folder = tmp_path_factory.mktemp("exports") / "all"
    vitsplit.export(predictor, out=folder, formats=FORMATS)
    return folder, predictor


@pytest.mark.parametrize("format_name", FORMATS)
def test_any_batch_and_size(exported: tuple[Path, Any], format_name: str) -> None:
    assert_outputs(exported[0], format_name, exported[1])


def test_the_card(exported: tuple[Path, Any]) -> None:
    card = json.loads((exported[0] / "card.json").read_text())
    assert card["input"]["shape"] == ["batch", 3, "height", "width"]
    head = card["heads"]["segmentation"]
    assert head["description"]["classes"] == ["floor", "wall", "ball"] and head["image_scale"] == [66, 50]
    assert head["outputs"]["segmentation.logits"]["shape"] == ["batch", 3, "height", "width"]
    for name, graph in card["graphs"].items():
        assert all((exported[0] / file).is_file() for file in graph["files"])
        sizes = {tuple(run["size"]) for run in graph["parity"]["runs"]}
        assert len(sizes) == 3 and {run["batch"] for run in graph["parity"]["runs"]} == {1, 2}
        assert any(height % 14 and width % 14 for height, width in sizes)
        assert graph["deform"] == ("native" if name == "onnx" else "grid")


def test_files_name_no_path_of_this_machine(exported: tuple[Path, Any]) -> None:
    for path in exported[0].iterdir():
        content = path.read_bytes()
        assert str(Path(vitsplit.__file__).parent).encode() not in content, path.name
        assert b"site-packages" not in content, path.name


@pytest.mark.parametrize("number", range(len(FORMATS)))
def test_the_code_of_the_readme_runs_without_this_package(
    exported: tuple[Path, Any], number: int, tmp_path: Path
) -> None:
    folder, predictor = exported
    code = re.findall(r"```python\n(.*?)```", (folder / "README.md").read_text(), flags=re.DOTALL)[number]
    pixels = image(50, 66, batch=1)  # of the size for which the head is made, so that it is not resized
    Image.fromarray(pixels[0].permute(1, 2, 0).numpy()).save(tmp_path / "photo.png")
    code = code.replace("photo.jpg", str(tmp_path / "photo.png"))
    script = "import sys\nsys.modules['vitsplit'] = None\n" + code
    script += f"\nnp.savez({str(tmp_path / 'outputs.npz')!r}, **outputs)\n"
    subprocess.run([sys.executable, "-c", script], cwd=folder, check=True, timeout=120)
    expected, found = model_outputs(predictor, pixels), np.load(tmp_path / "outputs.npz")
    assert set(found) == set(expected)
    assert np.abs(found["depth.depth"] - expected["depth.depth"]).max() < 1e-4
    assert (found["segmentation.classes"] == expected["segmentation.classes"]).mean() > 0.999


@pytest.mark.parametrize("kind", ["eva02-large", "dinov3-small", "sam-base"])
def test_other_families_in_onnx(kind: str, tmp_path: Path) -> None:
    predictor = tiny_predictor(kind, ("segmentation",), depth=2, method=SMALLEST)
    vitsplit.export(predictor, out=tmp_path / "out")
    # SAM has no final norm, so its maps are larger.
    limit = 1e-3 if kind == "sam-base" else 2e-4
    assert_outputs(tmp_path / "out", "onnx", predictor, [(64, 48), (50, 66), (100, 71)], limit=limit)


@pytest.mark.slow
def test_detection_with_masks(tmp_path: Path) -> None:
    """In the formats with the same operators; test_detection_use has any size in ONNX."""
    predictor, formats = tiny_predictor(tasks=("detection",), depth=2, method=SMALLEST), ("openvino", "pt2")
    result = vitsplit.export(predictor, out=tmp_path / "out", formats=formats)
    assert result.card["input"]["shape"] == [1, 3, "height", "width"]
    runs = {name: open_card(tmp_path / "out", result.card, name) for name in formats}
    for seed, size in enumerate([(70, 84), (64, 97), (140, 182)]):
        pixels = image(*size, batch=1, seed=seed)
        expected = model_outputs(predictor, pixels)
        assert len(expected["detection.boxes"]) > 2
        for format_name, run in runs.items():
            found = run(pixels.numpy())
            assert list(found) == list(expected)
            assert np.array_equal(found["detection.labels"], expected["detection.labels"])
            for name, limit in {"boxes": 1e-2, "scores": 1e-3, "masks": 1e-3}.items():
                error = np.abs(found[f"detection.{name}"] - expected[f"detection.{name}"]).max()
                assert error < limit, (format_name, name, size)


@pytest.mark.slow
def test_a_detector_beside_another_head_in_one_onnx_graph(tmp_path: Path) -> None:
    predictor = tiny_predictor(tasks=("depth", "detection"), depth=2, method=SMALLEST)
    result = vitsplit.export(predictor, out=tmp_path / "out", size=(70, 84))
    pixels = image(70, 84, batch=1)
    expected = model_outputs(predictor, pixels)
    found = open_card(tmp_path / "out", result.card, "onnx")(pixels.numpy())
    assert set(found) == set(expected) and len(expected["detection.boxes"]) > 2
    assert np.array_equal(found["detection.labels"], expected["detection.labels"])
    for name, limit in {"detection.boxes": 1e-2, "detection.masks": 1e-3, "depth.depth": 1e-4}.items():
        assert np.abs(found[name] - expected[name]).max() < limit, name


def test_forms_of_the_method_in_onnx_and_shared_blocks_once(tmp_path: Path) -> None:
    method = SplitConfig(
        num_tuned_layers=2,
        num_prior_layers=2,
        first_prior_layer=0,
        selection="gate",
        task_head_window=2,
        tune_blocks="lora",
    )
    predictor = tiny_predictor(tasks=("depth", "segmentation"), method=method, depth=2)
    vitsplit.export(predictor, out=tmp_path / "out")
    assert_outputs(tmp_path / "out", "onnx", predictor)
    unique = {each.data_ptr(): each.numel() for each in predictor.backbone.parameters()}
    unique |= {each.data_ptr(): each.numel() for head in predictor.values() for each in head.model.parameters()}
    blocks = sum(each.numel() for block in predictor.backbone.blocks for each in block.parameters())
    # Written once for the backbone, and not again for each of the two heads.
    assert (tmp_path / "out" / "graph.onnx").stat().st_size < 4 * (sum(unique.values()) + blocks)


def test_the_command_exports_bundles(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """In one size, and in the other layout."""
    settings = {"backbone": SMALL, "num_tuned_layers": 1, "num_prior_layers": 1}
    runs = [write(tmp_path / name, **settings) for name, write in WRITERS.items()]
    out, flags = tmp_path / "out", ["--layout", "nhwc", "--deform", "grid", "--format", "onnx"]
    assert main(["export", "--out", str(out), *flags, "--size", "50", "71", "--", *map(str, runs)]) == 0
    card = json.loads((out / "card.json").read_text())
    assert card["input"]["shape"] == ["batch", 50, 71, 3]
    assert list(card["heads"]) == ["segmentation", "depth"] and len(card["heads"]["depth"]["weights_hash"]) == 64
    predictor = vitsplit.load(*runs, precision="fp32", device="cpu")
    assert_outputs(out, "onnx", predictor, [(50, 71), (50, 71)], nhwc=True)
    assert main(["export", str(runs[0]), "--out", str(out)]) == 2
    assert "already exists" in capsys.readouterr().err


def test_what_cannot_be_exported_is_refused(tmp_path: Path) -> None:
    predictor = tiny_predictor(depth=2)
    with pytest.raises(ConfigError, match="openvino supports"):
        vitsplit.export(predictor, out=tmp_path / "out", formats=["openvino"], deform="native")
    with pytest.raises(DataError, match="--images"):
        vitsplit.export(predictor, out=tmp_path / "out", images=tmp_path)
    assert not (tmp_path / "out").exists()


def test_a_missing_package_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(OnnxFormat, "packages", ("a_package_that_is_not_there",))
    with pytest.raises(ExportError, match=r"a_package_that_is_not_there.*pip install 'vitsplit\[export\]'"):
        vitsplit.export(tiny_predictor(depth=2), out=tmp_path / "out")


def test_openvino_opens_no_connection(exported: tuple[Path, Any], tmp_path: Path) -> None:
    # Ends the process at once, from whatever thread a connection is opened.
    script = (
        "import os, sys, time\n"
        "EVENTS = ('socket.connect', 'socket.getaddrinfo')\n"
        "sys.addaudithook(lambda event, _: os._exit(3) if event in EVENTS else None)\n"
        "import openvino\n"
        f"openvino.save_model(openvino.Core().read_model('graph.xml'), {str(tmp_path / 'copy.xml')!r})\n"
        "openvino.Core().compile_model('graph.xml', 'CPU')\n"
        "time.sleep(1)\n"
    )
    subprocess.run([sys.executable, "-c", script], cwd=exported[0], check=True, timeout=120)


class Bright(torch.nn.Module):
    """The values of bright pixels, whose number depends on the image, as that of boxes does."""

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        return image[image > 100].float() * 2


def test_a_graph_of_objects_is_written_twice(tmp_path: Path) -> None:
    program = torch.export.export(Bright(), (torch.zeros(1, 3, 4, 6, dtype=torch.uint8),))
    traced, pixels = Traced("graph", program, ["image"], ["bright"], [], {}, 1), image(4, 6, batch=1)
    for number in range(2):
        onnx_format.write_onnx(traced, tmp_path / f"{number}.onnx")
        run = open_graphs(open_format("onnx"), [Written(tmp_path / f"{number}.onnx", ["image"], ["bright"])], {})
        assert np.array_equal(run(pixels.numpy())["bright"], pixels[pixels > 100].numpy() * 2.0)


class Depth(NamedTuple):
    """A predictor, its operators, and a function that writes the ONNX file of an operator set once."""

    predictor: Any
    traced: Traced
    write_onnx: Callable[..., None]


@pytest.fixture(scope="module")
def depth(tmp_path_factory: pytest.TempPathFactory) -> Depth:
    predictor, folder = tiny_predictor(tasks=("depth",), depth=2, method=SMALLEST), tmp_path_factory.mktemp("depth")
    traced, exported = trace(ExportGraph(predictor, deform="grid").eval(), None), onnx_format.write_onnx

    def write_onnx(_: Traced, path: Path, opset: int = onnx_format.OPSET) -> None:
        first = folder / f"{opset}.onnx"
        if not first.exists():
            exported(traced, first, opset)
        shutil.copy(first, path)

    return Depth(predictor, traced, write_onnx)


@pytest.mark.parametrize("format_name", ["onnx", "pt2"])
def test_a_wrong_weight_is_found_and_its_block_named(
    format_name: Any, depth: Depth, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    predictor, traced, _ = depth
    name = "model.blocks.0.mlp.fc1.bias"

    def write_wrong(traced: Any, path: Path) -> None:
        depth.write_onnx(traced, path)
        model = onnx.load(path)
        (bias,) = (each for each in model.graph.initializer if each.name == name)
        bias.CopyFrom(onnx.numpy_helper.from_array(onnx.numpy_helper.to_array(bias) + np.float32(1), name))
        onnx.save(model, path)

    monkeypatch.setattr(writing, "trace", lambda part, size: traced)
    monkeypatch.setattr(onnx_format, "write_onnx", write_wrong)
    if format_name == "pt2":
        weights = traced.program.state_dict
        monkeypatch.setitem(weights, name, torch.nn.Parameter(weights[name] + 1))
    with pytest.raises(ExportError, match=r"begins in backbone\.block0 "):
        vitsplit.export(predictor, out=tmp_path / "out", formats=[format_name], deform="grid")
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("format_name", ["onnx", "openvino"])
def test_half_precision(format_name: Any, depth: Depth, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Weights take half of the memory, and outputs are as far from float32 as the digits allow."""
    (predictor, traced, write_onnx), written = depth, open_format(format_name)
    monkeypatch.setattr(sys.modules[type(written).__module__], "write_onnx", write_onnx)
    pixels = image(50, 66)
    expected = model_outputs(predictor, pixels)["depth.depth"]
    bytes_of = {}
    for precision in set(written.precisions) - {"int8"}:  # see test_quantization
        folder = tmp_path / precision
        folder.mkdir()
        graph = written.write(traced, folder, precision)
        bytes_of[precision] = sum(path.stat().st_size for path in folder.iterdir() if path.suffix != ".xml")
        run = open_graphs(written, [graph], written.settings(precision))
        relative = np.abs(run(pixels.numpy())["depth.depth"] / expected - 1).mean()
        assert relative < {"fp32": 1e-5, "fp16": 3e-3, "bf16": 3e-2}[precision]
        assert precision == "fp32" or relative > 1e-5
    assert bytes_of["fp16"] < 0.75 * bytes_of["fp32"]


def test_a_precision_that_a_format_lacks_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="onnx supports fp32, fp16"):
        vitsplit.export(tiny_predictor(depth=2), out=tmp_path / "out", precision="bf16")
