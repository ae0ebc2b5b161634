import numpy as np
import pytest
from ray_oracle import first_inside, inside

from vitsplit.sample import solids

HALVES = {"ball": (0.4, 0.4, 0.4), "box": (0.3, 0.5, 0.2), "cylinder": (0.3, 0.3, 0.6), "cone": (0.4, 0.4, 0.5)}


def _rays(seed, count=60):
    """Rays from all around (from above, below, inside the cone's opening too) towards the neighborhood of a solid."""
    rng = np.random.default_rng(seed)
    origin = rng.normal(size=(count, 3))
    origin *= 2.0 / np.linalg.norm(origin, axis=1, keepdims=True)
    direction = rng.uniform(-0.5, 0.5, (count, 3)) - origin
    return origin, direction


@pytest.mark.parametrize("kind", solids.KINDS)
def test_entry_and_exit_agree_with_marching(kind):
    origin, direction = _rays(1)
    half = HALVES[kind]
    o, d = (tuple(a.T.astype(np.float32)) for a in (origin, direction))
    entry, leave = solids.interval(kind, half, o, d)
    hits = 0
    for n in range(len(origin)):

        def test(t, n=n):
            return inside(kind, half, *(origin[n][:, None] + t * direction[n][:, None]))

        expected = first_inside(test, 0.0, 3.0, 0.002)
        if expected is None:
            assert not entry[n] < leave[n] or leave[n] - entry[n] < 0.004  # thinner than a step of the march
            continue
        hits += 1
        assert entry[n] == pytest.approx(expected, abs=2e-4)
        backwards = first_inside(lambda t: test(3.0 - t), 0.0, 3.0, 0.002)
        assert leave[n] == pytest.approx(3.0 - backwards, abs=2e-4)
    assert 20 < hits < 60


@pytest.mark.parametrize("kind", solids.KINDS)
def test_normals_point_out_of_the_solid_and_lie_across_its_surface(kind):
    origin, direction = _rays(2, 400)
    half = HALVES[kind]
    entry, leave = solids.interval(kind, half, *(tuple(a.T.astype(np.float32)) for a in (origin, direction)))
    seen = np.flatnonzero(entry < leave)
    p_3N = (origin[seen] + entry[seen, None] * direction[seen]).T.astype(np.float32)
    n_3N = solids.normal(kind, half, p_3N)
    np.testing.assert_allclose((n_3N**2).sum(0), 1, atol=1e-5)
    assert not inside(kind, half, *(p_3N + 1e-3 * n_3N)).any()
    assert inside(kind, half, *(p_3N - 1e-3 * n_3N)).mean() > 0.97  # all but points on an edge
    # A small step across the normal stays on the surface to second order: to half the step along the normal at least.
    rng = np.random.default_rng(3)
    across = np.cross(n_3N.T, rng.normal(size=n_3N.T.shape)).T
    across *= 1e-3 / np.linalg.norm(across, axis=0)
    between = ~inside(kind, half, *(p_3N + across + 1e-4 * n_3N)) & inside(kind, half, *(p_3N + across - 1e-4 * n_3N))
    assert between.mean() > 0.95


@pytest.mark.parametrize("kind", ["ball", "cylinder", "cone"])
def test_textures_close_around_the_axis(kind):
    half = HALVES[kind]
    period = 0.23
    angle = np.float32(np.pi - 1e-4)
    z = np.float32(0.1)
    rho = {"ball": np.sqrt(half[0] ** 2 - z**2), "cylinder": half[0], "cone": half[0] * (half[2] - z) / (2 * half[2])}[
        kind
    ]
    p_3N = np.array([[rho * np.cos(angle)] * 2, [rho * np.sin(angle), -rho * np.sin(angle)], [z, z]], np.float32)
    u = solids.surface_uv(kind, half, p_3N, period)[0] / period
    turns = u[0] - u[1]
    assert turns == pytest.approx(round(turns), abs=2e-3)
    assert round(turns) % 2 == 0 and round(turns) >= 2
