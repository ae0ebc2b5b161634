"""ONNX Runtime and OpenVINO: a graph on the CPU as a function from images to outputs.

Shapes: B batch.
"""

from __future__ import annotations

import importlib
import importlib.util
import threading
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from vitsplit.errors import ConfigError, ExportError
from vitsplit.runtime.card import ADVICE, ExportCard, GraphCard, check_files

RuntimeName = Literal["onnx", "openvino"]
Run = Callable[[NDArray[np.uint8], Sequence[str]], list[NDArray[Any]]]
"""Images in the layout of the graph, and names of outputs, to these outputs. Thread-safe."""

PACKAGES: dict[RuntimeName, str] = {"onnx": "onnxruntime", "openvino": "openvino"}
INPUT = "image"


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


def open_session(card: ExportCard, name: RuntimeName, threads: int | None) -> Run:
    """Opens a graph, after its files were compared with their hashes.

    Args:
        card: The card of its folder.
        name: Its format.
        threads: Number of threads of an operator; None: the runtime's default, all cores.

    Raises:
        ExportError: A file is missing or corrupt, or the runtime cannot read the graph.
    """
    graph = card.graphs[name]
    check_files(graph)
    path = _graph_file(card, graph, {"onnx": ".onnx", "openvino": ".xml"}[name])
    try:
        return {"onnx": _open_onnx, "openvino": _open_openvino}[name](path, graph, threads)
    except ImportError:
        raise
    except Exception as error:  # runtimes raise types of their own
        raise ExportError(
            f"{path}: {PACKAGES[name]} cannot read the graph ({str(error)[:300]}). Update {PACKAGES[name]}, or export "
            "the bundle again."
        ) from error


def _graph_file(card: ExportCard, graph: GraphCard, suffix: str) -> Path:
    found = [path for path in graph.files if path.suffix == suffix]
    if len(found) != 1:
        raise ExportError(f"{card.folder}: {len(found)} files of type {suffix} in a graph, must be one. {ADVICE}")
    return found[0]


def _open_onnx(path: Path, graph: GraphCard, threads: int | None) -> Run:
    onnxruntime: Any = importlib.import_module("onnxruntime")
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3  # errors
    if threads is not None:
        options.intra_op_num_threads = threads
    session = onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])

    def run(images: NDArray[np.uint8], names: Sequence[str]) -> list[NDArray[Any]]:
        run_options = onnxruntime.RunOptions()
        run_options.only_execute_path_to_fetches = True  # not the heads whose outputs are not read
        found: list[NDArray[Any]] = session.run(list(names), {INPUT: images}, run_options)
        return found

    return run


def _open_openvino(path: Path, graph: GraphCard, threads: int | None) -> Run:
    openvino: Any = importlib.import_module("openvino")
    core = openvino.Core()
    settings = dict(graph.settings) | ({} if threads is None else {"INFERENCE_NUM_THREADS": str(threads)})
    compiled = core.compile_model(core.read_model(path), "CPU", settings)
    lock = threading.Lock()  # a request computes one input at a time

    def run(images: NDArray[np.uint8], names: Sequence[str]) -> list[NDArray[Any]]:
        with lock:
            found = compiled({INPUT: images}, share_outputs=False)
            return [found[compiled.output(name)] for name in names]

    return run
