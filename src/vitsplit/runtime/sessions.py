"""ONNX Runtime and OpenVINO: the graphs of a folder as a function from images to outputs.

Shapes: B batch.
"""

from __future__ import annotations

import importlib
import importlib.util
import sys
import threading
from collections.abc import Callable, Collection, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from vitsplit.errors import ConfigError, ExportError
from vitsplit.runtime.card import IMAGE, ExportCard, GraphCard, PartCard, check_files

RuntimeName = Literal["onnx", "openvino"]
Device = Literal["cpu", "cuda", "tensorrt"]
Values = Mapping[str, NDArray[Any]]
Run = Callable[[NDArray[np.uint8], Sequence[str]], list[NDArray[Any]]]
"""Images in the layout of the graph, and names of outputs, to these outputs. Thread-safe."""
RunPart = Callable[[Values, Sequence[str]], Sequence[NDArray[Any]]]
"""The inputs of one graph by name, and names of outputs, to these outputs. Thread-safe."""

PACKAGES: dict[RuntimeName, str] = {"onnx": "onnxruntime", "openvino": "openvino"}
PROVIDERS: dict[Device, tuple[str, ...]] = {
    "cpu": ("CPUExecutionProvider",),
    "cuda": ("CUDAExecutionProvider", "CPUExecutionProvider"),
    "tensorrt": ("TensorrtExecutionProvider", "CUDAExecutionProvider", "CPUExecutionProvider"),
}
"""Execution providers of ONNX Runtime by device; an operator runs on the first that has it."""


def choose_runtime(card: ExportCard, wanted: RuntimeName | None) -> RuntimeName:
    """The runtime of a folder: the wanted one, else the first of its formats whose package is installed.

    Raises:
        ConfigError: The folder has no graph for it, or its package is not installed.
    """
    present = [name for name in PACKAGES if name in card.graphs]
    if wanted is not None and wanted not in PACKAGES:
        raise ConfigError(f"runtime {wanted!r}: must be one of {', '.join(PACKAGES)}.")
    if not present or (wanted is not None and wanted not in present):
        raise ConfigError(
            f"{card.folder} has graphs for {', '.join(card.graphs)}, not for {wanted or ' or '.join(PACKAGES)}. Export "
            f"the bundle with --format {wanted or 'onnx'}."
        )
    candidates = [wanted] if wanted is not None else sorted(present, key=list(card.graphs).index)
    for name in candidates:
        if importlib.util.find_spec(PACKAGES[name]) is not None:
            return name
    packages = " or ".join(PACKAGES[name] for name in candidates)
    raise ConfigError(f"{card.folder} needs {packages}, which is not installed: pip install {packages}.")


def open_session(card: ExportCard, name: RuntimeName, threads: int | None, device: Device = "cpu") -> Run:
    """Opens the graphs of a format, after their files were compared with their hashes.

    A run computes the graphs that the requested outputs need, each once.

    Args:
        card: The card of its folder.
        name: Its format.
        threads: Number of threads of an operator; None: the runtime's default, all cores.
        device: The device.

    Raises:
        ConfigError: The runtime has no such device, or cannot use it.
        ExportError: A file is missing or corrupt, or the runtime cannot read a graph.
    """
    if device not in PROVIDERS:
        raise ConfigError(f"device {device!r}: must be one of {', '.join(PROVIDERS)}.")
    if name == "openvino" and device != "cpu":
        raise ConfigError(f"device {device}: only with runtime='onnx'. Export with --format onnx.")
    graph = card.graphs[name]
    check_files(graph)
    read = {output for part in graph.parts for output in part.inputs}
    read |= {output for head in card.heads.values() for output in head.outputs}
    runs = [_open_part(part, name, graph, threads, device, read) for part in graph.parts]

    def run(images: NDArray[np.uint8], names: Sequence[str]) -> list[NDArray[Any]]:
        wanted, needed = set(names), []
        for part, run_part in zip(reversed(graph.parts), reversed(runs), strict=True):
            if outputs := [output for output in part.outputs if output in wanted]:
                needed.append((part, run_part, outputs))
                wanted |= set(part.inputs)
        values: dict[str, NDArray[Any]] = {IMAGE: images}
        for part, run_part, outputs in reversed(needed):
            inputs = {each: values[each] for each in part.inputs}
            values |= zip(outputs, run_part(inputs, outputs), strict=True)
        return [values[each] for each in names]

    return run


def _open_part(
    part: PartCard, name: RuntimeName, graph: GraphCard, threads: int | None, device: Device, read: Collection[str]
) -> RunPart:
    """Opens one graph; of its outputs, only those in ``read`` will be requested."""
    try:
        if name == "onnx":
            return _open_onnx(part.files[0], threads, device)
        return _open_openvino(part.files[0], graph, threads, [output for output in part.outputs if output in read])
    except (ImportError, ConfigError):
        raise
    except Exception as error:  # runtimes raise types of their own
        raise ExportError(
            f"{part.files[0]}: {PACKAGES[name]} cannot read the graph ({str(error)[:300]}). Update {PACKAGES[name]}, "
            "or export the bundle again."
        ) from error


def _open_onnx(path: Path, threads: int | None, device: Device) -> RunPart:
    onnxruntime: Any = importlib.import_module("onnxruntime")
    provider = PROVIDERS[device][0]
    if provider not in onnxruntime.get_available_providers():
        raise ConfigError(
            f"device {device}: onnxruntime {onnxruntime.__version__} has no {provider}. Replace the package: "
            "pip uninstall onnxruntime, pip install onnxruntime-gpu."
        )
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3  # errors
    if threads is not None:
        options.intra_op_num_threads = threads
    session = onnxruntime.InferenceSession(str(path), options, providers=list(PROVIDERS[device]))
    if provider not in session.get_providers():  # ONNX Runtime then takes the next one
        raise ConfigError(f"device {device}: {provider} did not start. Install the CUDA, cuDNN and TensorRT it needs.")

    def run(values: Values, names: Sequence[str]) -> Sequence[NDArray[Any]]:
        run_options = onnxruntime.RunOptions()
        run_options.only_execute_path_to_fetches = True  # not what computes other outputs
        found: Sequence[NDArray[Any]] = session.run(list(names), values, run_options)
        return found

    return run


def import_openvino() -> Any:
    """Imports OpenVINO without its telemetry, which its import starts and which writes files into the home folder."""
    sys.modules.setdefault("openvino_telemetry", None)  # type: ignore[arg-type]  # a stub is then used
    return importlib.import_module("openvino")


def _open_openvino(path: Path, graph: GraphCard, threads: int | None, outputs: Sequence[str]) -> RunPart:
    openvino = import_openvino()
    core = openvino.Core()
    settings = dict(graph.settings) | ({} if threads is None else {"INFERENCE_NUM_THREADS": str(threads)})
    model = core.read_model(path)
    # Not the blocks above the tokens that are read: OpenVINO computes all outputs of a compiled graph.
    model = openvino.Model([model.output(output) for output in outputs], model.get_parameters())
    compiled = core.compile_model(model, "CPU", settings)
    lock = threading.Lock()  # a request computes one input at a time

    def run(values: Values, names: Sequence[str]) -> Sequence[NDArray[Any]]:
        with lock:
            found = compiled(values, share_outputs=False)
            return [found[compiled.output(name)] for name in names]

    return run
