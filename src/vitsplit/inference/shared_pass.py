"""One backbone pass for all bundles that need the same input.

Tasks resize, flip and crop an image independently before they request a forward pass. ``SharedPass`` caches inputs and
taps while one image (or batch) is processed: a later request with equal pixels gets the cached taps, and other pixels,
such as another size, are another pass.

A tap does not depend on the other taps of a pass, since ``Backbone.forward`` runs the same blocks in the same order.
The output of every bundle is therefore bitwise equal to that of the bundle alone.

Shapes: B batch, C channels, H W pixels.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field

import torch
from torch import Tensor

from vitsplit.backbone.backbone import Backbone
from vitsplit.types import LayerTaps, TapRequest

TapSource = Callable[[Tensor, TapRequest], LayerTaps]
"""Returns the taps of a request for ``image_BCHW`` (on any device)."""

MAX_CACHED_BYTES = 1 << 30
"""Limit of the cached taps of one image. Beyond it (thousands of windows), passes are repeated with equal results."""

MAX_SIZES = 1000
"""Maximum number of entries, such as image sizes, in statistics, since a server may process any number of them."""

PassCount = Counter[tuple[tuple[int, int], tuple[str, ...]]]
"""Number of passes by input size (H, W) and names of the bundles that used them."""


@dataclass
class _Pass:
    """One pass and its users; pixels and taps are None if the pass is not cached."""

    size: tuple[int, int]
    request: TapRequest
    users: list[str]
    image_BCHW: Tensor | None = None
    layout: tuple[int, ...] = ()
    taps: LayerTaps | None = field(default=None, repr=False)

    def serves(self, image_BCHW: Tensor, request: TapRequest) -> bool:
        """Whether the pass has equal pixels and all requested taps."""
        return (
            self.image_BCHW is not None
            and self.request | request == self.request
            and self.image_BCHW.shape == image_BCHW.shape
            and self.image_BCHW.dtype == image_BCHW.dtype
            and self.layout == _layout(image_BCHW)
            and torch.equal(self.image_BCHW, image_BCHW.to(self.image_BCHW.device))
        )


class SharedPass:
    """A backbone for several bundles: one pass per image and input size.

    The first pass of a size computes the union of the requests of all bundles that are to run; later passes the union
    for those that have used this size before, when the same bundles were to run.

    Args:
        backbone: The backbone.

    Attributes:
        requests: Requests by bundle name.
        passes: Passes of the last image or batch.
    """

    def __init__(self, backbone: Backbone) -> None:
        self.backbone = backbone
        self.requests: dict[str, TapRequest] = {}
        self.passes: PassCount = Counter()
        self._passes: list[_Pass] = []
        self._cached_bytes = 0
        self._running: frozenset[str] | None = None
        self._users_of_size: dict[tuple[tuple[int, int], frozenset[str]], set[str]] = {}

    def attach(self, name: str, request: TapRequest) -> TapSource:
        """Adds a bundle and returns the source of its taps."""
        self.requests[name] = request
        self._users_of_size.clear()
        return lambda image_BCHW, request: self._taps(name, image_BCHW, request)

    def detach(self, name: str) -> None:
        """Removes a bundle."""
        del self.requests[name]
        self._users_of_size.clear()

    @contextmanager
    def image(self, bundles: Iterable[str] | None = None) -> Iterator[None]:
        """Context for one image or batch; the cache is cleared at its end.

        Args:
            bundles: Names of the bundles that are to run; None: all.
        """
        self._clear_cache()
        self._running = running = frozenset(self.requests if bundles is None else bundles)
        try:
            yield
        finally:
            self.passes = Counter((each.size, tuple(each.users)) for each in self._passes)
            for each in self._passes:
                # Reinserted, so that the least recently used sizes are removed first.
                key = (each.size, running)
                users = self._users_of_size.pop(key, set())
                self._users_of_size[key] = users | set(each.users)
            while len(self._users_of_size) > MAX_SIZES:
                del self._users_of_size[next(iter(self._users_of_size))]
            self._running = None
            self._clear_cache()

    def _clear_cache(self) -> None:
        self._passes, self._cached_bytes = [], 0

    def _taps(self, name: str, image_BCHW: Tensor, request: TapRequest) -> LayerTaps:
        for earlier in self._passes:
            if earlier.serves(image_BCHW, request):
                if name not in earlier.users:
                    earlier.users.append(name)
                assert earlier.taps is not None
                return earlier.taps
        size = (image_BCHW.shape[-2], image_BCHW.shape[-1])
        running = frozenset(self.requests) if self._running is None else self._running
        expected = self._users_of_size.get((size, running)) or running
        for user in expected:
            request = request | self.requests[user]
        taps = self.backbone(image_BCHW.to(self.backbone.mean_C11.device), request)
        new = _Pass(size, request, [name])
        if expected != {name} and self._cached_bytes + taps.nbytes <= MAX_CACHED_BYTES:
            self._cached_bytes += taps.nbytes
            # A copy, since the caller may modify its pixels.
            new.image_BCHW, new.layout, new.taps = image_BCHW.clone(), _layout(image_BCHW), taps
        self._passes.append(new)
        return taps


def add_passes(passes: PassCount, new: PassCount) -> None:
    """Adds counts in place; beyond ``MAX_SIZES`` entries, as those of size 0 x 0 without bundles."""
    for (size, users), count in new.items():
        known = (size, users) in passes or len(passes) < MAX_SIZES
        passes[(size, users) if known else ((0, 0), ())] += count


def describe_passes(passes: Mapping[tuple[tuple[int, int], tuple[str, ...]], int]) -> str:
    """Describes passes; sizes are height x width.

    Example:
        >>> describe_passes({((252, 336), ("segmentation", "depth")): 1, ((336, 448), ("detection",)): 2})
        '1 pass at 252x336 for segmentation and depth; 2 passes at 336x448 for detection'
    """
    by_users: dict[tuple[str, ...], dict[tuple[int, int], int]] = {}
    for (size, users), count in passes.items():
        by_users.setdefault(users, {})[size] = count
    parts = []
    for users, sizes in by_users.items():
        count = sum(sizes.values())
        where = "x".join(map(str, next(iter(sizes)))) if len(sizes) == 1 else f"{len(sizes)} sizes"
        noun = "pass" if count == 1 else "passes"
        parts.append(f"{count} {noun} at {where} for {join_names(users)}" if users else f"{count} other {noun}")
    return "; ".join(parts)


def join_names(names: Sequence[str]) -> str:
    """``a``, ``a and b``, ``a, b and c``."""
    return names[0] if len(names) == 1 else f"{', '.join(names[:-1])} and {names[-1]}"


def _layout(image_BCHW: Tensor) -> tuple[int, ...]:
    # Kernels, and thus the rounding of results, can depend on the memory format.
    return tuple(stride for stride, length in zip(image_BCHW.stride(), image_BCHW.shape, strict=True) if length > 1)
