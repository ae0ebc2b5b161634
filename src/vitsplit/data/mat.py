"""Masks in MATLAB files: how Pascal Context is published."""

from __future__ import annotations

import importlib
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from vitsplit.errors import DataError


def read_mat_mask(path: str | Path) -> Tensor:
    """Reads the array ``LabelMap`` of a MATLAB file.

    Returns:
        ``mask_HW``, int32.

    Raises:
        DataError: scipy is not installed, or the file cannot be read or has no such array.
    """
    try:
        loadmat = importlib.import_module("scipy.io").loadmat
    except ImportError as error:
        raise DataError(
            f"{path}: reading .mat files needs scipy, which is not installed. "
            "Run: pip install 'vitsplit[pascal-context]'"
        ) from error
    path = Path(path)
    try:
        label_HW = loadmat(path)["LabelMap"]
    except FileNotFoundError as error:
        raise DataError(f"{path}: there is no such file. Check the path.") from error
    except Exception as error:  # the reader raises whatever the broken bytes lead it to
        raise DataError(
            f"{path}: not a label file of Pascal Context, or truncated ({error}). Copy it again from its source."
        ) from error
    return torch.from_numpy(label_HW.astype(np.int32))
