"""Questions about a scene with exact one-word answers."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from vitsplit.sample.appearance import COLORS
from vitsplit.sample.solids import KINDS

Questions = tuple[tuple[str, str], ...]
"""``(question, answer)`` pairs of one scene."""

PLURALS = {"ball": "balls", "box": "boxes", "cylinder": "cylinders", "cone": "cones"}

MARGIN = 0.03
"""Minimum horizontal distance of box centers, relative to the image's width, for left/right questions."""
DEPTH_MARGIN = 0.1
"""Minimum difference in depth (meters) for nearer/farther questions."""


@dataclass(frozen=True)
class Thing:
    """Properties of a visible object.

    Attributes:
        kind: Its class.
        color: Name of its color.
        x: Center of its box, relative to the image's width.
        depth: Depth of its nearest visible pixel, meters.
        on: Index of the visible object below it, or -1.
    """

    kind: str
    color: str
    x: float
    depth: float
    on: int


def ask(things: Sequence[Thing]) -> Questions:
    """All unambiguous questions, as ``(question, answer)``.

    Counting and existence for every class; color, position, distance and support only for unambiguous names and
    answers beyond the margins.
    """
    return (*_counting(things), *_colors(things), *_sides(things), *_nearest(things), *_resting(things))


def answer_sets(fewest: int, most: int) -> dict[str, tuple[str, ...]]:
    """The questions of balanced data sets, and the fixed set of answers of each.

    Questions with an object's color in its name are not among them: there are too many of them for few scenes.

    Args:
        fewest: Minimum number of objects in a scene.
        most: Maximum number of objects in a scene.
    """
    found = {
        "how many objects are there?": tuple(str(count) for count in range(fewest, most + 1)),
        "what is the leftmost object?": KINDS,
        "what is the rightmost object?": KINDS,
        "what is nearest to the camera?": KINDS,
        "what is on top of the box?": tuple(kind for kind in KINDS if kind != "box"),
    }
    for kind in KINDS:
        others = tuple(other for other in KINDS if other != kind)
        found |= {
            f"how many {PLURALS[kind]} are there?": ("0", "1", "2"),
            f"is there a {kind}?": ("no", "yes"),
            f"what colour is the {kind}?": tuple(COLORS),
            f"what is to the left of the {kind}?": others,
            f"what is to the right of the {kind}?": others,
        }
    return found


def balance(
    asked: Sequence[Questions], answers_of: Mapping[str, Sequence[str]], rng: np.random.Generator
) -> list[Questions]:
    """Omits questions so that every question is asked equally often with each of its answers.

    The answer is then independent of the question's text: a model that does not see the images answers at most one of
    K questions with K answers correctly.

    Args:
        asked: The questions of each scene; each text at most once per scene.
        answers_of: The texts to keep, and the answers of each. A text is omitted if one of its answers does not occur.
        rng: Chooses the scenes.

    Returns:
        The remaining questions of each scene.
    """
    scenes_of: defaultdict[tuple[str, str], list[int]] = defaultdict(list)
    for scene, questions in enumerate(asked):
        for pair in questions:
            scenes_of[pair].append(scene)
    kept: set[tuple[int, tuple[str, str]]] = set()
    for question, answers in answers_of.items():
        count = min(len(scenes_of[question, answer]) for answer in answers)
        for answer in answers:
            chosen = rng.permutation(scenes_of[question, answer])[:count].tolist()
            kept |= {(scene, (question, answer)) for scene in chosen}
    return [tuple(pair for pair in questions if (scene, pair) in kept) for scene, questions in enumerate(asked)]


def _counting(things: Sequence[Thing]) -> Iterator[tuple[str, str]]:
    counts = Counter(thing.kind for thing in things)
    yield "how many objects are there?", str(len(things))
    for kind in KINDS:
        yield f"how many {PLURALS[kind]} are there?", str(counts[kind])
        yield f"is there a {kind}?", "yes" if counts[kind] else "no"


def _name(things: Sequence[Thing], thing: Thing) -> str | None:
    """An unambiguous name: the class, else color and class, else None."""
    if sum(other.kind == thing.kind for other in things) == 1:
        return f"the {thing.kind}"
    if sum((other.kind, other.color) == (thing.kind, thing.color) for other in things) == 1:
        return f"the {thing.color} {thing.kind}"
    return None


def _colors(things: Sequence[Thing]) -> Iterator[tuple[str, str]]:
    for thing in things:
        if _name(things, thing) == f"the {thing.kind}":
            yield f"what colour is the {thing.kind}?", thing.color


def _sides(things: Sequence[Thing]) -> Iterator[tuple[str, str]]:
    for side, sign in (("left", 1), ("right", -1)):
        order = sorted(things, key=lambda thing: sign * thing.x)
        if len(order) > 1 and abs(order[0].x - order[1].x) >= MARGIN:
            yield f"what is the {side}most object?", order[0].kind
        for thing in things:
            name = _name(things, thing)
            others = [other for other in things if other is not thing]
            beyond = [other for other in others if sign * (thing.x - other.x) >= MARGIN]
            clear = all(abs(thing.x - other.x) >= MARGIN for other in others)
            if name and clear and len(beyond) == 1:
                yield f"what is to the {side} of {name}?", beyond[0].kind


def _nearest(things: Sequence[Thing]) -> Iterator[tuple[str, str]]:
    order = sorted(things, key=lambda thing: thing.depth)
    if len(order) > 1 and order[1].depth - order[0].depth >= DEPTH_MARGIN:
        yield "what is nearest to the camera?", order[0].kind


def _resting(things: Sequence[Thing]) -> Iterator[tuple[str, str]]:
    for thing in things:
        name = _name(things, things[thing.on]) if thing.on >= 0 else None
        if name:
            yield f"what is on top of {name}?", thing.kind
