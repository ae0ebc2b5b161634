"""Checks depth data.

Shapes: H W pixels, P pixels of a map with a depth. Depths are in meters.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from statistics import median

import torch
from torch import Tensor

from vitsplit.data.check import (
    Finding,
    ImageFacts,
    Progress,
    Report,
    SplitReport,
    check_splits,
    inspect_image,
    open_splits,
    summarize_images,
)
from vitsplit.errors import DataError
from vitsplit.tasks.depth.config import DepthConfig
from vitsplit.tasks.depth.data import MissingScaleError, load_depth, median_depth, require_same_size, unit_warning
from vitsplit.tasks.depth.layouts import list_depth_splits, open_depth_set, recognize

BLOCK_ROWS = 128
"""Rows of a map processed at a time: copies of a whole map would take gigabytes."""


@dataclass
class PairFacts:
    """Facts about one image and its depth map.

    Attributes:
        image: Facts about the image.
        pixels: Number of pixels of the map; 0 if it cannot be read.
        valid: Number of pixels with a depth.
        range: Minimum, median and maximum depth; None without valid pixels.
        findings: The problems.
    """

    image: ImageFacts
    pixels: int = 0
    valid: int = 0
    range: tuple[float, float, float] | None = None
    findings: list[Finding] = field(default_factory=list)


def check_files(config: DepthConfig, root: Path, workers: int, progress: Progress) -> Report:
    """Reads every image and depth map; see ``vitsplit.tasks.check_data``."""
    report = Report(str(root), "depth", recognize(root, config.format)[1])
    splits = list_depth_splits(root, config.format)
    scale = config.depth_scale
    sets = open_splits(report, splits, lambda split: open_depth_set(root, split, config.format, scale))
    work = {split: (partial(inspect_pair, scale=data.scale), data.items) for split, data in sets.items()}
    check_splits(report, work, lambda split, facts: _summarize(facts, sets[split].scale), workers, progress)
    return report


def inspect_pair(item: tuple[Path, Path], scale: float | None) -> PairFacts:
    """Reads one image and its depth map; problems become findings, not exceptions."""
    image_path, depth_path = item
    facts, problem = inspect_image(image_path)
    pair = PairFacts(facts, findings=[problem] if problem else [])
    depth_HW = _try_depth(depth_path, scale, pair)
    if depth_HW is None:
        return pair
    if facts.size is not None:
        try:
            require_same_size(facts.size[::-1], depth_HW, image_path, depth_path)
        except DataError as error:
            pair.findings.append(Finding("error", "size mismatch", str(depth_path), str(error)))
    _measure(depth_HW, depth_path, pair)
    return pair


def _try_depth(depth_path: Path, scale: float | None, pair: PairFacts) -> Tensor | None:
    try:
        return load_depth(depth_path, scale)
    except MissingScaleError as error:
        pair.findings.append(Finding("error", "unit not known", str(depth_path), str(error)))
    except DataError as error:
        pair.findings.append(Finding("error", "unreadable depth map", str(depth_path), str(error)))
    return None


def _measure(depth_HW: Tensor, path: Path, pair: PairFacts) -> None:
    """Adds the range of a map, and findings about its values."""
    pair.pixels, pair.valid = depth_HW.numel(), int(depth_HW.count_nonzero())
    median = median_depth(depth_HW)
    if median is None or not pair.valid:
        text = f"{path}: no pixel has a depth (all are 0, negative or not finite). Export the map again, or remove it."
        pair.findings.append(Finding("error", "no valid depth", str(path), text))
        return
    least = min(float(torch.where(rows_HW > 0, rows_HW, torch.inf).min()) for rows_HW in depth_HW.split(BLOCK_ROWS))
    pair.range = least, median, float(depth_HW.max())
    if pair.range[0] == pair.range[2] and pair.valid > 1:
        text = f"{path}: every depth is {pair.range[0]:.4g} m. Check that the map was exported correctly."
        pair.findings.append(Finding("warning", "constant depth", str(path), text))
    unit = unit_warning(depth_HW, path)
    if unit:
        pair.findings.append(Finding("warning", "unlikely unit", str(path), unit))


def _summarize(facts: list[PairFacts], scale: float | None) -> SplitReport:
    report = summarize_images(pair.image for pair in facts)
    ranges = [pair.range for pair in facts if pair.range is not None]
    if ranges:
        lows, medians, highs = zip(*ranges, strict=True)
        report.facts = {
            "least depth, m": min(lows),
            "median of the maps' medians, m": median(medians),
            "largest depth, m": max(highs),
        }
    pixels = sum(pair.pixels for pair in facts)
    report.facts["pixels with a depth, %"] = 100 * sum(pair.valid for pair in facts) / max(pixels, 1)
    report.facts["metres of one unit of the files"] = 1.0 if scale is None else scale
    return report
