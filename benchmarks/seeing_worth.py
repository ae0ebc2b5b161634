"""What seeing is worth at most: a small network answers from the question, and from what truly is in the image.

    python benchmarks/seeing_worth.py --data nyuv2

The image's part is read from its label map: which classes are there, and how much of the image they cover. Nothing
that a backbone sees can tell more about them. One network gets none of it, one that of another image, drawn once for
every training image. Each is shown with its best epoch on the validation questions, which flatters all three alike.
Needs scikit-learn.
"""

from __future__ import annotations

import argparse
import json
import statistics
from pathlib import Path
from typing import Literal

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor, nn

from vitsplit.tasks.vqa.config import VqaConfig
from vitsplit.tasks.vqa.metrics import exact_match
from vitsplit.tasks.vqa.prompts import Turn
from vitsplit.tasks.vqa.samples import open_samples

Reads = Literal["question", "question and image", "question and another image"]
READS: tuple[Reads, ...] = ("question", "question and image", "question and another image")
WIDTH, EPOCHS, BATCH_SIZE = 256, 12, 64


class Answerer(nn.Module):
    """Question and image, each brought to one width, and their product: scores of all answers."""

    def __init__(self, num_words: int, num_facts: int, num_answers: int) -> None:
        super().__init__()
        self.question = nn.Sequential(nn.Dropout(0.3), nn.Linear(num_words, WIDTH), nn.ReLU(), nn.Dropout(0.5))
        self.image = nn.Sequential(nn.Dropout(0.5), nn.Linear(num_facts, WIDTH), nn.Tanh(), nn.Dropout(0.3))
        self.answer = nn.Linear(3 * WIDTH, num_answers)

    def forward(self, words_BW: Tensor, facts_BF: Tensor) -> Tensor:
        question, image = self.question(words_BW), self.image(facts_BF)
        scores: Tensor = self.answer(torch.cat([question, image, question * image], 1))
        return scores


def main() -> None:
    """Trains all three with all seeds and prints the shares of right answers."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True, help="folder of questions, images and label maps")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    options = parser.parse_args()

    from sklearn.feature_extraction.text import TfidfVectorizer

    turns, images = {}, {}
    for split in ("train", "val"):
        samples = open_samples(options.data, split, VqaConfig(share_image=False)).samples
        turns[split] = [sample.conversations[0][0] for sample in samples]
        names = [sample.image.stem for sample in samples if sample.image is not None]
        images[split] = [options.data / "masks" / split / f"{name}.png" for name in names]
    vectorizer = TfidfVectorizer(ngram_range=(1, 3), token_pattern=r"[^\s?]+")
    vectorizer.fit([turn.question for turn in turns["train"]])
    words = {
        split: torch.from_numpy(vectorizer.transform([turn.question for turn in each]).toarray()).float()
        for split, each in turns.items()
    }
    num_classes = len(json.loads((options.data / "classes.json").read_text(encoding="utf-8")))
    facts = {split: read_facts(files, num_classes) for split, files in images.items()}
    mean, deviation = facts["train"].mean(0), facts["train"].std(0) + 1e-6
    facts = {split: (each - mean) / deviation for split, each in facts.items()}

    figures = {}
    for reads in READS:
        best = [fit(reads, words, facts, turns, seed) for seed in options.seeds]
        figures[reads] = best
        print(f"{reads:28} {statistics.mean(best):.4f}  {' '.join(f'{each:.4f}' for each in best)}", flush=True)
    print(json.dumps(figures))


def read_facts(files: list[Path], num_classes: int) -> Tensor:
    """For every file, of each class whether it is there, and the root of its share of the image: N x 2 K."""
    shares = {}
    for file in set(files):
        labels = np.asarray(Image.open(file)).ravel()
        shares[file] = np.bincount(labels[labels < num_classes], minlength=num_classes) / labels.size
    share = torch.tensor(np.stack([shares[file] for file in files]), dtype=torch.float32)
    return torch.cat([(share > 0.001).float(), share.sqrt()], 1)


def fit(
    reads: Reads, words: dict[str, Tensor], facts: dict[str, Tensor], turns: dict[str, list[Turn]], seed: int
) -> float:
    """The share of right answers to the validation questions after the best epoch."""
    torch.manual_seed(seed)
    answers = sorted({turn.answer for turn in turns["train"]})
    index = {answer: place for place, answer in enumerate(answers)}
    target = torch.tensor([index[turn.answer] for turn in turns["train"]])
    shown = {split: torch.zeros_like(each) if reads == "question" else each for split, each in facts.items()}
    if reads == "question and another image":
        shown["train"] = shown["train"][torch.randperm(len(target))]
    model = Answerer(words["train"].shape[1], shown["train"].shape[1], len(answers))
    optimizer = torch.optim.AdamW(model.parameters(), lr=2e-3, weight_decay=1e-2)
    best = 0.0
    for _ in range(EPOCHS):
        model.train()
        for rows in torch.randperm(len(target)).split(BATCH_SIZE):
            loss = F.cross_entropy(model(words["train"][rows], shown["train"][rows]), target[rows])
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
        model.eval()
        with torch.inference_mode():
            given = model(words["val"], shown["val"]).argmax(1).tolist()
        right = [exact_match(answers[place], turn.answer) for place, turn in zip(given, turns["val"], strict=True)]
        best = max(best, statistics.mean(right))
    return best


if __name__ == "__main__":
    main()
