"""Pascal VOC's layout: ``JPEGImages``, ``Annotations/*.xml``, and lists of names in ``ImageSets/Main``.

Corners in the files are 1-based inclusive pixel indices: a box from 1 to W has the full width. As edges, used in the
rest of the package, x1 = xmin - 1 and x2 = xmax.

``difficult`` objects become crowd regions: excluded from training, and ignored in evaluation. (VOC's evaluation
ignores one detection per such object, COCO's any number.)
"""

from __future__ import annotations

import json
import os
import re
import xml.etree.ElementTree as ElementTree
from pathlib import Path

from vitsplit.data.classes import MAX_CLASSES, ClassList
from vitsplit.data.decoding import IMAGE_SUFFIXES, image_size
from vitsplit.data.folders import index_files, preview
from vitsplit.errors import DataError
from vitsplit.files import LONGEST_NAME, SMALL_FILE, read_bytes, read_text, shown
from vitsplit.tasks.detection.annotations import (
    BROKEN_ENTRY,
    MISSING_IMAGE,
    UNKNOWN_CLASS,
    UNREADABLE_IMAGE,
    AnnotatedImage,
    Annotation,
    AnnotationLog,
    Kind,
    parse_number,
    size_problem,
)
from vitsplit.tasks.detection.data import DetectionSet
from vitsplit.tasks.detection.yolo import NAME_FILES, read_names

SPLITS = ("train", "val", "trainval", "test")
XML_DEPTH = 50
"""Nesting limit of an XML file; annotations have four levels."""
CORNERS = ("xmin", "ymin", "xmax", "ymax")
VOC_CLASSES = (
    *("aeroplane", "bicycle", "bird", "boat", "bottle", "bus", "car", "cat", "chair", "cow"),
    *("diningtable", "dog", "horse", "motorbike", "person", "pottedplant", "sheep", "sofa", "train", "tvmonitor"),
)
"""The published classes, used for data sets without a list of classes."""
MISSING_LABELS = Kind("missing annotation files", "Add them, or remove the images from the list.")


def find_splits(root: Path) -> dict[str, Path]:
    """List of images by split."""
    if not (root / "JPEGImages").is_dir() or not (root / "Annotations").is_dir():
        return {}
    lists = {split: root / "ImageSets" / "Main" / f"{split}.txt" for split in SPLITS}
    return {split: path for split, path in lists.items() if path.is_file()}


def read_voc(root: Path, split: str, log: AnnotationLog) -> DetectionSet:
    """Reads one split. The classes are those of a file of ``NAME_FILES``, else the 20 published ones.

    Raises:
        DataError: The list of classes cannot be read, or is missing and a name is not a published class. Invalid files
            are reported to ``log``.
    """
    listed = find_splits(root)[split]
    own = [name for name in NAME_FILES if (root / name).is_file()]
    classes = read_names(root) if own else ClassList(VOC_CLASSES)
    labels = {name: label for label, name in enumerate(classes.names)}
    images = index_files(root / "JPEGImages", IMAGE_SUFFIXES)
    names = [line.strip() for line in read_text(listed).split("\n") if line.strip()]
    items: list[AnnotatedImage] = []
    number = 1
    for name in names:
        file = root / "Annotations" / f"{name}.xml"
        if name not in images:  # also excludes names that lead out of the folder
            log.report(MISSING_IMAGE, listed, f"JPEGImages/{shown(name, 200)[1:-1]}.jpg")
        elif not os.path.lexists(file):
            log.report(MISSING_LABELS, listed, f"Annotations/{name}.xml")
        else:
            item = _read_file(file, images[name], len(items) + 1, number, labels, log)
            if item is not None:
                items.append(item)
                number += len(item.annotations)
    if not own and any(problem.kind == UNKNOWN_CLASS for problem in log.problems):
        files = [root / "Annotations" / f"{name}.xml" for name in names if name in images]
        raise DataError(_missing_classes(root, files))
    return DetectionSet(root, split, listed, classes, tuple(range(1, len(classes) + 1)), tuple(items))


def _read_file(
    file: Path, image: Path, image_id: int, number: int, labels: dict[str, int], log: AnnotationLog
) -> AnnotatedImage | None:
    """Reads one image; its objects are numbered from ``number``."""
    try:
        tree = read_xml(file)
        size = _read_size(tree)
    except ValueError as error:
        log.report(BROKEN_ENTRY, file, str(error))
        return None
    try:
        size = size or image_size(image)
    except DataError as error:
        log.report(UNREADABLE_IMAGE, file, str(error))
        return None
    annotations: list[Annotation] = []
    for place, entry in enumerate(tree.findall("object"), start=1):
        annotation = _read_object(entry, number + len(annotations), size, labels, file, f"object {place}", log)
        if annotation is not None:
            annotations.append(annotation)
    return AnnotatedImage(image, image_id, *size, tuple(annotations), file)


class _Builder(ElementTree.TreeBuilder):
    """Builds the tree with limits on untrusted files."""

    def __init__(self) -> None:
        super().__init__()
        self.depth = 0

    def start(self, tag: str, attrs: dict[str, str]) -> ElementTree.Element:
        self.depth += 1
        if self.depth > XML_DEPTH:
            raise ValueError(f"more than {XML_DEPTH} nested elements")
        return super().start(tag, attrs)

    def end(self, tag: str) -> ElementTree.Element:
        self.depth -= 1
        return super().end(tag)

    def doctype(self, *_: object) -> None:
        """Called before entities are read."""
        raise ValueError("document types (<!DOCTYPE) are not supported")


def read_xml(file: Path) -> ElementTree.Element:
    """The root element of an XML file.

    Raises:
        ValueError: It cannot be read, is not XML, has a document type (whose entities can expand without limit), or is
            nested too deeply.
    """
    parser = ElementTree.XMLParser(target=_Builder())
    try:
        parser.feed(read_bytes(file, limit=SMALL_FILE))
        return parser.close()
    except ElementTree.ParseError as error:
        line, column = error.position
        raise ValueError(f"not valid XML ({error.msg.partition(':')[0]}, line {line}, column {column})") from error
    except LookupError as error:
        raise ValueError(f"unknown encoding ({error})") from error
    except DataError as error:
        raise ValueError(str(error)) from error


def _read_size(tree: ElementTree.Element) -> tuple[int, int] | None:
    """Width and height; None if missing or zero, as written by some tools.

    Raises:
        ValueError: They are invalid.
    """
    width, height = (tree.findtext(f"size/{side}", "").strip() for side in ("width", "height"))
    if not width.strip("0") and not height.strip("0"):
        return None
    numbers = [int(side) if re.fullmatch(r"[0-9]{1,9}", side) else side for side in (width, height)]
    if size_problem(*numbers):
        raise ValueError(size_problem(*numbers))
    return int(width), int(height)


def _read_object(
    entry: ElementTree.Element,
    number: int,
    size: tuple[int, int],
    labels: dict[str, int],
    file: Path,
    place: str,
    log: AnnotationLog,
) -> Annotation | None:
    name = entry.findtext("name", "").strip()
    place = f"{place} ({shown(name)[1:-1]})"
    if name not in labels:
        log.report(UNKNOWN_CLASS, file, f"{place}: not one of {preview(list(labels))}")
        return None
    try:
        xmin, ymin, xmax, ymax = (parse_number(entry.findtext(f"bndbox/{corner}", "").strip()) for corner in CORNERS)
    except ValueError:
        log.report(BROKEN_ENTRY, file, f"{place}: no bndbox with numbers {', '.join(CORNERS)}")
        return None
    difficult = entry.findtext("difficult", "").strip()
    if difficult not in ("", "0", "1"):
        log.report(BROKEN_ENTRY, file, f"{place}: difficult must be 0 or 1, not {shown(difficult)}")
        return None
    box = log.check_box((xmin - 1, ymin - 1, xmax - xmin + 1, ymax - ymin + 1), size, file, place)
    if box is None:
        return None
    return Annotation(number, labels[name], box, crowd=difficult == "1")


def _missing_classes(root: Path, files: list[Path]) -> str:
    found: set[str] = set()
    for file in files:
        try:
            found.update(entry.findtext("name", "").strip() for entry in read_xml(file).iter("object"))
        except ValueError:  # reported once there is a list of classes
            continue
    longest = max(map(len, found), default=0)
    if longest > LONGEST_NAME:
        return f"{root / 'Annotations'}: an object name has {longest} characters. Correct the file."
    if len(found) > MAX_CLASSES:
        return f"{root / 'Annotations'}: more than {MAX_CLASSES} object names ({preview(sorted(found))})."
    return (
        f"{root / 'classes.json'}: file not found, and {preview(sorted(found - set(VOC_CLASSES)))} are not among "
        f"Pascal VOC's 20 classes. For the {len(files)} images of the split, save this "
        f"file:\n{json.dumps(sorted(found))}"
    )
