"""Training on kept features: the backbone sees every view of an image once, and later epochs train heads alone.

Only a frozen backbone allows it: what it computes of a view never changes. With N views, an image is augmented in N
ways that its epochs take in turn, instead of in a new way every time.

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
from vitsplit.engine.feature_store import Features, FeatureStore, Kept, rounded
from vitsplit.engine.run_data import RunData
from vitsplit.engine.run_tasks import RunTasks
from vitsplit.errors import ConfigError
from vitsplit.registry_package import cache_folder
from vitsplit.train_config import LoopConfig
from vitsplit.types import LayerTaps, TapRequest

logger = logging.getLogger(__name__)

GB = 1e9


class LookUp:
    """Reads what is kept of images; runs where batches are read, so that workers do it ahead of time."""

    def __init__(self, store: FeatureStore, request: TapRequest) -> None:
        self.store = store
        self.names = feature_names(request)

    def __call__(self, image_BCHW: Tensor, extent_B2: Tensor | None = None) -> Kept:
        """What is kept of the images of a batch, which is on the CPU; see ``Backbone.forward``."""
        extents = [None] * len(image_BCHW) if extent_B2 is None else [(h, w) for h, w in extent_B2.tolist()]
        keys = [self.store.key(image_CHW, extent) for image_CHW, extent in zip(image_BCHW, extents, strict=True)]
        return Kept(keys, [self.store.read(key, self.names) for key in keys])


def feature_names(request: TapRequest) -> frozenset[str]:
    """The names of the features that serve a request."""
    wanted = {"tokens": request.tokens, "maps": request.maps, "raw_maps": request.raw_maps}
    return frozenset(f"{kind}.{index}" for kind, indices in wanted.items() for index in indices)


@dataclass
class Times:
    """Seconds of steps.

    Attributes:
        computed: Of steps that computed all their features, writing them left out.
        backbone: Of the backbone's pass in these.
        kept: Of steps that computed none.
    """

    computed: list[float] = field(default_factory=list)
    backbone: list[float] = field(default_factory=list)
    kept: list[float] = field(default_factory=list)

    def describe(self) -> str | None:
        """The gain, beside the one that the time of the backbone's pass allows; None: too few steps."""
        if min(len(self.computed), len(self.kept)) < 3:
            return None
        computed, kept = statistics.median(self.computed), statistics.median(self.kept)
        without = computed - statistics.median(self.backbone)
        return (
            f"a step on kept features took {kept:.3f} s, one that computed them {computed:.3f} s: "
            f"{computed / kept:.2f} times as fast; without the time of the backbone's pass {computed / without:.2f}"
        )


class FeatureCache:
    """Serves taps from the store, and computes and keeps what is not there.

    Values that were just computed are rounded as kept ones are: a run that was stopped and goes on, and finds more kept
    than it did before, ends with the same weights.

    Args:
        store: Where features are kept.
        backbone: Whose features; for what is known of a batch without running it.
        run_backbone: The backbone as steps run it.
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

    def taps(self, image_BCHW: Tensor, kept: Kept, request: TapRequest, extent_B2: Tensor | None = None) -> LayerTaps:
        """The taps of a batch of images, rounded to bfloat16 and back; see ``Backbone.forward``."""
        missing = [row for row, features in enumerate(kept.features) if features is None]
        rows = list(kept.features)
        if missing:
            began = time.perf_counter()
            # The whole batch as it is, where it can be.
            images, extents = image_BCHW, extent_B2
            if len(missing) < len(rows):
                images, extents = image_BCHW[missing], None if extent_B2 is None else extent_B2[missing]
            computed = _split(self.run_backbone(images, request, extents))
            for row, features in zip(missing, computed, strict=True):
                rows[row] = features
            self._seconds += time.perf_counter() - began
            for row, features in zip(missing, computed, strict=True):
                self.store.write(kept.keys[row], features)
            self._writing += time.perf_counter() - began
        self._share_computed += len(missing) / len(rows)
        return self._together([features for features in rows if features is not None], image_BCHW)

    def step_took(self, seconds: float, micro_batches: int) -> None:
        """Notes how long a step took, by what it did."""
        if self._share_computed == 0:
            self.times.kept.append(seconds)
        elif self._share_computed == micro_batches:
            self.times.computed.append(seconds - (self._writing - self._seconds))
            self.times.backbone.append(self._seconds)
        self._share_computed = self._seconds = self._writing = 0.0

    def _together(self, rows: Sequence[Features], image_BCHW: Tensor) -> LayerTaps:
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
                # A view whose channels are innermost, as a pass of the backbone gives it.
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
        """Rotary position data, which depend on the grid alone: from an embedding of one image, no block is run."""
        if grid not in self._ropes:
            self._ropes[grid] = self.backbone(image_BCHW[:1], TapRequest(tokens=frozenset({0}))).rope
        return self._ropes[grid]


def _split(taps: LayerTaps) -> list[Features]:
    """The features of each image of a batch, as they are kept; maps as ``(h w, D)``."""
    named = {f"tokens.{index}": tensor_BTD for index, tensor_BTD in taps.tokens.items()}
    for kind, maps in (("maps", taps.maps), ("raw_maps", taps.raw_maps)):
        named |= {f"{kind}.{index}": map_BDhw.flatten(2).transpose(1, 2) for index, map_BDhw in maps.items()}
    kept = {name: rounded(tensor_BTD) for name, tensor_BTD in named.items()}
    batch = len(next(iter(kept.values())))
    return [{name: tensor_BTD[row].clone() for name, tensor_BTD in kept.items()} for row in range(batch)]


def open_features(
    loop: LoopConfig, tasks: RunTasks, data: RunData, backbone: Backbone, request: TapRequest, dtype: torch.dtype
) -> LookUp | None:
    """Where the backbone's features are kept, if they are, after a check that there is room for them.

    Raises:
        ConfigError: The task's images cannot be kept, or their features would be too large.
    """
    if not loop.cache_features:
        return None
    if not tasks.same_size:
        raise ConfigError(
            f"--cache-features keeps features of single images, and {', '.join(tasks.tasks)} pads an image to the "
            "largest of its batch: omit it."
        )
    folder = cache_folder() / "features" if loop.cache_folder is None else Path(loop.cache_folder)
    store = FeatureStore(folder, backbone.info.weights_hash, str(dtype).removeprefix("torch."))
    height, width = tasks.collate([data[0, 0]]).image_BCHW.shape[-2:]
    each = bytes_per_image(backbone, request, (height, width))
    taken = check_size(
        len(data), loop.cache_features, each, limit_gb=loop.cache_limit_gb, present=store.size(), free=store.room()
    )
    logger.info("features are kept in %s: at most %s", store.folder, taken)
    return LookUp(store, request)


def bytes_per_image(backbone: Backbone, request: TapRequest, size: tuple[int, int]) -> int:
    """What the features of one image of so many pixels take on disk, headers left out."""
    padding = backbone.padding(*size)
    height, width = size[0] + padding.top + padding.bottom, size[1] + padding.left + padding.right
    patches = (height // backbone.patch_size) * (width // backbone.patch_size)
    maps = len(request.maps) + len(request.raw_maps)
    values = len(request.tokens) * (patches + backbone.num_prefix_tokens) + maps * patches
    return 2 * values * backbone.width


def check_size(images: int, views: int, each: int, *, limit_gb: float, present: int, free: int) -> str:
    """What the features of a run will take, in words.

    Args:
        images: Training images.
        views: Views of each.
        each: Bytes of one view.
        limit_gb: The most that may be taken, in 10^9 bytes.
        present: Bytes of features that are there already.
        free: Bytes that are free on the disk.

    Raises:
        ConfigError: It is more than the limit, or than there is room for.
    """
    total = images * views * each
    said = f"{images} images x {views} views x {each / 1e6:.2f} MB = {total / GB:.2f} GB"
    for most, name, way_out in (
        (limit_gb * GB, f"--cache-limit-gb {limit_gb:g}", "a higher limit"),
        (present + free, f"the {free / GB:.1f} GB that are free", "--cache-folder on another disk"),
    ):
        if total > most:
            fitting = int(most // (images * each))
            fewer = f"--cache-features {fitting}, or " if fitting else ""
            raise ConfigError(
                f"The features to keep are more than {name}: {said}. Give {fewer}{way_out}, a smaller crop, or fewer "
                "prior layers."
            )
    if total > free:
        said += f" ({free / GB:.1f} GB are free: enough if those that are there already are of these images)"
    return said
