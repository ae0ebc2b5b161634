"""CVAT's own format of image tasks, "CVAT for images 1.1" (https://docs.cvat.ai/docs/other/xml_format).

Shapes: H W pixels, h w of a mask's box, R runs.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from xml.etree import ElementTree

import numpy as np
from numpy.typing import NDArray

from vitsplit.data.mask_coding import extent, run_starts
from vitsplit.inference.label_tools.images import HeadLabels, LabeledImage, Region


def annotation_file(images: Iterable[LabeledImage], labels: HeadLabels) -> Iterator[str]:
    """The XML file in pieces. The format has no scores."""
    yield '<?xml version="1.0" encoding="utf-8"?>\n<annotations>\n<version>1.1</version>\n'
    meta = ElementTree.Element("meta")
    task = ElementTree.SubElement(meta, "task")
    ElementTree.SubElement(task, "name").text = labels.head
    ElementTree.SubElement(task, "mode").text = "annotation"
    listed = ElementTree.SubElement(task, "labels")
    for name, color in zip(labels.names, labels.colors, strict=True):
        label = ElementTree.SubElement(listed, "label")
        for tag, text in {"name": name, "color": color, "type": "any", "attributes": ""}.items():
            ElementTree.SubElement(label, tag).text = text
    yield _text(meta)
    for number, image in enumerate(images):
        height, width = image.size
        sizes = {"width": str(width), "height": str(height)}
        element = ElementTree.Element("image", {"id": str(number), "name": image.name} | sizes)
        for region in image.regions():
            shape = _box(region) if region.mask_HW is None else _mask(region.mask_HW)
            shape.attrib = {"label": labels.names[region.label], "source": "auto", "occluded": "0"} | shape.attrib
            element.append(shape)
        yield _text(element)
    yield "</annotations>\n"


def _text(element: ElementTree.Element) -> str:
    ElementTree.indent(element)
    return ElementTree.tostring(element, encoding="unicode") + "\n"


def _box(region: Region) -> ElementTree.Element:
    x, y, width, height = region.box
    corners = {"xtl": x, "ytl": y, "xbr": x + width, "ybr": y + height}
    return ElementTree.Element("box", {name: f"{value:.2f}" for name, value in corners.items()} | {"z_order": "0"})


def _mask(mask_HW: NDArray[np.bool_]) -> ElementTree.Element:
    left, top, right, bottom = extent(mask_HW)
    runs_R = runs(mask_HW[top:bottom, left:right])
    places = {"left": left, "top": top, "width": right - left, "height": bottom - top, "z_order": 0}
    return ElementTree.Element(
        "mask", {"rle": ", ".join(map(str, runs_R))} | {name: str(value) for name, value in places.items()}
    )


def runs(mask_hw: NDArray[np.bool_]) -> list[int]:
    """Lengths of the runs of equal pixels, row by row; the first one is of pixels outside of the mask."""
    pixels = mask_hw.ravel()
    found: list[int] = np.diff(np.append(run_starts(pixels), pixels.size)).tolist()
    return [0, *found] if pixels[0] else found
