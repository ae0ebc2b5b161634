"""Copies of modules that share the weights of the original."""

from __future__ import annotations

import copy
import itertools
from typing import TypeVar

from torch import nn

ModuleT = TypeVar("ModuleT", bound=nn.Module)


def share_weights(module: ModuleT) -> ModuleT:
    """A copy that has the parameters and buffers of ``module`` itself, so that it takes no memory.

    Modules can be inserted into the copy, and attributes changed, without modifying the original.
    """
    shared = {id(tensor): tensor for tensor in itertools.chain(module.parameters(), module.buffers())}
    return copy.deepcopy(module, shared)
