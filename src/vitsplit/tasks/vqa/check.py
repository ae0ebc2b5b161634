"""Checks the data of visual question answering."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace
from pathlib import Path

from vitsplit.data.check import (
    Finding,
    ImageFacts,
    Progress,
    Report,
    SplitReport,
    find_duplicates,
    inspect_image,
    open_splits,
    read_splits,
    summarize_images,
)
from vitsplit.tasks.vqa.config import VqaConfig
from vitsplit.tasks.vqa.metrics import normalized
from vitsplit.tasks.vqa.samples import SampleSet, open_samples

SPLITS = ("train", "val")


def check_files(config: VqaConfig, root: Path, workers: int, progress: Progress) -> Report:
    """Reads every sample and every image; see ``vitsplit.tasks.check_data``."""
    # Invalid samples are counted instead of raising errors, and each question is counted separately.
    config = replace(config, bad_samples="skip", share_image=False)
    report = Report(str(root), "vqa", config.format)
    sets = open_splits(report, SPLITS, lambda split: open_samples(root, split, config))
    if sets:
        is_llava = next(iter(sets.values())).file.suffix == ".json"
        report.format = ("llava" if is_llava else "questions") if config.format == "auto" else config.format
    work = {split: (inspect_file, _images(data)) for split, data in sets.items()}
    facts: dict[str, list[ImageFacts]] = {}
    for split, read in read_splits(work, workers, progress):
        facts[split] = [image for image, _ in read]
        report.splits[split] = _summarize(sets[split], facts[split])
        report.findings += [problem for _, problem in read if problem is not None]
    for file, problems in {data.file: data.problems for data in sets.values()}.items():
        report.findings += [
            Finding("error", problem.kind, str(file), f"{problem.where}: {problem.kind}") for problem in problems
        ]
    report.findings += find_duplicates(facts)
    return report


def inspect_file(path: Path) -> tuple[ImageFacts, Finding | None]:
    """Reads one image; problems become findings, not exceptions."""
    return inspect_image(path)


def _images(data: SampleSet) -> list[Path]:
    """The images of a split, without duplicates."""
    return list(dict.fromkeys(sample.image for sample in data.samples if sample.image is not None))


def _summarize(data: SampleSet, images: list[ImageFacts]) -> SplitReport:
    report = summarize_images(images)
    turns = [turn for sample in data.samples for conversation in sample.conversations for turn in conversation]
    answers = Counter(normalized(turn.answer) for turn in turns)
    common, count = answers.most_common(1)[0] if answers else ("none", 0)
    report.facts = {
        "questions": len(turns),
        "samples without an image": sum(sample.image is None for sample in data.samples),
        "different answers": len(answers),
        "most common answer": common if len(common) <= 40 else common[:39] + "…",
        "its share, %": 100 * count / max(len(turns), 1),
        "words of an answer, mean": sum(len(turn.answer.split()) for turn in turns) / max(len(turns), 1),
    }
    return report
