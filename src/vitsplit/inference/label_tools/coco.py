"""COCO's annotations: one JSON file of images, annotations with scores, and categories."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator
from typing import Any

from vitsplit.inference.label_tools.images import HeadLabels, LabeledImage


def annotation_file(images: Iterable[LabeledImage], labels: HeadLabels) -> Iterator[str]:
    """The file in pieces; masks are in COCO's compressed run-length encoding."""
    categories = [
        {"id": category_id, "name": name, "color": color}
        for category_id, name, color in zip(labels.category_ids, labels.names, labels.colors, strict=True)
    ]
    info = {"description": f"Predictions of {labels.head}"}
    yield f'{{"info": {json.dumps(info)}, "categories": {json.dumps(categories)},\n"annotations": ['
    listed: list[dict[str, Any]] = []
    number = 0
    for image_id, image in enumerate(images, start=1):
        height, width = image.size
        listed.append({"id": image_id, "file_name": image.name, "width": width, "height": height})
        for region in image.regions():
            number += 1
            entry: dict[str, Any] = {
                "id": number,
                "image_id": image_id,
                "category_id": labels.category_ids[region.label],
                "bbox": list(region.box),
                "area": region.box[2] * region.box[3],
                "iscrowd": 0,
                "score": region.score,
            }
            if region.mask_HW is not None:
                entry |= {"area": int(region.mask_HW.sum()), "segmentation": region.encoded}
            yield (",\n" if number > 1 else "\n") + json.dumps(entry)
    yield f'],\n"images": {json.dumps(listed)}}}\n'
