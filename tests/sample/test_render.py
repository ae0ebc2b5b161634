from dataclasses import replace

import numpy as np
import pytest
import ray_oracle as oracle

from vitsplit.sample import ray_casting
from vitsplit.sample.compose import random_layout
from vitsplit.sample.render import color, trace
from vitsplit.sample.shading import shade
from vitsplit.sample.solids import KINDS

SIZE = (72, 96)


def _layout(seed):
    return random_layout(np.random.default_rng(seed))


@pytest.fixture(scope="module")
def traced():
    layouts = [_layout(seed) for seed in range(6)]
    return [(layout, *trace(layout, SIZE)) for layout in layouts]


def test_surfaces_and_depth_agree_with_a_scalar_ray_caster(traced):
    rng = np.random.default_rng(0)
    kinds = set()
    for layout, id_HW, depth_HW in traced:
        # Some pixels of every solid, and some anywhere.
        pixels = [tuple(rng.choice(np.argwhere(id_HW == 6 + k))) for k in range(len(layout.solids)) for _ in range(4)]
        pixels += [tuple(rng.integers(0, SIZE)) for _ in range(10)]
        for row, column in pixels:
            depth, surface = oracle.cast(layout, row, column, SIZE)
            assert id_HW[row, column] == surface
            assert depth_HW[row, column] == pytest.approx(depth, abs=1e-3)
            kinds.add(layout.solids[surface - 6].kind if surface >= 6 else "room")
    assert kinds == {"room", *KINDS}


def test_depth_of_walls_floor_and_ceiling_equals_the_closed_form(traced):
    planes = set()
    for layout, id_HW, depth_HW in traced:
        for row, column in np.argwhere(id_HW < 6)[::17]:
            origin, direction = oracle.pixel_ray(layout, row, column, SIZE)
            depth, plane = oracle.plane_hit(layout, origin, direction)
            assert id_HW[row, column] == plane
            assert depth_HW[row, column] == pytest.approx(depth, rel=1e-4)
            planes.add(plane)
    assert planes >= {4, 5}


@pytest.mark.parametrize("axis", [0, 1, 2])
@pytest.mark.parametrize("zero", [0.0, -0.0])
def test_rays_parallel_to_walls(axis, zero):
    """A ray along one axis meets the two planes across it; a ray from any place, with zeros of both signs."""
    layout = replace(_layout(0), solids=())
    room = np.asarray(layout.room, np.float32)
    for sign in (1, -1):
        origin = tuple(room[i : i + 1] * np.float32(share) for i, share in enumerate((0.3, 0.4, 0.6)))
        direction = tuple(np.full(1, sign * 2 if i == axis else zero, np.float32) for i in range(3))
        (t,), (plane,) = ray_casting.nearest(layout, origin, direction)
        distance = room[axis] - origin[axis][0] if sign > 0 else origin[axis][0]
        assert t == pytest.approx(distance / 2) and plane == 2 * axis + (sign > 0)


def test_camera_axes_are_a_right_handed_frame_with_the_image_upright():
    for seed in range(20):
        axes = _layout(seed).camera.axes_33.astype(float)
        np.testing.assert_allclose(axes @ axes.T, np.eye(3), atol=1e-6)
        assert np.linalg.det(axes) == pytest.approx(1, abs=1e-6)
        assert axes[1, 2] < -0.5  # down in the image is down in the room


def test_solids_do_not_intersect_and_are_inside_the_room():
    for seed in range(20):
        layout = _layout(seed)
        points = np.random.default_rng(seed).uniform(0, 1, (20000, 3)) * np.asarray(layout.room)
        inside = np.stack([oracle.inside_solid(solid, points) for solid in layout.solids])
        assert inside.sum(0).max() <= 1
        for solid in layout.solids:
            ground = (
                0.0 if solid.on is None else sum(layout.solids[solid.on].center[2:]) + layout.solids[solid.on].half[2]
            )
            assert solid.center[2] - solid.half[2] == pytest.approx(ground, abs=1e-6)


def test_shadows_agree_with_marching_to_every_light_sample():
    rng = np.random.default_rng(5)
    values = []
    for seed in range(4):
        layout = _layout(seed)
        light = layout.lights[0]
        # Floor points below the solids' shadows: around the feet.
        feet = np.array([solid.center for solid in layout.solids])[rng.integers(len(layout.solids), size=12)]
        p = np.column_stack([feet[:, :2] + rng.uniform(-0.7, 0.7, (12, 2)), np.zeros(12)])
        p[:, :2] = np.clip(p[:, :2], 0.01, np.asarray(layout.room[:2]) - 0.01)
        floor = np.full(12, 4, np.int16)
        seen = ray_casting.visibility(layout, light, slice(None), p.T.astype(np.float32), np.ones(12, bool), floor)
        for point, value in zip(p, seen, strict=True):
            shares = []
            for solid in layout.solids:
                t = np.linspace(0, 1, 1500)
                lines = point + t[:, None, None] * (light.points_S3.astype(float) - point)
                hit = oracle.inside_solid(solid, lines.reshape(-1, 3)).reshape(lines.shape[:2]).any(0)
                shares.append(1 - hit.mean())
            assert value == pytest.approx(np.prod(shares), abs=2 / len(light.points_S3))
            values.append(value)
    assert min(values) == 0 and max(values) == 1 and any(0.1 < value < 0.9 for value in values)


def test_floor_is_darker_beside_a_solid_and_in_corners():
    layout = next(la for la in map(_layout, range(9)) if any(s.kind == "box" and s.on is None for s in la.solids))
    box = next(solid for solid in layout.solids if solid.kind == "box" and solid.on is None)
    beside = (box.center[0] + box.footprint + 0.01, box.center[1], 0.0)
    p_3N = np.array([beside, (0.02, 0.02, 0.0)], np.float32).T
    up = np.array([[0, 0], [0, 0], [1, 1]], np.float32)
    directions = np.random.default_rng(0).normal(size=(200, 3)).astype(np.float32)
    directions /= np.linalg.norm(directions, axis=1, keepdims=True)
    floor = np.full(2, 4, np.int16)
    beside_value, corner_value = ray_casting.openness(layout, p_3N, up, floor, directions)
    bare = replace(layout, solids=())
    free_value, _ = ray_casting.openness(bare, p_3N, up, floor, directions)
    assert 0.3 < beside_value < free_value - 0.03
    assert corner_value < 0.6


def test_color_is_anti_aliased():
    """Closer to a picture of three times the size, averaged, than one ray per pixel comes."""
    layout = _layout(1)
    fine = color(layout, (3 * SIZE[0], 3 * SIZE[1])).astype(float)
    reference = fine.reshape(SIZE[0], 3, SIZE[1], 3, 3).mean((1, 3))
    one_ray = np.abs(fine[1::3, 1::3] - reference)
    error = np.abs(color(layout, SIZE) - reference)
    assert error.mean() < 0.75 * one_ray.mean()
    assert np.percentile(error, 99) < 0.75 * np.percentile(one_ray, 99)


def test_polished_floor_reflects_the_room():
    """Schlick's share of what the ray with its vertical part turned round sees, the rest as on a matt floor."""
    gloss = 0.08
    layout = _layout(2)
    matt = replace(layout.planes[4], gloss=0.0)
    matt_layout = replace(layout, planes=(*layout.planes[:4], matt, layout.planes[5]))
    polished = replace(layout, planes=(*layout.planes[:4], replace(matt, gloss=gloss), layout.planes[5]))
    id_HW, _ = trace(layout, SIZE)
    differences = []
    for row, column in np.argwhere(id_HW == 4)[::97]:
        origin, direction = oracle.pixel_ray(layout, row, column, SIZE)
        t, _ = oracle.plane_hit(layout, origin, direction)
        start, up = origin + t * direction, direction * (1, 1, -1)

        def seen(scene, o, d, step, leaving=None):
            o, d = (tuple(np.full(1, value, np.float32) for value in vector) for vector in (o, d))
            surface, light = shade(scene, o, d, step, leaving)
            return light.reflected(surface)[:, 0]

        back = seen(polished, start, up, slice(None, None, 8), np.full(1, 4, np.int16))
        cosine = up[2] / np.linalg.norm(up)
        share = min(gloss + (1 - gloss) * (1 - cosine) ** 5 * 0.6, 0.5)
        base = seen(matt_layout, origin, direction, slice(None))
        value = seen(polished, origin, direction, slice(None))
        # Beside the mirrored room, a lamp may add a highlight.
        expected = (1 - share) * base + share * np.minimum(back, 1.5)
        assert (value > expected - 1e-3).all()
        differences.append(np.abs(value - expected).max())
    assert len(differences) > 15 and np.mean(np.array(differences) < 1e-3) > 0.5
