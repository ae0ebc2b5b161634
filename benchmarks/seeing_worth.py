"""Upper bound for the benefit of images: a small network answers from the question and the ground-truth image content.

    python benchmarks/seeing_worth.py --data nyuv2 --backbone dinov2-small-focus

The image content is read from the label map: which classes are present, and the share of the image that each covers.
Features of a backbone cannot contain more information about the classes. One network gets no image content, and one
that of another image, drawn once per training image. With ``--backbone``, another network gets the predictions of
linear classifiers on the frozen backbone's features (for training images, of classifiers fitted on the other images).
Each result is that of the best epoch on the validation questions, which favors all networks equally. Needs
scikit-learn.
"""

from __future__ import annotations

import argparse
import json
import statistics
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor, nn
from torchvision.transforms.v2 import functional as TF

from question_only import read_questions, word_counter
from vitsplit.backbone import open_backbone
from vitsplit.backbone.backbone import Backbone
from vitsplit.backbone.config import BackboneConfig
from vitsplit.data.images import read_image
from vitsplit.tasks.vqa.metrics import exact_match
from vitsplit.tasks.vqa.prompts import Turn
from vitsplit.types import TapRequest

Splits = dict[str, Tensor]
"""The training and the validation questions' part, a row each."""
WIDTH, EPOCHS, BATCH_SIZE = 256, 12, 64
SIZE = (252, 336)
"""What the backbone sees, in pixels."""
FOLDS = 5


class Answerer(nn.Module):
    """Scores of all answers from the question, the image (each projected to one width) and their product."""

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
    """Trains all networks with all seeds and prints their accuracy."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True, help="folder of questions, images and label maps")
    parser.add_argument("--backbone", metavar="NAME", help="a frozen backbone that looks at the images")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    options = parser.parse_args()

    turns, images = {}, {}
    for split, samples in read_questions(options.data).items():
        turns[split] = [sample.conversations[0][0] for sample in samples]
        images[split] = [sample.image for sample in samples if sample.image is not None]
    vectorizer = word_counter()
    vectorizer.fit([turn.question for turn in turns["train"]])
    words = {
        split: torch.from_numpy(vectorizer.transform([turn.question for turn in each]).toarray()).float()
        for split, each in turns.items()
    }
    num_classes = len(json.loads((options.data / "classes.json").read_text(encoding="utf-8")))
    # Each image once, so that images are not weighted by their number of questions.
    files = {split: sorted(set(each)) for split, each in images.items()}
    rows = {split: torch.tensor([files[split].index(file) for file in each]) for split, each in images.items()}
    true = {split: read_facts([label_map(file) for file in each], num_classes) for split, each in files.items()}
    facts = {"question": {split: torch.zeros_like(each) for split, each in true.items()}, "question and image": true}
    if options.backbone is not None:
        facts["question and what the backbone sees"] = see(options.backbone, files, true, num_classes)

    figures = {}
    for reads, each in facts.items():
        inputs = {split: standardized(each[split], each["train"])[rows[split]] for split in each}
        figures[reads] = [fit(words, inputs, turns, seed) for seed in options.seeds]
        if reads == "question and image":
            figures["question and another image"] = [
                fit(words, {**inputs, "train": inputs["train"][shuffled(len(inputs["train"]), seed)]}, turns, seed)
                for seed in options.seeds
            ]
    for reads, best in figures.items():
        print(f"{reads:38} {statistics.mean(best):.4f}  {' '.join(f'{each:.4f}' for each in best)}")
    print(json.dumps(figures))


def label_map(image: Path) -> Path:
    """The label map of an image: ``masks/SPLIT/NAME.png`` for ``images/SPLIT/NAME.jpg``."""
    return image.parents[2] / "masks" / image.parent.name / f"{image.stem}.png"


def read_facts(files: list[Path], num_classes: int) -> Tensor:
    """For every label map and class, whether it is present and the square root of its share of the image: N x 2 K."""
    shares = []
    for file in files:
        labels = np.asarray(Image.open(file)).ravel()
        shares.append(np.bincount(labels[labels < num_classes], minlength=num_classes) / labels.size)
    share = torch.tensor(np.stack(shares), dtype=torch.float32)
    return torch.cat([(share > 0.001).float(), share.sqrt()], 1)


def see(name: str, files: dict[str, list[Path]], true: Splits, num_classes: int) -> Splits:
    """Scores of every class in every image, by linear classifiers on the backbone's features: N x K."""
    from sklearn.decomposition import PCA
    from sklearn.linear_model import LogisticRegression
    from sklearn.model_selection import cross_val_predict
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    backbone = open_backbone(BackboneConfig(backbone=name))
    features = {split: torch.stack([pooled(backbone, file) for file in each]).numpy() for split, each in files.items()}
    scores = {split: torch.zeros(len(each), num_classes) for split, each in files.items()}
    for index in range(num_classes):
        present = true["train"][:, index].numpy()
        if min(present.sum(), (1 - present).sum()) < FOLDS:
            continue  # too rare or always present: nothing to classify
        classifier = make_pipeline(
            StandardScaler(), PCA(128, whiten=True, random_state=0), LogisticRegression(C=0.01, max_iter=500)
        )
        others = cross_val_predict(classifier, features["train"], present, cv=FOLDS, method="decision_function")
        scores["train"][:, index] = torch.from_numpy(others)
        classifier.fit(features["train"], present)
        scores["val"][:, index] = torch.from_numpy(classifier.decision_function(features["val"]))
    return scores


@torch.inference_mode()
def pooled(backbone: Backbone, file: Path) -> Tensor:
    """Means, over the image and its quarters, of the last layer's map and of the one at two thirds of the depth."""
    last = backbone.num_layers - 1
    layers = (2 * last // 3 + 1, last)
    image_CHW = TF.resize(read_image(file), list(SIZE), antialias=True)
    maps = backbone(image_CHW[None], TapRequest(maps=frozenset(layers))).maps
    means = [F.adaptive_avg_pool2d(maps[layer], cells).flatten() for layer in layers for cells in (1, 2)]
    return torch.cat(means).cpu()


def standardized(values: Tensor, of: Tensor) -> Tensor:
    """Standardizes each column by the mean and standard deviation of another table."""
    return (values - of.mean(0)) / (of.std(0) + 1e-6)


def shuffled(count: int, seed: int) -> Tensor:
    """A random permutation."""
    return torch.randperm(count, generator=torch.Generator().manual_seed(seed))


def fit(words: Splits, facts: Splits, turns: dict[str, list[Turn]], seed: int) -> float:
    """The accuracy on the validation questions after the best epoch."""
    torch.manual_seed(seed)
    answers = sorted({turn.answer for turn in turns["train"]})
    index = {answer: place for place, answer in enumerate(answers)}
    target = torch.tensor([index[turn.answer] for turn in turns["train"]])
    model = Answerer(words["train"].shape[1], facts["train"].shape[1], len(answers))
    optimizer = torch.optim.AdamW(model.parameters(), lr=2e-3, weight_decay=1e-2)
    best = 0.0
    for _ in range(EPOCHS):
        model.train()
        for rows in torch.randperm(len(target)).split(BATCH_SIZE):
            loss = F.cross_entropy(model(words["train"][rows], facts["train"][rows]), target[rows])
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
        model.eval()
        with torch.inference_mode():
            given = model(words["val"], facts["val"]).argmax(1).tolist()
        right = [exact_match(answers[place], turn.answer) for place, turn in zip(given, turns["val"], strict=True)]
        best = max(best, statistics.mean(right))
    return best


if __name__ == "__main__":
    main()
