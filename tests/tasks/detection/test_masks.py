"""Run-length encodings and polygons against COCO's official tool."""

import time

import numpy as np
import pytest
from pycocotools import mask as official

from vitsplit.data.mask_coding import compress, decompress, encode, encode_labels
from vitsplit.tasks.detection.annotations import polygon_problem
from vitsplit.tasks.detection.masks import mask_area, rasterize, run_problem, to_rle

RNG = np.random.default_rng(0)


def random_masks():
    for height, width in ((1, 1), (1, 40), (40, 1), (37, 53), (300, 200)):
        for share in (0.0, 0.01, 0.5, 1.0):
            yield np.asfortranarray(RNG.random((height, width)) < share, np.uint8)
    for _ in range(200):  # objects at all borders
        height, width = RNG.integers(1, 7, 2)
        yield np.asfortranarray(RNG.random((height, width)) < RNG.choice([0.1, 0.5, 0.9]), np.uint8)
    blob_HW = np.zeros((1000, 900), np.uint8, order="F")
    blob_HW[100:900, 30:800] = 1
    yield blob_HW


def run_lengths(mask_HW):
    """By the format's definition: column by column, the first run of zeros."""
    values = np.concatenate([[0], mask_HW.flatten(order="F"), [2]])
    changes = np.flatnonzero(np.diff(values))
    return np.diff(np.concatenate([[0], changes])).tolist()


def test_labels_are_encoded_like_the_mask_of_each():
    for shape, most in (((1, 1), 1), ((1, 40), 3), ((40, 1), 2), ((37, 53), 6), ((300, 200), 200)):
        labels_HW = RNG.integers(0, most, shape, dtype=np.uint8)
        labels_HW[: shape[0] // 2] = 0
        found = encode_labels(labels_HW)
        assert set(found) == set(np.unique(labels_HW).tolist())
        for value, rle in found.items():
            text = official.encode(np.asfortranarray(labels_HW == value, np.uint8))["counts"].decode()
            assert rle == {"size": [*shape], "counts": text}


def test_compressed_run_lengths_equal_the_official_tool():
    for mask_HW in random_masks():
        text = official.encode(mask_HW)["counts"].decode()
        runs = decompress(text)
        assert runs.tolist() == run_lengths(mask_HW)
        assert compress(runs) == text and encode(mask_HW == 1) == {"size": [*mask_HW.shape], "counts": text}
        for counts in (text, runs.tolist()):
            assert run_problem(counts, *mask_HW.shape) == ""
            rle = {"size": list(mask_HW.shape), "counts": counts}
            assert mask_area(rle, *mask_HW.shape) == mask_HW.sum()
            assert np.array_equal(rasterize(rle, *mask_HW.shape), mask_HW)
        assert run_problem(text, mask_HW.shape[0], mask_HW.shape[1] + 1)


def test_malformed_run_lengths_are_rejected_before_decoding():
    """Accepted run lengths cover the image exactly, and are decoded correctly."""
    generator = np.random.default_rng(1)
    good = official.encode(np.asfortranarray(generator.random((9, 11)) < 0.4, np.uint8))["counts"].decode()
    passed = 0
    for _ in range(3000):
        text = list(good)
        for _ in range(generator.integers(1, 3)):
            place = generator.integers(len(text))
            text[place] = chr(generator.integers(40, 120))
        if generator.random() < 0.3:
            del text[generator.integers(len(text)) :]
        text = "".join(text)
        fault = run_problem(text, 9, 11)
        if fault:
            assert len(fault) < 200
            continue
        passed += 1
        runs = decompress(text).tolist()
        assert sum(runs) == 99 and min(runs) >= 0
        expected = np.repeat(np.arange(len(runs)) % 2, runs).reshape(11, 9).T
        rle = {"size": [9, 11], "counts": text}
        assert np.array_equal(rasterize(rle, 9, 11), expected)
        assert np.array_equal(official.decode({**rle, "counts": text.encode()}), expected)
    assert 5 < passed < 300
    for text in ("", "P", "o" * 40 + "0", "é", "oooooooo0", "\x00", "zz", "0" * 98):
        assert run_problem(text, 9, 11)
    assert run_problem([], 9, 11) and run_problem([99.0], 9, 11) and run_problem([True] * 99, 9, 11)
    assert run_problem([10**30, -(10**30) + 99], 9, 11) and run_problem(None, 9, 11) and run_problem(b"c3", 9, 11)
    assert run_problem([99], 9, 11) == "" == run_problem([0, 99, 0], 9, 11)


def test_many_polygons_are_merged_quickly():
    corners = RNG.uniform(0, 490, (3000, 1, 2))
    parts = tuple((corner + np.array([[0, 0], [9, 1], [5, 9]])).flatten() for corner in corners)
    begun = time.perf_counter()
    rle = to_rle(parts, 500, 500)
    assert time.perf_counter() - begun < 5.0
    expected = official.merge(official.frPyObjects([part.tolist() for part in parts], 500, 500))
    assert np.array_equal(official.decode(expected), rasterize(rle, 500, 500))


@pytest.mark.parametrize(
    ("points", "words"),
    [
        ([[0, 0], [9, 0], [9, 9]], ""),
        ([[0, 0], [2e6, 0], [9, 9]], "beyond"),
        ([[0, 0], [np.nan, 0], [9, 9]], "finite"),
        ([[0, 0], [np.inf, 0], [9, 9]], "finite"),
        ([[0, 0], [1e6, 1e6]] * 3, "6e+06"),
        ([[0, 0], [1e4, 0]] * 190, ""),
        ([[0, 0], [1e4, 0]] * 210, "4.2e+06"),
    ],
)
def test_polygons_that_are_too_expensive_are_rejected(points, words):
    # The last two go to and fro: 380 and 420 edges of 10,000 pixels, and 4 million are drawn.
    fault = polygon_problem([np.array(points, np.float64).flatten(), np.array([])])
    assert words in fault and bool(fault) == bool(words)
