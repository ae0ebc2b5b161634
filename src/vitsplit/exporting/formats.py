"""The formats of an exported graph: how each is written, opened and run."""

from __future__ import annotations

import hashlib
import importlib
import importlib.metadata
import importlib.util
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar, Literal, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch.export import Dim, ExportedProgram

from vitsplit.errors import ExportError
from vitsplit.exporting.graph import Deform, ExportGraph
from vitsplit.extras import require
from vitsplit.runtime.card import IMAGE, TAP

FormatName = Literal["onnx", "openvino", "pt2"]
Precision = Literal["fp32", "bf16", "fp16", "int8"]
Arrays = dict[str, NDArray[Any]]
Run = Callable[[NDArray[np.uint8]], Arrays]
"""Images, in the layout of the graph, to outputs and intermediate tensors by name."""

_LOCATIONS: Mapping[FormatName, str] = {
    "onnx": "vitsplit.exporting.onnx_format:OnnxFormat",
    "openvino": "vitsplit.exporting.openvino_format:OpenVinoFormat",
    "pt2": "vitsplit.exporting.torch_format:TorchFormat",
}


@dataclass(frozen=True)
class Traced:
    """A graph as PyTorch operators, with its weights.

    Attributes:
        name: See ``ExportGraph``.
        program: The operators. Its outputs are ``outputs``, followed by ``hidden``.
        inputs: Names of the inputs.
        outputs: Names of the outputs.
        hidden: Names of the intermediate tensors that are no outputs.
        steps: Names of all intermediate tensors, with those of the outputs or ``hidden`` that they are.
        smallest_side: Smallest height and width in pixels for which the operators were traced.
    """

    name: str
    program: ExportedProgram
    inputs: list[str]
    outputs: list[str]
    hidden: list[str]
    steps: Mapping[str, str]
    smallest_side: int


@dataclass(frozen=True)
class Written:
    """A graph in a file.

    Attributes:
        path: The file, see ``files_of`` for others beside it.
        inputs: Names of the inputs.
        outputs: Names of the outputs, in order.
        steps: Names of the intermediate tensors, with their names in the file; empty: they are not read.
    """

    path: Path
    inputs: Sequence[str]
    outputs: Sequence[str]
    steps: Mapping[str, str] = field(default_factory=dict)


class Format(Protocol):
    """A format, with the runtime that runs it.

    Attributes:
        deforms: Forms of the deformable convolutions that the runtime computes correctly, the fastest first.
        packages: Packages that writing and running require; the last is the runtime.
        extra: The extra of this package that installs them.
        precisions: Supported precisions.
        suffixes: Suffixes of the names of a graph's files: that which is opened, then those that it reads, if any.
    """

    deforms: ClassVar[tuple[Deform, ...]]
    packages: ClassVar[tuple[str, ...]]
    extra: ClassVar[str]
    precisions: ClassVar[tuple[Precision, ...]]
    suffixes: ClassVar[tuple[str, ...]]

    def write(self, traced: Traced, folder: Path, precision: Precision) -> Written:
        """Writes ``NAME.*`` into a folder.

        For int8 see ``writing.write_graphs``.
        """
        ...

    def settings(self, precision: Precision) -> dict[str, str]:
        """Settings of the runtime under which it computes in this precision."""
        ...

    def open(self, graph: Written, settings: Mapping[str, str], outputs: Sequence[str]) -> Callable[[Arrays], Arrays]:
        """Opens a written graph in its runtime, on the CPU: from its inputs to outputs and steps, by name.

        Args:
            graph: The graph. Of its steps, those are returned that the file has.
            settings: Output of ``settings``.
            outputs: The outputs to compute, in order.
        """
        ...

    def code(self, card: Mapping[str, Any]) -> str:
        """Python code that adds the outputs of all graphs to ``values``, which has the image, for the README.

        It is given ``card``, ``parts`` (the graphs in the card) and ``read``, the names that are needed.
        """
        ...


def open_format(name: FormatName) -> Format:
    """A format by its name.

    Raises:
        ExportError: A package that it requires is not installed.
    """
    module, _, attribute = _LOCATIONS[name].partition(":")
    found: type[Format] = getattr(importlib.import_module(module), attribute)
    require(f"--format {name}", *found.packages, extra=found.extra, error=ExportError)
    return found()


def open_graphs(each: Format, graphs: Sequence[Written], settings: Mapping[str, str]) -> Run:
    """Opens the graphs of an export, each of which reads outputs of those before it, as one function.

    Args:
        each: The format.
        graphs: The graphs.
        settings: See ``Format.open``.
    """
    read = {name for graph in graphs for name in graph.inputs}
    runs = [
        each.open(graph, settings, [name for name in graph.outputs if name in read or not name.startswith(TAP)])
        for graph in graphs
    ]

    def run(images: NDArray[np.uint8]) -> Arrays:
        values: Arrays = {IMAGE: images}
        for graph, run_graph in zip(graphs, runs, strict=True):
            values |= run_graph({name: values[name] for name in graph.inputs})
        return {name: value for name, value in values.items() if not name.startswith(TAP) and name != IMAGE}

    return run


def files_of(each: Format, graph: Written) -> list[Path]:
    """The files of a written graph, that of ``path`` first."""
    stem = graph.path.name.removesuffix(each.suffixes[0])
    files = (graph.path.with_name(f"{stem}{suffix}") for suffix in each.suffixes)
    return [path for path in files if path.is_file()]


def trace(graph: ExportGraph, size: tuple[int, int] | None) -> Traced:
    """Traces a graph to operators of PyTorch.

    Args:
        graph: The graph.
        size: Height and width of the input in pixels; None: any size, of more than one patch per side.

    Raises:
        ExportError: The graph cannot be traced, or a size of the input that should be free became a constant.
    """
    patch = graph.patch_size
    # An example that no size of a model equals, so that nothing is taken for a constant.
    height, width = size or (5 * patch + 3, 7 * patch + 5)
    batch = graph.batch or 3
    shape = (batch, 3, height, width) if graph.layout == "nchw" else (batch, height, width, 3)
    sides = (2, 3) if graph.layout == "nchw" else (1, 2)
    axes = (*([0] if graph.batch is None else []), *(sides if size is None else []))
    with torch.no_grad():
        image = torch.zeros(shape, dtype=torch.uint8)
        num_tokens = graph.num_prefix_tokens + math.prod(graph.grid(height, width))
        tokens = [torch.zeros(batch, num_tokens, graph.width) for _ in graph.inputs[1:]]
        graph(image, *tokens)
        hidden = list(graph.steps.tensors)
        of_tokens = dict.fromkeys([*([0] if graph.batch is None else []), *([1] if size is None else [])], Dim.AUTO)
        shapes: dict[str, Any] = {"image": dict.fromkeys(axes, Dim.AUTO)}
        if tokens:
            shapes["tokens"] = tuple(of_tokens for _ in tokens)
        program = torch.export.export(graph, (image, *tokens), dynamic_shapes=shapes, strict=False)
    graph.steps.tensors = {}
    (shape_of_input,) = (node.meta["val"].shape for node in program.graph.nodes if node.target == IMAGE)
    constant = [axis for axis in axes if isinstance(shape_of_input[axis], int)]
    if constant:
        raise ExportError(
            f"{', '.join(graph.tasks)}: axes {constant} of the input became constants, because a layer computes with "
            "their sizes outside of tensors. Give --size for a graph of one size, and report the message."
        )
    lowest = [program.range_constraints[shape_of_input[axis].node.expr].lower for axis in axes if axis]
    smallest = int(max(lowest)) if size is None else min(size)
    steps = graph.steps_in_outputs | {step: step for step in hidden}
    return Traced(graph.name, program, graph.inputs, graph.outputs, hidden, steps, smallest)


def file_hash(path: Path) -> str:
    """SHA-256 of a file, hexadecimal."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def versions(packages: Sequence[str]) -> dict[str, str]:
    """Versions of packages, by name. They are asked of the modules, which distributions of several names provide."""
    return {package: importlib.import_module(package).__version__ for package in packages}
