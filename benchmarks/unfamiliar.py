"""Do distances of frozen features find pixels of unseen classes better than low confidence? Two classes are held out.

A head is trained with the held-out classes ignored. On validation images their pixels are to be separated from those
of the known classes (AUROC, 0.5 is chance), by what the prediction gives, and by distances of the frozen tokens to
those of the training images with known labels:

- class means with a shared covariance (Mahalanobis distance; Lee et al., NeurIPS 2018), also relative to one Gaussian
  of all classes (Ren et al., 2021);
- the nearest of 256 k-means centroids (cosine), which is what `--unfamiliarity` records of the last layer.

    python benchmarks/unfamiliar.py --data camvid --out runs/unfamiliar --held-out car bicyclist --steps 60
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
import tyro
from PIL import Image
from scipy.stats import rankdata
from torch import Tensor
from torchvision.transforms.v2 import functional as TF

import vitsplit
from vitsplit.data.classes import IGNORE
from vitsplit.data.images import read_image, read_mask
from vitsplit.data.new_folder import new_folder
from vitsplit.data.resizing import fit_size
from vitsplit.inference.predictor import LoadedHead
from vitsplit.nn.familiarity import Familiarity
from vitsplit.tasks.segmentation.predict import class_shares
from vitsplit.types import TapRequest

STRIDE = 3


@dataclass
class Options:
    """Settings of the measurement."""

    data: Path
    """A data set in folders, with class indices in its masks."""
    out: Path
    """Folder of the data set without the classes, the run and the result."""
    held_out: tuple[str, str] = ("car", "bicyclist")
    """The classes that are not trained."""
    backbone: str = "dinov2-small-focus"
    """The frozen model."""
    steps: int = 60
    """Training steps."""
    train_images: int = 180
    """Number of training images for the statistics."""
    layers: tuple[int, ...] = (5, 8, 11)
    """Layers whose tokens are compared."""
    seed: int = 0
    """Seed of the run."""
    precision: str = "bf16"
    """Precision of the run."""


def write_known(options: Options, to: Path) -> None:
    """The data set with the held-out classes ignored."""
    names = json.loads((options.data / "classes.json").read_text())
    known = [name for name in names if name not in options.held_out]
    lookup = np.full(256, IGNORE, np.uint8)
    for index, name in enumerate(names):
        if name in known:
            lookup[index] = known.index(name)
    with new_folder(to) as folder:
        (folder / "classes.json").write_text(json.dumps(known))
        for split in ("train", "val"):
            (folder / "images").mkdir(exist_ok=True)
            (folder / "images" / split).symlink_to((options.data / "images" / split).resolve())
            (folder / "masks" / split).mkdir(parents=True)
            for mask in sorted((options.data / "masks" / split).iterdir()):
                Image.fromarray(lookup[np.asarray(Image.open(mask))]).save(folder / "masks" / split / mask.name)


@dataclass
class Features:
    """Tokens of labeled patches of one layer, and what is computed from them; D width, N tokens, K classes."""

    tokens: list[Tensor] = field(default_factory=list)
    labels: list[Tensor] = field(default_factory=list)

    def fit(self) -> None:
        x_ND, label_N = torch.cat(self.tokens).double(), torch.cat(self.labels)
        present = label_N.unique().tolist()
        self.mean_KD = torch.stack([x_ND[label_N == label].mean(0) for label in present])
        index_N = torch.tensor([present.index(label) for label in label_N.tolist()])
        self.whiten_DD = self._whiten(x_ND - self.mean_KD[index_N])
        self.all_D = x_ND.mean(0)
        self.whiten_all_DD = self._whiten(x_ND - self.all_D)
        self.familiarity = Familiarity(x_ND.shape[1], 0)
        self.familiarity.fit(x_ND)

    @staticmethod
    def _whiten(x_ND: Tensor) -> Tensor:
        covariance_DD = x_ND.T @ x_ND / len(x_ND)
        covariance_DD += 1e-6 * covariance_DD.diagonal().mean() * torch.eye(len(covariance_DD))
        return torch.linalg.inv(torch.linalg.cholesky(covariance_DD)).T

    def distances(self, map_Dhw: Tensor) -> dict[str, Tensor]:
        """Distances of tokens by kind: (N,)."""
        x_ND = map_Dhw.flatten(1).T.double()
        class_N = (torch.cdist(x_ND @ self.whiten_DD, self.mean_KD @ self.whiten_DD) ** 2).amin(1)
        all_N = (((x_ND - self.all_D) @ self.whiten_all_DD) ** 2).sum(1)
        centroid_N = self.familiarity(map_Dhw[None]).flatten()
        return {"class means": class_N, "relative": class_N - all_N, "centroids": centroid_N}


def maps(head: LoadedHead, image_CHW: Tensor, layers: tuple[int, ...]) -> dict[int, Tensor]:
    """Maps of the layers without the padding, ``map_Dhw``, of an image resized as for the prediction."""
    size = fit_size(tuple(image_CHW.shape[-2:]), head.task.config.image_scale)
    patch = head.backbone.patch_size
    size = (max(1, round(size[0] / patch)) * patch, max(1, round(size[1] / patch)) * patch)
    image_CHW = TF.resize(image_CHW, list(size), antialias=True)
    with torch.inference_mode():
        taps = head.backbone(image_CHW[None], TapRequest(maps=frozenset(layers)))
    return {layer: taps.maps[layer][0].float() for layer in layers}


def patch_labels(mask_HW: Tensor, grid: tuple[int, int], num_classes: int) -> Tensor:
    """The class of most pixels of each patch, IGNORE without a class on at least half of them: (h * w,)."""
    one_hot_KHW = torch.stack([(mask_HW == label).float() for label in range(num_classes)])
    share_Khw = F.adaptive_avg_pool2d(one_hot_KHW, grid)
    most, label = share_Khw.flatten(1).max(0)
    return torch.where(most >= 0.5, label, IGNORE)


def fit(head: LoadedHead, data: Path, options: Options) -> dict[int, Features]:
    """The statistics of each layer, of labeled patches of training images."""
    found = {layer: Features() for layer in options.layers}
    files = sorted((data / "images" / "train").iterdir())
    for file in files[:: max(1, len(files) // options.train_images)]:
        mask_HW = read_mask(data / "masks" / "train" / f"{file.stem}.png")
        for layer, map_Dhw in maps(head, read_image(file), options.layers).items():
            label_N = patch_labels(mask_HW, tuple(map_Dhw.shape[1:]), len(head.task.classes))
            found[layer].tokens.append(map_Dhw.flatten(1).T[label_N != IGNORE])
            found[layer].labels.append(label_N[label_N != IGNORE])
    for each in found.values():
        each.fit()
    return found


def pixel_scores(
    head: LoadedHead, features: dict[int, Features], image_CHW: Tensor, options: Options
) -> Iterator[tuple[str, Tensor]]:
    """Scores of every pixel by name, larger for unfamiliar ones: (H, W)."""
    shares_KHW = class_shares(head.forward, image_CHW[None], head.task.config)[0]
    logs_KHW = shares_KHW.clamp_min(1e-30).log()
    yield "max softmax", -shares_KHW.amax(0)
    yield "max softmax, temperature", -(logs_KHW / (head.task.temperature or 1.0)).softmax(0).amax(0)
    yield "entropy", -(shares_KHW * logs_KHW).sum(0)
    yield "prediction.unfamiliarity", torch.from_numpy(head.predict(image_CHW).unfamiliarity)
    for layer, map_Dhw in maps(head, image_CHW, options.layers).items():
        for kind, distance_N in features[layer].distances(map_Dhw).items():
            distance_hw = distance_N.float().view(1, 1, *map_Dhw.shape[1:])
            size = list(image_CHW.shape[-2:])
            yield f"layer {layer}, {kind}", F.interpolate(distance_hw, size=size, mode="bilinear")[0, 0]


def auroc(score_P: np.ndarray, positive_P: np.ndarray) -> float:
    """The probability that a positive has a larger score than a negative (Mann-Whitney)."""
    rank_P, positives = rankdata(score_P), int(positive_P.sum())
    return float((rank_P[positive_P].sum() - positives * (positives + 1) / 2) / (positives * (~positive_P).sum()))


def main(options: Options) -> None:
    data, run = options.out / "known", options.out / "run"
    if not data.exists():
        options.out.mkdir(parents=True, exist_ok=True)
        write_known(options, data)
    if not (run / "pictures").exists():
        settings = {"backbone": options.backbone, "steps": options.steps, "eval_every": options.steps, "workers": 0}
        settings |= {"seed": options.seed, "precision": options.precision, "unfamiliarity": True}
        vitsplit.train(data=data, recipe="laptop-segmentation", out=run, resume=run.exists(), **settings)
    (head,) = vitsplit.load(run).values()
    print(f"known classes: mIoU {head.card.metrics['miou']:.4f}, {head.card.metrics['calibration']}")
    features = fit(head, data, options)
    names = json.loads((options.data / "classes.json").read_text())
    held = torch.tensor([names.index(name) for name in options.held_out])
    scores: dict[str, list[np.ndarray]] = {}
    positives = []
    for file in sorted((options.data / "images" / "val").iterdir()):
        mask_HW = read_mask(options.data / "masks" / "val" / f"{file.stem}.png")[::STRIDE, ::STRIDE]
        labeled_HW = mask_HW != IGNORE
        positives.append(torch.isin(mask_HW, held)[labeled_HW].numpy())
        for name, score_HW in pixel_scores(head, features, read_image(file), options):
            scores.setdefault(name, []).append(score_HW[::STRIDE, ::STRIDE][labeled_HW].numpy())
    positive_P = np.concatenate(positives)
    print(f"{len(positive_P)} pixels, {positive_P.mean():.3f} of them of {' and '.join(options.held_out)}")
    results = {name: auroc(np.concatenate(each), positive_P) for name, each in scores.items()}
    for name, value in results.items():
        print(f"{name:<28} AUROC {value:.4f}")
    (options.out / "unfamiliar.json").write_text(json.dumps(results, indent=1))


if __name__ == "__main__":
    main(tyro.cli(Options))
