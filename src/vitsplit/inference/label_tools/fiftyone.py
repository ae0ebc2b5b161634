"""FiftyOne's folder of a COCO data set: the annotations, and a manifest of the images instead of copies."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator

from vitsplit.inference.label_tools.images import HeadLabels, LabeledImage


def manifest(images: Iterable[LabeledImage], labels: HeadLabels) -> Iterator[str]:
    """The path of every image, by its name in the annotations."""
    yield json.dumps({image.name: str(image.path.absolute()) for image in images}, indent=1) + "\n"
