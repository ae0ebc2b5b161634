"""Exported folders as a ``Predictor``: the graph takes the place of backbone, methods and decoders.

The tasks resize, cut into windows, flip and evaluate as with a bundle: settings such as ``test_mode`` apply.

Shapes: B batch, C channels, H W pixels.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from vitsplit.backbone.backbone import BackboneInfo
from vitsplit.bundle import Card, parse_card
from vitsplit.errors import ConfigError, ExportError
from vitsplit.files import read_json
from vitsplit.inference.predictor import LoadedHead, Predictor
from vitsplit.runtime import Runtime
from vitsplit.runtime.card import ADVICE, CARD, ExportCard, join_cards, read_card
from vitsplit.runtime.runtime import WITHOUT_PREDICTIONS, check_predicts
from vitsplit.runtime.sessions import RuntimeName
from vitsplit.tasks import bare_task
from vitsplit.tasks.base import GraphTask
from vitsplit.types import LayerTaps, Padding, TapRequest

BUNDLE = "bundle"
"""Key of a head in the card under which the card of its bundle stands."""


@dataclass(frozen=True)
class GraphTaps(LayerTaps):
    """Outputs of a graph in place of taps.

    Attributes:
        outputs: Index of the head to the outputs of each image by name.
    """

    outputs: Mapping[int, Sequence[Mapping[str, Tensor]]] = field(default_factory=dict)

    @property
    def nbytes(self) -> int:
        """Size of the tensors in bytes."""
        return sum(tensor.nbytes for head in self.outputs.values() for each in head for tensor in each.values())


class GraphBackbone(nn.Module):
    """The graph in place of a backbone; the index of a head takes the place of a layer in requests.

    Args:
        runtime: The opened folder.
    """

    mean_C11: Tensor

    def __init__(self, runtime: Runtime) -> None:
        super().__init__()
        self.runtime = runtime
        self.name = runtime.card.backbone
        self.precision = torch.float32
        self.register_buffer("mean_C11", torch.zeros(3, 1, 1), persistent=False)  # the graph normalizes
        zeros = (0.0, 0.0, 0.0)
        self.info = BackboneInfo(f"the graph in {runtime.card.folder}", "", "", "exported", "", zeros, zeros)

    def forward(self, image_BCHW: Tensor, request: TapRequest) -> GraphTaps:
        """Runs the graph for the requested heads.

        Raises:
            DataError: The graph does not take images of this size.
        """
        size = (image_BCHW.shape[-2], image_BCHW.shape[-1])
        names = list(self.runtime.card.heads)
        heads = {index: names[index] for index in sorted(request.maps)}
        images = self.runtime.outputs(image_BCHW.permute(0, 2, 3, 1).numpy(), [*heads.values()])
        outputs = {
            index: [{output: torch.from_numpy(value) for output, value in each[name].items()} for each in images]
            for index, name in heads.items()
        }
        return GraphTaps(image_size=size, padding=Padding(), grid=size, num_prefix_tokens=0, outputs=outputs)


class GraphHead(nn.Module):
    """A head that is part of the graph.

    Args:
        index: Its index in the card.
        task: Its task.
    """

    def __init__(self, index: int, task: GraphTask) -> None:
        super().__init__()
        self.index, self.task = index, task

    def request(self, *, train: bool) -> TapRequest:
        """The outputs of the head."""
        return TapRequest(maps=frozenset({self.index}))

    def forward(self, taps: GraphTaps) -> Any:
        """The output of the decoder."""
        return self.task.from_graph(taps.outputs[self.index])


def export_cards(folders: Sequence[str | Path]) -> dict[str, Card]:
    """The cards of the bundles of exported folders, by head name.

    Raises:
        BundleError, ExportError: A card is missing or invalid.
        ConfigError: The folders do not fit together.
    """
    exports = [read_card(folder) for folder in folders]
    join_cards(exports)
    return {name: card for export in exports for name, card in _bundle_cards(export).items()}


def _bundle_cards(export: ExportCard) -> dict[str, Card]:
    path = export.folder / CARD
    heads = read_json(path, error=ExportError, advice=ADVICE)["heads"]
    for name in export.heads:
        if BUNDLE not in heads[name]:
            raise ExportError(f"{path}: heads: {name}: {BUNDLE} is missing. Export the bundle again.")
    return {name: parse_card(heads[name][BUNDLE], f"{path}: heads: {name}: {BUNDLE}") for name in export.heads}


def export_ids(folders: Sequence[str | Path]) -> dict[str, str]:
    """Identification of the heads for logs: the SHA-256 of their card, which has the hashes of the graphs."""
    found: dict[str, str] = {}
    for folder in folders:
        digest = hashlib.sha256((Path(folder) / CARD).read_bytes()).hexdigest()
        found |= dict.fromkeys(read_card(folder).heads, digest)
    return found


def load_export(
    folders: Sequence[str | Path], runtime: RuntimeName | None = None, threads: int | None = None
) -> Predictor:
    """Opens exported folders as a predictor on the CPU. Heads without predictions are left out: see ``Runtime``.

    Args:
        folders: The folders.
        runtime: ``onnx`` or ``openvino``; None: see ``vitsplit.runtime.Runtime``.
        threads: Number of threads; None: that of PyTorch.

    Raises:
        BundleError, ExportError: A folder is invalid or corrupt.
        ConfigError: The runtime is not installed, or a folder has no graph for it, or no head with predictions; or the
            folders do not fit together.
    """
    opened = Runtime(folders, runtime, threads or torch.get_num_threads())
    check_predicts(opened)
    cards = export_cards(folders)
    backbone: Any = GraphBackbone(opened)
    predictor = Predictor(backbone, "fp32")
    for index, (name, card) in enumerate(cards.items()):
        if opened.card.heads[name].task in WITHOUT_PREDICTIONS:
            continue
        task = bare_task(card.config.task, card.description)
        if not isinstance(task, GraphTask) or task.name != opened.card.heads[name].task:
            raise ConfigError(f"{opened.card.folder}: {name}: the task {card.task} cannot be used from an export.")
        head: Any = GraphHead(index, task)
        predictor.register(name, LoadedHead(card, task, backbone, head))
    return predictor
