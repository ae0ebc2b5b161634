"""OpenVINO IR, made from an ONNX file and run by OpenVINO.

Only ``openvino.Core`` is used, without telemetry: see ``import_openvino``.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar

import torch

from vitsplit.exporting.formats import Arrays, Precision, Traced, Written
from vitsplit.exporting.graph import Deform
from vitsplit.exporting.onnx_format import write_onnx
from vitsplit.runtime.sessions import import_openvino

openvino = import_openvino()

OPSET = 18
"""Before 2026.4, OpenVINO does not know the modes of GridSample of 20."""
SUFFIXES = (".xml", ".bin")
"""The graph, and its weights: in half precision, unless the graph is in fp32."""


class OpenVinoFormat:
    """See ``formats.Format``."""

    deforms: ClassVar[tuple[Deform, ...]] = ("grid",)
    packages: ClassVar[tuple[str, ...]] = ("onnx", "onnxscript", "onnxruntime", "openvino")
    extra: ClassVar[str] = "openvino"
    precisions: ClassVar[tuple[Precision, ...]] = ("fp32", "bf16", "fp16")

    suffixes: ClassVar[tuple[str, ...]] = SUFFIXES

    def write(self, traced: Traced, folder: Path, precision: Precision) -> Written:
        """See ``formats.Format``."""
        path = folder / f"{traced.name}{SUFFIXES[0]}"
        with tempfile.TemporaryDirectory(dir=folder) as temporary:
            exact = Path(temporary) / "graph.onnx"
            write_onnx(traced, exact, OPSET)
            model = openvino.Core().read_model(exact)
            _name_nodes(model)
            openvino.save_model(model, path, compress_to_fp16=precision != "fp32")
        return Written(path, traced.inputs, traced.outputs, traced.steps)

    def settings(self, precision: Precision) -> dict[str, str]:
        """See ``formats.Format``. Without the hint, OpenVINO computes in bf16 on CPUs that have it.

        Weights in fp16 are computed with in float32, which is faster on CPUs than fp16.
        """
        return {"INFERENCE_PRECISION_HINT": "bf16" if precision == "bf16" else "f32"}

    def open(self, graph: Written, settings: Mapping[str, str], outputs: Sequence[str]) -> Callable[[Arrays], Arrays]:
        """See ``formats.Format``."""
        core = openvino.Core()
        model = core.read_model(graph.path)
        known = {name for node in model.get_ordered_ops() for port in node.outputs() for name in port.get_names()}
        steps = {step: value for step, value in graph.steps.items() if value in known}
        names = {name: name for name in outputs} | steps
        # A graph of these outputs only, since all outputs of a compiled graph are computed.
        model = openvino.Model([model.output(name) for name in outputs], model.get_parameters())
        if hidden := set(steps.values()) - set(outputs):
            model.add_outputs(sorted(hidden))
        compiled = core.compile_model(model, "CPU", {**settings, "INFERENCE_NUM_THREADS": str(torch.get_num_threads())})
        requested = {name: compiled.output(value) for name, value in names.items()}

        def run(values: Arrays) -> Arrays:
            found = compiled(values)
            return {name: found[port] for name, port in requested.items()}

        return run

    def code(self, card: Mapping[str, Any]) -> str:
        """See ``formats.Format``."""
        return (
            "core = openvino.Core()\n"
            "for part in parts:\n"
            '    model = core.read_model(part["files"][0])\n'
            '    names = [name for name in part["outputs"] if name in read]\n'
            "    model = openvino.Model([model.output(name) for name in names], model.get_parameters())\n"
            '    model = core.compile_model(model, "CPU", card["graphs"]["openvino"]["settings"])\n'
            '    found = model({name: values[name] for name in part["inputs"]})\n'
            "    values.update((name, found[name]) for name in names)\n"
        )


def _name_nodes(model: Any) -> None:
    """Names nodes by their place, since OpenVINO numbers them through all graphs of a process."""
    for index, node in enumerate(model.get_ordered_ops()):
        if node.get_type_name() not in ("Parameter", "Result"):
            node.set_friendly_name(f"{node.get_type_name()}_{index}")
