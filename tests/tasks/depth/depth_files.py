"""Small sets of depth data on disk, and a model with known predictions."""

import json

import numpy as np
import torch.nn.functional as F
from PIL import Image

from vitsplit.types import LayerTaps, Padding

RNG = np.random.default_rng(0)
PATCH = 4


def millimeters(low=500, high=9000, size=(12, 16)):
    return RNG.integers(low, high, size).astype(np.uint16)


def write_image(path, size=(12, 16)):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(RNG.integers(0, 256, (*size, 3), dtype=np.uint8)).save(path)


def write_map(path, values):
    path.parent.mkdir(parents=True, exist_ok=True)
    if path.suffix == ".npy":
        np.save(path, values)
    else:
        Image.fromarray(values).save(path)


def write_set(root, maps, split="train", suffix=".png", scale=0.001):
    for k, values in enumerate(maps):
        write_image(root / "images" / split / f"{k}.png", values.shape)
        write_map(root / "depth" / split / f"{k}{suffix}", values)
    if scale is not None:
        (root / "depth.json").write_text(json.dumps({"scale": scale}))
    return root


class RedIsDepth:
    """Predicts a tenth of a meter per step of red, at one value per patch of the padded image; counts its passes."""

    def __init__(self):
        self.sizes = []

    def __call__(self, image_BCHW):
        self.sizes.append(tuple(image_BCHW.shape))
        size = tuple(image_BCHW.shape[-2:])
        (top, bottom), (left, right) = ((-side % PATCH // 2, (-side % PATCH + 1) // 2) for side in size)
        padded = F.pad(image_BCHW[:, :1].float() / 10, (left, right, top, bottom), value=0.0)
        depth = F.avg_pool2d(padded, PATCH)
        return depth, LayerTaps(size, Padding(left, top, right, bottom), tuple(depth.shape[-2:]), 1)
