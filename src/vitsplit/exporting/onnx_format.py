"""ONNX, run by ONNX Runtime."""

from __future__ import annotations

import contextlib
import sys
import tempfile
import warnings
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import onnx
import onnx_ir
import onnxruntime
import torch
from onnx_ir.passes.common import ClearMetadataAndDocStringPass, DeduplicateInitializersPass
from torch.export import ExportedProgram

from vitsplit.exporting.formats import Arrays, Precision, Traced, Written
from vitsplit.exporting.graph import Deform
from vitsplit.runtime.card import IMAGE, TAP
from vitsplit.version import __version__

SUFFIX = ".onnx"
EMBEDDING = (".embedding", f"{TAP}0")
"""Suffixes of the name of the tensor that ends the embedding, a step or an output."""
LARGEST_FILE = (1 << 31) - (1 << 20)
"""Bytes of weights that are in the ONNX file itself, whose format is limited to 2 GB; more are in a file beside it."""
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

    suffixes: ClassVar[tuple[str, ...]] = (SUFFIX, f"{SUFFIX}.data")

    def write(self, traced: Traced, folder: Path, precision: Precision) -> Written:
        """See ``formats.Format``."""
        assert precision != "int8", "see writing.write_graphs"
        path = folder / f"{traced.name}{SUFFIX}"
        write_onnx(traced, path)
        if precision == "fp16":
            save(in_half_precision(onnx.load(path)), path)
        return Written(path, traced.inputs, traced.outputs, traced.steps)

    def settings(self, precision: Precision) -> dict[str, str]:
        """See ``formats.Format``."""
        return {}

    def open(self, graph: Written, settings: Mapping[str, str], outputs: Sequence[str]) -> Callable[[Arrays], Arrays]:
        """See ``formats.Format``."""
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = torch.get_num_threads()
        steps: dict[str, str] = {}
        with contextlib.ExitStack() as stack:
            path = graph.path
            if graph.steps:
                proto = onnx.load(path, load_external_data=False)
                known = {value for node in proto.graph.node for value in node.output}
                steps = {step: value for step, value in graph.steps.items() if value in known}
                hidden = set(steps.values()) - {each.name for each in proto.graph.output}
                proto.graph.output.extend(map(onnx.helper.make_empty_tensor_value_info, sorted(hidden)))
                # Beside its weights, which may be in a file of their own.
                file = stack.enter_context(tempfile.NamedTemporaryFile(suffix=SUFFIX, dir=path.parent))
                path = Path(file.name)
                path.write_bytes(proto.SerializeToString())
            session = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
        requested = {name: name for name in outputs} | steps
        run_options = onnxruntime.RunOptions()
        run_options.only_execute_path_to_fetches = True

        def run(values: Arrays) -> Arrays:
            return dict(zip(requested, session.run(list(requested.values()), values, run_options), strict=True))

        return run

    def code(self, card: Mapping[str, Any]) -> str:
        """See ``formats.Format``."""
        return (
            "options = onnxruntime.RunOptions()\n"
            "options.only_execute_path_to_fetches = True\n"
            "for part in parts:\n"
            '    session = onnxruntime.InferenceSession(part["files"][0])\n'
            '    names = [name for name in part["outputs"] if name in read]\n'
            '    inputs = {name: values[name] for name in part["inputs"]}\n'
            "    values.update(zip(names, session.run(names, inputs, options)))\n"
        )


def save(model: Any, path: Path) -> None:
    """Saves a graph as an ONNX file, with its weights in ``NAME.onnx.data`` if they exceed ``LARGEST_FILE``."""
    data = path.with_name(f"{path.name}.data")
    data.unlink(missing_ok=True)  # onnx appends to it
    large = sum(len(each.raw_data) for each in model.graph.initializer) > LARGEST_FILE
    onnx.save(model, path, save_as_external_data=large, location=data.name)


def write_onnx(traced: Traced, path: Path, opset: int = OPSET) -> None:
    """Writes a traced graph as an ONNX file, with its weights inside unless they exceed ``LARGEST_FILE``.

    Intermediate tensors keep the names of the steps, but are not outputs.
    """
    _forget_pending_sizes(traced.program)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # on names of symbolic sizes, which are set here
        program = torch.onnx.export(
            traced.program,
            dynamo=True,
            verbose=False,
            opset_version=opset,
            input_names=traced.inputs,
            output_names=[*traced.outputs, *traced.hidden],
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
    large = sum(each.const_value.nbytes for each in graph.initializers.values()) > LARGEST_FILE
    program.save(path, external_data=large)


def _forget_pending_sizes(program: ExportedProgram) -> None:
    """Forgets sizes that depend on values, such as counts of boxes, of an earlier export of the same program.

    PyTorch keeps them as pending, and refuses the next export since they are in none of its outputs.
    """
    (image,) = (node for node in program.graph.nodes if node.target == IMAGE)
    image.meta["val"].fake_mode.shape_env.pending_fresh_unbacked_symbols.clear()


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
    """Names the symbolic sizes of the inputs: batch, height and width of the images, and the number of tokens."""
    image, *taps = graph.inputs
    places = (0, 2, 3) if image.shape[1] == 3 else (0, 1, 2)
    sizes = [(image.shape[place], name) for place, name in zip(places, ("batch", "height", "width"), strict=True)]
    sizes += [(tap.shape[place], name) for tap in taps for place, name in enumerate(("batch", "tokens"))]
    renamed = {str(size): name for size, name in sizes if not isinstance(size, int)}
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
    embedded = not any(_ends_embedding(node) for node in graph.node)
    for node in graph.node:
        # Before the end of the embedding, matrix products are those of positions; that of the patches is a convolution.
        is_exact = any(".offset." in name for name in node.input) or (node.op_type == "MatMul" and not embedded)
        embedded = embedded or _ends_embedding(node)
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


def _ends_embedding(node: Any) -> bool:
    return any(name.endswith(EMBEDDING) for name in node.output)


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
