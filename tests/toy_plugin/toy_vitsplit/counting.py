"""Counting things: a density over the image, whose sum is the count. Labels are points, ``[[x, y], ...]`` in JSON.

The data are ``images/SPLIT/NAME.png`` and ``points/SPLIT/NAME.json``. Shapes: B batch, H W pixels, h w patch grid.
"""

import json
from dataclasses import dataclass, replace
from pathlib import Path
from typing import ClassVar

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from rich.table import Table

from vitsplit.config import Share, Size
from vitsplit.data.check import Finding, Report, SplitReport
from vitsplit.data.images import read_image
from vitsplit.errors import DataError
from vitsplit.nn.pointwise import NormedPointwise
from vitsplit.report import Page
from vitsplit.tasks import Score, TaskConfig
from vitsplit.tasks.base import DenseFile, Evaluation
from vitsplit.tasks.description import fields
from vitsplit.tasks.prediction import Prediction


class CountingConfig(TaskConfig):
    """Counting from points."""

    name: ClassVar = "counting"
    location: ClassVar = "toy_vitsplit.counting:CountingTask"
    prediction: ClassVar = "toy_vitsplit.counting:CountingPrediction"
    scores: ClassVar = {"neg_mae": Score("mean absolute error", "mae", sign=-1, scale=1.0, unit="things")}
    tiles: ClassVar = "dense"

    crop_size: Size = (64, 64)
    """Height and width that training images are brought to."""
    flip: Share = 0.5
    """Probability of a horizontal flip in training."""


@dataclass(frozen=True)
class Sample:
    image_CHW: torch.Tensor
    points_HW: torch.Tensor
    """float32, 1 where a thing is."""
    name: str


@dataclass(frozen=True)
class Batch:
    image_BCHW: torch.Tensor
    points_BHW: torch.Tensor
    names: list[str]
    extent_B2: None = None

    def to(self, device):
        return replace(self, image_BCHW=self.image_BCHW.to(device), points_BHW=self.points_BHW.to(device))

    def pin_memory(self):
        return replace(self, image_BCHW=self.image_BCHW.pin_memory(), points_BHW=self.points_BHW.pin_memory())


class CountingSet:
    """Images of a split and their points."""

    def __init__(self, root, split):
        self.labels, self.images = root / "points" / split, sorted((root / "images" / split).glob("*.png"))

    def __len__(self):
        return len(self.images)

    def load(self, index):
        image_CHW = read_image(self.images[index])
        points_HW = torch.zeros(image_CHW.shape[1:])
        file = self.labels / f"{self.images[index].stem}.json"
        for x, y in json.loads(file.read_text()):
            if not (0 <= x < points_HW.shape[1] and 0 <= y < points_HW.shape[0]):
                raise DataError(f"{file}: the point [{x}, {y}] is outside of its image.")
            points_HW[int(y), int(x)] += 1
        return Sample(image_CHW, points_HW, str(self.images[index]))


@dataclass(frozen=True)
class TrainCounting:
    data: CountingSet
    config: CountingConfig

    def __len__(self):
        return len(self.data)

    def __getitem__(self, key):
        index, seed = key
        sample, size = self.data.load(index), self.config.crop_size
        image_CHW = F.interpolate(sample.image_CHW[None].float(), size, mode="bilinear", antialias=True)[0]
        cells_N2 = sample.points_HW.nonzero() * torch.tensor(size) // torch.tensor(sample.points_HW.shape)
        points_HW = torch.zeros(size).index_put_(tuple(cells_N2.T), torch.ones(len(cells_N2)), accumulate=True)
        image_CHW = image_CHW.round().clamp(0, 255).to(torch.uint8)
        if torch.rand((), generator=torch.Generator().manual_seed(seed)) < self.config.flip:
            image_CHW, points_HW = image_CHW.flip(-1), points_HW.flip(-1)
        return Sample(image_CHW, points_HW, sample.name)


@dataclass(frozen=True)
class CountingPrediction(Prediction):
    density: np.ndarray
    image: np.ndarray

    served_formats: ClassVar = ("npz",)
    array_types: ClassVar = {"density": ("float32", (-1, -1))}

    def overlay(self):
        return draw(self.density, self.image)

    def save(self, folder, name="prediction"):
        paths = Path(folder) / f"{name}_density.npy", Path(folder) / f"{name}_overlay.png"
        paths[0].parent.mkdir(parents=True, exist_ok=True)
        np.save(paths[0], self.density)
        self.overlay().save(paths[1])
        return paths


class CountingMetric:
    """The mean absolute error of the count."""

    def __init__(self):
        self.errors = []

    def update(self, prediction, sample):
        self.errors.append(abs(prediction - float(sample.points_HW.sum())))

    def state(self):
        return self.errors

    def merge(self, states):
        self.errors = [error for errors in states for error in errors]

    def compute(self):
        error = sum(self.errors) / len(self.errors)
        return Evaluation({"mae": error, "images": len(self.errors)}, -error, "neg_mae")


class CountingTask:
    name = "counting"
    same_size = True

    def __init__(self, config, train=None, val=None):
        self.config, self.train_set, self.val_set = config, train, val

    @classmethod
    def open(cls, config, data, splits):
        sets = [CountingSet(data, split) for split in splits]
        if not all(sets):
            raise DataError(f"{data}: a split of {', '.join(splits)} has no images/SPLIT/*.png.")
        return cls(config, sets[0] if len(sets) > 1 else None, sets[-1])

    @classmethod
    def check_files(cls, config, root, workers, progress):
        report = Report(str(root), cls.name, "points", counted="objects")
        for split in ("train", "val"):
            data = CountingSet(root, split)
            report.splits[split] = SplitReport(images=len(data))
            for index, path in enumerate(data.images):
                try:
                    data.load(index)
                except (DataError, OSError, ValueError) as error:
                    report.findings.append(Finding("error", "points that cannot be used", str(path), str(error)))
                progress(index + 1, len(data))
        return report

    @classmethod
    def check_description(cls, config, description, where):
        fields(description, where, required=())

    @classmethod
    def from_description(cls, config, description):
        return cls(config)

    def describe(self):
        return {}

    def build_decoder(self, name, width, patch_size):
        return torch.nn.Sequential(NormedPointwise(width, 1), torch.nn.Softplus())

    def train_data(self):
        return TrainCounting(self.train_set, self.config)

    def collate(self, samples):
        points_BHW = torch.stack([sample.points_HW for sample in samples])
        return Batch(torch.stack([each.image_CHW for each in samples]), points_BHW, [each.name for each in samples])

    def normalizers(self, batch):
        return {"density": torch.tensor(float(len(batch.names)), dtype=torch.float64)}

    def targets(self, batch, taps):
        return None

    def loss_sums(self, output, batch, taps):
        around = taps.padding.left, taps.padding.right, taps.padding.top, taps.padding.bottom
        points_BHW = F.pad(batch.points_BHW, around)
        share = points_BHW[0].numel() / np.prod(taps.grid)
        return {"density": (output - F.adaptive_avg_pool2d(points_BHW[:, None], taps.grid) * share).square().sum()}

    def dense(self, forward, image_BCHW):
        density_B1hw, taps = forward(image_BCHW)
        (height, width), padding = taps.image_size, taps.padding
        size = padding.top + height + padding.bottom, padding.left + width + padding.right
        values_B1HW = F.interpolate(density_B1hw.float() * density_B1hw[0].numel() / np.prod(size), size)
        return values_B1HW[..., padding.top : padding.top + height, padding.left : padding.left + width]

    def postprocess(self, values_B1HW):
        return values_B1HW[:, 0]

    def dense_file(self):
        return DenseFile("_density", np.float32, "_overlay", draw, description="things per pixel")

    def predict(self, forward, image_BCHW):
        densities = self.postprocess(self.dense(forward, image_BCHW)).cpu().numpy()
        images = image_BCHW.permute(0, 2, 3, 1).cpu().numpy()
        return [CountingPrediction(*pair) for pair in zip(densities, images, strict=True)]

    def val_data(self):
        return self.val_set

    def val_predictions(self, forward, image_BCHW, samples):
        return self.dense(forward, image_BCHW).sum((1, 2, 3)).tolist()

    def metric(self):
        return CountingMetric()

    def write_report(self, forward, evaluation, folder, *, title, count):
        page = Page(title, subtitle=f"{evaluation.metrics['images']} images")
        page.figures([(f"{evaluation.metrics['mae']:.2f}", "mean absolute error")])
        return page.write(folder, {"metrics": evaluation.metrics})

    def table(self, evaluation):
        table = Table("metric", "value")
        table.add_row("mean absolute error", f"{evaluation.metrics['mae']:.2f}")
        return table


def draw(density_HW, image_HWC):
    """The image, brighter where more things are."""
    light_HW1 = (density_HW / max(density_HW.max(), 1e-9))[..., None]
    return Image.fromarray((image_HWC * (0.4 + 0.6 * light_HW1)).astype(np.uint8))
