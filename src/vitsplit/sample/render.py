"""Rendering of a layout: exact labels at pixel centers, and an antialiased color image.

Shapes: H W pixels, N all pixels, M some of them.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
from numpy.typing import NDArray

from vitsplit.sample.layout import Layout
from vitsplit.sample.ray_casting import nearest
from vitsplit.sample.shading import Lighting, meet, shade, tone_map
from vitsplit.sample.solids import Vector

Array = NDArray[np.float32]
Pixels = NDArray[np.intp]

_CHUNK = 8192
"""Rays per chunk, so that the working set fits in the cache."""
_CONTRAST = 0.05
"""Pixels that differ from a neighbor by more than this (display values) are supersampled."""
_SUBPIXELS = ((-0.125, -0.375), (0.375, -0.125), (-0.375, 0.125), (0.125, 0.375))
"""Rotated grid of (row, column) offsets from the center; five rays including the center."""
_SAME_FACE = 0.95
"""Rays of a pixel whose normals have at least this cosine reuse the lighting of the center."""


def trace(layout: Layout, size: tuple[int, int]) -> tuple[NDArray[np.int16], Array]:
    """Labels at pixel centers.

    Args:
        layout: The scene.
        size: ``(H, W)`` in pixels.

    Returns:
        ``id_HW``, the surface numbers (see ``vitsplit.sample.layout``), and ``depth_HW``, meters along the optical
        axis.
    """
    id_N = np.empty(size[0] * size[1], np.int16)
    depth_N = np.empty(size[0] * size[1], np.float32)
    for pixels in _chunks(np.arange(id_N.size)):
        depth_N[pixels], id_N[pixels] = nearest(layout, _origin(layout), _rays(layout, pixels, size))
    return id_N.reshape(size), depth_N.reshape(size)


def color(layout: Layout, size: tuple[int, int]) -> NDArray[np.uint8]:
    """The RGB image ``(H, W, 3)``: one ray per pixel, five where a pixel differs from its neighbors."""
    count = size[0] * size[1]
    image_3N = np.empty((3, count), np.float32)
    id_N = np.empty(count, np.int16)
    center_10N = np.empty((10, count), np.float32)  # lighting and normal
    for pixels in _chunks(np.arange(count)):
        surface, light = shade(layout, _origin(layout), _rays(layout, pixels, size), slice(None))
        image_3N[:, pixels] = tone_map(light.reflected(surface))
        id_N[pixels] = surface.id_N
        center_10N[:, pixels] = np.concatenate([light.diffuse_3N, light.gain_N[None], light.extra_3N, surface.n_3N])
    rough = np.flatnonzero(_rough(id_N.reshape(size), image_3N.reshape(3, *size)))
    for pixels in _chunks(rough):
        image_3N[:, pixels] += _subpixels(layout, size, pixels, id_N[pixels], center_10N[:, pixels])
    image_3N[:, rough] /= 1 + len(_SUBPIXELS)
    return np.rint(image_3N.T * 255).astype(np.uint8).reshape(*size, 3)


def _origin(layout: Layout) -> Vector:
    x, y, z = (np.full(1, value, np.float32) for value in layout.camera.position)
    return x, y, z


def _rays(layout: Layout, pixels: Pixels, size: tuple[int, int], shift: tuple[float, float] = (0.0, 0.0)) -> Vector:
    rows, columns = pixels // size[1] + (0.5 + shift[0]), pixels % size[1] + (0.5 + shift[1])
    return layout.camera.rays(rows, columns, size)


def _chunks(pixels: Pixels) -> Iterator[Pixels]:
    for start in range(0, pixels.size, _CHUNK):
        yield pixels[start : start + _CHUNK]


def _subpixels(
    layout: Layout, size: tuple[int, int], pixels: Pixels, id_M: NDArray[np.int16], center_10M: Array
) -> Array:
    """Sum over the off-center rays of ``pixels``, display values ``rgb_3M``.

    Rays that hit the same face as the center reuse its lighting.
    """
    sum_3M = np.zeros((3, pixels.size), np.float32)
    light = Lighting(center_10M[:3], center_10M[3], center_10M[4:7])
    for k, shift in enumerate(_SUBPIXELS):
        d = _rays(layout, pixels, size, shift)
        surface = meet(layout, _origin(layout), d)
        rgb_3M = light.reflected(surface)
        other = np.flatnonzero((surface.id_N != id_M) | ((surface.n_3N * center_10M[7:]).sum(0) < _SAME_FACE))
        if other.size:
            way = (d[0][other], d[1][other], d[2][other])
            edge, edge_light = shade(layout, _origin(layout), way, slice(k, None, 4))
            rgb_3M[:, other] = edge_light.reflected(edge)
        sum_3M += tone_map(rgb_3M)
    return sum_3M


def _rough(id_HW: NDArray[np.int16], image_3HW: Array) -> NDArray[np.bool_]:
    """Pixels that differ from a neighbor in surface or color."""
    rough = np.zeros(id_HW.shape, bool)
    across = (np.diff(id_HW, axis=1) != 0) | (np.abs(np.diff(image_3HW, axis=2)) > _CONTRAST).any(0)
    rough[:, :-1] |= across
    rough[:, 1:] |= across
    below = (np.diff(id_HW, axis=0) != 0) | (np.abs(np.diff(image_3HW, axis=1)) > _CONTRAST).any(0)
    rough[:-1] |= below
    rough[1:] |= below
    return rough
