"""Writes data sets of generated scenes in the package's folder layout, with labels for all tasks."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from vitsplit.data.new_folder import new_folder
from vitsplit.data.processes import map_in_processes
from vitsplit.errors import DataError
from vitsplit.memory import available_cores
from vitsplit.sample.compose import COVER, OBJECTS
from vitsplit.sample.questions import Questions, answer_sets, balance
from vitsplit.sample.scene import CLASSES, OBJECT_CLASSES, SampleScene, generate_scene

SPLITS = ("train", "val")
DEPTH_SCALE = 0.001
"""Meters per unit of depth PNGs."""

_MOST_WORKERS = 8
_WORTH_WORKERS = 8
"""Fewer scenes are rendered in this process, since starting processes would take longer."""


@dataclass(frozen=True)
class _Job:
    folder: Path
    split: str
    index: int
    seed: int
    size: tuple[int, int]
    objects: tuple[int, int]
    cover: tuple[float, float]

    @property
    def name(self) -> str:
        return f"scene_{self.index:05d}"


@dataclass(frozen=True)
class _Record:
    """Entries of a scene in the files of a split."""

    annotations: list[dict[str, Any]]
    questions: Questions


def scene_seed(seed: int, split: str, index: int) -> int:
    """The seed of a scene, independent of the number of scenes."""
    return int(np.random.SeedSequence([seed, SPLITS.index(split), index]).generate_state(1, np.uint64)[0])


def write_segmentation_set(
    root: Path,
    train: int,
    val: int,
    size: tuple[int, int] = (238, 322),
    seed: int = 0,
    on_scene: Callable[[int, int], None] | None = None,
    *,
    objects: tuple[int, int] = OBJECTS,
    cover: tuple[float, float] = COVER,
    balanced: bool = False,
    workers: int | None = None,
) -> Path:
    """Generates a data set for all tasks.

    Writes ``classes.json``; ``images/SPLIT/NAME.jpg``; ``masks/SPLIT/NAME.png`` (class indices);
    ``depth/SPLIT/NAME.png`` (16-bit, with the scale in ``depth.json``); ``annotations/SPLIT.json`` (COCO, masks as
    uncompressed RLE, categories 1 to 4) and ``questions_SPLIT.jsonl``, for the splits train and val. The folder is
    created atomically.

    Args:
        root: The folder to create; may exist if empty.
        train: Number of training scenes.
        val: Number of validation scenes.
        size: ``(H, W)`` of the images.
        seed: Scene i of a split depends only on the seed, the split and i.
        on_scene: Called after each scene with the number of finished scenes and their total.
        objects: Minimum (at least 1) and maximum number of objects in a scene.
        cover: Minimum and maximum fraction of the nominal 4:3 frame covered by an unoccluded object (estimated).
        balanced: Omit questions so that in each split every question has each of its answers equally often, and cannot
            be answered without the image (see ``vitsplit.sample.questions.balance``). Which ones are omitted depends on
            the number of scenes.
        workers: Number of processes; None: one per core, at most 8. With several, scripts need ``if __name__ ==
            "__main__":``.

    Returns:
        ``root``.

    Raises:
        DataError: The folder is not empty, a process terminated, or there are too few scenes for balanced questions.
    """
    root = Path(root)
    counts = {"train": train, "val": val}
    records: dict[str, list[tuple[_Job, _Record]]] = {split: [] for split in SPLITS}
    with new_folder(root) as partial:
        for split in SPLITS:
            for kind in ("images", "masks", "depth"):
                (partial / kind / split).mkdir(parents=True)
        jobs = [
            _Job(partial, split, index, scene_seed(seed, split, index), size, objects, cover)
            for split in SPLITS
            for index in range(counts[split])
        ]
        for done, (job, record) in enumerate(zip(jobs, _write_all(jobs, workers), strict=True), start=1):
            records[job.split].append((job, record))
            if on_scene is not None:
                on_scene(done, len(jobs))
        questions = {split: [record.questions for _, record in scenes] for split, scenes in records.items()}
        if balanced:
            questions = {split: _balanced(asked, split, objects, seed) for split, asked in questions.items()}
        _write_indices(partial, records, questions)
    return root


def _balanced(asked: list[Questions], split: str, objects: tuple[int, int], seed: int) -> list[Questions]:
    """The questions of a split, balanced."""
    found = balance(asked, answer_sets(*objects), np.random.default_rng([seed, SPLITS.index(split)]))
    if asked and not any(found):
        raise DataError(
            f"{len(asked)} scenes for {split} are too few for balanced questions: no question has all of its answers. "
            "Generate more scenes."
        )
    return found


def _write_all(jobs: list[_Job], workers: int | None) -> Iterator[_Record]:
    workers = min(workers or available_cores(), _MOST_WORKERS)
    workers = workers if len(jobs) >= _WORTH_WORKERS else 1
    alone = "use workers=1 to run without processes"
    return map_in_processes(_write_scene, jobs, workers, doing="writes scenes", alone=alone, chunksize=2)


def _write_scene(job: _Job) -> _Record:
    scene = generate_scene(job.seed, job.size, job.objects, job.cover)
    images, masks, depth = (job.folder / kind / job.split for kind in ("images", "masks", "depth"))
    Image.fromarray(scene.image_HWC).save(images / f"{job.name}.jpg", quality=93, subsampling=0)
    Image.fromarray(scene.mask_HW).save(masks / f"{job.name}.png")
    millimeters_HW = np.rint(scene.depth_HW / DEPTH_SCALE).astype(np.uint16)
    Image.fromarray(millimeters_HW).save(depth / f"{job.name}.png")
    return _Record(_annotations(scene), scene.questions)


def _annotations(scene: SampleScene) -> list[dict[str, Any]]:
    """COCO annotations of a scene without ids."""
    found = []
    for row, (x1, y1, x2, y2) in enumerate(scene.boxes_N4.tolist()):
        object_HW = scene.instances_HW == row + 1
        found.append(
            {
                "category_id": OBJECT_CLASSES.index(CLASSES[scene.box_classes_N[row]]) + 1,
                "bbox": [x1, y1, x2 - x1, y2 - y1],
                "area": int(object_HW.sum()),
                "iscrowd": 0,
                "segmentation": run_lengths(object_HW),
            }
        )
    return found


def run_lengths(object_HW: NDArray[np.bool_]) -> dict[str, list[int]]:
    """Uncompressed COCO RLE: run lengths in column-major order, starting with zeros."""
    flat = object_HW.ravel(order="F")
    edges = np.flatnonzero(np.diff(flat, prepend=False))
    counts = np.diff(np.concatenate([[0], edges, [flat.size]]))
    return {"size": list(object_HW.shape), "counts": counts.tolist()}


def _write_indices(
    folder: Path, records: dict[str, list[tuple[_Job, _Record]]], questions: dict[str, list[Questions]]
) -> None:
    (folder / "classes.json").write_text(json.dumps(list(CLASSES)) + "\n")
    (folder / "depth.json").write_text(json.dumps({"scale": DEPTH_SCALE}) + "\n")
    (folder / "annotations").mkdir()
    categories = [{"id": k + 1, "name": name, "supercategory": "object"} for k, name in enumerate(OBJECT_CLASSES)]
    for split, scenes in records.items():
        images: list[dict[str, Any]] = []
        annotations: list[dict[str, Any]] = []
        lines: list[str] = []
        for (job, record), asked in zip(scenes, questions[split], strict=True):
            file, height, width = f"{job.name}.jpg", *job.size
            images.append({"id": job.index + 1, "file_name": file, "height": height, "width": width})
            for annotation in record.annotations:
                annotations.append({"id": len(annotations) + 1, "image_id": job.index + 1, **annotation})
            lines += [json.dumps({"image": file, "question": q, "answer": a}) + "\n" for q, a in asked]
        coco = {"images": images, "annotations": annotations, "categories": categories}
        (folder / "annotations" / f"{split}.json").write_text(json.dumps(coco))
        (folder / f"questions_{split}.jsonl").write_text("".join(lines))
