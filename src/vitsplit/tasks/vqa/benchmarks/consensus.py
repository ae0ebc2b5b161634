"""The accuracy of VQAv2, VizWiz and TextVQA against ten human answers, and their normalization of answers.

Both normalizations follow the official scripts including their quirks (a comma between digits removes all punctuation,
which is otherwise replaced by spaces), so that results are comparable with published ones.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from vitsplit.errors import DataError
from vitsplit.tasks.vqa.benchmarks.base import Benchmark, BenchmarkQuestion, mean, mean_by
from vitsplit.tasks.vqa.benchmarks.files import optional_text, require_fields

ANSWERS = 10
"""Number of human answers per question."""
_DIGITS = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten")
NUMBERS = {word: str(number) for number, word in enumerate(_DIGITS)} | {"none": "0"}
ARTICLES = frozenset({"a", "an", "the"})
PUNCTUATION = ';/[]"{}()=+\\_-><@`,?!'
"""Marks that are removed or replaced by a space; apostrophes (possessives) and colons (times) are kept."""

_WITH_APOSTROPHES = (
    "ain't aren't can't could've couldn't couldn't've didn't doesn't don't hadn't hadn't've hasn't haven't he'd "
    "he'd've he's how'd how'll how's isn't it'd it'd've it'll ma'am might've mightn't mightn't've must've mustn't "
    "needn't not've o'clock oughtn't 'ow's'at shan't she'd've should've shouldn't shouldn't've somebody'd've "
    "somebody'll somebody's someone'd someone'd've someone'll someone's something'd something'd've something'll "
    "that's there'd there'd've there're there's they'd they'd've they'll they're they've 'twas wasn't we'd've we've "
    "weren't what'll what're what's what've when's where'd where's where've who'd who'd've who'll who's who've "
    "why'll why're why's won't would've wouldn't wouldn't've y'all y'all'd've y'all'll you'd you'd've you'll you're "
    "you've"
)
CONTRACTIONS = {
    form[: mark.start()] + form[mark.end() :]: form
    for form in _WITH_APOSTROPHES.split()
    for mark in re.finditer("'", form)
} | {"somebody'd": "somebodyd"}
"""Words with a missing apostrophe to their correction; the last entry is as in the official table."""

_PERIOD = re.compile(r"\.(?!\d)")
_COMMA_IN_NUMBER = re.compile(r"\d,\d")


@dataclass(frozen=True, kw_only=True)
class HumanQuestion(BenchmarkQuestion):
    """A question of VQAv2 or VizWiz.

    Attributes:
        truths: Ten human answers; empty if they are not public.
        answer_type: Type of the answer (VQAv2: ``yes/no``, ``number`` or ``other``), or empty.
    """

    truths: tuple[str, ...] = ()
    answer_type: str = ""


class HumanAnswers(Benchmark[HumanQuestion]):
    """A benchmark with ten human answers per question, measured as VQAv2."""

    def metrics(self, answered: Sequence[tuple[HumanQuestion, str]]) -> dict[str, Any]:
        """The official accuracy, in total and by type of answer; empty without human answers."""
        if not answered[0][0].truths:
            return {}
        scores = [
            (question.answer_type, consensus(clean(answer), clean_truths(question.truths)))
            for question, answer in answered
        ]
        return {"accuracy": mean(score for _, score in scores), "by_answer_type": mean_by(scores)}


def read_human_answers(row: Mapping[str, Any], file: Path, where: str) -> dict[str, Any]:
    """``truths`` and ``answer_type`` of an entry with ``answers`` (a list of ``{"answer"}``) and ``answer_type``.

    Raises:
        DataError: There are not ten answers, or they are invalid.
    """
    (answers,) = require_fields(row, {"answers": "list"}, file, where)
    truths = tuple(require_fields(answer, {"answer": "text"}, file, where)[0] for answer in answers)
    if len(truths) != ANSWERS:
        raise DataError(f"{file}: {where} has {len(truths)} answers, not {ANSWERS}. Download the file again.")
    return {"truths": truths, "answer_type": optional_text(row, "answer_type", file, where)}


def clean(answer: str) -> str:
    """Normalizes an answer as VQAv2: lower case, no articles, digits for number words, corrected contractions.

    A period is kept only before a digit. Other punctuation becomes a space, or is removed if it is next to a space or
    if there is a comma between digits anywhere (``100,978`` becomes ``100978``).
    """
    words = [NUMBERS.get(word, word) for word in without_punctuation(_stripped(answer)).lower().split()]
    return " ".join(CONTRACTIONS.get(word, word) for word in words if word not in ARTICLES)


def without_punctuation(text: str) -> str:
    """The first of the two steps of ``clean`` (``processPunctuation`` in the official script)."""
    has_long_number = _COMMA_IN_NUMBER.search(text) is not None
    cleaned = text
    for mark in PUNCTUATION:
        beside_space = f"{mark} " in text or f" {mark}" in text
        cleaned = cleaned.replace(mark, "" if beside_space or has_long_number else " ")
    return _PERIOD.sub("", cleaned)


def _stripped(answer: str) -> str:
    return re.sub(r"[\n\t]", " ", answer).strip()


def clean_as_server(answer: str) -> str:
    """Normalizes an answer as TextVQA, and as LLaVA-1.5 does for submissions to VQAv2 and VizWiz.

    Removes commas and question marks and separates possessives (``men's`` becomes ``men 's``), then as ``clean``.
    """
    text = answer.lower().replace(",", "").replace("?", "").replace("'s", " 's")
    return clean(text.strip())


def clean_truths(truths: Sequence[str]) -> list[str]:
    """Normalizes human answers as VQAv2: removes punctuation if they differ, otherwise unchanged.

    As in the official ``vqaEval.py`` (GT-Vision-Lab/VQA): articles, capital letters and number words are kept (the
    published answers have none), so an answer with punctuation given by all ten matches no normalized answer.
    """
    return [without_punctuation(truth) for truth in truths] if len(set(truths)) > 1 else list(truths)


def consensus(answer: str, truths: Sequence[str]) -> float:
    """Agreement of a normalized answer with the human ones, see ``clean_truths``.

    The mean over the ten humans of ``min(1, same / 3)``, where ``same`` of the other nine gave the answer, as in the
    official evaluation: 0.3, 0.6, 0.9 and 1 for one, two, three and more of ten.
    """
    same = [truth == answer for truth in truths]
    total = sum(same)
    return sum(min(1.0, (total - mine) / 3) for mine in same) / len(truths)
