"""Checks detection data.

Shapes: C channels, H W pixels.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from statistics import mean

from vitsplit.data.check import (
    ClassCount,
    Finding,
    ImageFacts,
    Progress,
    Report,
    SplitReport,
    check_splits,
    find_unseen_classes,
    inspect_image,
    open_splits,
    summarize_images,
)
from vitsplit.errors import DataError
from vitsplit.tasks.detection.annotations import CHANGES, DEGENERATE, AnnotatedImage, AnnotationLog
from vitsplit.tasks.detection.config import DetectionConfig
from vitsplit.tasks.detection.data import DetectionSet, require_annotated_size
from vitsplit.tasks.detection.layouts import (
    list_detection_splits,
    read_detection_set,
    recognize,
    require_objects,
    require_same_classes,
)
from vitsplit.tasks.detection.masks import mask_area

SMALL, LARGE = 32**2, 96**2
"""COCO's area bounds in pixels: objects below the first are small, above the second large."""


@dataclass
class ItemFacts:
    """Facts about one image and its objects; ``areas`` are the areas in pixels of all objects except crowds."""

    image: ImageFacts
    areas: list[float] = field(default_factory=list)
    findings: list[Finding] = field(default_factory=list)


def check_files(config: DetectionConfig, root: Path, workers: int, progress: Progress) -> Report:
    """Reads every image and label; see ``vitsplit.tasks.check_data``."""
    place, name = recognize(root, config.format)
    report = Report(str(root), "detection", name, counted="objects")
    config = replace(config, format=name)  # type: ignore[arg-type]  # one of the formats, recognized
    sets = open_splits(report, list_detection_splits(place, name), lambda split: _read(place, split, config, report))
    try:
        require_same_classes(sets)
    except DataError as error:
        report.findings.append(Finding("error", "other classes in another split", str(root), str(error)))
    work = {split: (partial(inspect_item, source=data.source), data.items) for split, data in sets.items()}
    check_splits(report, work, lambda split, facts: _summarize(facts, sets[split]), workers, progress)
    report.findings += find_unseen_classes(report, "AP")
    return report


def inspect_item(item: AnnotatedImage, source: Path) -> ItemFacts:
    """Reads one image and computes its masks; problems become findings, not exceptions."""
    image, problem = inspect_image(item.path)
    facts = ItemFacts(image, findings=[problem] if problem else [])
    if image.size is not None:
        try:
            require_annotated_size(image.size[::-1], item, source)
        except DataError as error:
            facts.findings.append(Finding("error", "size mismatch", str(item.path), str(error)))
    for each in item.annotations:
        area = each.box[2] * each.box[3] if each.area is None else each.area
        where = f"{source}: annotation {each.id} ({item.path.name})"
        if each.segmentation is not None:
            pixels = mask_area(each.segmentation, item.height, item.width)
            area = pixels if each.area is None else each.area
            if not pixels:
                text = f"{where}: the mask is empty, so training omits the object. Correct or remove it."
                facts.findings.append(Finding("warning", "empty masks", str(source), text))
        if not each.crowd:
            facts.areas.append(area)
    return facts


def _read(root: Path, split: str, config: DetectionConfig, report: Report) -> DetectionSet:
    """Opens one split; invalid labels become errors of the report, and automatic corrections warnings."""
    log = AnnotationLog()
    data = read_detection_set(root, split, config, log)
    for problem in log.problems:
        report.findings.append(Finding("error", problem.kind.name, str(problem.file), problem.message))
    for what, places in log.changed.items():
        for place in places:
            text = f"{data.source}: {place}: {what}, {CHANGES[what]}. Correct or remove them."
            report.findings.append(Finding("warning", what, str(data.source), text))
    if not log.problems:  # otherwise the rest of the split may be empty
        require_objects(data)
    return data


def _summarize(facts: list[ItemFacts], data: DetectionSet) -> SplitReport:
    report = summarize_images(each.image for each in facts)
    objects = [[each for each in item.annotations if not each.crowd] for item in data.items]
    counts = [len(each) for each in objects]
    labels = Counter(each.label for group in objects for each in group)
    images = Counter(label for group in objects for label in {each.label for each in group})
    report.classes = [
        ClassCount(name, labels[k], labels[k] / max(sum(counts), 1), images[k])
        for k, name in enumerate(data.classes.names)
    ]
    areas = [area for each in facts for area in each.areas]
    report.facts = {
        "objects": sum(counts),
        "objects with a mask": sum(each.segmentation is not None for group in objects for each in group),
        "crowds": sum(len(item.annotations) for item in data.items) - sum(counts),
        "images without objects": counts.count(0),
        "objects per image": float(mean(counts or [0])),
        "most objects of an image": max(counts, default=0),
        "degenerate boxes": len(data.changed.get(DEGENERATE, ())),
        "small objects (below 32x32 pixels)": sum(area < SMALL for area in areas),
        "medium objects": sum(SMALL <= area <= LARGE for area in areas),
        "large objects (above 96x96 pixels)": sum(area > LARGE for area in areas),
    }
    return report
