"""Masks in MATLAB files, the published format of Pascal Context."""

from __future__ import annotations

import importlib
import math
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from vitsplit.data.decoding import MAX_PIXELS
from vitsplit.errors import DataError
from vitsplit.extras import require
from vitsplit.files import open_regular, shown

ARRAY = "LabelMap"
LARGEST_LABEL = 65535


def read_mat_mask(path: str | Path) -> Tensor:
    """Reads the array ``LabelMap`` of a MATLAB file.

    Returns:
        ``mask_HW``, int32.

    Raises:
        DataError: scipy is not installed, or the file cannot be read or has no such array.
    """
    require(f"{path}: reading .mat files", "scipy", extra="pascal-context", error=DataError)
    scipy_io = importlib.import_module("scipy.io")
    advice = "Copy it again from its source."
    try:
        with open_regular(path, advice=advice) as file:
            # Check the header first: a compressed array is expanded completely.
            shape = next(shape for name, shape, _ in scipy_io.whosmat(file) if name == ARRAY)
            if len(shape) != 2 or not 0 < math.prod(shape) <= MAX_PIXELS:
                raise ValueError(f"{ARRAY} has the shape {shown(shape)}")
            file.seek(0)
            label_HW = scipy_io.loadmat(file, variable_names=[ARRAY])[ARRAY]
        if label_HW.dtype.kind not in "uif" or not (label_HW.min() >= 0 and label_HW.max() <= LARGEST_LABEL):
            raise ValueError(f"{ARRAY} has values outside of 0 to {LARGEST_LABEL}")
        return torch.from_numpy(label_HW.astype(np.int32))
    except DataError:
        raise
    except Exception as error:  # a corrupt file can raise any exception
        raise DataError(
            f"{path}: not a label file of Pascal Context, or truncated ({str(error)[:200]}). {advice}"
        ) from error
