"""Comparison of a written graph with the model, in float32 and in the graph's own runtime.

Shapes: B batch, H W pixels.
"""

from __future__ import annotations

import functools
import operator
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torchvision.ops import box_iou
from torchvision.transforms.v2 import functional as TF

from vitsplit.data.decoding import IMAGE_SUFFIXES
from vitsplit.data.images import read_image
from vitsplit.errors import DataError, ExportError
from vitsplit.exporting.formats import Precision, Run
from vitsplit.exporting.graph import ExportGraph
from vitsplit.inference.predictor import Predictor
from vitsplit.sample import generate_scene
from vitsplit.tasks.base import GraphOutput

BATCHES = (1, 2)
SAME_IOU, SAME_SCORE, SAME_MASK = 0.9, 0.02, 0.05
"""Two objects of a class are the same from this IoU of their boxes, and up to this difference of their scores and this
mean difference of their masks."""
LARGEST_SIDE = 640
"""Sizes of the comparison are limited to this, for time."""
Errors = dict[str, float]
"""Measures of an output by name, see ``measure``."""


@dataclass(frozen=True)
class Limits:
    """The largest differences from the model under which a graph is accepted.

    Attributes:
        logits: Maximum and root mean square of the error of scores, for scores up to 10; in proportion to the largest
            score above that. The mean shows what is computed otherwise everywhere; the maximum is as wide as the
            model's own float32 rounding, which has reached 3e-4 (against float64) in a trained head. None: not limited.
        meters: Maximum error in meters; None: not limited.
        agreement: Minimum share of pixels with the model's class.
        abs_rel: Maximum mean relative error of depths.
        objects: Maximum error of objects that are the same, see ``measure_objects``; None: not limited.
        features: Maximum root mean square of the error of features, in proportion to that of the features.
        step: Maximum error of an intermediate tensor, as a fraction of its standard deviation, before the error is
            said to begin there.
    """

    logits: tuple[float, float] | None
    meters: float | None
    agreement: float
    abs_rel: float
    objects: float | None
    features: float
    step: float


@dataclass(frozen=True)
class Reference:
    """What the model computes.

    Attributes:
        image_BCHW: Images, uint8.
        outputs: The outputs of the graph, by name.
    """

    image_BCHW: Tensor
    outputs: Mapping[str, NDArray[Any]]


LIMITS: Mapping[Precision, Limits] = {
    "fp32": Limits(
        logits=(1e-3, 2e-5), meters=1e-3, agreement=0.995, abs_rel=2e-3, objects=1e-2, features=1e-4, step=1e-3
    ),
    "bf16": Limits(logits=None, meters=None, agreement=0.995, abs_rel=2e-3, objects=None, features=3e-2, step=0.2),
    "fp16": Limits(logits=None, meters=None, agreement=0.995, abs_rel=2e-3, objects=None, features=1e-2, step=0.05),
    "int8": Limits(logits=None, meters=None, agreement=0.97, abs_rel=2e-2, objects=None, features=5e-2, step=0.5),
}


def find_images(folder: Path | None, count: int = 2) -> list[Tensor]:
    """Images to compare on, ``image_CHW`` uint8: the first of a folder, or generated scenes.

    Raises:
        DataError: The folder has no images, or one cannot be read.
    """
    if folder is None:
        scenes = (generate_scene(seed, (360, 480)).image_HWC for seed in range(count))
        return [torch.from_numpy(image_HWC).permute(2, 0, 1) for image_HWC in scenes]
    paths = (
        sorted(path for path in folder.rglob("*") if path.suffix.lower() in IMAGE_SUFFIXES) if folder.is_dir() else []
    )
    if not paths:
        raise DataError(f"--images {folder}: no images found. Give a folder of images, or omit the option.")
    return [read_image(paths[index % len(paths)]) for index in range(count)]


def sizes_of(graph: ExportGraph, size: tuple[int, int] | None, smallest_side: int) -> list[tuple[int, int]]:
    """Height and width of the images to compare on: the graph's own, or three sizes.

    The first is that of the training crops, as multiples of the patch size; the second is upright, and the patch
    divides neither side; the third is half as high.
    """
    if size is not None:
        return [size]
    patch = graph.patch_size
    crop = next(iter(graph.tasks.values())).config.crop_size
    least = smallest_side // patch + 1
    height, width = (max(least, min(side, LARGEST_SIDE) // patch) * patch for side in crop)
    return [(height, width), (width + patch // 2 + 1, height + 1), (max(least * patch, height // 2 + 1), width)]


def batches(images: Sequence[Tensor], sizes: Sequence[tuple[int, int]], batch: int | None = None) -> Iterator[Tensor]:
    """Images of each size, in batches of one and two, or of ``batch``: ``image_BCHW`` uint8."""
    for size in sizes:
        resized_BCHW = torch.stack([TF.resize(image_CHW, list(size), antialias=True) for image_CHW in images])
        for count in BATCHES if batch is None else (batch,):
            yield resized_BCHW[:count]


@torch.inference_mode()
def model_outputs(predictor: Predictor, image_BCHW: Tensor) -> dict[str, NDArray[Any]]:
    """The outputs of a graph, computed by the model itself: one pass of the backbone, then each head."""
    found: dict[str, NDArray[Any]] = {}
    requests = (head.model.request(train=False) for head in predictor.values())
    taps = predictor.backbone(image_BCHW, functools.reduce(operator.or_, requests))
    for name, head in predictor.items():
        task: Any = head.task
        outputs = task.graph_outputs(head.model(taps), taps)
        found |= {f"{name}.{each}": tensor.numpy() for each, tensor in outputs.items()}
    return found


def described(predictor: Predictor) -> dict[str, dict[str, GraphOutput]]:
    """The outputs of a predictor's graph, by head and name."""
    tasks: dict[str, Any] = {name: head.task for name, head in predictor.items()}
    return {
        name: {f"{name}.{each}": output for each, output in task.describe_graph().items()}
        for name, task in tasks.items()
    }


def measure_head(
    outputs: Mapping[str, GraphOutput], got: Mapping[str, NDArray[Any]], expected: Mapping[str, NDArray[Any]]
) -> dict[str, Errors]:
    """How far the outputs of a head are from the model's, by name. Objects are compared together, as their boxes."""
    found = {}
    for name, output in outputs.items():
        if output.kind == "boxes":
            of_kind = {each.kind: other for other, each in outputs.items()}
            found[name] = measure_objects(
                *({kind: side[of_kind[kind]] for kind in of_kind} for side in (got, expected))
            )
        elif output.kind in ("logits", "classes", "meters", "features"):
            found[name] = measure(output.kind, got[name], expected[name])
    return found


def measure_objects(got: Mapping[Any, NDArray[Any]], expected: Mapping[Any, NDArray[Any]]) -> Errors:
    """How far objects are from the model's.

    Args:
        got: Arrays by kind: ``boxes`` (N, 4), ``labels`` and ``scores`` (N,), and ``masks`` (N, h, w) if there are.
        expected: Those of the model.

    Returns:
        ``agreement``: the share of objects of either side that the other has, with the class, an IoU of at least 0.9, a
        score within 0.02, and masks within 0.05 on average. ``object_error``: of these pairs, the largest of 1 - IoU
        and the differences of score and masks. ``objects``: the number of objects of the model.
    """
    boxes = [torch.from_numpy(each["boxes"]) for each in (got, expected)]
    errors = [1 - box_iou(*boxes).numpy(), np.abs(got["scores"][:, None] - expected["scores"])]
    if "masks" in expected:
        mean = [np.abs(mask - expected["masks"]).mean((1, 2)) for mask in got["masks"]]
        errors.append(np.reshape(mean, errors[0].shape))
    same = got["labels"][:, None] == expected["labels"]
    for error, most in zip(errors, (1 - SAME_IOU, SAME_SCORE, SAME_MASK), strict=False):
        same &= error <= most  # not with NaN
    total = same.shape[0] + same.shape[1]
    return {
        "agreement": float(same.any(0).sum() + same.any(1).sum()) / total if total else 1.0,
        "object_error": float(max(error[same].max(initial=0) for error in errors)),
        "objects": float(same.shape[1]),
    }


def measure(kind: str, got: NDArray[Any], expected: NDArray[Any]) -> Errors:
    """How far an output is from the model's: its maximal error and more by kind.

    ``agreement`` is the share of equal classes, ``abs_rel`` the mean relative error of depths, ``largest`` the largest
    score, ``relative_error`` the root mean square of the error of features in proportion to that of the features.
    """
    if got.shape != expected.shape:
        raise ExportError(f"an output has shape {got.shape}, that of the model {expected.shape}")
    if kind == "classes":
        return {"agreement": float((got == expected).mean())}
    difference = np.abs(got.astype(np.float64) - expected)
    errors = {"max_error": float(difference.max())}
    if kind == "meters":
        return errors | {"abs_rel": float((difference / expected).mean())}
    rms = float(np.sqrt(np.square(difference).mean()))
    if kind == "features":
        return errors | {"relative_error": rms / float(np.sqrt(np.square(expected.astype(np.float64)).mean()))}
    return errors | {"rms_error": rms, "largest": float(np.abs(expected).max())}


def worst(measured: Sequence[Errors]) -> Errors:
    """The worst of each measure; NaN is worse than all numbers. Of ``objects``, the largest number."""
    return {
        name: float((np.min if name == "agreement" else np.max)([errors[name] for errors in measured]))
        for name in measured[0]
    }


def exceeds(errors: Errors, limits: Limits) -> str | None:
    """The measure that exceeds its limit, in words; None: none. NaN exceeds every limit."""
    scale = max(1.0, errors.get("largest", 0.0) / 10)
    most = {"max_error": limits.meters} if "abs_rel" in errors else {}
    if "rms_error" in errors and limits.logits is not None:
        most = dict(zip(("max_error", "rms_error"), (scale * limit for limit in limits.logits), strict=True))
    most |= {"abs_rel": limits.abs_rel, "object_error": limits.objects, "relative_error": limits.features}
    for name, limit in most.items():
        if name in errors and limit is not None and not errors[name] <= limit:
            return f"{name} is {errors[name]:.2e}, must be at most {limit:.1e}"
    if not errors.get("agreement", 1.0) >= limits.agreement:
        return f"agreement is {errors['agreement']:.4f}, must be at least {limits.agreement}"
    return None


def distance(records: Sequence[Mapping[str, Any]], limits: Limits, judged: Collection[str] = ()) -> float:
    """The largest share of classes and objects that differ, or relative error, in proportion to its limit.

    Args:
        records: Output of ``compare``.
        limits: The limits.
        judged: Heads whose outputs do not count.
    """
    relative = {"abs_rel": limits.abs_rel, "relative_error": limits.features}
    found = [
        (1 - value) / (1 - limits.agreement) if name == "agreement" else value / relative[name]
        for output, errors in summary(records).items()
        if output.partition(".")[0] not in judged
        for name, value in errors.items()
        if name == "agreement" or name in relative
    ]
    return float(np.max(found, initial=0.0))


def references(
    predictor: Predictor, graph: ExportGraph, images: Sequence[Tensor], sizes: Sequence[tuple[int, int]]
) -> list[Reference]:
    """The model's outputs at every size and batch."""
    return [
        Reference(image_BCHW, model_outputs(predictor, image_BCHW))
        for image_BCHW in batches(images, sizes, graph.batch)
    ]


def compare(
    run: Run, expected: Sequence[Reference], graph: ExportGraph, outputs: Mapping[str, Mapping[str, GraphOutput]]
) -> list[dict[str, Any]]:
    """Measures of every output at every size and batch, JSON-ready.

    Args:
        run: Runs the graph.
        expected: Output of ``references``.
        graph: The same graph in PyTorch.
        outputs: Output of ``described``.
    """
    records = []
    for reference in expected:
        image_BCHW = reference.image_BCHW
        got = run(as_input(image_BCHW, graph))
        records.append(
            {
                "batch": image_BCHW.shape[0],
                "size": [*image_BCHW.shape[2:]],
                "outputs": {
                    name: errors
                    for each in outputs.values()
                    for name, errors in measure_head(each, got, reference.outputs).items()
                },
            }
        )
    return records


def summary(records: Sequence[Mapping[str, Any]]) -> dict[str, Errors]:
    """The worst measures of each output."""
    return {name: worst([record["outputs"][name] for record in records]) for name in records[0]["outputs"]}


def check(
    records: Sequence[Mapping[str, Any]],
    precision: Precision,
    run_steps: Any,
    graph: ExportGraph,
    images: Sequence[Tensor],
    title: str,
    judged: Collection[str] = (),
) -> None:
    """Refuses a graph whose outputs differ too much.

    Args:
        records: Output of ``compare``.
        precision: The precision of the graph.
        run_steps: Opens the graph with its intermediate tensors as additional outputs.
        graph: The same graph in PyTorch.
        images: The images of the comparison.
        title: The file, for the message.
        judged: Heads whose outputs are not limited.

    Raises:
        ExportError: The message has the output, its error and the block in which the error begins.
    """
    limits = LIMITS[precision]
    for name, errors in summary(records).items():
        problem = None if name.partition(".")[0] in judged else exceeds(errors, limits)
        if problem is not None:
            size = next(record["size"] for record in records if exceeds(record["outputs"][name], limits) is not None)
            (image_BCHW, *_) = batches(images, [size], graph.batch)
            begin = first_error(run_steps(), graph, image_BCHW, limits.step)
            raise ExportError(
                f"{title}: the output {name} differs from the model's: {problem}. {begin} The folder was not written. "
                "Export with --precision fp32, another --format or --deform grid, and report the message if that fails"
                + ("." if precision == "fp32" else "; or give --data, whose scores then decide.")
            )


@torch.inference_mode()
def first_error(run: Run, graph: ExportGraph, image_BCHW: Tensor, limit: float) -> str:
    """A sentence on the first intermediate tensor that differs from PyTorch's."""
    images = as_input(image_BCHW, graph)
    graph(torch.from_numpy(images))
    expected, got = dict(graph.steps.tensors), run(images)
    graph.steps.tensors = {}
    agrees = "the input"
    for step, tensor in expected.items():
        if step not in got:
            continue
        error = np.abs(got[step] - tensor.numpy()).max() / max(tensor.std().item(), 1e-12)
        if not error <= limit:
            return f"The error begins in {step} ({error:.1e} of its standard deviation); {agrees} agrees."
        agrees = step
    return f"All blocks agree, up to {agrees}: the error begins in a decoder."


def as_input(image_BCHW: Tensor, graph: ExportGraph) -> NDArray[np.uint8]:
    """Images in the graph's layout."""
    array: NDArray[np.uint8] = image_BCHW.numpy()
    return array if graph.layout == "nchw" else np.ascontiguousarray(array.transpose(0, 2, 3, 1))
