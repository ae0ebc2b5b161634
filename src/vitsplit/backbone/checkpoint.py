"""Reads checkpoints and loads them strictly: every tensor, without resizing or unused trunk tensors."""

from __future__ import annotations

import argparse
import hashlib
import pickle
import re
import zipfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import nn

from vitsplit.backbone.conversion import StateDict, to_timm, unwrap
from vitsplit.errors import WeightsError

_UNSUPPORTED = re.compile(r"(?:GLOBAL|class|function) ([A-Za-z_][\w.]{0,200})")
# In a folder, the first of these names that exists; else the only file with one of the suffixes.
_FILE_NAMES = ("model.safetensors", "pytorch_model.bin")
_ENDINGS = (".safetensors", ".pth", ".pt", ".bin")
# Top-level names of the trunk; tensors under other names (classifiers, decoders, text towers) may be unused.
_TRUNK = frozenset({"patch_embed", "cls_token", "reg_token", "pos_embed", "norm_pre", "blocks"})


def find_file(path: Path) -> Path:
    """The checkpoint file at a path: the file itself, or the only one in a folder.

    Raises:
        WeightsError: There is none, or several in a folder.
    """
    if path.is_file():
        return path
    if not path.is_dir():
        raise WeightsError(f"{path} not found. Pass a safetensors or torch file, or a folder with one.")
    for name in _FILE_NAMES:
        if (path / name).is_file():
            return path / name
    files = sorted(file for file in path.iterdir() if file.suffix in _ENDINGS and file.is_file())
    if len(files) == 1:
        return files[0]
    if files:
        names = ", ".join(file.name for file in files[:6])
        raise WeightsError(f"{path} contains {len(files)} checkpoints ({names}). Pass one of the files.")
    raise WeightsError(
        f"{path} contains no checkpoint. Expected {', '.join(_FILE_NAMES)} or one file *{', *'.join(_ENDINGS)}."
    )


def read_checkpoint(path: Path) -> StateDict:
    """Reads the tensors of a safetensors or torch file on the CPU, under the names in the file.

    Raises:
        WeightsError: As ``read_objects``.
    """
    # Training scripts save argparse options with the tensors; these are plain values.
    return unwrap(read_objects(path, allowed=(argparse.Namespace,)))


def read_objects(path: Path, *, allowed: Sequence[Any] = ()) -> dict[str, Any]:
    """Reads the tensors of a safetensors file, or the dictionary of a torch file, on the CPU.

    No code in the file is executed (``weights_only=True``).

    Args:
        path: The file.
        allowed: Types and functions of plain values that a torch file may reference, see
            ``torch.serialization.safe_globals``.

    Raises:
        WeightsError: The file cannot be read, or contains other objects than tensors, plain values and ``allowed``.
    """
    if path.suffix == ".safetensors":
        try:
            return load_file(path)
        except (SafetensorError, OSError, ValueError, MemoryError) as error:
            raise WeightsError(f"{path} cannot be read ({error}). Download it again.") from error
    _check_archive(path)
    try:
        with torch.serialization.safe_globals([*allowed]):
            checkpoint = torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        found = _UNSUPPORTED.search(str(error))
        what = f"it references {found[1]}" if found else "it contains other objects than tensors and plain values"
        raise WeightsError(
            f"{path} is not a plain state dict: {what}, which is not executed. Save model.state_dict() instead, "
            "preferably as safetensors."
        ) from error
    except Exception as error:  # a corrupt pickle can raise any exception
        reason = (str(error).splitlines() or [""])[0][:200]
        raise WeightsError(f"{path} cannot be read ({type(error).__name__}: {reason}). Download it again.") from error
    if not isinstance(checkpoint, dict):
        raise WeightsError(f"{path} contains a {type(checkpoint).__name__}, not a state dict of tensors.")
    return checkpoint


def _check_archive(path: Path) -> None:
    """Rejects TorchScript archives, and compressed members (never written by PyTorch), which expand to any size."""
    try:
        if not zipfile.is_zipfile(path):
            return
        with zipfile.ZipFile(path) as archive:
            members = archive.infolist()
    except (OSError, ValueError, zipfile.BadZipFile, NotImplementedError) as error:
        raise WeightsError(f"{path} cannot be read ({error}). Download it again.") from error
    if any(member.filename.endswith("/constants.pkl") for member in members):
        raise WeightsError(
            f"{path} is a TorchScript archive, whose code is not executed. Save model.state_dict() instead, preferably "
            "as safetensors."
        )
    size = sum(member.file_size for member in members)
    if size > path.stat().st_size:
        raise WeightsError(
            f"{path} expands to {size:,} bytes, more than its size. Such files are not written by PyTorch."
        )


def load_weights(model: Any, state: StateDict, source: str) -> None:
    """Loads tensors into all parameters of a model as float32.

    Args:
        model: A model of ``build_model``; its parameters may be on the meta device.
        state: Tensors under the names of timm, of the original release, or (DINOv2) of transformers.
        source: The file, for messages.

    Raises:
        WeightsError: Tensors are missing, have other shapes or dtypes, are not finite, or the checkpoint has trunk
            tensors that the model lacks.
    """
    wanted = dict(model.named_parameters())
    converted = to_timm(model, unwrap(state))
    missing = [name for name in wanted if name not in converted]
    if missing:
        raise WeightsError(
            f"{source}: {len(missing)} of the model's {len(wanted)} tensors are missing ({_some(missing)}); the file "
            f"has {len(state)} ({_some(list(state))}). It belongs to another model or uses unknown tensor names. Known "
            "are the names of timm, the original release and, for DINOv2, transformers."
        )
    wrong = [
        f"{name} is {tuple(converted[name].shape)}, the model has {tuple(value.shape)}"
        for name, value in wanted.items()
        if converted[name].shape != value.shape
    ]
    wrong += [f"{name} is {converted[name].dtype}" for name in wanted if not converted[name].is_floating_point()]
    wrong += _resized(state, wanted)
    known = wanted.keys() | {name for name, _ in model.named_buffers()}
    wrong += [f"{name} is not in the model" for name in converted if name.split(".")[0] in _TRUNK and name not in known]
    if wrong:
        raise WeightsError(f"{source}: the checkpoint belongs to another model: {_some(wrong)}.")
    spoiled = [name for name in wanted if not torch.isfinite(converted[name]).all()]
    if spoiled:
        raise WeightsError(f"{source}: NaN or infinite numbers in {_some(spoiled)}. Download it again.")
    model.load_state_dict({name: converted[name].float() for name in wanted}, strict=False, assign=True)
    model.requires_grad_(False)


def weights_hash(model: nn.Module) -> str:
    """SHA-256 over the parameters' names, shapes and float32 bytes, in the order of their names."""
    digest = hashlib.sha256()
    for name, value in sorted(model.named_parameters()):
        tensor = value.detach().to("cpu", torch.float32).contiguous()
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}\n".encode())
        digest.update(tensor.numpy().data)
    return digest.hexdigest()


def _resized(state: StateDict, wanted: dict[str, Any]) -> list[str]:
    """Tensors that timm's filters resampled, because the weights are for another image or patch size."""
    sizes = {value.numel() for value in state.values()}
    messages = []
    for name in ("patch_embed.proj.weight", "pos_embed"):
        if name in wanted:
            size = wanted[name].numel()
            # The original DINOv2 with registers has a position embedding for the class token, timm's model does not.
            if not sizes & {size, size + wanted[name].shape[-1]}:
                messages.append(f"no tensor has the size of {name} {tuple(wanted[name].shape)} without resampling")
    return messages


def _some(items: list[str]) -> str:
    return ", ".join(items[:4]) + (", ..." if len(items) > 4 else "")
