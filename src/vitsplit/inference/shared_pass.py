"""One pass of the backbone for every bundle that asks for the same pixels.

Tasks resize, mirror and cut images as they need and then ask for a forward pass, each on its own. Here the pixels that
they ask with are remembered for as long as one image (or batch) is in work: who comes second with the same pixels gets
the same taps. Other pixels, such as another size, are another pass.

A tap does not depend on what else is asked for in the pass (``Backbone.forward`` runs the same blocks in the same order
and only keeps more of them), so that every bundle's output is bit for bit what it is alone.

Shapes: B batch, C channels, H W pixels.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field

import torch
from torch import Tensor

from vitsplit.backbone.backbone import Backbone
from vitsplit.types import LayerTaps, TapRequest

TapSource = Callable[[Tensor, TapRequest], LayerTaps]
"""Runs ``image_BCHW`` (on any device) as far as a request needs."""

MAX_REMEMBERED_BYTES = 1 << 30
"""Taps of one image that are kept. Beyond it (thousands of windows) passes are run again and stay exact."""

MAX_SIZES = 1000
"""Sizes of images that something is remembered of; a server may see any number of them."""

PassCount = Counter[tuple[tuple[int, int], tuple[str, ...]]]
"""Passes by the size of their images (H, W) and the names of the bundles that they served."""


@dataclass
class _Pass:
    """One pass and whom it served; pixels and taps are None where the pass is not remembered."""

    size: tuple[int, int]
    request: TapRequest
    users: list[str]
    image_BCHW: Tensor | None = None
    layout: tuple[int, ...] = ()
    taps: LayerTaps | None = field(default=None, repr=False)

    def serves(self, image_BCHW: Tensor, request: TapRequest) -> bool:
        """Whether it ran on exactly these pixels and has all that is asked for."""
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

    The first time that a size comes up, the pass serves the union of all bundles' requests; from then on that of the
    bundles which were seen to use that size, since the others ask for another one.

    Args:
        backbone: The backbone.

    Attributes:
        requests: What each bundle wants from a pass, by its name.
        passes: Passes of the last image or batch.
    """

    def __init__(self, backbone: Backbone) -> None:
        self.backbone = backbone
        self.requests: dict[str, TapRequest] = {}
        self.passes: PassCount = Counter()
        self._run: list[_Pass] = []
        self._remembered_bytes = 0
        self._users_of_size: dict[tuple[int, int], set[str]] = {}

    def attach(self, name: str, request: TapRequest) -> TapSource:
        """Adds a bundle and returns where it reads its taps."""
        self.requests[name] = request
        self._users_of_size.clear()
        return lambda image_BCHW, request: self._taps(name, image_BCHW, request)

    def detach(self, name: str) -> None:
        """Takes a bundle out: passes no longer serve it."""
        del self.requests[name]
        self._users_of_size.clear()

    @contextmanager
    def image(self) -> Iterator[None]:
        """The time in which one image, or one batch, is in work; what was remembered of it is released at the end."""
        self._forget()
        try:
            yield
        finally:
            self.passes = Counter((each.size, tuple(each.users)) for each in self._run)
            for each in self._run:
                # The size that was seen last comes last, and the one that was not seen for longest goes.
                users = self._users_of_size.pop(each.size, set())
                self._users_of_size[each.size] = users | set(each.users)
            while len(self._users_of_size) > MAX_SIZES:
                del self._users_of_size[next(iter(self._users_of_size))]
            self._forget()

    def _forget(self) -> None:
        self._run, self._remembered_bytes = [], 0

    def _taps(self, name: str, image_BCHW: Tensor, request: TapRequest) -> LayerTaps:
        for earlier in self._run:
            if earlier.serves(image_BCHW, request):
                if name not in earlier.users:
                    earlier.users.append(name)
                assert earlier.taps is not None
                return earlier.taps
        size = (image_BCHW.shape[-2], image_BCHW.shape[-1])
        expected = self._users_of_size.get(size) or set(self.requests)
        for user in expected:
            request = request | self.requests[user]
        taps = self.backbone(image_BCHW.to(self.backbone.mean_C11.device), request)
        new = _Pass(size, request, [name])
        num_bytes = _num_bytes(taps)
        if expected != {name} and self._remembered_bytes + num_bytes <= MAX_REMEMBERED_BYTES:
            self._remembered_bytes += num_bytes
            # A copy, since the caller may go on to write into its pixels.
            new.image_BCHW, new.layout, new.taps = image_BCHW.clone(), _layout(image_BCHW), taps
        self._run.append(new)
        return taps


def add_passes(passes: PassCount, new: PassCount) -> None:
    """Adds what was counted, in place; sizes beyond ``MAX_SIZES`` are counted together, as 0 x 0."""
    for (size, users), count in new.items():
        known = (size, users) in passes or len(passes) < MAX_SIZES
        passes[(size if known else (0, 0), users)] += count


def describe_passes(passes: Mapping[tuple[tuple[int, int], tuple[str, ...]], int]) -> str:
    """Passes in words; sizes are height x width.

    Example:
        >>> describe_passes({((252, 336), ("segmentation", "depth")): 1, ((336, 448), ("detection",)): 2})
        '1 pass at 252x336 for segmentation and depth; 2 passes at 336x448 for detection'
    """
    of_users: dict[tuple[str, ...], dict[tuple[int, int], int]] = {}
    for (size, users), count in passes.items():
        of_users.setdefault(users, {})[size] = count
    parts = []
    for users, sizes in of_users.items():
        count = sum(sizes.values())
        where = "x".join(map(str, next(iter(sizes)))) if len(sizes) == 1 else f"{len(sizes)} sizes"
        parts.append(f"{count} {'pass' if count == 1 else 'passes'} at {where} for {listed(users)}")
    return "; ".join(parts)


def listed(names: Sequence[str]) -> str:
    """``a``, ``a and b``, ``a, b and c``."""
    return names[0] if len(names) == 1 else f"{', '.join(names[:-1])} and {names[-1]}"


def _layout(image_BCHW: Tensor) -> tuple[int, ...]:
    # Kernels, and with them the last bits of a result, may differ with the order of the pixels in memory.
    return tuple(stride for stride, length in zip(image_BCHW.stride(), image_BCHW.shape, strict=True) if length > 1)


def _num_bytes(taps: LayerTaps) -> int:
    kept = [*taps.tokens.values(), *taps.maps.values(), *taps.raw_maps.values(), taps.pixels_BCHW]
    return sum(tensor.nbytes for tensor in kept if tensor is not None)
