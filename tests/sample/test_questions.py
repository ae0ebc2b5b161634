import re
from collections import Counter, defaultdict

import numpy as np
import pytest

from vitsplit.sample import CLASSES, OBJECT_CLASSES
from vitsplit.sample.compose import random_layout
from vitsplit.sample.questions import Thing, answer_sets, ask, balance

SINGULAR = {"balls": "ball", "boxes": "box", "cylinders": "cylinder", "cones": "cone"}


def _named(scene, words):
    """The one row that words such as 'red ball' or 'ball' name."""
    *color, kind = words.split()
    rows = [
        row
        for row in range(len(scene.boxes_N4))
        if CLASSES[scene.box_classes_N[row]] == kind and color in ([], [scene.colors[row]])
    ]
    assert len(rows) == 1, f"'{words}' names {len(rows)} objects"
    return rows[0]


def _answer(scene, layout, question):
    """Answers from pixels, boxes and depth alone; what stands on what, from the layout's heights."""
    kinds = [CLASSES[index] for index in scene.box_classes_N]
    rows = range(len(kinds))
    center = [(box[0] + box[2]) / 2 for box in scene.boxes_N4]
    if question == "how many objects are there?":
        return str(len(np.unique(scene.instances_HW[scene.instances_HW > 0])))
    if match := re.fullmatch(r"how many (\w+) are there\?", question):
        pixels = scene.mask_HW == CLASSES.index(SINGULAR[match[1]])
        return str(len(np.unique(scene.instances_HW[pixels & (scene.instances_HW > 0)])))
    if match := re.fullmatch(r"is there a (\w+)\?", question):
        return "yes" if ((scene.mask_HW == CLASSES.index(match[1])) & (scene.instances_HW > 0)).any() else "no"
    if match := re.fullmatch(r"what colour is the (.+)\?", question):
        return scene.colors[_named(scene, match[1])]
    if match := re.fullmatch(r"what is the (left|right)most object\?", question):
        return kinds[(np.argmin if match[1] == "left" else np.argmax)(center)]
    if match := re.fullmatch(r"what is to the (left|right) of the (.+)\?", question):
        at = center[_named(scene, match[2])]
        beyond = [row for row in rows if (center[row] < at if match[1] == "left" else center[row] > at)]
        assert len(beyond) == 1
        return kinds[beyond[0]]
    if question == "what is nearest to the camera?":
        nearest = np.argmin(np.where(scene.instances_HW > 0, scene.depth_HW, np.inf))
        return kinds[scene.instances_HW.ravel()[nearest] - 1]
    match = re.fullmatch(r"what is on top of the (.+)\?", question)
    assert match, question
    below = layout.solids[_named(scene, match[1])]
    top = below.center[2] + below.half[2]
    above = [
        solid
        for solid in layout.solids
        if abs(solid.center[2] - solid.half[2] - top) < 1e-6
        and np.hypot(solid.center[0] - below.center[0], solid.center[1] - below.center[1]) < below.half[0]
    ]
    assert below.kind == "box" and len(above) == 1
    return above[0].kind


@pytest.fixture(scope="module")
def scenes(rooms):
    found = []
    for seed, scene in enumerate(rooms):
        layout = random_layout(np.random.default_rng(seed))
        if len(scene.boxes_N4) == len(layout.solids):  # rows of the labels are then the layout's solids
            found.append((scene, layout))
    assert len(found) > 35
    return found


def test_answers_agree_with_the_labels(scenes):
    kinds = set()
    for scene, layout in scenes:
        questions = [question for question, _ in scene.questions]
        assert len(set(questions)) == len(questions)
        for question, answer in scene.questions:
            assert answer == _answer(scene, layout, question), question
            assert " " not in answer
            kinds.add(" ".join(question.split()[: 4 if "to the" not in question else 5]))
    for start in (
        "how many",
        "is there",
        "what colour",
        "what is the leftmost",
        "what is to the right",
        "what is nearest",
        "what is on",
    ):
        assert any(kind.startswith(start) for kind in kinds), start


def test_counts_and_existence_are_asked_for_every_class(scenes):
    for scene, _ in scenes:
        questions = [question for question, _ in scene.questions]
        for plural, kind in SINGULAR.items():
            assert f"how many {plural} are there?" in questions and f"is there a {kind}?" in questions
    answers = [answer for scene, _ in scenes for question, answer in scene.questions if question.startswith("is there")]
    assert 0.5 < answers.count("yes") / len(answers) < 0.9
    assert set(SINGULAR.values()) == set(OBJECT_CLASSES)


def test_ambiguous_questions_are_omitted():
    twins = [Thing("ball", "red", 0.2, 2.0, -1), Thing("ball", "red", 0.6, 2.05, -1)]
    texts = [question for question, _ in ask(twins)]
    assert not any(q.startswith(("what colour", "what is nearest", "what is to", "what is on")) for q in texts)
    assert ("what is the leftmost object?", "ball") in ask(twins)
    close = [Thing("ball", "red", 0.50, 2.0, -1), Thing("cone", "blue", 0.51, 3.0, -1)]
    texts = [question for question, _ in ask(close)]
    assert not any("left" in question or "right" in question for question in texts)
    assert ("what is nearest to the camera?", "ball") in ask(close)
    stacked = [Thing("box", "red", 0.3, 2.0, -1), Thing("box", "blue", 0.7, 2.0, -1), Thing("cone", "red", 0.3, 2.1, 0)]
    assert ("what is on top of the red box?", "cone") in ask(stacked)


def test_empty_scene_has_zero_objects():
    assert ("how many objects are there?", "0") in ask([])


COLORS = ("red", "orange", "yellow", "green", "blue", "purple", "pink", "brown", "white", "black")


def _random_things(rng):
    """1 to 3 objects, with a bias toward balls and red."""
    kinds = rng.choice(OBJECT_CLASSES, size=rng.integers(1, 4), p=(0.4, 0.2, 0.2, 0.2))
    colors = rng.choice(COLORS, size=len(kinds), p=(0.28,) + (0.08,) * 9)
    on = [0 if row == 1 and kinds[0] == "box" else -1 for row in range(len(kinds))]
    return [
        Thing(str(kind), str(color), float(rng.random()), float(rng.uniform(1, 4)), below)
        for kind, color, below in zip(kinds, colors, on, strict=True)
    ]


@pytest.fixture(scope="module")
def splits():
    """The balanced questions of two independent splits."""
    rng = np.random.default_rng(0)
    asked = {
        split: [ask(_random_things(rng)) for _ in range(count)] for split, count in (("train", 3000), ("val", 900))
    }
    return asked, {split: balance(each, answer_sets(1, 3), rng) for split, each in asked.items()}


def _majority(pairs):
    """The most frequent answer to each question: no function of the text is right more often on these pairs."""
    counts = defaultdict(Counter)
    for question, answer in pairs:
        counts[question][answer] += 1
    return {question: answers.most_common(1)[0][0] for question, answers in counts.items()}


def _accuracy(answers, pairs):
    return np.mean([answers.get(question) == answer for question, answer in pairs])


def test_balanced_questions_have_each_answer_equally_often(splits):
    asked, balanced = splits
    for split in asked:
        counts = Counter(pair for questions in balanced[split] for pair in questions)
        texts = {question for question, _ in counts}
        assert texts == set(answer_sets(1, 3))
        for question, answers in answer_sets(1, 3).items():
            found = {answer: count for (text, answer), count in counts.items() if text == question}
            assert found.keys() == set(answers) and len(set(found.values())) == 1, question
        # No question is dropped needlessly: the rarest answer of each question is as frequent as before.
        before = Counter(pair for questions in asked[split] for pair in questions)
        for question, answers in answer_sets(1, 3).items():
            assert counts[question, answers[0]] == min(before[question, answer] for answer in answers)
        for old, new in zip(asked[split], balanced[split], strict=True):
            assert [pair for pair in old if pair in new] == list(new)


def test_question_only_accuracy_is_at_chance(splits):
    asked, balanced = splits
    pairs = {split: [pair for questions in each for pair in questions] for split, each in balanced.items()}
    chance = np.mean([1 / len(answer_sets(1, 3)[question]) for question, _ in pairs["val"]])
    assert 0.2 < chance < 0.45
    assert _accuracy(_majority(pairs["train"]), pairs["val"]) == pytest.approx(chance)
    assert _accuracy(_majority(pairs["val"]), pairs["val"]) == pytest.approx(chance)
    # Without balancing, the accuracy from the text is much higher.
    pairs = {split: [pair for questions in each for pair in questions] for split, each in asked.items()}
    assert _accuracy(_majority(pairs["train"]), pairs["val"]) > chance + 0.15


def test_a_question_is_omitted_if_one_of_its_answers_does_not_occur():
    asked = [(("is there a ball?", "yes"), ("is there a cone?", "no")), (("is there a cone?", "yes"),)]
    kept = balance(asked, answer_sets(1, 3), np.random.default_rng(0))
    assert kept == [(("is there a cone?", "no"),), (("is there a cone?", "yes"),)]


def test_answers_to_balanced_questions_are_possible():
    """A class with a unique name is not its own neighbor, and there are 1 to 3 objects."""
    found = answer_sets(1, 3)
    assert found["how many objects are there?"] == ("1", "2", "3")
    assert set(found["what is to the left of the cone?"]) == {"ball", "box", "cylinder"}
    assert set(found["what colour is the box?"]) == set(COLORS)
