"""Backbone and heads as graphs of their own; the oracle is the model."""

from __future__ import annotations

import functools
import json
import operator
import re
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from PIL import Image
from tiny_backbones import image
from tiny_predictor import SMALLEST, tiny_predictor

import vitsplit
from vitsplit.errors import ConfigError, ExportError
from vitsplit.exporting import onnx_format, writing
from vitsplit.exporting.formats import Traced, files_of, open_format, open_graphs, trace
from vitsplit.exporting.graph import split_graph
from vitsplit.exporting.onnx_format import OnnxFormat
from vitsplit.exporting.parity import model_outputs
from vitsplit.exporting.writing import write_graphs
from vitsplit.inference.predictor import Predictor
from vitsplit.methods import MethodConfig
from vitsplit.methods.split.config import SplitConfig
from vitsplit.runtime import Runtime, sessions

pytestmark = pytest.mark.slow  # the exports of two heads
SIZES = [(50, 66), (42, 56), (71, 43)]
DEPTH = 2
"""Blocks of the backbone; the heads read the tokens after the first, and those after the second are not computed."""


def alone(predictor: Predictor, name: str) -> Predictor:
    """A predictor of one of the heads."""
    found = Predictor(predictor.backbone, "fp32")
    found.register(name, predictor[name])
    return found


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> tuple[Predictor, list[Path]]:
    """Two heads, and each exported alone, split, from a backbone that was built anew."""
    predictor, root = tiny_predictor(depth=DEPTH, method=SMALLEST), tmp_path_factory.mktemp("split")
    for name in predictor:
        again = tiny_predictor(depth=DEPTH, method=SMALLEST)
        vitsplit.export(alone(again, name), out=root / name, formats=["onnx", "openvino"], split=True, deform="grid")
    return predictor, [root / name for name in predictor]


def card_of(folder: Path) -> dict[str, Any]:
    card: dict[str, Any] = json.loads((folder / "card.json").read_text())
    return card


def test_graphs_of_pytorch(tmp_path: Path) -> None:
    """As for the other formats, whose folders are opened below."""
    predictor, each = tiny_predictor(tasks=("depth",), depth=DEPTH, method=SMALLEST), open_format("pt2")
    deform = each.deforms[0]
    parts = split_graph(predictor, layout="nchw", deform=deform)
    split = [replace(each.write(trace(part, None), tmp_path, "fp32"), steps={}) for part in parts]
    run = open_graphs(each, split, each.settings("fp32"))
    for batch, size in enumerate(SIZES, 1):
        pixels = image(*size, batch=batch)
        found, expected = run(pixels.numpy()), model_outputs(predictor, pixels)
        assert found.keys() == expected.keys()
        for output, value in expected.items():
            np.testing.assert_allclose(found[output], value, atol=1e-5, rtol=1e-5)
    again = split_graph(tiny_predictor(depth=DEPTH, method=SMALLEST), layout="nchw", deform=deform)[0]
    (tmp_path / "again").mkdir()
    backbone = each.write(trace(again, None), tmp_path / "again", "fp32")
    files = [[path.read_bytes() for path in files_of(each, graph)] for graph in (split[0], backbone)]
    assert files[0] == files[1], "the same file"


def test_the_card_says_what_each_graph_reads(folders: tuple[Predictor, list[Path]]) -> None:
    predictor, paths = folders
    for (head, loaded), folder in zip(predictor.items(), paths, strict=True):
        for graph in card_of(folder)["graphs"].values():
            backbone, part = graph["parts"]
            assert backbone["inputs"] == ["image"]
            assert backbone["outputs"] == [f"tap.tokens.{depth}" for depth in range(DEPTH + 1)]
            request = loaded.model.request(train=False)
            depths = sorted(request.tokens | {index + 1 for index in request.maps})
            assert part["inputs"] == ["image", *(f"tap.tokens.{depth}" for depth in depths)]
            assert all(output.startswith(f"{head}.") for output in part["outputs"])
            assert Path(part["files"][0]).stem == head
            assert {file for each in graph["parts"] for file in each["files"]} == graph["files"].keys()
            assert len({run["size"][0] for run in graph["parity"]["runs"]}) == 3


@pytest.mark.parametrize("number", [0, 1])
def test_the_code_of_the_readme(number: int, folders: tuple[Predictor, list[Path]], tmp_path: Path) -> None:
    predictor, (_, folder) = folders
    code = re.findall(r"```python\n(.*?)```", (folder / "README.md").read_text(), flags=re.DOTALL)[number]
    pixels = image(50, 66, batch=1)
    Image.fromarray(pixels[0].permute(1, 2, 0).numpy()).save(tmp_path / "photo.png")
    script = "import sys\nsys.modules['vitsplit'] = None\n" + code.replace("photo.jpg", str(tmp_path / "photo.png"))
    script += f"\nnp.savez({str(tmp_path / 'outputs.npz')!r}, **outputs)\n"
    subprocess.run([sys.executable, "-c", script], cwd=folder, check=True, timeout=120)
    found = np.load(tmp_path / "outputs.npz")
    np.testing.assert_allclose(found["depth.depth"], model_outputs(predictor, pixels)["depth.depth"], atol=1e-4)


@pytest.mark.parametrize("name", ["onnx", "openvino"])
def test_heads_that_were_exported_alone_share_the_backbone(
    name: Any, folders: tuple[Predictor, list[Path]], monkeypatch: pytest.MonkeyPatch
) -> None:
    predictor, paths = folders
    graphs = [card_of(folder)["graphs"][name] for folder in paths]
    backbones = [[graph["files"][file] for file in graph["parts"][0]["files"]] for graph in graphs]
    assert backbones[0] == backbones[1]
    runs: list[tuple[str, list[str]]] = []
    open_part = sessions._open_part

    def counted(part: Any, *rest: Any) -> Any:
        run = open_part(part, *rest)

        def run_part(values: Any, names: Any) -> Any:
            runs.append((part.files[0].stem, list(names)))
            return run(values, names)

        return run_part

    monkeypatch.setattr(sessions, "_open_part", counted)
    model = Runtime(paths, name)
    for batch, size in enumerate(SIZES, 1):
        runs.clear()
        pixels = image(*size, batch=batch)
        found = model.outputs(pixels.permute(0, 2, 3, 1).numpy())
        assert [part for part, _ in runs] == ["backbone", "segmentation", "depth"]
        expected = model_outputs(predictor, pixels)
        for index, each in enumerate(found):
            np.testing.assert_allclose(each["depth"]["depth"], expected["depth.depth"][index], atol=1e-4)
            logits = expected["segmentation.logits"][index]
            np.testing.assert_allclose(each["segmentation"]["logits"], logits, atol=1e-4)
    runs.clear()
    model.outputs(pixels.permute(0, 2, 3, 1).numpy(), ["depth"])
    request = predictor["depth"].model.request(train=False)
    assert [part for part, _ in runs] == ["backbone", "depth"]
    assert set(runs[0][1]) == {f"tap.tokens.{depth}" for depth in request.depths}
    together = vitsplit.load(*paths, runtime=name)
    photo = pixels[0].permute(1, 2, 0).numpy()
    np.testing.assert_allclose(
        together.predict(photo)["depth"].depth, predictor.predict(photo)["depth"].depth, atol=1e-4
    )


def test_folders_that_do_not_fit_together(folders: tuple[Predictor, list[Path]], tmp_path: Path) -> None:
    _, (rooms, depth) = folders
    with pytest.raises(ConfigError, match="have a head depth each"):
        Runtime([depth, rooms, depth])
    changed = card_of(rooms)
    for key, value, named in (
        (("input", "shape"), ["batch", 3, 50, 66], "--size"),
        (
            ("graphs",),
            {"openvino": card_of(rooms)["graphs"]["openvino"] | {"precision": "bf16"}},
            "precisions fp32 and",
        ),
        (("graphs",), {"pt2": card_of(rooms)["graphs"]["onnx"]}, "--format"),
        (("graphs", "onnx", "files", "backbone.onnx"), "0" * 64, "backbone are different files"),
    ):
        changed = card_of(rooms)
        *path, last = key
        functools.reduce(operator.getitem, path, changed)[last] = value
        (tmp_path / "card.json").write_text(json.dumps(changed))
        with pytest.raises(ConfigError, match=named):
            Runtime([depth, tmp_path])
    with pytest.raises(ConfigError, match="bundles"):
        vitsplit.load(depth, tmp_path / "bundle")


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        ({"files": ["absent.onnx"]}, "parts: 1"),
        ({"inputs": ["image", "tap.tokens.9"]}, "parts: 1"),
        ({"outputs": ["tap.tokens.1"]}, "parts: 1"),
        ({"outputs": ["another"]}, "no graph has the output"),
        ({"inputs": "image"}, "must be a list"),
        ({"files": ["../depth.onnx"]}, "parts: 1"),
    ],
    ids=str,
)
def test_untrusted_parts(
    changes: dict[str, Any], named: str, folders: tuple[Predictor, list[Path]], tmp_path: Path
) -> None:
    card = card_of(folders[1][1])
    card["graphs"]["onnx"]["parts"][1] |= changes
    (tmp_path / "card.json").write_text(json.dumps(card))
    with pytest.raises(ExportError, match=named):
        Runtime(tmp_path)


@pytest.mark.parametrize(
    ("kind", "method"),
    [
        ("dinov3-small", SMALLEST),
        ("sam-base", SplitConfig(num_tuned_layers=1, num_prior_layers=1, selection="last", tap_norm=False)),
        ("dinov2-small", MethodConfig.by_name("full-finetune")()),  # reads pixels, and no tokens
    ],
    ids=str,
)
def test_parts_in_pytorch(kind: str, method: Any) -> None:
    predictor = tiny_predictor(kind, depth=2, method=method)
    backbone, *heads = split_graph(predictor, layout="nchw", deform="grid")
    for size in SIZES:
        pixels = image(*size)
        values = dict(zip(backbone.outputs, backbone(pixels), strict=False))
        for head in heads:
            values |= zip(head.outputs, head(pixels, *(values[name] for name in head.inputs[1:])), strict=False)
        for name, expected in model_outputs(predictor, pixels).items():
            if not name.endswith("classes"):
                scale = max(1.0, float(abs(expected).max()))
                np.testing.assert_allclose(values[name].numpy(), expected, atol=3e-5 * scale)


@pytest.fixture(scope="module")
def exact(tmp_path_factory: pytest.TempPathFactory) -> tuple[Predictor, list[Traced], Path]:
    """A head, its parts, and the folder of their graphs in float32."""
    predictor, folder = tiny_predictor(tasks=("depth",), depth=2, method=SMALLEST), tmp_path_factory.mktemp("exact")
    parts = [trace(part, (50, 66)) for part in split_graph(predictor, layout="nchw", deform="native")]
    for part in parts:
        OnnxFormat().write(part, folder, "fp32")
    return predictor, parts, folder


@pytest.mark.parametrize("precision", ["fp16", "int8"])
def test_lower_precisions(
    precision: Any,
    exact: tuple[Predictor, list[Traced], Path],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    predictor, parts, folder = exact
    monkeypatch.setattr(onnx_format, "write_onnx", lambda part, path: shutil.copy(folder / path.name, path))
    graphs, rest = write_graphs(OnnxFormat(), parts, tmp_path, precision, lambda graphs: 0.0)
    assert rest == ({"in_fp32": []} if precision == "int8" else {})
    for graph in graphs:
        kinds = {weight.data_type for weight in onnx.load(graph.path).graph.initializer if len(weight.dims) == 2}
        assert (onnx.TensorProto.INT8 if precision == "int8" else onnx.TensorProto.FLOAT16) in kinds, graph.path.name
    pixels = image(50, 66)
    found = open_graphs(OnnxFormat(), graphs, {})(pixels.numpy())["depth.depth"]
    relative = np.abs(found / model_outputs(predictor, pixels)["depth.depth"] - 1).mean()
    assert 1e-5 < relative < (0.05 if precision == "int8" else 3e-3)


def test_an_error_in_a_head_is_found_there(
    exact: tuple[Predictor, list[Traced], Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    predictor, parts, folder = exact

    def write_wrong(part: Any, path: Path) -> None:
        model = onnx.load(folder / path.name)
        if part.name == "depth":
            (bias,) = (
                each for each in model.graph.initializer if each.name.endswith("task_head.blocks.0.mlp.fc1.bias")
            )
            bias.CopyFrom(onnx.numpy_helper.from_array(onnx.numpy_helper.to_array(bias) + np.float32(1), bias.name))
        onnx.save(model, path)

    by_name = {part.name: part for part in parts}
    monkeypatch.setattr(writing, "trace", lambda part, size: by_name[part.name])
    monkeypatch.setattr(onnx_format, "write_onnx", write_wrong)
    with pytest.raises(ExportError, match=r"begins in depth\.block1 "):
        vitsplit.export(predictor, out=tmp_path / "out", split=True, size=(50, 66))


def test_a_head_with_the_name_of_the_backbone(tmp_path: Path) -> None:
    predictor = tiny_predictor(tasks=("depth",), depth=2)
    renamed = Predictor(predictor.backbone, "fp32")
    renamed.register("backbone", predictor["depth"])
    with pytest.raises(ConfigError, match="--split"):
        vitsplit.export(renamed, out=tmp_path / "out", split=True)
