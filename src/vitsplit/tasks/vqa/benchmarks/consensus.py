"""The accuracy of VQAv2, VizWiz and TextVQA against ten human answers, and the two ways in which answers are cleaned.

Both ways are those of the official evaluation, with their oddities (a comma between digits makes all punctuation of
the answer vanish, where otherwise it becomes a space), so that figures compare with published ones.
"""

from __future__ import annotations

import re
from collections.abc import Sequence

ANSWERS = 10
"""People who answered each question."""
_DIGITS = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten")
NUMBERS = {word: str(number) for number, word in enumerate(_DIGITS)} | {"none": "0"}
ARTICLES = frozenset({"a", "an", "the"})
PUNCTUATION = ';/[]"{}()=+\\_-><@`,?!'
"""What is removed or becomes a space. Apostrophes and colons stay: they tell possessives and times of day."""

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
"""Words that lack one apostrophe, to what they become. The last one is as it is in the official table."""

_PERIOD = re.compile(r"\.(?!\d)")
_COMMA_IN_NUMBER = re.compile(r"\d,\d")


def clean(answer: str) -> str:
    """An answer as VQAv2's evaluation compares it: lower case, without articles, numbers as digits, apostrophes put in.

    A period stays only before a digit. A punctuation mark becomes a space, but is removed where it stands beside a
    space, and wherever there is a comma between digits (``100,978`` is ``100978``).
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
    """An answer as TextVQA's evaluation compares it and as LLaVA-1.5 sends it to the servers of VQAv2 and VizWiz.

    First all commas and question marks go, and a possessive is cut off (``men's`` is ``men 's``); then as ``clean``.
    """
    text = answer.lower().replace(",", "").replace("?", "").replace("'s", " 's")
    return clean(text.strip())


def clean_truths(truths: Sequence[str]) -> list[str]:
    """People's answers as VQAv2's evaluation compares them: without punctuation if they differ, else as they are.

    So the official ``vqaEval.py`` (GT-Vision-Lab/VQA) has it: articles, capital letters and words for numbers stay,
    since the published answers have none of them, and what all ten wrote with a mark is matched by no cleaned answer.
    """
    return [without_punctuation(truth) for truth in truths] if len(set(truths)) > 1 else list(truths)


def consensus(answer: str, truths: Sequence[str]) -> float:
    """The share of agreement of a cleaned answer with people's, see ``clean_truths``.

    For each of the ten people in turn: ``min(1, same / 3)``, where ``same`` of the other nine said the same. The mean
    over the ten, as in the official evaluation: 0.3, 0.6, 0.9 and 1 for one, two, three and more of ten.
    """
    same = [truth == answer for truth in truths]
    total = sum(same)
    return sum(min(1.0, (total - mine) / 3) for mine in same) / len(truths)
