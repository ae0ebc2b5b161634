"""int8 graphs: the weights against their definition, and the choice of what stays in float32 on planted distances."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
from tiny_backbones import image
from tiny_predictor import tiny_predictor

from vitsplit.exporting import onnx_format
from vitsplit.exporting.formats import Traced, Written, files_of, open_graphs, trace
from vitsplit.exporting.graph import ExportGraph
from vitsplit.exporting.onnx_format import OnnxFormat
from vitsplit.exporting.parity import model_outputs
from vitsplit.exporting.quantization import REST, keep_sensitive, products_by_step, quantize
from vitsplit.exporting.writing import write_graphs
from vitsplit.inference.predictor import Predictor

FILE = "graph.onnx"


def tensors(path: Path) -> dict[str, np.ndarray]:
    return {each.name: onnx.numpy_helper.to_array(each) for each in onnx.load(path).graph.initializer}


@pytest.fixture(scope="module")
def predictor() -> Predictor:
    return tiny_predictor(depth=3)


@pytest.fixture(scope="module")
def traced(predictor: Predictor) -> Traced:
    return trace(ExportGraph(predictor, deform="native").eval(), (50, 66))


@pytest.fixture(scope="module")
def exact(
    predictor: Predictor, traced: Traced, tmp_path_factory: pytest.TempPathFactory
) -> tuple[Path, list[str], object]:
    folder = tmp_path_factory.mktemp("exact")
    return OnnxFormat().write(traced, folder, "fp32").path, list(traced.steps), predictor


def test_weights_are_rounded_to_a_step_per_output_channel(
    exact: tuple[Path, list[str], object], tmp_path: Path
) -> None:
    path, steps, predictor = exact
    groups = products_by_step(path, steps)
    quantize(path, tmp_path / FILE, [product for group in groups.values() for product in group])
    weights, quantized = tensors(path), tensors(tmp_path / FILE)
    found = [name.removesuffix("_quantized") for name, value in quantized.items() if value.dtype == np.int8]
    found = [name for name in found if name in weights and weights[name].ndim == 2]
    # Four products of each of 3 frozen and 2 x 2 tuned blocks, of which the heads share none.
    assert len(found) >= 4 * (3 + 2 * 2)
    for name in found:
        weight, scale = weights[name], quantized[f"{name}_scale"]
        assert scale.shape == (weight.shape[1],)
        np.testing.assert_allclose(scale, np.abs(weight).max(0) / 127, rtol=0.02)
        assert (np.abs(quantized[f"{name}_quantized"] * scale - weight) <= scale * 0.51).all()
    outputs = list(model_outputs(predictor, image(50, 66, batch=1)))  # type: ignore[arg-type]
    run = open_graphs(OnnxFormat(), [Written(tmp_path / FILE, ["image"], outputs)], {})
    pixels = image(50, 66, batch=2)
    expected, got = model_outputs(predictor, pixels), run(pixels.numpy())  # type: ignore[arg-type]
    assert np.abs(got["depth.depth"] / expected["depth.depth"] - 1).mean() < 0.05


def test_products_with_several_matrices_stay_in_float32(tmp_path: Path) -> None:
    # As of SAM's relative positions. ONNX Runtime refuses them in int8 when they run.
    pixels = np.random.default_rng(0)
    weights = {"one": pixels.random((8, 8), np.float32), "several": pixels.random((3, 8, 5), np.float32)}
    make = onnx.helper.make_node
    nodes = [make("MatMul", ["x", "one"], ["y"], "first"), make("MatMul", ["y", "several"], ["z"], "second")]
    values = [
        onnx.helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, shape)
        for name, shape in (("x", [3, 4, 8]), ("z", [3, 4, 5]))
    ]
    constants = [onnx.numpy_helper.from_array(value, name) for name, value in weights.items()]
    graph = onnx.helper.make_graph(nodes, "graph", values[:1], values[1:], constants)
    onnx.save(
        onnx.helper.make_model(graph, ir_version=10, opset_imports=[onnx.helper.make_opsetid("", 20)]),
        tmp_path / "exact.onnx",
    )
    products = products_by_step(tmp_path / "exact.onnx", [])
    assert products == {REST: ["first"]}
    quantize(tmp_path / "exact.onnx", tmp_path / FILE, products[REST])
    session = onnxruntime.InferenceSession(str(tmp_path / FILE))
    x = pixels.random((3, 4, 8), np.float32)
    (found,) = session.run(None, {"x": x})
    np.testing.assert_allclose(found, x @ weights["one"] @ weights["several"], rtol=0.03)


def test_groups_are_those_of_the_blocks_in_order(exact: tuple[Path, list[str], object]) -> None:
    path, steps, _ = exact
    groups = products_by_step(path, steps)
    for block in range(3):
        assert len(groups[f"backbone.block{block}"]) == 4  # qkv, projection and two of the MLP
    assert [name for name in groups if name != REST] == [step for step in steps if step in groups]
    graph = onnx.load(path).graph
    weighted = {each.name for each in graph.initializer}
    every = [node.name for node in graph.node if node.op_type == "MatMul" and node.input[1] in weighted]
    assert [product for group in groups.values() for product in group] == every


def test_only_what_is_asked_for_is_quantized(exact: tuple[Path, list[str], object], tmp_path: Path) -> None:
    path, steps, _ = exact
    groups = products_by_step(path, steps)
    quantize(path, tmp_path / FILE, groups["backbone.block1"])
    names = [node.name for node in onnx.load(tmp_path / FILE).graph.node]
    assert all(name not in names for name in groups["backbone.block1"])
    assert all(name in names for name in groups["backbone.block0"])


@pytest.mark.parametrize(
    ("harms", "kept"),
    [
        ({"a": 0.2, "b": 0.3, "c": 0.1, "d": 0.3}, []),
        ({"a": 0.2, "b": 3.0, "c": 0.1, "d": 0.3}, ["b"]),
        ({"a": 0.8, "b": 3.0, "c": 0.1, "d": 0.3}, ["b", "a"]),
        ({"a": 2.0, "b": 3.0, "c": 4.0, "d": 5.0}, ["d", "c"]),  # at most half, whatever is reached
    ],
    ids=str,
)
def test_the_most_harmful_groups_are_kept(harms: dict[str, float], kept: list[str]) -> None:
    written: list[set[str]] = []
    groups = {name: [name] for name in harms}
    found = keep_sensitive(
        groups, lambda each: written.append(set(each)), lambda: sum(harms[name] for name in written[-1])
    )
    assert found == kept
    assert written[-1] == harms.keys() - set(kept)
    if not kept:
        assert written == [set(harms)], "nothing is measured without need"


def test_weights_are_stored_as_they_are_multiplied(exact: tuple[Path, list[str], object]) -> None:
    graph = onnx.load(exact[0]).graph
    weights = {each.name for each in graph.initializer}
    assert not [node.name for node in graph.node if node.op_type == "Transpose" and node.input[0] in weights]


@pytest.mark.parametrize("precision", ["fp32", "fp16", "int8"])
def test_weights_beyond_the_size_of_a_file_are_beside_it(
    precision: Any,
    traced: Traced,
    exact: tuple[Path, list[str], object],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """As for models of more than 2 GB, by a lower limit. One file is written by the exporter, the others are copied."""
    if precision != "fp32":
        monkeypatch.setattr(onnx_format, "write_onnx", lambda _, path: onnx_format.save(onnx.load(exact[0]), path))
    pixels, values = image(50, 66), []
    for name, limit in (("inside", onnx_format.LARGEST_FILE), ("beside", 10_000)):
        monkeypatch.setattr(onnx_format, "LARGEST_FILE", limit)
        folder = tmp_path / name
        folder.mkdir()
        if precision == "fp32" and name == "inside":
            graph = Written(folder / FILE, traced.inputs, traced.outputs, traced.steps)
            shutil.copy(exact[0], graph.path)
        else:
            (graph,), _ = write_graphs(OnnxFormat(), [traced], folder, precision, lambda graphs: 0.0)
        assert len(files_of(OnnxFormat(), graph)) == (1 if name == "inside" else 2) == len(list(folder.iterdir()))
        found = open_graphs(OnnxFormat(), [graph], {})(pixels.numpy())
        assert set(graph.steps) & set(found), "steps are read too"
        values.append(found["depth.depth"])
    assert graph.path.stat().st_size < 0.5 * (tmp_path / "inside" / "graph.onnx").stat().st_size
    np.testing.assert_array_equal(*values)
