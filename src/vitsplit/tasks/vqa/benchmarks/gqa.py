"""GQA: questions generated from scene graphs, with one correct answer."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from vitsplit.tasks.vqa.benchmarks.base import SHORT, Benchmark, BenchmarkQuestion, mean
from vitsplit.tasks.vqa.benchmarks.files import find_file, find_images, read_object, require_fields, root_of


@dataclass(frozen=True, kw_only=True)
class GqaQuestion(BenchmarkQuestion):
    """A question; ``is_open`` distinguishes open questions from binary ones ("yes or no?", "a or b?")."""

    truth: str
    is_open: bool | None


class Gqa(Benchmark[GqaQuestion]):
    """The questions of a split."""

    def metrics(self, answered: Sequence[tuple[GqaQuestion, str]]) -> dict[str, Any]:
        """The fraction of exactly correct answers, in total and for open and binary questions where types are known.

        Answers are compared in lower case without trailing period, as submitted by LLaVA-1.5.
        """
        correct = [(prediction(answer) == question.truth, question.is_open) for question, answer in answered]
        metrics = {"accuracy": mean(hit for hit, _ in correct)}
        for name, wanted in (("open", True), ("binary", False)):
            hits = [hit for hit, is_open in correct if is_open is wanted]
            if hits:
                metrics[name] = mean(hits)
        return metrics

    def submission(self, answered: Sequence[tuple[GqaQuestion, str]], model: str) -> dict[str, Any]:
        """``gqa-predictions.json``: a list of ``{"questionId", "prediction"}``, as read by GQA's script."""
        rows = [{"questionId": question.id, "prediction": prediction(answer)} for question, answer in answered]
        return {"gqa-predictions.json": rows}


def prediction(answer: str) -> str:
    """An answer in lower case without trailing periods."""
    return answer.strip().rstrip(".").lower()


def open_gqa(path: Path) -> Gqa:
    """Reads GQA.

    ::

        PATH/testdev_balanced_questions.json   or in PATH/questions1.2, PATH/data or PATH/data/questions1.2
        PATH/images/n288870.jpg                or in PATH/data/images

    The file is ``{"201307251": {"question": ..., "imageId": "n288870", "answer": "yes", "types": {"structural":
    "query", ...}}, ...}``.

    Args:
        path: The folder, or the file of questions (also of another split with answers, such as ``val``).

    Raises:
        DataError: Files, images or answers are missing.
    """
    folders = ("", "questions1.2/", "questions/", "data/", "data/questions1.2/")
    file = find_file(path, [f"{folder}testdev_balanced_questions.json" for folder in folders], what="file of questions")
    rows = {
        number: (
            row,
            *require_fields(row, {"question": "text", "imageId": "id", "answer": "text"}, file, f"question {number}"),
        )
        for number, row in read_object(file).items()
    }
    names = {number: f"{image}.jpg" for number, (_, _, image, _) in rows.items()}
    images = find_images(names, root_of(file), ("images", "../images", "../data/images", "../../images"), file)
    questions = []
    for number, (row, question, _, answer) in rows.items():
        types = row.get("types")
        structural = types.get("structural") if isinstance(types, dict) else None
        is_open = None if structural is None else structural == "query"
        questions.append(GqaQuestion(number, images[number], f"{question}\n{SHORT}", truth=answer, is_open=is_open))
    return Gqa(name="gqa", file=file, questions=tuple(questions))
