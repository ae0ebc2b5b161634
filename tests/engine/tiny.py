"""A backbone, a head and a task so small that a run takes a second. Shapes: B batch, D width, h w grid, H W pixels."""

import io
import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import timm
import torch
import torch.nn.functional as F
from rich.console import Console
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from vitsplit.backbone.backbone import Backbone, BackboneInfo
from vitsplit.data.content_size import move_extents
from vitsplit.engine.run_folder import RunFolder
from vitsplit.engine.trainer import FitResult, Trainer
from vitsplit.model import Head, Model
from vitsplit.saved_config import config_to_dict
from vitsplit.tasks.base import Evaluation
from vitsplit.tasks.depth.config import DepthConfig
from vitsplit.train_config import HeadConfig, LoopConfig, OptimConfig, TrainConfig
from vitsplit.types import TapRequest

SIZE, GRID, CLASSES, IGNORE = 28, 2, 3, 255
NUM_TRAIN, NUM_VAL = 23, 7


def tiny_backbone() -> Backbone:
    torch.manual_seed(1)
    model = timm.models.VisionTransformer(
        img_size=SIZE, patch_size=14, embed_dim=32, depth=4, num_heads=2, num_classes=0, dynamic_img_size=True
    )
    info = BackboneInfo("tiny", "tiny", "none", "random", "hash-of-tiny", (0.5, 0.5, 0.5), (0.25, 0.25, 0.25))
    return Backbone(model, info)


class TinyMethod(nn.Module):
    """Reads the last map; has a task head, a frozen part, dropout, and optionally batch norm."""

    def __init__(self, width: int = 32, dropout: float = 0.0, batch_norm: bool = False) -> None:
        super().__init__()
        self.width = width
        self.task_head = nn.Linear(width, width)
        self.frozen = nn.Linear(width, width).requires_grad_(False)
        self.conv = nn.Conv2d(width, width, 3, padding=1)
        self.norm = nn.BatchNorm2d(width) if batch_norm else nn.GroupNorm(4, width)
        self.dropout = nn.Dropout(dropout)
        self.passes = 0

    def request(self, *, train: bool) -> TapRequest:
        return TapRequest(maps=frozenset({1, 3}) if train else frozenset({3}))

    def pretrained_parameters(self) -> dict[int | None, list[nn.Parameter]]:
        return {0: list(self.task_head.parameters())}

    def forward(self, taps) -> Tensor:
        assert (1 in taps.maps) == self.training
        map_BDhw = self.frozen(self.task_head(taps.maps[3].permute(0, 2, 3, 1))).permute(0, 3, 1, 2)
        return self.dropout(F.gelu(self.norm(self.conv(map_BDhw))))


@dataclass
class TinyBatch:
    image_BCHW: Tensor
    mask_Bhw: Tensor
    mean_B: Tensor
    names: list[str]
    extent_B2: Tensor | None = None

    def to(self, device: Any) -> "TinyBatch":
        return TinyBatch(
            self.image_BCHW.to(device),
            self.mask_Bhw.to(device),
            self.mean_B.to(device),
            self.names,
            move_extents(self.extent_B2, device),
        )

    def pin_memory(self) -> "TinyBatch":
        pinned = (tensor.pin_memory() for tensor in (self.image_BCHW, self.mask_Bhw, self.mean_B))
        return TinyBatch(*pinned, self.names)


class TinyData:
    """Dark and bright patches; in many images nearly all patches are ignored."""

    def __init__(self, count: int, offset: int = 0) -> None:
        self.count, self.offset = count, offset

    def __len__(self) -> int:
        return self.count

    def __getitem__(self, key: tuple[int, int]) -> tuple[Tensor, Tensor, str]:
        index, seed = key
        generator = torch.Generator().manual_seed(index + self.offset)
        level_hw = torch.randint(0, CLASSES, (GRID, GRID), generator=generator)
        image_HW = level_hw.repeat_interleave(14, 0).repeat_interleave(14, 1) * 80
        noise_CHW = torch.randint(0, 60, (3, SIZE, SIZE), generator=torch.Generator().manual_seed(seed))
        mask_hw = level_hw.clone()
        if index % 2:
            mask_hw.view(-1)[: index % 5] = IGNORE
        return (image_HW + noise_CHW).to(torch.uint8), mask_hw, f"image-{index:02d}.png"


@dataclass(frozen=True)
class TinyValSample:
    image_CHW: Tensor
    mask_hw: Tensor


class TinyValData:
    def __len__(self) -> int:
        return NUM_VAL

    def load(self, index: int) -> TinyValSample:
        image_CHW, mask_hw, _ = TinyData(NUM_VAL, offset=1000)[index, index]
        return TinyValSample(image_CHW, mask_hw)


class TinyMetric:
    """The accuracy over patches; the score can be given."""

    def __init__(self, scores: list[float] | None) -> None:
        self.scores = scores
        self.sums = torch.zeros(2, dtype=torch.float64)

    def update(self, prediction: Tensor, sample: TinyValSample) -> None:
        valid_hw = sample.mask_hw != IGNORE
        right = (prediction.cpu() == sample.mask_hw)[valid_hw]
        self.sums += torch.tensor([right.sum().item(), valid_hw.sum().item()])

    def state(self) -> Tensor:
        return self.sums

    def merge(self, states) -> None:
        self.sums = sum(states)

    def compute(self) -> Evaluation:
        right, count = self.sums.tolist()
        score = self.scores.pop(0) if self.scores is not None else right / count
        return Evaluation({"accuracy": right / count, "count": count}, score, "accuracy")


@dataclass
class TinyTask:
    """Patch classification and regression of the image's mean; ``fail_at`` makes a loss NaN for an image name."""

    name = "tiny"
    same_size = True
    config: Any = None
    nan_for: str | None = None
    scores: list[float] | None = None
    seen: list[list[str]] = field(default_factory=list)

    def build_decoder(self, width: int, patch_size: int) -> nn.Module:
        return nn.Conv2d(width, CLASSES + 1, 1)

    def train_data(self) -> TinyData:
        return TinyData(NUM_TRAIN)

    def collate(self, samples) -> TinyBatch:
        images, masks, names = zip(*samples, strict=True)
        image_BCHW = torch.stack(images)
        return TinyBatch(image_BCHW, torch.stack(masks), image_BCHW.float().mean((1, 2, 3)) / 255, list(names))

    def normalizers(self, batch: TinyBatch) -> dict[str, Tensor]:
        return {
            "patches": (batch.mask_Bhw != IGNORE).sum().double(),
            "mean": torch.tensor(float(len(batch.names)), dtype=torch.float64, device=batch.mask_Bhw.device),
        }

    def targets(self, batch: TinyBatch, taps) -> None:
        return None

    def loss_sums(self, output: Tensor, batch: TinyBatch, taps) -> dict[str, Tensor]:
        self.seen.append(batch.names)
        output = output.float()
        patches = F.cross_entropy(output[:, :CLASSES], batch.mask_Bhw, ignore_index=IGNORE, reduction="sum")
        if self.nan_for in batch.names:
            patches = patches * float("nan")
        return {"patches": patches, "mean": (output[:, CLASSES].mean((1, 2)) - batch.mean_B).square().sum()}

    def val_data(self) -> "TinyValData":
        return TinyValData()

    def val_predictions(self, forward, image_BCHW: Tensor, samples) -> list[Tensor]:
        output, _ = forward(image_BCHW)
        return [*output[:, :CLASSES].argmax(1)]

    def metric(self) -> "TinyMetric":
        return TinyMetric(self.scores)

    def write_report(self, forward, evaluation, folder: Path, *, title: str, count: int) -> Path:
        output, _ = forward(torch.zeros(1, 3, SIZE, SIZE, dtype=torch.uint8))
        page = {"title": title, "count": count, "score": evaluation.score, "output": output.tolist()}
        (folder / "index.html").write_text(json.dumps(page))
        return folder / "index.html"

    def describe(self) -> dict[str, Any]:
        return {"classes": ["dark", "grey", "bright"], "sides": 4}


class _Scaled(torch.autograd.Function):
    @staticmethod
    def forward(ctx, value, factor):
        ctx.factor = factor
        return value.clone()

    @staticmethod
    def backward(ctx, gradient):
        return gradient * ctx.factor, None


@dataclass
class BadGradients(TinyTask):
    """Has a finite loss, and gradients multiplied by ``factor``."""

    factor: float = float("nan")

    def loss_sums(self, output, batch, taps):
        return super().loss_sums(_Scaled.apply(output, self.factor), batch, taps)


def tiny_config(**changes: Any) -> TrainConfig:
    optim_names = OptimConfig.__dataclass_fields__
    optim = {"lr": 1e-2, "warmup_steps": 3} | {name: value for name, value in changes.items() if name in optim_names}
    loop = {"steps": 12, "batch_size": 4, "precision": "fp32", "workers": 0, "log_every": 2, "track": ()} | {
        name: value for name, value in changes.items() if name not in optim_names
    }
    # The tiny task has no settings, so those of another task are used.
    head = HeadConfig(task=DepthConfig(), optim=OptimConfig(**optim))
    return TrainConfig(heads={"tiny": head}, loop=LoopConfig(**loop))


def tiny_head(task: TinyTask, seed: int = 0, **method: Any) -> Head:
    torch.manual_seed(seed)
    built = TinyMethod(**method)
    return Head(built, task.build_decoder(built.width, 1))


def tiny_model(task: TinyTask, seed: int = 0, **method: Any) -> Model:
    return Model({"tiny": tiny_head(task, seed, **method)})


def save_tiny_bundle(model: Model):
    def save(folder: Path, config: TrainConfig, metrics: dict[str, Any], head: str) -> None:
        save_file(model.heads[head].trainable_state(), folder / "head.safetensors")
        (folder / "config.json").write_text(json.dumps(config_to_dict(config)))
        (folder / "metrics.txt").write_text(repr(metrics))

    return save


@dataclass
class TinyRun:
    """A finished tiny run: its result, model, folder, and console output."""

    result: FitResult
    model: Model
    folder: RunFolder
    printed: str

    @property
    def weights(self) -> dict[str, Tensor]:
        return self.model.heads["tiny"].trainable_state()

    def rows(self, kind: str) -> list[dict[str, Any]]:
        """The rows of metrics.jsonl that have a key (``loss`` or ``eval``)."""
        lines = self.folder.metrics_file.read_text().splitlines()
        return [row for line in lines if kind in (row := json.loads(line))]

    @property
    def last(self) -> dict[str, Tensor]:
        return load_file(self.folder.last / "head.safetensors")


def tiny_run(
    out: Path,
    *,
    resume: bool = False,
    task: TinyTask | None = None,
    head: dict | None = None,
    backbone: Backbone | None = None,
    allow_changed_data: bool = False,
    **changes,
) -> TinyRun:
    """One run in this process; ``changes`` are settings of the loop and the optimizer."""
    task = task or TinyTask()
    model = tiny_model(task, **(head or {}))
    text = io.StringIO()
    with RunFolder.open(out, resume=resume) as folder:
        trainer = Trainer(
            tiny_config(**changes), tasks={"tiny": task}, backbone=backbone or tiny_backbone(), model=model
        )
        result = trainer.fit(
            folder,
            save_tiny_bundle(model),
            resume=resume,
            allow_changed_data=allow_changed_data,
            console=Console(file=text, width=200),
        )
    return TinyRun(result, model, folder, text.getvalue())
