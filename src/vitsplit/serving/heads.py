"""What the server says about its heads."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from vitsplit.data.classes import ClassList
from vitsplit.inference.predictor import LoadedHead, Predictor
from vitsplit.inference.shared_pass import PassCount
from vitsplit.model_card import licenses
from vitsplit.tasks.prediction import Prediction
from vitsplit.tasks.registry import TaskConfig
from vitsplit.types import TapRequest

UNITS = {"metres": "m"}
"""Units of task descriptions, as symbols."""


@dataclass(frozen=True)
class ServedHead:
    """A head that requests may ask for.

    Attributes:
        name: Its name.
        head: The head.
        sha256: Identification of its bundle or export.
        request: What it reads from the backbone.
    """

    name: str
    head: LoadedHead
    sha256: str
    request: TapRequest

    @classmethod
    def of(cls, name: str, head: LoadedHead, sha256: str) -> ServedHead:
        """The entry of a head of a predictor."""
        return cls(name, head, sha256, head.model.request(train=False))

    @property
    def task(self) -> TaskConfig:
        """Settings and capabilities of the task."""
        return self.head.card.config.task

    @property
    def forms(self) -> type[Prediction]:
        """The class of its predictions, which declares their forms."""
        return self.task.prediction_type()

    def to_json(self) -> dict[str, Any]:
        """The entry in ``/v1/bundles``."""
        card, description = self.head.card, self.head.task.describe()
        found: dict[str, Any] = {
            "task": card.task,
            "needs_question": self.task.answers_questions,
            "formats": list(self.forms.served_formats),
            "sha256": self.sha256,
            # Of the backbone, whose copied blocks a bundle may have, and of a tuned language model.
            "license": licenses(card.backbone["licence"], [card.config.task.included_model]),
            "vitsplit": card.version,
            "metrics": dict(card.metrics),
            "maps": list(card.prior_layers),
        }
        if "classes" in description:
            colors = tuple((red, green, blue) for red, green, blue in description["colours"])
            found["classes"] = ClassList(tuple(description["classes"]), colors).to_json()
        if "unit" in description:
            found["unit"] = UNITS.get(description["unit"], description["unit"])
        return found


def backbone_json(predictor: Predictor) -> dict[str, Any]:
    """The entry of the backbone in ``/v1/bundles``."""
    info = predictor.backbone.info
    if num_blocks(predictor) is None:  # of a graph, the name is that of its backbone, and the rest is unknown
        return {"name": predictor.backbone.name}
    return {
        "name": info.name,
        "license": info.license,
        "weights_hash": info.weights_hash,
        "blocks": num_blocks(predictor),
    }


def num_blocks(predictor: Predictor) -> int | None:
    """Number of blocks of the backbone; None for an exported graph."""
    blocks: int | None = getattr(predictor.backbone, "num_layers", None)
    return blocks


def passes_json(passes: PassCount, heads: Mapping[str, ServedHead], blocks: int | None) -> list[dict[str, Any]]:
    """The passes of a request: sizes, bundles, and the blocks that these need.

    The first pass of a size may compute more: what all heads of the request need.

    Args:
        passes: The passes.
        heads: The heads that were asked for.
        blocks: See ``num_blocks``.
    """
    found = []
    for (size, users), count in passes.items():
        each: dict[str, Any] = {"size": list(size), "bundles": list(users)}
        if count > 1:
            each["count"] = count
        if blocks is not None:
            request = TapRequest()
            for user in users:
                request = request | heads[user].request
            maps = sorted(request.maps | request.raw_maps)
            each |= {"blocks": request.num_blocks, "of": blocks, "maps": maps}
        found.append(each)
    return found
