"""Normalization of answers and accuracy against ten annotators, on cases worked out from the official rules."""

from __future__ import annotations

import itertools

import pytest

from vitsplit.tasks.vqa.benchmarks.consensus import CONTRACTIONS, clean, clean_as_server, clean_truths, consensus


@pytest.mark.parametrize(
    ("answer", "cleaned"),
    [
        ("The Dog", "dog"),
        ("a cat and an owl", "cat and owl"),
        ("Two", "2"),
        ("none", "0"),
        ("ten dollars", "10 dollars"),
        ("eleven", "eleven"),  # numbers end at ten
        ("dont", "don't"),
        ("couldntve", "couldntve"),  # only one apostrophe may be missing
        ("couldnt've", "couldn't've"),
        ("somebody'd", "somebodyd"),  # sic
        ("3.5", "3.5"),
        ("it is 3.", "it is 3"),
        ("U.S.", "us"),
        (".5 miles", ".5 miles"),
        ("black-white", "black white"),  # a mark becomes a space
        ("black - white", "black white"),  # and is removed beside one
        ("yes, sir", "yes sir"),
        ("yes,sir", "yes sir"),
        ("100,978", "100978"),
        ("1,000/day", "1000day"),  # a comma between digits removes all marks
        ("2:50 pm", "2:50 pm"),
        ("girl's", "girl's"),
        ("on\nthe\ttable ", "on table"),
        ("really?!", "really"),
        ("", ""),
    ],
)
def test_answers_are_normalized_by_the_official_rules(answer: str, cleaned: str) -> None:
    assert clean(answer) == cleaned


@pytest.mark.parametrize(
    ("answer", "cleaned"),
    [
        ("Yes, sir?", "yes sir"),
        ("men's room", "men 's room"),
        ("yes,sir", "yessir"),  # commas go first, and leave no space
        ("1,000/day", "1000 day"),  # so no comma is left between digits
        ("The Two", "2"),
        ("It's", "it 's"),
    ],
)
def test_server_normalization_differs_in_punctuation(answer: str, cleaned: str) -> None:
    assert clean_as_server(answer) == cleaned


def test_contractions_lack_one_apostrophe() -> None:
    assert CONTRACTIONS["yall'd've"] == CONTRACTIONS["y'all'dve"] == CONTRACTIONS["y'alld've"] == "y'all'd've"
    assert CONTRACTIONS["ow's'at"] == CONTRACTIONS["'ows'at"] == "'ow's'at"
    assert not {"shed", "well", "were", "ill", "lets", "its", "wed", "shell"} & set(
        CONTRACTIONS
    )  # these are words without an apostrophe


@pytest.mark.parametrize(("same", "accuracy"), [(0, 0.0), (1, 0.3), (2, 0.6), (3, 0.9), (4, 1.0), (10, 1.0)])
def test_accuracy_with_ten_annotators(same: int, accuracy: float) -> None:
    # e.g. 3 of 10: the three who agree see 2 others (2/3), the seven see 3 (1): (3 * 2/3 + 7) / 10 = 0.9
    assert consensus("dog", ["dog"] * same + ["cat"] * (10 - same)) == pytest.approx(accuracy)


def test_accuracy_is_the_mean_over_subsets_of_nine() -> None:
    truths = ["dog", "dog", "cat", "dog", "bird", "cat", "cow", "cat", "bat", "cat"]
    for answer in ("dog", "cat", "bird", "fish"):
        nines = [min(1, nine.count(answer) / 3) for nine in itertools.combinations(truths, 9)]
        assert consensus(answer, truths) == pytest.approx(sum(nines) / 10)


def official(answer: str, truths: list[str]) -> float:
    """The loop of VQA's ``vqaEval.py`` over one question; ``answer`` is a word that its cleaning leaves as it is.

    If the annotations differ, only the first step (punctuation) is applied to them.
    """
    marks = ';/[]"{}()=+\\_-><@`,?!'

    def first_step(text: str) -> str:
        number = any(
            text[place] == "," and text[place - 1 : place].isdigit() and text[place + 1 : place + 2].isdigit()
            for place in range(len(text))
        )
        out = text
        for mark in marks:
            out = "".join(
                ("" if number or f"{mark} " in text or f" {mark}" in text else " ") if letter == mark else letter
                for letter in out
            )
        periods = [
            place for place, letter in enumerate(out) if letter == "." and not out[place + 1 : place + 2].isdigit()
        ]
        return "".join(letter for place, letter in enumerate(out) if place not in periods)

    if len(set(truths)) > 1:
        truths = [first_step(truth) for truth in truths]
    accuracies = []
    for left_out in range(len(truths)):
        others = truths[:left_out] + truths[left_out + 1 :]
        accuracies.append(min(1, len([truth for truth in others if truth == answer]) / 3))
    return sum(accuracies) / len(accuracies)


@pytest.mark.parametrize(
    ("truths", "expected"),
    [
        (["dog!"] * 10, 0.0),  # all equal: not cleaned, and no cleaned answer matches
        (["dog!"] * 9 + ["cat"], 0.0),  # "dog " keeps the space that the mark became
        (["dog."] * 9 + ["cat"], 1.0),
        (["dog"] * 10, 1.0),
        (["The dog"] * 9 + ["cat"], 0.0),  # articles and capital letters stay
        (["dog.", "dog", "dog"] + ["cat"] * 7, 0.9),
        (["1,000 dogs", "dog.", "d.og"] + ["dog"] * 7, 1.0),
    ],
)
def test_differing_annotations_lose_punctuation(truths: list[str], expected: float) -> None:
    assert consensus(clean("Dog"), clean_truths(truths)) == pytest.approx(official("dog", truths))
    assert official("dog", truths) == pytest.approx(expected)
