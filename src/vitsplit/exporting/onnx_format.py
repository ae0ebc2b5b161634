"""ONNX, run by ONNX Runtime."""

from __future__ import annotations

import sys
import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import onnx
import onnx_ir
import onnxruntime
import torch
from numpy.typing import NDArray
from onnx_ir.passes.common import ClearMetadataAndDocStringPass, DeduplicateInitializersPass

from vitsplit.exporting.formats import Precision, Run, Traced
from vitsplit.exporting.graph import Deform
from vitsplit.version import __version__

FILE = "graph.onnx"
EMBEDDING = "backbone.embedding"
"""The step whose tensor ends the embedding."""
HALF_OPERATORS = frozenset({"Conv", "ConvTranspose", "Gemm", "MatMul"})
"""Operators that fp16 graphs compute in half precision."""
OPSET = 20
"""The first with Gelu; DeformConv is of 19."""


class OnnxFormat:
    """See ``formats.Format``."""

    deforms: ClassVar[tuple[Deform, ...]] = ("native", "grid")
    packages: ClassVar[tuple[str, ...]] = ("onnx", "onnxscript", "onnxruntime")
    extra: ClassVar[str] = "export"
    precisions: ClassVar[tuple[Precision, ...]] = ("fp32", "fp16", "int8")

    def write(self, traced: Traced, folder: Path, precision: Precision) -> dict[str, str]:
        """See ``formats.Format``."""
        assert precision != "int8", "see writing.write_graph"
        write_onnx(traced, folder / FILE)
        if precision == "fp16":
            onnx.save(in_half_precision(onnx.load(folder / FILE)), folder / FILE)
        return {step: step for step in traced.steps}

    def settings(self, precision: Precision) -> dict[str, str]:
        """See ``formats.Format``."""
        return {}

    def open(
        self, folder: Path, outputs: Sequence[str], settings: Mapping[str, str], steps: Mapping[str, str] | None = None
    ) -> Run:
        """See ``formats.Format``."""
        path, names = folder / FILE, dict(steps or {})
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = torch.get_num_threads()
        model: Any = str(path)
        if names:
            proto = onnx.load(path)
            known = {value for node in proto.graph.node for value in node.output}
            names = {step: value for step, value in names.items() if value in known}
            proto.graph.output.extend(onnx.helper.make_empty_tensor_value_info(value) for value in names.values())
            model = proto.SerializeToString()
        session = onnxruntime.InferenceSession(model, options, providers=["CPUExecutionProvider"])
        requested = {name: name for name in outputs} | names

        def run(images: NDArray[np.uint8]) -> dict[str, NDArray[Any]]:
            return dict(zip(requested, session.run(list(requested.values()), {"image": images}), strict=True))

        return run

    def code(self, card: Mapping[str, Any]) -> str:
        """See ``formats.Format``."""
        return (
            f'session = onnxruntime.InferenceSession("{FILE}")\n'
            "names = [output.name for output in session.get_outputs()]\n"
            'outputs = dict(zip(names, session.run(names, {"image": pixels})))\n'
        )


def write_onnx(traced: Traced, path: Path, opset: int = OPSET) -> None:
    """Writes a traced graph as an ONNX file, with its weights inside unless they exceed the format's 2 GB.

    Intermediate tensors keep the names of the steps, but are not outputs.
    """
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # on names of symbolic sizes, which are set here
        program = torch.onnx.export(
            traced.program,
            dynamo=True,
            verbose=False,
            opset_version=opset,
            input_names=["image"],
            output_names=[*traced.outputs, *traced.steps],
        )
    assert program is not None
    model: Any = program.model
    graph = model.graph
    del graph.outputs[len(traced.outputs) :]
    DeduplicateInitializersPass(size_limit=sys.maxsize)(model)  # such as blocks that heads share with the backbone
    _transpose_weights(graph)
    _name_sizes(graph)
    # The exporter records the source files, with their paths, of every operator.
    ClearMetadataAndDocStringPass()(model)
    model.producer_name, model.producer_version = "vitsplit", __version__
    program.save(path)


def _transpose_weights(graph: Any) -> None:
    """Replaces each transposed weight by one that is stored transposed, instead of one that every start transposes."""
    stored: dict[str, Any] = {}
    for node in list(graph):
        if node.op_type != "Transpose" or node.inputs[0].name not in graph.initializers:
            continue
        weight, order = node.inputs[0], tuple(node.attributes["perm"].as_ints())
        name = f"{weight.name}.transposed_{'_'.join(map(str, order))}"
        if name not in stored:
            array = np.ascontiguousarray(weight.const_value.numpy().transpose(order))
            stored[name] = onnx_ir.Value(name=name, const_value=onnx_ir.tensor(array, name=name))
            stored[name].shape, stored[name].dtype = onnx_ir.Shape(array.shape), weight.dtype
            graph.register_initializer(stored[name])
        onnx_ir.convenience.replace_all_uses_with(node.outputs[0], stored[name])
        graph.remove(node, safe=True)
        if not weight.uses():
            del graph.initializers[weight.name]


def _name_sizes(graph: Any) -> None:
    """Names the symbolic sizes of the input: batch, height and width."""
    (image,) = graph.inputs
    sides = ("batch", "height", "width")
    places = (0, 2, 3) if image.shape[1] == 3 else (0, 1, 2)
    renamed = {
        str(image.shape[place]): name
        for place, name in zip(places, sides, strict=True)
        if not isinstance(image.shape[place], int)
    }
    for value in [*graph.inputs, *(output for node in graph for output in node.outputs)]:
        if value.shape is not None:
            for place, size in enumerate(value.shape):
                if str(size) in renamed:
                    value.shape[place] = renamed[str(size)]


def in_half_precision(model: Any) -> Any:
    """Converts matrix products and convolutions, with their weights, to fp16, in place.

    All else stays float32, as in a backbone in half precision: norms, softmax, the residual stream, positions, and the
    offsets of deformable convolutions.
    """
    graph = model.graph
    weights = {each.name: each for each in graph.initializer}
    half_of: dict[str, str] = {}
    nodes: list[Any] = []
    embedded = False
    for node in graph.node:
        # Before the end of the embedding, matrix products are those of positions; that of the patches is a convolution.
        is_exact = any(".offset." in name for name in node.input) or (node.op_type == "MatMul" and not embedded)
        embedded = embedded or EMBEDDING in node.output
        if node.op_type not in HALF_OPERATORS or is_exact:
            nodes.append(node)
            continue
        for place, name in enumerate(node.input):
            if name and name not in half_of:
                half_of[name] = f"{name}.half"
                if name in weights:
                    value = onnx.numpy_helper.to_array(weights[name]).astype(np.float16)
                    graph.initializer.append(onnx.numpy_helper.from_array(value, half_of[name]))
                else:
                    nodes.append(_cast(name, half_of[name], onnx.TensorProto.FLOAT16))
            node.input[place] = half_of[name] if name else ""
        (output,) = node.output
        node.output[0] = f"{output}.of_half"
        nodes += [node, _cast(node.output[0], output, onnx.TensorProto.FLOAT)]
    used = {name for node in nodes for name in node.input}
    kept = [each for each in graph.initializer if each.name in used]
    del graph.node[:], graph.initializer[:]
    graph.node.extend(nodes)
    graph.initializer.extend(kept)
    return model


def store_in_half_precision(model: Any) -> Any:
    """Stores float32 weights of at least two axes in fp16, in place; the graph casts them and computes in float32."""
    graph = model.graph
    for weight in graph.initializer:
        if weight.data_type == onnx.TensorProto.FLOAT and len(weight.dims) > 1:
            name, value = weight.name, onnx.numpy_helper.to_array(weight).astype(np.float16)
            weight.CopyFrom(onnx.numpy_helper.from_array(value, f"{name}.half"))
            graph.node.insert(0, _cast(weight.name, name, onnx.TensorProto.FLOAT))
    return model


def _cast(source: str, target: str, kind: int) -> Any:
    return onnx.helper.make_node("Cast", [source], [target], name=f"{target}.cast", to=kind)
