"""Label Studio's tasks with predictions (https://labelstud.io/guide/predictions), and its labeling configuration.

Shapes: H W pixels, R runs, C chunks of runs.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator
from pathlib import PurePosixPath
from typing import Any
from urllib.parse import quote
from xml.etree import ElementTree

import numpy as np
from numpy.typing import NDArray

from vitsplit.data.mask_coding import run_starts
from vitsplit.inference.label_tools.images import HeadLabels, LabeledImage, Region
from vitsplit.version import __version__

LOCAL_FILES = "/data/local-files/?d="
"""Address of a file on the server's disk, relative to LABEL_STUDIO_LOCAL_FILES_DOCUMENT_ROOT."""
CHANNELS = 4
"""A mask is encoded like the pixels of an RGBA image, whose channels are all 0 or all 255."""
RUN_BITS = np.array([3, 4, 8, 16])
"""Sizes of the lengths of runs in bits; each run selects one of them."""


def tasks(images: Iterable[LabeledImage], labels: HeadLabels) -> Iterator[str]:
    """The file of tasks in pieces: one per image, whose path starts with the name of the folder of the inputs."""
    version = f"vitsplit {__version__} {labels.head}"
    yield "["
    for number, image in enumerate(images):
        results = [_result(region, str(place), image.size, labels) for place, region in enumerate(image.regions())]
        task = {
            "data": {"image": LOCAL_FILES + quote(f"{_root_name(image)}/{image.name}")},
            "predictions": [{"model_version": version, "result": results}],
        }
        yield (",\n" if number else "\n") + json.dumps(task)
    yield "\n]\n"


def config(images: Iterable[LabeledImage], labels: HeadLabels) -> Iterator[str]:
    """The labeling configuration of the project."""
    view = ElementTree.Element("View")
    ElementTree.SubElement(view, "Image", name="image", value="$image")
    tag = "BrushLabels" if labels.masks else "RectangleLabels"
    control = ElementTree.SubElement(view, tag, name="label", toName="image")
    for name, color in zip(labels.names, labels.colors, strict=True):
        ElementTree.SubElement(control, "Label", value=name, background=color)
    ElementTree.indent(view)
    yield ElementTree.tostring(view, encoding="unicode") + "\n"


def _root_name(image: LabeledImage) -> str:
    return image.path.absolute().parents[len(PurePosixPath(image.name).parts) - 1].name


def _result(region: Region, identifier: str, size: tuple[int, int], labels: HeadLabels) -> dict[str, Any]:
    height, width = size
    if region.mask_HW is None:
        kind = "rectanglelabels"
        x, y, box_width, box_height = region.box
        value: dict[str, Any] = {
            "x": 100 * x / width,
            "y": 100 * y / height,
            "width": 100 * box_width / width,
            "height": 100 * box_height / height,
            "rotation": 0,
        }
    else:
        kind, value = "brushlabels", {"format": "rle", "rle": encode_brush(region.mask_HW)}
    return {
        "id": identifier,
        "type": kind,
        "from_name": "label",
        "to_name": "image",
        "original_width": width,
        "original_height": height,
        "image_rotation": 0,
        "score": region.score,
        "value": value | {kind: [labels.names[region.label]]},
    }


def encode_brush(mask_HW: NDArray[np.bool_]) -> list[int]:
    """A mask as the bytes of a brush: the format of ``@thi.ng/rle-pack`` with words of eight bits.

    The header is the number of values (32 bits), the bits of a value less one (5), and the four sizes of ``RUN_BITS``
    less one (4 each). A chunk is a bit 1, the index of its size (2), its length less one, and its value (8).
    """
    pixels = mask_HW.ravel()
    starts_R = run_starts(pixels)
    lengths_R = np.diff(np.append(starts_R, pixels.size)) * CHANNELS
    longest = 1 << int(RUN_BITS[-1])
    chunks_R = -(-lengths_R // longest)
    lengths_C = np.full(chunks_R.sum(), longest)
    lengths_C[chunks_R.cumsum() - 1] = lengths_R - (chunks_R - 1) * longest
    values_C = np.repeat(np.where(pixels[starts_R], 255, 0), chunks_R)
    sizes_C = np.searchsorted(1 << RUN_BITS, lengths_C)
    bits_C = RUN_BITS[sizes_C]
    codes_C = ((4 | sizes_C) << bits_C | lengths_C - 1) << 8 | values_C
    header = [(pixels.size * CHANNELS, 32), (8 - 1, 5), *((size - 1, 4) for size in RUN_BITS.tolist())]
    stream = [*(_bits(np.array([code]), np.array([size])) for code, size in header), _bits(codes_C, 3 + bits_C + 8)]
    found: list[int] = np.packbits(np.concatenate(stream)).tolist()
    return found


def _bits(codes_C: NDArray[np.int64], sizes_C: NDArray[np.int64]) -> NDArray[np.uint8]:
    """The bits of numbers of given sizes, one after the other, the highest bit of each first."""
    places = np.arange(int(sizes_C.max()))[::-1]
    return (codes_C[:, None] >> places & 1)[places < sizes_C[:, None]].astype(np.uint8)
