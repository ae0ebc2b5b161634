import colorsys
import subprocess
import sys

import numpy as np
import pytest

from vitsplit.sample import CLASSES, OBJECT_CLASSES, generate_scene

SIZE = (119, 161)


@pytest.fixture(scope="module")
def scenes(rooms):
    return rooms


def test_shapes_and_types(scenes):
    for scene in scenes:
        count = len(scene.boxes_N4)
        assert scene.image_HWC.shape == (*SIZE, 3) and scene.image_HWC.dtype == np.uint8
        assert scene.mask_HW.shape == SIZE and scene.mask_HW.dtype == np.uint8
        assert scene.instances_HW.shape == SIZE and scene.instances_HW.dtype == np.uint16
        assert scene.depth_HW.shape == SIZE and scene.depth_HW.dtype == np.float32
        assert scene.boxes_N4.shape == (count, 4) and scene.boxes_N4.dtype == np.float32
        assert scene.box_classes_N.shape == (count,) and scene.box_classes_N.dtype == np.int64
        assert len(scene.colors) == len(scene.resting_on) == count


def test_mask_instances_and_boxes_agree(scenes):
    for scene in scenes:
        assert sorted(np.unique(scene.instances_HW)) == list(range(len(scene.boxes_N4) + 1))
        for row, (x1, y1, x2, y2) in enumerate(scene.boxes_N4):
            rows, columns = np.nonzero(scene.instances_HW == row + 1)
            assert (x1, y1, x2, y2) == (columns.min(), rows.min(), columns.max() + 1, rows.max() + 1)
            assert set(scene.mask_HW[rows, columns]) == {scene.box_classes_N[row]}
            assert CLASSES[scene.box_classes_N[row]] in OBJECT_CLASSES
        hidden = (scene.instances_HW == 0) & (scene.mask_HW >= CLASSES.index("ball"))
        assert hidden.mean() < 0.01


def test_small_images_drop_instances_but_not_pixels():
    dropped = 0
    for seed in range(10):
        scene = generate_scene(seed, (20, 26))
        counts = [int((scene.instances_HW == row + 1).sum()) for row in range(len(scene.boxes_N4))]
        assert min(counts, default=9) >= 9
        dropped += int(((scene.instances_HW == 0) & (scene.mask_HW >= 3)).sum() > 0)
        total = dict(scene.questions)["how many objects are there?"]
        assert total == str(len(counts))
    assert dropped


def test_every_class_is_in_many_scenes_and_objects_are_well_sized(scenes):
    present = {name: np.mean([(s.mask_HW == k).mean() > 0.005 for s in scenes]) for k, name in enumerate(CLASSES)}
    assert present["wall"] == present["floor"] == 1
    assert present["ceiling"] > 0.35
    assert min(present[name] for name in OBJECT_CLASSES) > 0.5
    numbers = [len(scene.boxes_N4) for scene in scenes]
    assert min(numbers) >= 3 and max(numbers) == 7
    shares = np.concatenate([np.bincount(s.instances_HW.ravel())[1:] / s.instances_HW.size for s in scenes])
    assert np.mean((shares > 0.01) & (shares < 0.12)) > 0.9


def test_images_are_well_exposed(scenes):
    means = [scene.image_HWC.mean() for scene in scenes]
    assert min(means) > 60 and max(means) < 200
    assert np.median([(scene.image_HWC == 255).all(-1).mean() for scene in scenes]) < 0.01
    assert max((scene.image_HWC == 255).all(-1).mean() for scene in scenes) < 0.1
    assert min(scene.image_HWC.std() for scene in scenes) > 20


def test_depth_is_in_meters_inside_a_room(scenes):
    for scene in scenes:
        assert scene.depth_HW.min() > 0.2 and scene.depth_HW.max() < 11
        assert np.isfinite(scene.depth_HW).all()


def test_color_names_match_the_pixels(scenes):
    """The hue of most of an object's pixels is the one that its name says."""
    degrees = {"red": (-15, 14), "yellow": (40, 65), "green": (95, 150), "blue": (200, 240), "purple": (258, 305)}
    right = []
    for scene in scenes:
        for row, name in enumerate(scene.colors):
            if name in degrees:
                pixels = scene.image_HWC[scene.instances_HW == row + 1] / 255
                r, g, b = np.median(pixels, axis=0)
                hue = 360 * colorsys.rgb_to_hsv(r, g, b)[0]
                low, high = degrees[name]
                right.append(low <= (hue if hue < 330 or low >= 0 else hue - 360) <= high)
    assert len(right) > 60 and np.mean(right) > 0.95


def test_color_is_independent_of_the_class(scenes):
    pairs = {(scene.box_classes_N[row], name) for scene in scenes for row, name in enumerate(scene.colors)}
    assert len(pairs) >= 0.9 * 4 * 10


def test_layout_does_not_depend_on_the_size():
    for seed in range(4):
        small, large = generate_scene(seed, (60, 80)), generate_scene(seed, (120, 160))
        assert small.colors == large.colors and small.resting_on == large.resting_on
        np.testing.assert_array_equal(small.box_classes_N, large.box_classes_N)
        np.testing.assert_allclose(small.boxes_N4 * 2, large.boxes_N4, atol=2)
        one, four = (np.bincount(scene.instances_HW.ravel())[1:] for scene in (small, large))
        np.testing.assert_allclose(four / one, 4, rtol=0.12)


def test_few_and_large_objects():
    """Half of the default's fewest objects, each four times as large as the default's smallest."""
    scenes = [generate_scene(seed, (48, 64), (1, 2), (0.06, 0.3)) for seed in range(16)]
    assert {len(scene.boxes_N4) for scene in scenes} == {1, 2}
    shares = np.concatenate([np.bincount(s.instances_HW.ravel())[1:] / s.instances_HW.size for s in scenes])
    assert np.median(shares) > 0.06 and shares.max() < 0.4


@pytest.mark.parametrize("size", [(90, 30), (30, 160), (1, 1)])
def test_any_image_size(size):
    scene = generate_scene(3, size)
    assert scene.image_HWC.shape == (*size, 3) and scene.mask_HW.shape == size


_DIGEST = """
import hashlib
from vitsplit.sample import generate_scene
scene = generate_scene({seed}, (60, 80))
parts = (scene.image_HWC, scene.mask_HW, scene.instances_HW, scene.boxes_N4, scene.depth_HW)
digest = hashlib.sha256(b"".join(part.tobytes() for part in parts) + repr(scene.questions).encode()).hexdigest()
"""


def test_scenes_are_deterministic_across_processes():
    here = {}
    for seed in (11, 12):
        names = {}
        exec(_DIGEST.format(seed=seed), names)
        here[seed] = names["digest"]
    code = _DIGEST.format(seed=11) + "print(digest)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == here[11] != here[12]
