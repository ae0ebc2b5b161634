"""Asking a bundle the questions of a benchmark: images once each, and answers kept as they come."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from vitsplit.atomic_files import write_text
from vitsplit.data.images import decode_bytes
from vitsplit.errors import RunError
from vitsplit.files import read_json_lines, string
from vitsplit.tasks.vqa.benchmarks.base import Benchmark, BenchmarkQuestion

if TYPE_CHECKING:
    from vitsplit.inference.predictor import LoadedHead

ANSWERS = "answers.jsonl"
LONGEST_ANSWER = 1 << 22
"""Characters of a prompt or an answer that is read again."""
WITHOUT_IMAGE = 8
"""Questions without an image that are asked together."""


def run_benchmark(
    predictor: LoadedHead,
    benchmark: Benchmark,
    folder: Path,
    *,
    made_by: Mapping[str, Any] | None = None,
    max_new_tokens: int | None = None,
    on_question: Callable[[], None] | None = None,
) -> dict[str, str]:
    """The bundle's answers, by id of the question.

    Questions on one image are asked together, so that its visual tokens are computed once. Answers are appended to
    ``answers.jsonl`` in ``folder`` as they come; its first line says what made them. A second start goes on.

    Args:
        predictor: A bundle of visual question answering.
        benchmark: What to ask.
        folder: Where the answers are kept; made if it is not there.
        made_by: What tells the bundle from others, JSON-ready.
        max_new_tokens: The most tokens of an answer; None: the benchmark's figure.
        on_question: Called for every question that has its answer, also those of an earlier start.

    Raises:
        RunError: The folder holds answers of another bundle, to another benchmark or with other settings.
        DataError: An image cannot be read.
    """
    tokens = benchmark.max_new_tokens if max_new_tokens is None else max_new_tokens
    head = {"benchmark": benchmark.name, "max_new_tokens": tokens, **(made_by or {})}
    questions = {question.id: question for question in benchmark.questions()}
    known = _open_answers(folder / ANSWERS, head, questions)
    for _ in known:
        if on_question is not None:
            on_question()
    todo = [question for name, question in questions.items() if name not in known]
    with (folder / ANSWERS).open("a", encoding="utf-8") as file:
        for group in _groups(todo):
            answers = _ask(predictor, group, tokens)
            for question, answer in zip(group, answers, strict=True):
                file.write(json.dumps({"id": question.id, "prompt": question.prompt, "text": answer}) + "\n")
                known[question.id] = answer
                if on_question is not None:
                    on_question()
            file.flush()
    return {name: known[name] for name in questions}


def _open_answers(file: Path, head: Mapping[str, Any], questions: Mapping[str, BenchmarkQuestion]) -> dict[str, str]:
    """The answers of an earlier start to these questions. The file then ends with a whole line."""
    rows = _read_answers(file)
    if rows and rows[0] != head:
        was = ", ".join(f"{name} {value}" for name, value in rows[0].items() if head.get(name) != value)
        raise RunError(
            f"{file}: holds answers that were made otherwise ({was or 'with less said'}). "
            "Give another folder with --out, or remove the file."
        )
    for row in rows[1:]:
        question = questions.get(row["id"])
        if question is not None and row["prompt"] != question.prompt:
            raise RunError(
                f"{file}: the question {row['id']} was asked otherwise before, so the benchmark's files have changed. "
                "Give another folder with --out, or remove the file."
            )
    file.parent.mkdir(parents=True, exist_ok=True)
    # Written anew, since a kill may have left half a line at the end.
    write_text(file, "".join(json.dumps(row) + "\n" for row in (head, *rows[1:])))
    return {row["id"]: row["text"] for row in rows[1:] if row["id"] in questions}


def _read_answers(file: Path) -> list[dict[str, Any]]:
    """What is in the file, its head first. Half a line at the end, which a kill left, is passed over."""
    if not file.exists():
        return []
    advice = "Remove the line; its question is asked again."
    rows = read_json_lines(file, error=RunError, advice=advice, may_end_early=True)
    for number, row in rows[1:]:
        for key in ("id", "prompt", "text"):
            string(row.get(key), f"{file}: '{key}' of line {number}", LONGEST_ANSWER, error=RunError, advice=advice)
    return [row for _, row in rows]


def _groups(questions: Sequence[BenchmarkQuestion]) -> Iterator[list[BenchmarkQuestion]]:
    """Questions on one image, in the order in which images first occur; those without in groups of a fixed size."""
    by_image: dict[Path | bytes | None, list[BenchmarkQuestion]] = {}
    for question in questions:
        by_image.setdefault(question.image, []).append(question)
    for image, group in by_image.items():
        size = WITHOUT_IMAGE if image is None else len(group)
        for start in range(0, len(group), size):
            yield group[start : start + size]


def _ask(predictor: LoadedHead, group: Sequence[BenchmarkQuestion], tokens: int) -> list[str]:
    prompts = [question.prompt for question in group]
    image = group[0].image
    if image is None:
        from vitsplit.tasks.vqa.predict import ask_without_image

        return list(ask_without_image(predictor, prompts, max_new_tokens=tokens))
    picture = decode_bytes(image, f"the image of question {group[0].id}") if isinstance(image, bytes) else image
    return list(predictor.predict(picture).ask_many(prompts, max_new_tokens=tokens))
