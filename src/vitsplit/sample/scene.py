"""A generated scene with its labels.

Shapes: H W pixels, N objects.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from vitsplit.data.mask_coding import extent
from vitsplit.sample.compose import COVER, OBJECTS, random_layout
from vitsplit.sample.layout import NOMINAL_ASPECT, NUM_PLANES, Layout
from vitsplit.sample.questions import Questions, Thing, ask
from vitsplit.sample.render import color, trace
from vitsplit.sample.solids import KINDS

CLASSES: tuple[str, ...] = ("wall", "floor", "ceiling", *KINDS)
"""Class names, in the order of mask values."""
OBJECT_CLASSES: tuple[str, ...] = KINDS
"""Classes with instances."""
_PLANE_CLASSES = ("wall", "wall", "wall", "wall", "floor", "ceiling")

LEAST_PIXELS = 9
LEAST_SHARE = 0.003
"""Minimum visible fraction of the nominal 4:3 frame (and 9 pixels) of an instance."""


@dataclass(frozen=True)
class SampleScene:
    """An image and exact labels for all tasks, evaluated at pixel centers.

    Attributes:
        image_HWC: RGB, uint8.
        mask_HW: uint8, index into ``CLASSES``; every pixel has a class.
        instances_HW: uint16, 0 for no instance, else 1 + the row of the object in the following arrays. Objects with
            fewer than ``LEAST_PIXELS`` visible pixels, or less than ``LEAST_SHARE`` of the nominal frame, are in the
            mask only, and not included in questions.
        boxes_N4: float32, ``(x1, y1, x2, y2)`` of the visible pixels; x2 and y2 are exclusive.
        box_classes_N: int64, index into ``CLASSES``.
        depth_HW: float32, meters along the optical axis (z-depth, not distance).
        questions: ``(question, answer)`` pairs, see ``vitsplit.sample.questions``.
        colors: Name of each object's color.
        resting_on: Row of the object below each object, or -1.
    """

    image_HWC: NDArray[np.uint8]
    mask_HW: NDArray[np.uint8]
    instances_HW: NDArray[np.uint16]
    boxes_N4: NDArray[np.float32]
    box_classes_N: NDArray[np.int64]
    depth_HW: NDArray[np.float32]
    questions: Questions
    colors: tuple[str, ...]
    resting_on: tuple[int, ...]


def generate_scene(
    seed: int, size: tuple[int, int], objects: tuple[int, int] = OBJECTS, cover: tuple[float, float] = COVER
) -> SampleScene:
    """Generates a scene.

    Args:
        seed: Non-negative seed, which determines the scene and the bytes of the image.
        size: ``(H, W)`` of the image. Changes the sampling only: the composition fills the largest 4:3 frame inside
            the image, and the rest shows more of the room.
        objects: Minimum (at least 1) and maximum number of objects.
        cover: Minimum and maximum fraction of the nominal 4:3 frame covered by an unoccluded object (estimated).

    Returns:
        The image and its labels.
    """
    layout = random_layout(np.random.default_rng(seed), objects, cover)
    id_HW, depth_HW = trace(layout, size)
    names = (*_PLANE_CLASSES, *(solid.kind for solid in layout.solids))
    class_of = np.array([CLASSES.index(name) for name in names], np.uint8)
    instances_HW, shown = _instances(layout, id_HW)
    boxes_N4 = np.array([extent(instances_HW == row + 1) for row in range(len(shown))], np.float32).reshape(-1, 4)
    solids = [layout.solids[k] for k in shown]
    colors = tuple(solid.color for solid in solids)
    resting_on = tuple(shown.index(solid.on) if solid.on in shown else -1 for solid in solids)
    nearest = [float(depth_HW[instances_HW == row + 1].min()) for row in range(len(shown))]
    things = [
        Thing(solid.kind, solid.color, float(box[0] + box[2]) / 2 / size[1], depth, on)
        for solid, box, depth, on in zip(solids, boxes_N4, nearest, resting_on, strict=True)
    ]
    return SampleScene(
        image_HWC=color(layout, size),
        mask_HW=class_of[id_HW],
        instances_HW=instances_HW,
        boxes_N4=boxes_N4,
        box_classes_N=np.array([CLASSES.index(solid.kind) for solid in solids], np.int64),
        depth_HW=depth_HW,
        questions=ask(things),
        colors=colors,
        resting_on=resting_on,
    )


def _instances(layout: Layout, id_HW: NDArray[np.int16]) -> tuple[NDArray[np.uint16], list[int]]:
    """The instance map, and the solid indices of its values 1, 2, ..."""
    height, width = id_HW.shape
    frame_height = min(height, width / NOMINAL_ASPECT)
    least = max(LEAST_PIXELS, LEAST_SHARE * frame_height**2 * NOMINAL_ASPECT)
    pixels = np.bincount(id_HW.ravel(), minlength=NUM_PLANES + len(layout.solids))[NUM_PLANES:]
    shown = [k for k, count in enumerate(pixels) if count >= least]
    number = np.zeros(NUM_PLANES + len(layout.solids), np.uint16)
    for row, k in enumerate(shown):
        number[NUM_PLANES + k] = row + 1
    return number[id_HW], shown
