"""Training on cached features: the backbone runs once per view of an image, and later epochs train the heads only.

This requires a frozen backbone, whose features of a view never change. With N views, each image has N fixed
augmentations, which its epochs cycle through, instead of a new one every time.

Shapes: B batch, T tokens, D width, h w patch grid, H W pixels.
"""

from __future__ import annotations

import logging
import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import torch
from torch import Tensor

from vitsplit.backbone.backbone import Backbone
from vitsplit.engine.feature_store import CachedFeatures, Features, FeatureStore, rounded
from vitsplit.engine.run_data import RunData
from vitsplit.engine.run_tasks import RunTasks
from vitsplit.errors import ConfigError
from vitsplit.registry_package import cache_folder
from vitsplit.train_config import LoopConfig
from vitsplit.types import LayerTaps, TapRequest

logger = logging.getLogger(__name__)

GB = 1e9


class LookUp:
    """Reads the cached features of a batch; called by the data workers, so that features are read ahead of time."""

    def __init__(self, store: FeatureStore, request: TapRequest) -> None:
        self.store = store
        self.names = feature_names(request)

    def __call__(self, image_BCHW: Tensor, extent_B2: Tensor | None = None) -> CachedFeatures:
        """The cached features of a batch on the CPU; arguments as in ``Backbone.forward``."""
        extents = [None] * len(image_BCHW) if extent_B2 is None else [(h, w) for h, w in extent_B2.tolist()]
        keys = [self.store.key(image_CHW, extent) for image_CHW, extent in zip(image_BCHW, extents, strict=True)]
        return CachedFeatures(keys, [self.store.read(key, self.names) for key in keys])


def feature_names(request: TapRequest) -> frozenset[str]:
    """The names of the features of a request."""
    requested = {"tokens": request.tokens, "maps": request.maps, "raw_maps": request.raw_maps}
    return frozenset(f"{kind}.{index}" for kind, indices in requested.items() for index in indices)


@dataclass
class Times:
    """Step times in seconds.

    Attributes:
        computed: Steps that computed all their features, without the time to write them.
        backbone: The backbone's forward pass in these steps.
        cached: Steps that read all features from the cache.
    """

    computed: list[float] = field(default_factory=list)
    backbone: list[float] = field(default_factory=list)
    cached: list[float] = field(default_factory=list)

    @property
    def backbone_seconds(self) -> float:
        """The median time of the backbone in a step that computed its features; 0 without one."""
        return statistics.median(self.backbone) if self.backbone else 0.0

    def describe(self) -> str | None:
        """The measured speedup, and that of omitting the backbone's forward pass; None: too few steps."""
        if min(len(self.computed), len(self.cached)) < 3:
            return None
        computed, cached = statistics.median(self.computed), statistics.median(self.cached)
        without = computed - statistics.median(self.backbone)
        return (
            f"median step time: {cached:.3f} s with cached features, {computed:.3f} s with the backbone: speedup "
            f"{computed / cached:.2f} (expected from the backbone's share of the step: {computed / without:.2f})"
        )


class FeatureCache:
    """Returns taps from the store; computes and stores those that are missing.

    New values are rounded like stored ones, so that a resumed run, which finds more features in the store, ends with
    the same weights.

    Args:
        store: The feature store.
        backbone: The frozen backbone, for its patch grid and position embedding.
        run_backbone: The backbone's forward pass in training, compiled if requested.
    """

    def __init__(
        self,
        store: FeatureStore,
        backbone: Backbone,
        run_backbone: Callable[[Tensor, TapRequest, Tensor | None], LayerTaps],
    ) -> None:
        self.store = store
        self.backbone = backbone
        self.run_backbone = run_backbone
        self.times = Times()
        self._ropes: dict[tuple[int, ...], Tensor | None] = {}
        self._share_computed = self._seconds = self._writing = 0.0

    def taps(
        self, image_BCHW: Tensor, cached: CachedFeatures, request: TapRequest, extent_B2: Tensor | None = None
    ) -> LayerTaps:
        """The taps of a batch of images, rounded to bfloat16 and back; see ``Backbone.forward``."""
        missing = [row for row, features in enumerate(cached.features) if features is None]
        rows = list(cached.features)
        if missing:
            began = time.perf_counter()
            # Index the batch only if some of its features are cached.
            images, extents = image_BCHW, extent_B2
            if len(missing) < len(rows):
                images, extents = image_BCHW[missing], None if extent_B2 is None else extent_B2[missing]
            computed = _split(self.run_backbone(images, request, extents))
            for row, features in zip(missing, computed, strict=True):
                rows[row] = features
            self._seconds += time.perf_counter() - began
            for row, features in zip(missing, computed, strict=True):
                self.store.write(cached.keys[row], features)
            self._writing += time.perf_counter() - began
        self._share_computed += len(missing) / len(rows)
        return self._stack([features for features in rows if features is not None], image_BCHW)

    def record_step(self, seconds: float, micro_batches: int) -> None:
        """Records a step's time, if all or none of its features were cached."""
        if self._share_computed == 0:
            self.times.cached.append(seconds)
        elif self._share_computed == micro_batches:
            self.times.computed.append(seconds - (self._writing - self._seconds))
            self.times.backbone.append(self._seconds)
        self._share_computed = self._seconds = self._writing = 0.0

    def _stack(self, rows: Sequence[Features], image_BCHW: Tensor) -> LayerTaps:
        height, width = image_BCHW.shape[-2:]
        backbone, device = self.backbone, image_BCHW.device
        padding = backbone.padding(height, width)
        side = backbone.patch_size
        grid = (
            (height + padding.top + padding.bottom) // side,
            (width + padding.left + padding.right) // side,
        )
        taps: dict[str, dict[int, Tensor]] = {"tokens": {}, "maps": {}, "raw_maps": {}}
        for name in rows[0]:
            kind, _, index = name.partition(".")
            stacked = torch.stack([features[name].to(device, non_blocking=True) for features in rows])
            if kind == "tokens":
                taps[kind][int(index)] = stacked.float()
            else:
                # A channels-last view, as the backbone returns it.
                taps[kind][int(index)] = stacked.to(backbone.precision).unflatten(1, grid).permute(0, 3, 1, 2)
        return LayerTaps(
            image_size=(height, width),
            padding=padding,
            grid=grid,
            num_prefix_tokens=backbone.num_prefix_tokens,
            rope=self._rope(grid, image_BCHW),
            tokens=taps["tokens"],
            maps=taps["maps"],
            raw_maps=taps["raw_maps"],
        )

    def _rope(self, grid: tuple[int, int], image_BCHW: Tensor) -> Tensor | None:
        """The rotary position embedding, which depends on the grid only; computed without running any block."""
        if grid not in self._ropes:
            self._ropes[grid] = self.backbone(image_BCHW[:1], TapRequest(tokens=frozenset({0}))).rope
        return self._ropes[grid]


def _split(taps: LayerTaps) -> list[Features]:
    """The features of each image of a batch in the stored form; maps as ``(h w, D)``."""
    named = {f"tokens.{index}": tensor_BTD for index, tensor_BTD in taps.tokens.items()}
    for kind, maps in (("maps", taps.maps), ("raw_maps", taps.raw_maps)):
        named |= {f"{kind}.{index}": map_BDhw.flatten(2).transpose(1, 2) for index, map_BDhw in maps.items()}
    stored = {name: rounded(tensor_BTD) for name, tensor_BTD in named.items()}
    batch = len(next(iter(stored.values())))
    return [{name: tensor_BTD[row].clone() for name, tensor_BTD in stored.items()} for row in range(batch)]


def open_features(
    loop: LoopConfig, tasks: RunTasks, data: RunData, backbone: Backbone, request: TapRequest, dtype: torch.dtype
) -> LookUp | None:
    """Opens the feature cache, after checking its size; None without ``--cache-features``.

    Raises:
        ConfigError: The task's features cannot be cached, or would be too large.
    """
    if not loop.cache_features:
        return None
    if not tasks.same_size:
        raise ConfigError(
            f"--cache-features caches features of single images, but {', '.join(tasks.tasks)} pads images to the "
            "largest of a batch. Omit it."
        )
    folder = cache_folder() / "features" if loop.cache_folder is None else Path(loop.cache_folder)
    store = FeatureStore(folder, backbone.info.weights_hash, str(dtype).removeprefix("torch."))
    height, width = tasks.collate([data[0, 0]]).image_BCHW.shape[-2:]
    each = bytes_per_image(backbone, request, (height, width))
    needed = check_size(
        len(data), loop.cache_features, each, limit_gb=loop.cache_limit_gb, present=store.size(), free=store.room()
    )
    logger.info("caching features in %s: at most %s", store.folder, needed)
    return LookUp(store, request)


def bytes_per_image(backbone: Backbone, request: TapRequest, size: tuple[int, int]) -> int:
    """Bytes on disk of the features of one image, without file headers; ``size`` is its height and width."""
    padding = backbone.padding(*size)
    height, width = size[0] + padding.top + padding.bottom, size[1] + padding.left + padding.right
    patches = (height // backbone.patch_size) * (width // backbone.patch_size)
    maps = len(request.maps) + len(request.raw_maps)
    values = len(request.tokens) * (patches + backbone.num_prefix_tokens) + maps * patches
    return 2 * values * backbone.width


def check_size(images: int, views: int, each: int, *, limit_gb: float, present: int, free: int) -> str:
    """Checks the total size of a run's features, and describes it in words.

    Args:
        images: Number of training images.
        views: Views per image.
        each: Bytes per view.
        limit_gb: The limit, in 10^9 bytes.
        present: Bytes of features that are already cached.
        free: Free bytes on the disk.

    Raises:
        ConfigError: The size exceeds the limit, or the free disk space.
    """
    total = images * views * each
    size = f"{images} images x {views} views x {each / 1e6:.2f} MB = {total / GB:.2f} GB"
    for most, name, alternative in (
        (limit_gb * GB, f"--cache-limit-gb {limit_gb:g}", "a higher limit"),
        (present + free, f"the {free / GB:.1f} GB of free disk space", "--cache-folder on another disk"),
    ):
        if total > most:
            fitting = int(most // (images * each))
            fewer = f"--cache-features {fitting}, or " if fitting else ""
            raise ConfigError(
                f"The cached features would exceed {name}: {size}. Use {fewer}{alternative}, a smaller crop, or fewer "
                "prior layers."
            )
    if total > free:
        size += f" ({free / GB:.1f} GB free: sufficient if the features already cached are of these images)"
    return size
