"""Predictors in several threads and processes, and bounds of their statistics."""

from __future__ import annotations

import copy
import pickle
import random
import threading
from collections import Counter

import numpy as np
import pytest
from bundles import write_depth_bundle, write_segmentation_bundle

import vitsplit
from vitsplit.errors import VitsplitError
from vitsplit.inference import shared_pass
from vitsplit.inference.predictor import Predictor
from vitsplit.inference.shared_pass import add_passes


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Predictor:
    root = tmp_path_factory.mktemp("bundles")
    own_size = {"image_scale": None}
    return vitsplit.load(
        write_segmentation_bundle(root / "rooms", task=own_size), write_depth_bundle(root / "far", task=own_size)
    )


@pytest.mark.parametrize("send", [pickle.dumps, copy.deepcopy])
def test_a_predictor_cannot_be_pickled(model: Predictor, send: object) -> None:
    for each in (model, model["depth"]):
        with pytest.raises(TypeError, match=r"vitsplit\.load") as error:
            send(each)  # type: ignore[operator]
        assert isinstance(error.value, VitsplitError)


def test_predictions_can_be_pickled(model: Predictor) -> None:
    prediction = model["segmentation"].predict(np.zeros((48, 64, 3), dtype=np.uint8))
    assert np.array_equal(pickle.loads(pickle.dumps(prediction)).mask, prediction.mask)


def test_threads_get_equal_results(model: Predictor) -> None:
    """Images of one and of several sizes in several threads: passes are shared only within an image."""
    rng = np.random.default_rng(0)
    images = [rng.integers(0, 256, (*size, 3), dtype=np.uint8) for size in [(32, 48)] * 4 + [(48, 32), (40, 40)] * 2]
    alone = [model.predict(image) for image in images]
    before = sum(model.passes.values())
    found: dict[int, object] = {}
    start = threading.Barrier(len(images))

    def work(index: int) -> None:
        start.wait()
        found[index] = model.predict(images[index])

    threads = [threading.Thread(target=work, args=(index,)) for index in range(len(images))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sum(model.passes.values()) - before == len(images), "one pass for both bundles of an image"
    for index, expected in enumerate(alone):
        assert np.array_equal(found[index]["segmentation"].mask, expected["segmentation"].mask)
        assert np.array_equal(found[index]["depth"].depth, expected["depth"].depth)


def test_statistics_of_sizes_are_bounded(model: Predictor, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shared_pass, "MAX_SIZES", 5)
    model.passes.clear()
    for width in range(20, 40):
        model.predict(np.zeros((32, width, 3), dtype=np.uint8))
    assert sum(model.passes.values()) == 20 and len(model.passes) == 6
    assert len(model._shared._users_of_size) == 5
    assert [size for size, _ in model._shared._users_of_size] == [(32, width) for width in range(35, 40)]


def test_pass_counts_are_summed() -> None:
    rng = random.Random(0)
    keys = [((rng.randrange(9), rng.randrange(9)), ("a",)) for _ in range(300)]
    expected, found = Counter(keys), Counter()
    for key in keys:
        add_passes(found, Counter([key]))
    assert found == expected
