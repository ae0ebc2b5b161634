"""Baseline for visual question answering without images: a classifier of the question only.

TF-IDF of 1- to 3-grams of words, and logistic regression over all answers of the training file. Needs scikit-learn.

    python benchmarks/question_only.py --data nyuv2
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

from vitsplit.tasks.vqa.config import VqaConfig
from vitsplit.tasks.vqa.metrics import exact_match, set_match
from vitsplit.tasks.vqa.samples import Sample, open_samples


def main() -> None:
    """Fits on the training questions and prints the accuracy on the validation questions."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True, help="folder of questions and images")
    parser.add_argument("--c", type=float, default=10.0, help="inverse strength of the regularization (default: 10)")
    options = parser.parse_args()

    from sklearn.linear_model import LogisticRegression
    from sklearn.pipeline import make_pipeline

    turns = {
        split: [sample.conversations[0][0] for sample in samples]
        for split, samples in read_questions(options.data).items()
    }
    classifier = make_pipeline(word_counter(), LogisticRegression(C=options.c, max_iter=1000))
    classifier.fit([turn.question for turn in turns["train"]], [turn.answer for turn in turns["train"]])
    answers = classifier.predict([turn.question for turn in turns["val"]])
    pairs = [(answer, turn.answer) for answer, turn in zip(answers, turns["val"], strict=True)]
    figures = {
        "exact_match": sum(exact_match(*pair) for pair in pairs) / len(pairs),
        "set_match": sum(set_match(*pair) for pair in pairs) / len(pairs),
        "questions": len(pairs),
    }
    print(json.dumps(figures))


def read_questions(data: Path) -> dict[str, tuple[Sample, ...]]:
    """The samples of both splits, one question each."""
    config = VqaConfig(share_image=False)
    return {split: open_samples(data, split, config).samples for split in ("train", "val")}


def word_counter() -> Any:
    """TF-IDF of 1- to 3-grams of words, to be fitted."""
    from sklearn.feature_extraction.text import TfidfVectorizer

    return TfidfVectorizer(ngram_range=(1, 3), token_pattern=r"[^\s?]+")


if __name__ == "__main__":
    main()
