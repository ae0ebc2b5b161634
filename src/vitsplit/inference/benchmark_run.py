"""Runs a bundle on a benchmark: encodes each image once, and saves answers incrementally."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from vitsplit.atomic_files import write_text
from vitsplit.data.decoding import decode_bytes
from vitsplit.errors import RunError
from vitsplit.files import read_json_lines, string
from vitsplit.tasks.vqa.benchmarks.base import Benchmark, BenchmarkQuestion

if TYPE_CHECKING:
    from vitsplit.inference.predictor import LoadedHead

ANSWERS = "answers.jsonl"
LONGEST_ANSWER = 1 << 22
"""Length limit in characters of a saved prompt or answer."""
TEXT_BATCH = 8
"""Batch size of questions without an image."""


def run_benchmark(
    predictor: LoadedHead,
    benchmark: Benchmark[Any],
    folder: Path,
    *,
    made_by: Mapping[str, Any] | None = None,
    max_new_tokens: int | None = None,
    on_question: Callable[[], None] | None = None,
) -> dict[str, str]:
    """Answers all questions and returns the answers by question id.

    Questions on one image are answered together, so its visual tokens are computed once. Answers are appended to
    ``answers.jsonl`` in ``folder``, whose first line identifies the bundle and settings. A second call resumes.

    Args:
        predictor: A bundle of visual question answering.
        benchmark: The questions.
        folder: Folder of the answers; created if missing.
        made_by: JSON-compatible identification of the bundle.
        max_new_tokens: Length limit of an answer; None: the benchmark's default.
        on_question: Called for every answered question, including those answered earlier.

    Raises:
        RunError: The folder has answers of another bundle, benchmark or settings.
        DataError: An image cannot be read.
    """
    tokens = benchmark.max_new_tokens if max_new_tokens is None else max_new_tokens
    head = {"benchmark": benchmark.name, "max_new_tokens": tokens, **(made_by or {})}
    questions = {question.id: question for question in benchmark.questions}
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
    """Reads earlier answers to these questions, and removes an incomplete last line from the file."""
    rows = _read_answers(file)
    if rows and rows[0] != head:
        was = ", ".join(f"{name} {value}" for name, value in rows[0].items() if head.get(name) != value)
        raise RunError(
            f"{file}: has answers of another run ({was or 'other settings'}). Give another folder with --out, or "
            "remove the file."
        )
    for row in rows[1:]:
        question = questions.get(row["id"])
        if question is not None and row["prompt"] != question.prompt:
            raise RunError(
                f"{file}: the prompt of question {row['id']} differs, so the benchmark's files have changed. Give "
                "another folder with --out, or remove the file."
            )
    file.parent.mkdir(parents=True, exist_ok=True)
    # Rewritten, since an interrupted write may have left an incomplete last line.
    write_text(file, "".join(json.dumps(row) + "\n" for row in (head, *rows[1:])))
    return {row["id"]: row["text"] for row in rows[1:] if row["id"] in questions}


def _read_answers(file: Path) -> list[dict[str, Any]]:
    """The rows of the file, the header first. An incomplete last line is ignored."""
    if not file.exists():
        return []
    advice = "Remove the line to answer its question again."
    rows = read_json_lines(file, error=RunError, advice=advice, may_end_early=True)
    for number, row in rows[1:]:
        for key in ("id", "prompt", "text"):
            string(row.get(key), f"{file}: '{key}' of line {number}", LONGEST_ANSWER, error=RunError, advice=advice)
    return [row for _, row in rows]


def _groups(questions: Sequence[BenchmarkQuestion]) -> Iterator[list[BenchmarkQuestion]]:
    """Groups questions by image, in order of first occurrence; those without image in groups of a fixed size."""
    by_image: dict[Path | bytes | None, list[BenchmarkQuestion]] = {}
    for question in questions:
        by_image.setdefault(question.image, []).append(question)
    for image, group in by_image.items():
        size = TEXT_BATCH if image is None else len(group)
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
