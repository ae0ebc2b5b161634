"""Cached features: equal to the backbone's (rounded), computed once, and recomputed exactly for changed images."""

import dataclasses
import itertools
import re

import pytest
import timm
import torch
from safetensors.torch import load_file
from tiny import NUM_TRAIN, TinyData, TinyTask, tiny_backbone, tiny_run

from vitsplit.backbone.backbone import Backbone, BackboneInfo
from vitsplit.engine.feature_cache import FeatureCache, LookUp, Times, bytes_per_image, check_size
from vitsplit.engine.feature_store import FeatureStore
from vitsplit.engine.sampling import SampleStream
from vitsplit.errors import ConfigError, RunError
from vitsplit.types import TapRequest

REQUEST = TapRequest(tokens=frozenset({2}), maps=frozenset({1, 3}), raw_maps=frozenset({0}))
INFO = BackboneInfo("tiny", "tiny", "none", "random", "sha256:abc", (0.5, 0.5, 0.5), (0.25, 0.25, 0.25))


class CountingBackbone(Backbone):
    """Counts the images for which blocks are run."""

    images = 0

    def forward(self, image_BCHW, request, extent_B2=None):
        if request.num_blocks and self.counting:
            self.images += len(image_BCHW)
        return super().forward(image_BCHW, request, extent_B2)

    counting = True


def counting() -> CountingBackbone:
    plain = tiny_backbone()
    return CountingBackbone(plain.model, plain.info)


class TrainImagesOnly(TinyTask):
    """Evaluates without the backbone, so that only training is counted."""

    def val_predictions(self, forward, image_BCHW, samples):
        return [torch.zeros(2, 2)] * len(samples)

    def write_report(self, forward, evaluation, folder, **options):
        return super().write_report(lambda image_BCHW: (torch.zeros(1), None), evaluation, folder, **options)


def rotary() -> Backbone:
    model = timm.models.Eva(
        img_size=32, patch_size=8, embed_dim=32, depth=4, num_heads=2, num_classes=0, use_rot_pos_emb=True,
        use_abs_pos_emb=False, num_reg_tokens=2, dynamic_img_size=True,
    )  # fmt: skip
    return Backbone(model, INFO)


@pytest.mark.parametrize("make", [tiny_backbone, rotary])
def test_cached_taps_equal_the_backbone_in_bfloat16(make, tmp_path):
    torch.manual_seed(0)
    backbone = make()
    image_BCHW = torch.randint(0, 256, (3, 3, 30, 45), dtype=torch.uint8)
    own = backbone(image_BCHW, REQUEST)
    store = FeatureStore(tmp_path, "sha256:abc", "float32")
    for passes in range(2):  # computed, then read
        kept = LookUp(store, REQUEST)(image_BCHW)
        assert [features is not None for features in kept.features] == [passes == 1] * 3
        taps = FeatureCache(store, backbone, backbone).taps(image_BCHW, kept, REQUEST)
        for kind in ("tokens", "maps", "raw_maps"):
            assert getattr(taps, kind).keys() == getattr(own, kind).keys()
            for index, tensor in getattr(own, kind).items():
                found = getattr(taps, kind)[index]
                assert found.dtype == tensor.dtype
                assert torch.equal(found, tensor.bfloat16().float())
                assert kind == "tokens" or found.stride(1) == tensor.stride(1) == 1, "channels are innermost"
        for name in ("image_size", "padding", "grid", "num_prefix_tokens"):
            assert getattr(taps, name) == getattr(own, name)
        assert (taps.rope is None) == (own.rope is None)
        assert own.rope is None or torch.equal(taps.rope, own.rope)


def test_the_cache_key_includes_the_padding_extent(tmp_path):
    backbone, store = tiny_backbone(), FeatureStore(tmp_path, "sha256:abc", "float32")
    image_BCHW = torch.randint(0, 256, (1, 3, 28, 42), dtype=torch.uint8).expand(3, -1, -1, -1)
    extent_B2 = torch.tensor([[28, 42], [20, 42], [28, 30]])
    own = backbone(image_BCHW, REQUEST, extent_B2)
    cache, look_up = FeatureCache(store, backbone, backbone), LookUp(store, REQUEST)
    assert store.key(image_BCHW[0], (28, 42)) == store.key(image_BCHW[0])
    cache.taps(image_BCHW[:1], look_up(image_BCHW[:1]), REQUEST)
    for found in ([True, False, False], [True] * 3):  # one of three, whose extents must still be its own
        kept = look_up(image_BCHW, extent_B2)
        assert [features is not None for features in kept.features] == found
        taps = cache.taps(image_BCHW, kept, REQUEST, extent_B2)
        for index, tensor in own.maps.items():
            torch.testing.assert_close(taps.maps[index], tensor.bfloat16().float(), rtol=1e-2, atol=1e-3)
    assert len(set(kept.keys)) == 3


def test_size_on_disk_equals_the_estimate(tmp_path):
    backbone = tiny_backbone()
    image_BCHW = torch.randint(0, 256, (1, 3, 30, 45), dtype=torch.uint8)
    store = FeatureStore(tmp_path, "sha256:abc", "float32")
    FeatureCache(store, backbone, backbone).taps(image_BCHW, LookUp(store, REQUEST)(image_BCHW), REQUEST)
    (file,) = store.folder.glob("*/*")
    tensors = load_file(file)
    assert sum(tensor.numel() * tensor.element_size() for tensor in tensors.values()) == bytes_per_image(
        backbone, REQUEST, (30, 45)
    )
    # 30 x 45 pixels are 3 x 4 patches of 14; with the class token one sequence of 13, and three maps of 12, 32 wide.
    assert bytes_per_image(backbone, REQUEST, (30, 45)) == 2 * 32 * (13 + 3 * 12)
    assert 0 <= store.size() - bytes_per_image(backbone, REQUEST, (30, 45)) < 1000


def test_the_backbone_computes_every_view_once(tmp_path):
    settings = {"steps": 24, "cache_features": 2, "cache_folder": str(tmp_path / "kept")}  # 96 samples: 4 epochs of 23
    first = counting()
    cold = tiny_run(tmp_path / "cold", backbone=first, task=TrainImagesOnly(), **settings)
    assert first.images == 2 * NUM_TRAIN
    second = counting()
    warm = tiny_run(tmp_path / "warm", backbone=second, task=TrainImagesOnly(), **settings)
    assert second.images == 0
    assert all(torch.equal(cold.weights[name], tensor) for name, tensor in warm.weights.items())
    third = counting()
    other = tiny_run(tmp_path / "other", backbone=third, task=TrainImagesOnly(), seed=1, **settings)
    assert third.images == 0, "the views are the same for every seed"
    assert not all(torch.equal(cold.weights[name], tensor) for name, tensor in other.weights.items())
    assert "caching features in" in cold.printed
    assert "speedup" in cold.printed
    assert "speedup" not in warm.printed


def test_accumulation_and_workers_do_not_change_the_result(tmp_path):
    settings = {"steps": 12, "cache_features": 1, "eval_every": 12}
    plain = tiny_run(tmp_path / "plain", cache_folder=str(tmp_path / "a"), **settings)
    workers = tiny_run(tmp_path / "workers", cache_folder=str(tmp_path / "b"), workers=2, **settings)
    assert all(torch.equal(plain.weights[name], tensor) for name, tensor in workers.weights.items())
    split = tiny_run(tmp_path / "split", cache_folder=str(tmp_path / "a"), accumulate=2, **settings)
    for name, tensor in split.weights.items():
        torch.testing.assert_close(plain.weights[name], tensor, rtol=1e-3, atol=1e-4)


class OneChanged(TrainImagesOnly):
    """Changes one pixel of one training image."""

    def train_data(self):
        class Data(TinyData):
            def __getitem__(self, key):
                image_CHW, mask_hw, name = super().__getitem__(key)
                if key[0] == 5:
                    image_CHW[0, 0, 0] ^= 1
                return image_CHW, mask_hw, name

        return Data(NUM_TRAIN)


def test_only_changed_images_are_recomputed(tmp_path):
    settings = {"steps": 12, "cache_features": 2, "cache_folder": str(tmp_path / "kept"), "eval_every": 12}
    tiny_run(tmp_path / "run", task=TrainImagesOnly(), **settings)
    changed = counting()
    tiny_run(tmp_path / "pixel", backbone=changed, task=OneChanged(), **settings)
    assert changed.images == 2, "both views of one image"
    plain = counting()
    other = CountingBackbone(plain.model, dataclasses.replace(plain.info, weights_hash="hash-of-another"))
    tiny_run(tmp_path / "backbone", backbone=other, task=TrainImagesOnly(), **settings)
    assert other.images == 2 * NUM_TRAIN


def test_an_additional_layer_is_added_to_the_cache(tmp_path):
    backbone = tiny_backbone()
    image_BCHW = torch.randint(0, 256, (2, 3, 28, 28), dtype=torch.uint8)
    store = FeatureStore(tmp_path, "sha256:abc", "float32")
    more = TapRequest(maps=frozenset({0, 1}))
    for request, there in ((REQUEST, False), (more, False), (REQUEST, True), (more, True)):
        kept = LookUp(store, request)(image_BCHW)
        assert [features is not None for features in kept.features] == [there] * 2
        FeatureCache(store, backbone, backbone).taps(image_BCHW, kept, request)
    assert {len(load_file(file)) for file in store.folder.glob("*/*")} == {len({"t2", "m1", "m3", "r0", "m0"})}


def test_a_damaged_file_is_recomputed(tmp_path, caplog):
    backbone = tiny_backbone()
    image_BCHW = torch.randint(0, 256, (2, 3, 28, 28), dtype=torch.uint8)
    store = FeatureStore(tmp_path, "sha256:abc", "float32")
    FeatureCache(store, backbone, backbone).taps(image_BCHW, LookUp(store, REQUEST)(image_BCHW), REQUEST)
    files = sorted(store.folder.glob("*/*"))
    files[0].write_bytes(files[0].read_bytes()[:100])
    kept = LookUp(store, REQUEST)(image_BCHW)
    assert sorted(features is None for features in kept.features) == [False, True]
    assert str(files[0]) in caplog.text
    FeatureCache(store, backbone, backbone).taps(image_BCHW, kept, REQUEST)
    assert all(LookUp(store, REQUEST)(image_BCHW).features)
    assert sorted(store.folder.glob("*/.*")) == [], "nothing half written stays"


def test_cache_keys_differ_between_images():
    image_CHW = torch.zeros(3, 4, 6, dtype=torch.uint8)
    other = image_CHW.clone()
    other[2, 3, 5] = 1
    keys = [FeatureStore.key(each) for each in (image_CHW, other, image_CHW.reshape(3, 6, 4), image_CHW.float())]
    assert len(set(keys)) == 4
    assert FeatureStore.key(image_CHW.clone()) == keys[0]
    flipped = other.flip(-1)
    assert FeatureStore.key(flipped) == FeatureStore.key(flipped.contiguous())


def test_epochs_cycle_through_the_views():
    streams = [SampleStream(5, seed, views=3) for seed in (0, 1)]
    seen = [{} for _ in streams]
    for stream, by_sample in zip(streams, seen, strict=True):
        for position in range(5 * 7):
            index, view = stream[position]
            by_sample.setdefault(index, []).append(view)
    for index, views in seen[0].items():
        assert len(set(views)) == 3
        assert all(views[epoch] == views[epoch % 3] for epoch in range(7))
        assert seen[1][index] == views, "independent of the seed"
    assert len(set(itertools.chain.from_iterable(seen[0].values()))) == 15


def test_caches_that_do_not_fit_are_rejected_before_computing(tmp_path):
    backbone = counting()
    with pytest.raises(ConfigError, match=r"23 images x 3 views x 0\.00 MB = 0\.00 GB.*--cache-features 1"):
        # 2 maps of 4 patches, 32 wide, in 2 bytes: 512 bytes a view.
        tiny_run(tmp_path / "run", backbone=backbone, cache_features=3, cache_limit_gb=30 * 512e-9)
    assert backbone.images == 0
    with pytest.raises(ConfigError, match=r"0\.5 GB.*--cache-folder"):
        check_size(100, 2, 10**7, limit_gb=20, present=10**9, free=5 * 10**8)
    message = check_size(100, 2, 10**7, limit_gb=20, present=10**9, free=10**9)
    assert "= 2.00 GB" in message
    assert "(1.0 GB free" in message
    assert "free" not in check_size(100, 2, 10**7, limit_gb=20, present=10**9, free=2 * 10**9)


def test_uncacheable_runs_are_rejected(tmp_path):
    task = TinyTask()
    task.same_size = False
    with pytest.raises(ConfigError, match=r"--cache-features.*Omit it"):
        tiny_run(tmp_path / "sizes", task=task, cache_features=1, cache_folder=str(tmp_path))
    with pytest.raises(ConfigError, match="--cache-features must be "):
        tiny_run(tmp_path / "negative", cache_features=-1)


def test_an_unwritable_folder_is_named(tmp_path):
    (tmp_path / "file").write_text("not a folder")
    with pytest.raises(RunError, match="--cache-folder"):
        FeatureStore(tmp_path / "file", "sha256:abc", "float32").write("ab" * 16, {"maps.0": torch.zeros(1)})


def test_the_speedup_is_reported_with_its_bound():
    times = Times(computed=[3.0, 4.0, 5.0], backbone=[1.0, 2.0, 3.0], cached=[2.5, 2.0, 9.0])
    assert re.findall(r"\d+\.\d+", times.describe()) == ["2.500", "4.000", "1.60", "2.00"]
    assert Times(computed=[1.0] * 3, backbone=[0.5] * 3).describe() is None


def test_a_resumed_run_can_move_its_cache_but_not_change_the_views(tmp_path):
    settings = {"steps": 4, "cache_features": 2, "eval_every": 4}
    tiny_run(tmp_path / "run", cache_folder=str(tmp_path / "a"), **settings)
    tiny_run(tmp_path / "run", resume=True, cache_folder=str(tmp_path / "b"), cache_limit_gb=1.0, **settings)
    with pytest.raises(RunError, match=r"loop\.cache_features: 2 in the run, 1 now"):
        tiny_run(tmp_path / "run", resume=True, **settings | {"cache_features": 1})
