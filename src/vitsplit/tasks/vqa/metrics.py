"""Metrics of short answers."""

from __future__ import annotations


def normalized(answer: str) -> str:
    """Normalizes an answer: lower case, single spaces, no trailing period."""
    return " ".join(answer.lower().split()).rstrip(".").strip()


def exact_match(answer: str, truth: str) -> bool:
    """Whether the normalized answers are equal."""
    return normalized(answer) == normalized(truth)


def set_match(answer: str, truth: str) -> bool:
    """Whether the sets of comma-separated parts are equal, as in DAQUAR."""
    return _things(answer) == _things(truth)


def _things(answer: str) -> set[str]:
    return {normalized(part) for part in answer.split(",")} - {""}
