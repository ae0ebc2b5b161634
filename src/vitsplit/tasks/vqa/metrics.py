"""How right an answer of a few words is."""

from __future__ import annotations


def normalised(answer: str) -> str:
    """Lower case, single spaces, without a full stop at the end."""
    return " ".join(answer.lower().split()).rstrip(".").strip()


def exact_match(answer: str, truth: str) -> bool:
    """Whether the answers are the same, normalised: what is to be named must be named completely, in the same order."""
    return normalised(answer) == normalised(truth)


def set_match(answer: str, truth: str) -> bool:
    """Whether the same things are named, in whatever order: DAQUAR's answers may be lists with commas between."""
    return _things(answer) == _things(truth)


def _things(answer: str) -> set[str]:
    return {normalised(part) for part in answer.split(",")} - {""}
