"""The formats of an exported graph: how each is written, opened and run."""

from __future__ import annotations

import hashlib
import importlib
import importlib.metadata
import importlib.util
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, Literal, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch.export import Dim, ExportedProgram

from vitsplit.errors import ExportError
from vitsplit.exporting.graph import Deform, ExportGraph

FormatName = Literal["onnx", "openvino", "pt2"]
Precision = Literal["fp32", "bf16", "fp16", "int8"]
Run = Callable[[NDArray[np.uint8]], dict[str, NDArray[Any]]]
"""Images, in the layout of the graph, to outputs by name."""

_LOCATIONS: Mapping[FormatName, str] = {
    "onnx": "vitsplit.exporting.onnx_format:OnnxFormat",
    "openvino": "vitsplit.exporting.openvino_format:OpenVinoFormat",
    "pt2": "vitsplit.exporting.torch_format:TorchFormat",
}


@dataclass(frozen=True)
class Traced:
    """A graph as PyTorch operators, with its weights.

    Attributes:
        program: The operators. Its outputs are ``outputs``, followed by ``steps``.
        outputs: Names of the outputs.
        steps: Names of the intermediate tensors.
        smallest_side: Smallest height and width in pixels for which the operators were traced.
    """

    program: ExportedProgram
    outputs: list[str]
    steps: list[str]
    smallest_side: int


class Format(Protocol):
    """A format, with the runtime that runs it.

    Attributes:
        deforms: Forms of the deformable convolutions that the runtime computes correctly, the fastest first.
        packages: Packages that writing and running require; the last is the runtime.
        extra: The extra of this package that installs them.
        precisions: Supported precisions.
    """

    deforms: ClassVar[tuple[Deform, ...]]
    packages: ClassVar[tuple[str, ...]]
    extra: ClassVar[str]
    precisions: ClassVar[tuple[Precision, ...]]

    def write(self, traced: Traced, folder: Path, precision: Precision) -> dict[str, str]:
        """Writes ``graph.*`` into a folder; returns the name of each step in the file.

        For int8 see ``writing.write_graph``.
        """
        ...

    def settings(self, precision: Precision) -> dict[str, str]:
        """Settings of the runtime under which it computes in this precision."""
        ...

    def open(
        self, folder: Path, outputs: Sequence[str], settings: Mapping[str, str], steps: Mapping[str, str] | None = None
    ) -> Run:
        """Opens a written graph in its runtime, on the CPU.

        Args:
            folder: Its folder.
            outputs: Names of the outputs, in their order.
            settings: Output of ``settings``.
            steps: Output of ``write``: intermediate tensors that become outputs too, as far as the file has them.
        """
        ...

    def code(self, card: Mapping[str, Any]) -> str:
        """Python code that computes ``outputs`` (name to array) from ``pixels`` and ``card``, for the README."""
        ...


def open_format(name: FormatName) -> Format:
    """A format by its name.

    Raises:
        ExportError: A package that it requires is not installed.
    """
    module, _, attribute = _LOCATIONS[name].partition(":")
    found: type[Format] = getattr(importlib.import_module(module), attribute)
    missing = [package for package in found.packages if importlib.util.find_spec(package) is None]
    if missing:
        raise ExportError(f"--format {name} needs {' and '.join(missing)}: pip install 'vitsplit[{found.extra}]'.")
    return found()


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
        graph(image)
        steps = list(graph.steps.tensors)
        program = torch.export.export(
            graph, (image,), dynamic_shapes={"image": dict.fromkeys(axes, Dim.AUTO)}, strict=False
        )
    graph.steps.tensors = {}
    (shape_of_input,) = (node.meta["val"].shape for node in program.graph.nodes if node.target == "image")
    constant = [axis for axis in axes if isinstance(shape_of_input[axis], int)]
    if constant:
        raise ExportError(
            f"{', '.join(graph.tasks)}: axes {constant} of the input became constants, because a layer computes with "
            "their sizes outside of tensors. Give --size for a graph of one size, and report the message."
        )
    lowest = [program.range_constraints[shape_of_input[axis].node.expr].lower for axis in axes if axis]
    return Traced(program, graph.outputs, steps, int(max(lowest)) if size is None else min(size))


def file_hash(path: Path) -> str:
    """SHA-256 of a file, hexadecimal."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def versions(packages: Sequence[str]) -> dict[str, str]:
    """Versions of packages, by name."""
    return {package: importlib.metadata.version(package) for package in packages}
