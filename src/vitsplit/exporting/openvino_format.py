"""OpenVINO IR, made from an ONNX file and run by OpenVINO.

Only ``openvino.Core`` is used: the converter of ``openvino.tools.ovc`` reports its use to a third party.
"""

from __future__ import annotations

import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import openvino
import torch
from numpy.typing import NDArray

from vitsplit.exporting.formats import Precision, Run, Traced
from vitsplit.exporting.graph import Deform
from vitsplit.exporting.onnx_format import write_onnx

OPSET = 18
"""Before 2026.4, OpenVINO does not know the modes of GridSample of 20."""
FILE = "graph.xml"
"""Beside it is ``graph.bin``, with the weights: in half precision, unless the graph is in fp32."""


class OpenVinoFormat:
    """See ``formats.Format``."""

    deforms: ClassVar[tuple[Deform, ...]] = ("grid",)
    packages: ClassVar[tuple[str, ...]] = ("onnx", "onnxscript", "onnxruntime", "openvino")
    extra: ClassVar[str] = "openvino"
    precisions: ClassVar[tuple[Precision, ...]] = ("fp32", "bf16", "fp16")

    def write(self, traced: Traced, folder: Path, precision: Precision) -> dict[str, str]:
        """See ``formats.Format``."""
        with tempfile.TemporaryDirectory(dir=folder) as temporary:
            path = Path(temporary) / "graph.onnx"
            write_onnx(traced, path, OPSET)
            model = openvino.Core().read_model(path)
            openvino.save_model(model, folder / FILE, compress_to_fp16=precision != "fp32")
        return {step: step for step in traced.steps}

    def settings(self, precision: Precision) -> dict[str, str]:
        """See ``formats.Format``. Without the hint, OpenVINO computes in bf16 on CPUs that have it.

        Weights in fp16 are computed with in float32, which is faster on CPUs than fp16.
        """
        return {"INFERENCE_PRECISION_HINT": "bf16" if precision == "bf16" else "f32"}

    def open(
        self, folder: Path, outputs: Sequence[str], settings: Mapping[str, str], steps: Mapping[str, str] | None = None
    ) -> Run:
        """See ``formats.Format``."""
        core = openvino.Core()
        model = core.read_model(folder / FILE)
        names = dict(steps or {})
        known = {name for node in model.get_ordered_ops() for port in node.outputs() for name in port.get_names()}
        names = {step: value for step, value in names.items() if value in known}
        if names:
            model.add_outputs(list(names.values()))
        compiled = core.compile_model(model, "CPU", {**settings, "INFERENCE_NUM_THREADS": str(torch.get_num_threads())})
        requested = {name: compiled.output(name) for name in outputs}
        requested |= {step: compiled.output(value) for step, value in names.items()}

        def run(images: NDArray[np.uint8]) -> dict[str, NDArray[Any]]:
            found = compiled(images)
            return {name: found[port] for name, port in requested.items()}

        return run

    def code(self, card: Mapping[str, Any]) -> str:
        """See ``formats.Format``."""
        return (
            'settings = card["graphs"]["openvino"]["settings"]\n'
            f'model = openvino.Core().compile_model("{FILE}", "CPU", settings)\n'
            "outputs = {output.get_any_name(): value for output, value in model(pixels).items()}\n"
        )
