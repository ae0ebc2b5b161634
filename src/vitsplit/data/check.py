"""Common parts of the tasks' data set checks: report, parallel reading, duplicates."""

from __future__ import annotations

import hashlib
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal, Protocol, TypeVar

from vitsplit.data.decoding import decode_image, image_kind, rgb_array
from vitsplit.data.images import row_blocks
from vitsplit.data.processes import map_in_processes
from vitsplit.errors import DataError

ItemT = TypeVar("ItemT")
ResultT = TypeVar("ResultT")
SetT = TypeVar("SetT")
FactsT = TypeVar("FactsT", bound="ItemFacts")
Progress = Callable[[int, int], None]
"""Called with the number of files read so far, and the total number."""

ITEMS_PER_PROCESS = 100
"""Minimum number of files per additional process, which takes seconds to start."""


@dataclass(frozen=True)
class Finding:
    """A problem of one or several files.

    Attributes:
        level: An error makes training fail or invalidates it; a warning may be intended.
        kind: The kind of problem in two or three words, by which findings are grouped.
        file: The file.
        message: What is wrong, where, and what to do.
    """

    level: Literal["error", "warning"]
    kind: str
    file: str
    message: str


@dataclass(frozen=True)
class ImageFacts:
    """Facts about an image; size is ``(width, height)``, or None if it could not be read."""

    file: str
    size: tuple[int, int] | None
    kind: str = ""
    digest: str = ""


@dataclass(frozen=True)
class ClassCount:
    """The amount of a class in a split; ``Report.counted`` is the unit of ``count``."""

    name: str
    count: int
    share: float
    images: int


@dataclass
class SplitReport:
    """Statistics of a split.

    Attributes:
        images: Number of images.
        sizes: ``(width, height, count)``, the most common first.
        converted: Number of images that are converted on reading, by kind.
        classes: Pixels (or objects) and images per class; ``share`` is the fraction of all classes.
        ignored_share: Fraction of all pixels without a class; None if labels are not per pixel.
        facts: Further figures by display name, such as the range of depths.
    """

    images: int
    sizes: list[tuple[int, int, int]] = field(default_factory=list)
    converted: dict[str, int] = field(default_factory=dict)
    classes: list[ClassCount] = field(default_factory=list)
    ignored_share: float | None = None
    facts: dict[str, str | int | float] = field(default_factory=dict)


class ItemFacts(Protocol):
    """Facts about one sample, from its image and its labels."""

    image: ImageFacts
    findings: list[Finding]


@dataclass
class Report:
    """The result of a check; ``counted`` is the unit of ``ClassCount.count`` and ``share``."""

    path: str
    task: str
    format: str
    counted: Literal["pixels", "objects"] = "pixels"
    splits: dict[str, SplitReport] = field(default_factory=dict)
    findings: list[Finding] = field(default_factory=list)

    @property
    def errors(self) -> list[Finding]:
        """The findings that must be corrected."""
        return [finding for finding in self.findings if finding.level == "error"]

    @property
    def warnings(self) -> list[Finding]:
        """The findings that should be inspected."""
        return [finding for finding in self.findings if finding.level == "warning"]

    def to_json(self) -> dict[str, Any]:
        """The report, JSON-ready."""
        return {"ok": not self.errors, **asdict(self)}


def open_splits(report: Report, splits: Iterable[str], open_split: Callable[[str], SetT]) -> dict[str, SetT]:
    """Opens the splits of a data set; one that cannot be opened becomes an error of the report."""
    sets = {}
    for split in splits:
        try:
            sets[split] = open_split(split)
        except DataError as error:
            report.findings.append(Finding("error", f"split {split} cannot be opened", report.path, str(error)))
    return sets


def check_splits(
    report: Report,
    work: Mapping[str, tuple[Callable[[ItemT], FactsT], Sequence[ItemT]]],
    summarize: Callable[[str, list[FactsT]], SplitReport],
    workers: int,
    progress: Progress,
) -> None:
    """Reads all samples and adds the splits, their findings and duplicate images to a report.

    Args:
        report: The report.
        work: By split, what reads a sample, and the samples.
        summarize: Summarizes a split from its name and the facts about its samples.
        workers: See ``map_files``.
        progress: See ``Progress``.
    """
    images: dict[str, list[ImageFacts]] = {}
    for split, facts in read_splits(work, workers, progress):
        report.splits[split] = summarize(split, facts)
        report.findings += [finding for each in facts for finding in each.findings]
        images[split] = [each.image for each in facts]
    report.findings += find_duplicates(images)


def read_splits(
    work: Mapping[str, tuple[Callable[[ItemT], ResultT], Sequence[ItemT]]], workers: int, progress: Progress
) -> Iterator[tuple[str, list[ResultT]]]:
    """Applies each split's function to its items, see ``map_files``, and reports the progress over all of them."""
    total = sum(len(items) for _, items in work.values())
    done = 0
    for split, (function, items) in work.items():
        results = []
        for result in map_files(function, items, workers):
            results.append(result)
            progress(done := done + 1, total)
        yield split, results


def map_files(function: Callable[[ItemT], ResultT], items: Sequence[ItemT], workers: int) -> Iterator[ResultT]:
    """Applies a function to items, in order; in several processes if there are enough items.

    Raises:
        DataError: A process ended early, see ``map_in_processes``.
    """
    workers = min(workers, len(items) // ITEMS_PER_PROCESS)
    return map_in_processes(
        function, items, workers, doing="reads files", alone="run again with --workers 1", initializer=_one_thread
    )


def inspect_image(path: Path) -> tuple[ImageFacts, Finding | None]:
    """Reads an image as training does; returns its facts, or the error if it cannot be read."""
    try:
        image = decode_image(path)
        digest = hashlib.blake2b(digest_size=16, key=repr(image.size).encode())
        for rows in row_blocks(image.height, image.width):  # a whole copy would double the memory
            block = image.crop((0, rows.start, image.width, rows.stop))
            digest.update(rgb_array(block, str(path)).tobytes())
    except DataError as error:
        return ImageFacts(str(path), None), Finding("error", "unreadable image", str(path), str(error))
    return ImageFacts(str(path), image.size, image_kind(image), digest.hexdigest()), None


def summarize_images(facts: Iterable[ImageFacts]) -> SplitReport:
    """Counts sizes and conversions of a split's images."""
    facts = list(facts)
    sizes = Counter(fact.size for fact in facts if fact.size is not None)
    converted = Counter(fact.kind for fact in facts if fact.kind not in ("", "RGB"))
    return SplitReport(
        images=len(facts),
        sizes=[(width, height, count) for (width, height), count in sizes.most_common()],
        converted=dict(converted.most_common()),
    )


def find_duplicates(facts: dict[str, list[ImageFacts]]) -> list[Finding]:
    """Images with equal pixels: an error across splits (which makes the score invalid), a warning within one."""
    places: dict[str, list[tuple[str, str]]] = defaultdict(list)
    for split, images in facts.items():
        for image in images:
            if image.digest:
                places[image.digest].append((split, image.file))
    findings = []
    for copies in places.values():
        splits = sorted({split for split, _ in copies})
        files = [file for _, file in copies]
        if len(splits) > 1:
            message = (
                f"{' and '.join(files)}: the same image in {' and '.join(splits)}. Remove it from all but one split."
            )
            findings.append(Finding("error", "image in two splits", files[0], message))
        elif len(copies) > 1:
            message = f"{' and '.join(files)}: the same image {len(copies)} times. Keep one."
            findings.append(Finding("warning", "duplicate image", files[0], message))
    return findings


def find_unseen_classes(report: Report, score: str) -> list[Finding]:
    """Classes without a pixel or object in a split; in validation they are not part of ``score``."""
    findings = []
    for split, data in report.splits.items():
        unseen = [entry.name for entry in data.classes if entry.count == 0]
        if unseen:
            message = f"{split}: no {report.counted.rstrip('s')} of {len(unseen)} of {len(data.classes)} classes: "
            message += f"{', '.join(unseen)}. " + (
                "They cannot be learned: remove them from the list of classes, or add images."
                if split == "train"
                else f"They do not count in this split's {score}."
            )
            findings.append(Finding("warning", "classes never seen", report.path, message))
    return findings


def _one_thread() -> None:
    import torch

    torch.set_num_threads(1)
