"""Weights as differences to the backbone (``vitsplit push --delta``), which nobody can use without the backbone.

Trained copies of the backbone's parameters (the task head of ViT-Split, the transformer of some baselines) are stored
as the XOR of their bits with the bits of the originals. It is its own inverse, so every bit is restored; a difference
of floats would be rounded. Sign, exponent and leading digits that training did not change become zeros. The other
tensors are stored as they are.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping

import torch
from torch import Tensor

from vitsplit.model import Head

BITS = {"I32": torch.float32, "I16": torch.bfloat16}
"""Dtypes of stored differences in safetensors' notation, and of the restored tensors."""

_INTEGERS = {torch.float32: torch.int32, torch.bfloat16: torch.int16}
_FLOATS = {integer: kind for kind, integer in _INTEGERS.items()}


def copied_parameters(head: Head) -> dict[str, Tensor]:
    """The parameters that are initialized with the backbone's, by name. In an untrained head, they have its values."""
    copied = {id(parameter) for group in head.head.pretrained_parameters().values() for parameter in group}
    return {name: parameter.detach() for name, parameter in head.named_parameters() if id(parameter) in copied}


def to_delta(state: Mapping[str, Tensor], untrained: Head) -> tuple[dict[str, Tensor], str]:
    """A bundle's tensors with the copies of the backbone's parameters as differences.

    Args:
        state: The tensors; float16 becomes float32.
        untrained: A head of the bundle's settings on its backbone in float32.

    Returns:
        The tensors (differences as int32 or int16), and the hash with which ``from_delta`` compares its result.
    """
    originals = copied_parameters(untrained)
    copies = {name: state[name] for name in originals}
    copies = {name: copy.float() if copy.dtype == torch.float16 else copy for name, copy in copies.items()}
    return {**state, **_xor(copies, originals)}, _hash(copies)


def from_delta(stored: Mapping[str, Tensor], untrained: Head) -> tuple[dict[str, Tensor], str]:
    """The inverse of ``to_delta``: a bundle's tensors, and the hash of the restored ones."""
    originals = copied_parameters(untrained)
    restored = _xor({name: stored[name] for name in originals}, originals)
    return {**stored, **restored}, _hash(restored)


def _xor(tensors: Mapping[str, Tensor], originals: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Floats to integers or back, by the bits of the originals in the same precision."""
    found = {}
    for name, tensor in tensors.items():
        kind = _FLOATS.get(tensor.dtype, tensor.dtype)
        integer = _INTEGERS[kind]
        original = originals[name].to("cpu", kind).contiguous()
        bits = tensor.contiguous().view(integer) ^ original.view(integer)
        found[name] = bits if tensor.dtype == kind else bits.view(kind)
    return found


def _hash(tensors: Mapping[str, Tensor]) -> str:
    """SHA-256 of the tensors' bits, independent of their names, which later versions may change."""
    digests = []
    for tensor in tensors.values():
        digest = hashlib.sha256(f"{tensor.dtype} {tuple(tensor.shape)}\n".encode())
        digest.update(tensor.contiguous().view(_INTEGERS[tensor.dtype]).numpy().data)
        digests.append(digest.digest())
    return hashlib.sha256(b"".join(sorted(digests))).hexdigest()
