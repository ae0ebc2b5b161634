"""Pascal VOC's folders: ``JPEGImages``, ``Annotations/*.xml``, and lists of names in ``ImageSets/Main``.

The corners in the files number pixels from 1, both included: a box from 1 to W is the whole width. As edges, which is
what the rest of the package counts in, that is x1 = xmin - 1 and x2 = xmax.

Objects marked ``difficult`` become crowds: they are not trained on, and finding them or not does not count. (VOC's own
evaluation lets one such object excuse one detection, COCO's any number of them.)
"""

from __future__ import annotations

import json
import os
import re
import xml.etree.ElementTree as ElementTree
from pathlib import Path

from vitsplit.data.classes import MAX_CLASSES, ClassList
from vitsplit.data.folders import first, index_files
from vitsplit.data.images import IMAGE_SUFFIXES, image_size
from vitsplit.errors import DataError
from vitsplit.files import LONGEST_NAME, SMALL_FILE, read_bytes, read_text, shown
from vitsplit.tasks.detection.annotations import (
    BROKEN_ENTRY,
    MISSING_IMAGE,
    UNKNOWN_CLASS,
    UNREADABLE_IMAGE,
    AnnotatedImage,
    Annotation,
    Kind,
    Ledger,
    plain_number,
    size_fault,
)
from vitsplit.tasks.detection.data import DetectionSet
from vitsplit.tasks.detection.yolo import NAME_FILES, read_names

SPLITS = ("train", "val", "trainval", "test")
XML_DEPTH = 50
"""The most levels of an XML file; annotations have four."""
CORNERS = ("xmin", "ymin", "xmax", "ymax")
VOC_CLASSES = (
    *("aeroplane", "bicycle", "bird", "boat", "bottle", "bus", "car", "cat", "chair", "cow"),
    *("diningtable", "dog", "horse", "motorbike", "person", "pottedplant", "sheep", "sofa", "train", "tvmonitor"),
)
"""The published classes: those of a data set that does not name its own."""
MISSING_LABELS = Kind("missing annotation files", "Copy them there, or take the images off the list.")


def find_splits(root: Path) -> dict[str, Path]:
    """Split to the list of its images."""
    if not (root / "JPEGImages").is_dir() or not (root / "Annotations").is_dir():
        return {}
    lists = {split: root / "ImageSets" / "Main" / f"{split}.txt" for split in SPLITS}
    return {split: path for split, path in lists.items() if path.is_file()}


def read_voc(root: Path, split: str, ledger: Ledger) -> DetectionSet:
    """Reads one split. The classes are the 20 published ones, or those of ``classes.json`` or ``classes.txt``.

    Raises:
        DataError: The list of classes cannot be read, or there is none and a name is not among the published. What is
            wrong with single files is noted in the ledger.
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
        if name not in images:  # hence no name in the list leads out of the folder
            ledger.report(MISSING_IMAGE, listed, f"JPEGImages/{shown(name, 200)[1:-1]}.jpg")
        elif not os.path.lexists(file):
            ledger.report(MISSING_LABELS, listed, f"Annotations/{name}.xml")
        else:
            item = _read_file(file, images[name], len(items) + 1, number, labels, ledger)
            if item is not None:
                items.append(item)
                number += len(item.annotations)
    if not own and any(problem.kind == UNKNOWN_CLASS for problem in ledger.problems):
        files = [root / "Annotations" / f"{name}.xml" for name in names if name in images]
        raise DataError(_missing_classes(root, files))
    return DetectionSet(root, split, listed, classes, tuple(range(1, len(classes) + 1)), tuple(items))


def _read_file(
    file: Path, image: Path, image_id: int, number: int, labels: dict[str, int], ledger: Ledger
) -> AnnotatedImage | None:
    """One image; its objects are numbered from ``number``."""
    try:
        tree = read_xml(file)
        size = _read_size(tree)
    except ValueError as error:
        ledger.report(BROKEN_ENTRY, file, str(error))
        return None
    try:
        size = size or image_size(image)
    except DataError as error:
        ledger.report(UNREADABLE_IMAGE, file, str(error))
        return None
    annotations: list[Annotation] = []
    for place, entry in enumerate(tree.findall("object"), start=1):
        annotation = _read_object(entry, number + len(annotations), size, labels, file, f"object {place}", ledger)
        if annotation is not None:
            annotations.append(annotation)
    return AnnotatedImage(image, image_id, *size, tuple(annotations), file)


class _Builder(ElementTree.TreeBuilder):
    """Makes the tree, but of no file whose few bytes become a large one."""

    def __init__(self) -> None:
        super().__init__()
        self.depth = 0

    def start(self, tag: str, attrs: dict[str, str]) -> ElementTree.Element:
        self.depth += 1
        if self.depth > XML_DEPTH:
            raise ValueError(f"more than {XML_DEPTH} elements inside each other")
        return super().start(tag, attrs)

    def end(self, tag: str) -> ElementTree.Element:
        self.depth -= 1
        return super().end(tag)

    def doctype(self, *_: object) -> None:
        """Called before the entities of a document type are read."""
        raise ValueError("a document type (<!DOCTYPE), which can define entities, is not read")


def read_xml(file: Path) -> ElementTree.Element:
    """The root element of an XML file.

    Raises:
        ValueError: It cannot be read, is not XML, has a document type (whose entities can grow without bound), or is
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
        raise ValueError(f"an encoding that is not known ({error})") from error
    except DataError as error:
        raise ValueError(str(error)) from error


def _read_size(tree: ElementTree.Element) -> tuple[int, int] | None:
    """Width and height; None where the file has none, or zeros, as some tools write.

    Raises:
        ValueError: They are no sizes of an image.
    """
    width, height = (tree.findtext(f"size/{side}", "").strip() for side in ("width", "height"))
    if not width.strip("0") and not height.strip("0"):
        return None
    numbers = [int(side) if re.fullmatch(r"[0-9]{1,9}", side) else side for side in (width, height)]
    if size_fault(*numbers):
        raise ValueError(size_fault(*numbers))
    return int(width), int(height)


def _read_object(
    entry: ElementTree.Element,
    number: int,
    size: tuple[int, int],
    labels: dict[str, int],
    file: Path,
    place: str,
    ledger: Ledger,
) -> Annotation | None:
    name = entry.findtext("name", "").strip()
    place = f"{place} ({shown(name)[1:-1]})"
    if name not in labels:
        ledger.report(UNKNOWN_CLASS, file, f"{place}: not among {first(list(labels))}")
        return None
    try:
        xmin, ymin, xmax, ymax = (plain_number(entry.findtext(f"bndbox/{corner}", "").strip()) for corner in CORNERS)
    except ValueError:
        ledger.report(BROKEN_ENTRY, file, f"{place}: no bndbox with the numbers {', '.join(CORNERS)}")
        return None
    difficult = entry.findtext("difficult", "").strip()
    if difficult not in ("", "0", "1"):
        ledger.report(BROKEN_ENTRY, file, f"{place}: difficult must be 0 or 1, not {shown(difficult)}")
        return None
    box = ledger.settle_box((xmin - 1, ymin - 1, xmax - xmin + 1, ymax - ymin + 1), size, file, place)
    if box is None:
        return None
    return Annotation(number, labels[name], box, crowd=difficult == "1")


def _missing_classes(root: Path, files: list[Path]) -> str:
    found: set[str] = set()
    for file in files:
        try:
            found.update(entry.findtext("name", "").strip() for entry in read_xml(file).iter("object"))
        except ValueError:  # reported by name once there is a list of classes
            continue
    longest = max(map(len, found), default=0)
    if longest > LONGEST_NAME:
        return f"{root / 'Annotations'}: a name of an object has {longest} characters. Correct the file."
    if len(found) > MAX_CLASSES:
        return f"{root / 'Annotations'}: more than {MAX_CLASSES} names of objects ({first(sorted(found))}): too many."
    return (
        f"{root / 'classes.json'}: there is no such file, and {first(sorted(found - set(VOC_CLASSES)))} is none of "
        f"Pascal VOC's 20 classes. The {len(files)} images of the split ask for this, to be saved there:\n"
        f"{json.dumps(sorted(found))}"
    )
