"""Checks segmentation data.

Shapes: H W pixels, K classes.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

import numpy as np
from torch import Tensor

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
from vitsplit.data.classes import IGNORE, LabelScheme
from vitsplit.data.images import row_blocks
from vitsplit.errors import DataError
from vitsplit.tasks.segmentation.config import SegmentationConfig
from vitsplit.tasks.segmentation.data import LabelRangeError, load_mask, require_same_size
from vitsplit.tasks.segmentation.layouts import list_segmentation_splits, open_segmentation_set, recognize


@dataclass
class PairFacts:
    """Facts about one image and its mask; ``pixels`` maps class index (or 255) to pixel count."""

    image: ImageFacts
    pixels: dict[int, int] = field(default_factory=dict)
    findings: list[Finding] = field(default_factory=list)


def check_files(config: SegmentationConfig, root: Path, workers: int, progress: Progress) -> Report:
    """Reads every image and mask; see ``vitsplit.tasks.check_data``."""
    report = Report(str(root), "segmentation", recognize(root, config.format)[1])
    splits = list_segmentation_splits(root, config.format)
    sets = open_splits(report, splits, lambda split: open_segmentation_set(root, split, config.format))
    work = {split: (partial(inspect_pair, labels=data.labels), data.items) for split, data in sets.items()}
    check_splits(report, work, lambda split, facts: _summarize(facts, sets[split].labels), workers, progress)
    report.findings += find_unseen_classes(report, "mean IoU")
    return report


def inspect_pair(item: tuple[Path, Path], labels: LabelScheme) -> PairFacts:
    """Reads one image and its mask; problems become findings, not exceptions."""
    image_path, mask_path = item
    facts, problem = inspect_image(image_path)
    pair = PairFacts(facts, findings=[problem] if problem else [])
    mask_HW = _try_mask(mask_path, labels, pair)
    if mask_HW is None:
        return pair
    if facts.size is not None:
        try:
            require_same_size(facts.size[::-1], mask_HW, image_path, mask_path)
        except DataError as error:
            pair.findings.append(Finding("error", "size mismatch", str(mask_path), str(error)))
    counts_K = np.zeros(IGNORE + 1, np.int64)
    for rows in row_blocks(*mask_HW.shape):  # counting takes 8 bytes per pixel
        counts_K += np.bincount(mask_HW[rows].numpy().ravel(), minlength=IGNORE + 1)
    pair.pixels = {int(label): int(counts_K[label]) for label in counts_K.nonzero()[0]}
    if set(pair.pixels) == {IGNORE}:
        text = f"{mask_path}: every pixel is ignored, so the image does not contribute. Label it, or remove the pair."
        pair.findings.append(Finding("warning", "mask all ignored", str(mask_path), text))
    return pair


def _try_mask(mask_path: Path, labels: LabelScheme, pair: PairFacts) -> Tensor | None:
    try:
        return load_mask(mask_path, labels)
    except LabelRangeError as error:
        pair.findings.append(Finding("error", "label out of range", str(mask_path), str(error)))
    except DataError as error:
        pair.findings.append(Finding("error", "unreadable mask", str(mask_path), str(error)))
    return None


def _summarize(facts: list[PairFacts], labels: LabelScheme) -> SplitReport:
    report = summarize_images(pair.image for pair in facts)
    pixels_K = np.zeros(IGNORE + 1, dtype=np.int64)
    images_K = np.zeros(IGNORE + 1, dtype=np.int64)
    for pair in facts:
        for label, count in pair.pixels.items():
            pixels_K[label] += count
            images_K[label] += 1
    labeled = int(pixels_K[:IGNORE].sum())
    report.classes = [
        ClassCount(name, int(pixels_K[k]), int(pixels_K[k]) / max(labeled, 1), int(images_K[k]))
        for k, name in enumerate(labels.classes.names)
    ]
    report.ignored_share = int(pixels_K[IGNORE]) / max(labeled + int(pixels_K[IGNORE]), 1)
    return report
