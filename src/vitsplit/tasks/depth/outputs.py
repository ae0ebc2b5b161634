"""Depth from the outputs of an exported graph.

Shapes: h w size of the graph's input, H W pixels of the image.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, Self

import numpy as np
from numpy.typing import NDArray

from vitsplit.data.resizing import resize_map
from vitsplit.errors import BundleError, ExportError
from vitsplit.files import shown
from vitsplit.tasks.depth.prediction import DepthPrediction
from vitsplit.tasks.description import ADVICE, fields


@dataclass(frozen=True)
class DepthOutputs:
    """Makes predictions from outputs.

    Attributes:
        batched: Whether the first dimension of the outputs is that of the batch.
        names: The outputs of the graph that it reads.
    """

    batched: ClassVar[bool] = True
    names: ClassVar[tuple[str, ...]] = ("depth",)

    @classmethod
    def from_description(cls, description: Any, where: str) -> Self:
        """Reads the description of the task in an untrusted card.

        Raises:
            BundleError: It is invalid; ``where`` is the file and the place in it, for the message.
        """
        recorded = fields(description, where, required=("unit", "min_depth", "max_depth"))
        if recorded["unit"] != "metres":
            raise BundleError(f"{where}: unit is {shown(recorded['unit'])}, not 'metres'. {ADVICE}")
        return cls()

    def check(self, outputs: Mapping[str, NDArray[Any]]) -> None:
        """Checks the outputs of an image, as of a graph that is not the card's.

        Args:
            outputs: ``depth`` (h, w).

        Raises:
            ExportError: The depth has another shape.
        """
        if outputs["depth"].ndim != 2:
            raise ExportError(f"The graph returned depths of shape {outputs['depth'].shape}. Export the bundle again.")

    def prediction(
        self, outputs: Mapping[str, NDArray[Any]], image_HWC: NDArray[np.uint8], input_size: tuple[int, int]
    ) -> DepthPrediction:
        """The depth of an image, at its size.

        Args:
            outputs: ``depth`` (h, w), in meters.
            image_HWC: The image, uint8.
            input_size: Not used: the outputs have that size.
        """
        depth_hw = np.asarray(outputs["depth"], dtype=np.float32)
        depth_1HW = resize_map(depth_hw[None], (image_HWC.shape[0], image_HWC.shape[1]))
        return DepthPrediction(depth_1HW[0], image_HWC)
