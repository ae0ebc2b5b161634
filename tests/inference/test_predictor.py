"""Several bundles on one backbone, compared with each bundle loaded alone."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from bundles import write_segmentation_bundle
from torch import Tensor

import vitsplit
from vitsplit.backbone.backbone import Backbone
from vitsplit.errors import BundleError, ConfigError
from vitsplit.inference import shared_pass
from vitsplit.types import TapRequest


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Bundles of one backbone with other K_t, layers, settings of views and classes."""
    root = tmp_path_factory.mktemp("bundles")
    write = write_segmentation_bundle
    return {
        "rooms": write(root / "rooms" / "best", num_tuned_layers=2, seed=1),
        "cars": write(root / "cars" / "best", num_tuned_layers=4, num_prior_layers=3, selection="last",
                      num_classes=3, seed=2),
        "flipped": write(root / "flipped", task={"test_flip": True}, num_tuned_layers=1, seed=3),
        "large": write(root / "large", task={"image_scale": (128, 96)}, selection="explicit", prior_layers=(1, 3),
                       num_prior_layers=2, task_head=False, seed=4),
        "windows": write(root / "windows", task={"test_mode": "slide", "crop_size": (32, 32)}, tap_norm=False, seed=5),
    }  # fmt: skip


@pytest.fixture
def image() -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (70, 90, 3), dtype=np.uint8)


def scores(model: Any, forward: Any, image: np.ndarray) -> Tensor:
    return model.task.dense(forward, torch.from_numpy(image).permute(2, 0, 1)[None])


@pytest.fixture
def passes_run(monkeypatch: pytest.MonkeyPatch) -> list[tuple[tuple[int, ...], TapRequest]]:
    """Every call of any backbone: the shape of its images, and the request."""
    calls: list[tuple[tuple[int, ...], TapRequest]] = []
    original = Backbone.forward

    def forward(self: Backbone, image_BCHW: Tensor, request: TapRequest) -> Any:
        calls.append((tuple(image_BCHW.shape), request))
        return original(self, image_BCHW, request)

    monkeypatch.setattr(Backbone, "forward", forward)
    return calls


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_outputs_equal_each_bundle_alone(runs: dict[str, Path], image: np.ndarray, precision: Any) -> None:
    together = vitsplit.load(runs, precision=precision)
    each_alone = {name: vitsplit.load(run, precision=precision) for name, run in runs.items()}
    # For the second image it is known which bundle uses which sizes.
    for picture in (image, image[::-1].copy()):
        answers = together.predict(picture)
        assert list(answers) == list(runs)
        for name, alone in each_alone.items():
            expected = alone.predict(picture)
            assert len(np.unique(expected.mask)) > 1, "an empty comparison"
            assert np.array_equal(answers[name].mask, expected.mask)
            with together._shared.image():  # values before the argmax, which would hide differences
                shared = scores(together[name], together._forwards[name], picture)
            assert torch.equal(shared, scores(alone, alone.forward, picture))


def test_one_pass_serves_all_bundles_of_a_size(runs: dict[str, Path], image: np.ndarray, passes_run: list[Any]) -> None:
    model = vitsplit.load(runs["rooms"], runs["cars"])
    model.predict(image)
    # 70 x 90 fits in 64 x 48 as 48 x 62; K_t = 2 and 4 of 12 blocks; Eq. 2 gives 2 5 8 11; the last three 9 10 11.
    ((shape, request),) = passes_run
    assert shape == (1, 3, 48, 62)
    assert request == TapRequest(tokens=frozenset({10, 8}), maps=frozenset({2, 5, 8, 9, 10, 11}))
    assert model.describe_passes() == "1 pass at 48x62 for rooms and cars"


def test_other_sizes_and_flips_are_separate_passes(
    runs: dict[str, Path], image: np.ndarray, passes_run: list[Any]
) -> None:
    model = vitsplit.load({name: runs[name] for name in ("rooms", "flipped", "large")})
    model.predict(image)
    assert [shape for shape, _ in passes_run] == [(1, 3, 48, 62), (1, 3, 48, 62), (1, 3, 96, 123)]
    assert model.describe_passes() == (
        "1 pass at 48x62 for rooms and flipped; 1 pass at 48x62 for flipped; 1 pass at 96x123 for large"
    )
    # From the second image on, a size that only one bundle uses computes only what that bundle needs.
    passes_run.clear()
    model.predict(image)
    assert passes_run[2][1] == model["large"].model.head.request(train=False) != passes_run[0][1]
    assert passes_run[2][1].num_blocks == 4 < passes_run[0][1].num_blocks == 12
    assert model.describe_passes().startswith("2 passes at 48x62 for rooms and flipped;")


def test_a_wrong_prediction_of_shared_sizes_costs_one_pass(
    runs: dict[str, Path], image: np.ndarray, tmp_path: Path, passes_run: list[Any]
) -> None:
    own_size = write_segmentation_bundle(tmp_path / "own", task={"image_scale": None}, num_tuned_layers=3)
    model = vitsplit.load({"rooms": runs["rooms"], "own": own_size})
    model.predict(image)
    assert model.describe_passes() == "1 pass at 48x62 for rooms; 1 pass at 70x90 for own"
    # An image that both bundles see at 48x62, a size that only `rooms` used before.
    small = np.ascontiguousarray(image[:48, :62])
    expected = {"rooms": vitsplit.load(runs["rooms"]).predict(small), "own": vitsplit.load(own_size).predict(small)}
    for num_passes in (2, 1):
        passes_run.clear()
        answers = model.predict(small)
        assert len(passes_run) == num_passes
        assert all(np.array_equal(answers[name].mask, expected[name].mask) for name in expected)


def test_the_cache_is_cleared_after_an_image(runs: dict[str, Path], image: np.ndarray) -> None:
    model = vitsplit.load(runs["rooms"], runs["cars"])
    model.predict(image)
    assert model._shared._passes == []
    with pytest.raises(ZeroDivisionError), model._shared.image():
        scores(model["rooms"], model._forwards["rooms"], image)
        assert len(model._shared._passes) == 1
        raise ZeroDivisionError
    assert model._shared._passes == []


def test_passes_are_repeated_beyond_the_cache_limit(
    runs: dict[str, Path], image: np.ndarray, passes_run: list[Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(shared_pass, "MAX_CACHED_BYTES", 1000)
    model = vitsplit.load(runs["rooms"], runs["cars"])
    answers = model.predict(image)
    assert len(passes_run) == 2
    for name in answers:
        assert np.array_equal(answers[name].mask, vitsplit.load(runs[name]).predict(image).mask)


def test_heads_do_not_modify_shared_taps(
    runs: dict[str, Path], image: np.ndarray, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[tuple[Any, Any]] = []
    original = Backbone.forward

    def forward(self: Backbone, image_BCHW: Tensor, request: TapRequest) -> Any:
        taps = original(self, image_BCHW, request)
        copies = {kind: {key: tensor.clone() for key, tensor in getattr(taps, kind).items()}
                  for kind in ("tokens", "maps", "raw_maps")}  # fmt: skip
        seen.append((taps, copies))
        return taps

    monkeypatch.setattr(Backbone, "forward", forward)
    model = vitsplit.load(runs)
    model.predict(image)
    assert len(seen) >= 3
    for taps, copies in seen:
        for kind, tensors in copies.items():
            assert all(torch.equal(getattr(taps, kind)[key], tensor) for key, tensor in tensors.items())


def test_batches_share_the_pass(runs: dict[str, Path], image: np.ndarray, passes_run: list[Any]) -> None:
    model = vitsplit.load(runs["rooms"], runs["cars"])
    image_BCHW = torch.from_numpy(np.stack([image, image[:, ::-1]])).permute(0, 3, 1, 2)
    answers = model.predict_batch(image_BCHW)
    assert [shape for shape, _ in passes_run] == [(2, 3, 48, 62)]
    for name in ("rooms", "cars"):
        expected = vitsplit.load(runs[name]).predict_batch(image_BCHW)
        assert all(np.array_equal(answers[i][name].mask, expected[i].mask) for i in range(2))


def test_some_heads_read_their_own_layers_only(runs: dict[str, Path], image: np.ndarray, passes_run: list[Any]) -> None:
    model = vitsplit.load({name: runs[name] for name in ("rooms", "cars", "large")})
    image_BCHW = torch.from_numpy(image).permute(2, 0, 1)[None]
    (expected,) = model.predict_batch(image_BCHW)
    for heads in (("cars",), ("rooms", "cars"), ("cars", "large"), ("cars",)):
        for _ in range(2):  # for the second image it is known which heads use which sizes
            passes_run.clear()
            (found,) = model.predict_batch(image_BCHW, heads)
            assert tuple(found) == heads and sum(found.passes.values()) == len(passes_run)
            assert all(np.array_equal(found[name].mask, expected[name].mask) for name in heads)
        union = TapRequest()
        for name in heads:
            union = union | (model[name].model.request(train=False) if name != "large" else TapRequest())
        assert [request for shape, request in passes_run if shape[-1] == 62] == [union]  # "large" uses another size
    with pytest.raises(KeyError):
        model.predict_batch(image_BCHW, ["absent"])


def test_modified_pixels_give_new_taps(runs: dict[str, Path]) -> None:
    model = vitsplit.load(runs["rooms"], runs["cars"])
    image_BCHW = torch.zeros(1, 3, 48, 64, dtype=torch.uint8)
    with model._shared.image():
        first = model._forwards["rooms"](image_BCHW)[0].clone()
        image_BCHW[..., 20:] = 255
        second = model._forwards["rooms"](image_BCHW)[0]
    assert not torch.equal(first, second)
    assert torch.equal(second, model["rooms"].forward(image_BCHW)[0])


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_bundles_are_added_and_dropped(
    runs: dict[str, Path], image: np.ndarray, precision: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    expected = vitsplit.load({"a": runs["rooms"], "b": runs["cars"]}, precision=precision).predict(image)
    model = vitsplit.load({"a": runs["rooms"]}, precision=precision)
    monkeypatch.setattr("vitsplit.inference.loading.open_backbone", lambda *_, **__: pytest.fail("loaded again"))
    model.predict(image)
    assert model.add(runs["cars"], "b") == "b"
    answers = model.predict(image)
    assert all(np.array_equal(answers[name].mask, expected[name].mask) for name in ("a", "b"))
    model.drop("a")
    assert list(model) == ["b"] and np.array_equal(model.predict(image)["b"].mask, expected["b"].mask)
    assert list(model._shared.requests) == ["b"]
    with pytest.raises(ConfigError, match="'a'"):
        model.drop("a")
    # The task's name if it is free, then the folder's, then an error.
    assert model.add(runs["rooms"]) == "segmentation"
    assert model.add(runs["rooms"]) == "rooms"
    with pytest.raises(ConfigError, match="'rooms'"):
        model.add(runs["rooms"])


def test_bundle_names(runs: dict[str, Path], tmp_path: Path) -> None:
    assert list(vitsplit.load(runs["rooms"], runs["cars"])) == ["rooms", "cars"]
    other = write_segmentation_bundle(tmp_path / "rooms" / "best")
    with pytest.raises(ConfigError, match="'rooms'") as error:
        vitsplit.load(runs["rooms"], other)
    assert str(runs["rooms"]) in str(error.value) and str(other) in str(error.value)
    assert list(vitsplit.load({"mine": runs["rooms"], "yours": other})) == ["mine", "yours"]
    with pytest.raises(ConfigError, match="not both"):
        vitsplit.load({"mine": runs["rooms"]}, other)
    with pytest.raises(ConfigError, match="No run"):
        vitsplit.load({})


def test_another_backbone_is_rejected_before_weights_are_read(
    runs: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    other = write_segmentation_bundle(tmp_path / "other", backbone="vit_tiny_patch16_384")
    model = vitsplit.load({"rooms": runs["rooms"]})
    hashes = [vitsplit.load(run).card.backbone["weights_hash"][:16] for run in (runs["rooms"], other)]
    monkeypatch.setattr("vitsplit.inference.loading.open_backbone", lambda *_, **__: pytest.fail("weights were read"))
    monkeypatch.setattr("vitsplit.inference.loading.load_weights", lambda *_, **__: pytest.fail("weights were read"))
    for attempt in (lambda: vitsplit.load(runs["rooms"], other), lambda: model.add(other)):
        with pytest.raises(BundleError) as error:
            attempt()
        assert hashes[0] != hashes[1]
        for message in ("vit_tiny_patch16_224", "vit_tiny_patch16_384", *hashes):
            assert message in str(error.value)


def test_different_precisions_are_rejected_unless_one_is_given(
    runs: dict[str, Path], image: np.ndarray, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    rounded = write_segmentation_bundle(tmp_path / "rounded", precision="bf16")
    model = vitsplit.load({"rooms": runs["rooms"]})
    monkeypatch.setattr("vitsplit.precision.bf16_speedup", lambda: 3.0)
    for attempt in (lambda: vitsplit.load(runs["rooms"], rounded), lambda: model.add(rounded)):
        with pytest.raises(BundleError, match=r"rooms: fp32, .*: bf16"):
            attempt()
    chosen = vitsplit.load(runs["rooms"], rounded, precision="bf16")
    assert chosen.backbone.precision == torch.bfloat16
    assert chosen.add(runs["cars"]) == "segmentation"
    monkeypatch.setattr("vitsplit.precision.bf16_speedup", lambda: 1.0)
    assert vitsplit.load(runs["rooms"], rounded).backbone.precision == torch.float32


def test_the_list_form_of_predict(runs: dict[str, Path], image: np.ndarray) -> None:
    single = vitsplit.predict(runs["rooms"], [image])
    several = vitsplit.predict([runs["rooms"], runs["cars"]], [image])
    assert np.array_equal(several[0]["rooms"].mask, single[0].mask)
    assert dataclasses.is_dataclass(several[0]["cars"])


def test_deprecated_access_of_a_single_head(runs: dict[str, Path], image: np.ndarray) -> None:
    model = vitsplit.load(runs["rooms"])
    predictions = model.predict(image)
    with pytest.warns(FutureWarning, match=r"\['segmentation'\]\.mask"):
        assert predictions.mask is predictions["segmentation"].mask
    for name in ("card", "task", "model", "forward"):
        with pytest.warns(FutureWarning, match=rf"\['segmentation'\]\.{name}"):
            assert getattr(model, name) is getattr(model["segmentation"], name)
    both = vitsplit.load(runs["rooms"], runs["cars"])
    for of_several, name in ((both.predict(image), "mask"), (both, "card")):
        with pytest.raises(AttributeError, match=name):
            getattr(of_several, name)
