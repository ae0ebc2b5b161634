"""Small detection data sets on disk, in the three formats. Their images are 60 x 40 (width x height)."""

from __future__ import annotations

import json

import numpy as np
from PIL import Image

WIDTH, HEIGHT = 60, 40
CATEGORIES = [{"id": 3, "name": "cat"}, {"id": 11, "name": "dog"}, {"id": 7, "name": "cow"}]


def picture(path, seed=0, width=WIDTH, height=HEIGHT):
    """Noise: different seeds give different images."""
    path.parent.mkdir(parents=True, exist_ok=True)
    noise = np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)
    Image.fromarray(noise).save(path)


def coco_image(number, **changes):
    return {"id": number, "file_name": f"{number}.png", "width": WIDTH, "height": HEIGHT, **changes}


def coco_object(number, image_id, box=(10, 5, 20, 30), category_id=3, **changes):
    area = box[2] * box[3]
    return {"id": number, "image_id": image_id, "category_id": category_id, "bbox": list(box), "area": area, **changes}


def coco_content(images, annotations, categories=CATEGORIES):
    return {"images": images, "annotations": annotations, "categories": categories}


def write_coco(root, content, split="train", pictures=True):
    file = root / "annotations" / f"{split}.json"
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(json.dumps(content))
    for entry in content["images"] if pictures else ():
        picture(root / "images" / split / entry["file_name"], [entry["id"], len(split)])
    return file


def write_yolo(root, labels, split="train", names=("cat", "dog")):
    """``labels``: name of the image to the lines of its file, None for no file."""
    for seed, (name, lines) in enumerate(labels.items()):
        picture(root / "images" / split / f"{name}.png", [seed, len(split)])
        path = root / "labels" / split / f"{name}.txt"
        path.parent.mkdir(parents=True, exist_ok=True)
        if lines is not None:
            path.write_text("\n".join(lines) + "\n")
    (root / "classes.txt").write_text("\n".join(names))


def voc_object(name, corners, difficult=None):
    tags = "".join(
        f"<{tag}>{value}</{tag}>" for tag, value in zip(("xmin", "ymin", "xmax", "ymax"), corners, strict=True)
    )
    mark = "" if difficult is None else f"<difficult>{difficult}</difficult>"
    return f"<object><name>{name}</name>{mark}<bndbox>{tags}</bndbox></object>"


def write_voc(root, labels, split="train", size=(WIDTH, HEIGHT)):
    """``labels``: name of the image to its objects, as XML."""
    (root / "ImageSets" / "Main").mkdir(parents=True, exist_ok=True)
    (root / "Annotations").mkdir(exist_ok=True)
    for seed, (name, objects) in enumerate(labels.items()):
        picture(root / "JPEGImages" / f"{name}.jpg", [seed, len(split)])
        size_xml = f"<size><width>{size[0]}</width><height>{size[1]}</height><depth>3</depth></size>"
        (root / "Annotations" / f"{name}.xml").write_text(f"<annotation>{size_xml}{''.join(objects)}</annotation>")
    (root / "ImageSets" / "Main" / f"{split}.txt").write_text("\n".join(labels) + "\n")
