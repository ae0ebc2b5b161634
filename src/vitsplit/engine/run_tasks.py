"""The tasks of a run's heads: data, losses and reports, by head name.

Shapes: B batch.
"""

from __future__ import annotations

import functools
import logging
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from torch import Tensor

from vitsplit.backbone.backbone import Backbone
from vitsplit.engine.run_data import Batch, OwnAugmentation, RunData, SharedCrops, collate
from vitsplit.errors import ConfigError
from vitsplit.model import Model
from vitsplit.report import Page
from vitsplit.tasks.base import ComparesFeatures, CropData, Evaluation, FromFiles, Task
from vitsplit.tasks.segmentation.config import SegmentationConfig
from vitsplit.train_config import TrainConfig
from vitsplit.types import LayerTaps

logger = logging.getLogger(__name__)

ForwardHead = Callable[..., tuple[Any, LayerTaps]]
"""As ``tasks.base.Forward``, with the name of the head to run: ``head="depth"``."""


class RunTasks:
    """The tasks that are trained together.

    Args:
        config: The run's configuration.
        tasks: The task of every head, opened on its data, by head name.

    Raises:
        ConfigError: The settings of the shared crop are invalid.
    """

    def __init__(self, config: TrainConfig, tasks: Mapping[str, Task]) -> None:
        if config.geometry is not None:
            # Shared crops are drawn like segmentation's, so its checks apply to all tasks.
            SegmentationConfig().with_crop(config.geometry)
        self.config = config
        self.tasks = tasks

    @property
    def same_size(self) -> bool:
        """Whether all training images have one size, so that none is padded to the largest of its batch."""
        return self.config.geometry is not None or all(task.same_size for task in self.tasks.values())

    def train_data(self) -> RunData:
        """Training samples with the labels of all heads.

        Raises:
            DataError: The heads have different images; the message counts and names them.
        """
        if self.config.geometry is not None:
            return SharedCrops.match(
                self.config.geometry, {name: _crop_data(task) for name, task in self.tasks.items()}
            )
        ((name, task),) = self.tasks.items()
        return OwnAugmentation(name, task.train_data())

    def files(self) -> dict[str, Path] | None:
        """The files of all samples, see ``FromFiles``; None if no task has files."""
        by_head = {name: task.files() for name, task in self.tasks.items() if isinstance(task, FromFiles)}
        named = self.config.qualified_name
        return {named(name, file): path for name, files in by_head.items() for file, path in files.items()} or None

    def collate(self, samples: Sequence[Mapping[str, Any]]) -> Batch:
        """Collates samples to a batch."""
        by_head = {name: [sample[name] for sample in samples] for name in self.tasks}
        return collate(by_head, {name: task.collate for name, task in self.tasks.items()})

    def normalizers(self, batch: Batch) -> dict[str, Tensor]:
        """See ``Task.normalizers``; terms are named by ``TrainConfig.qualified_name``."""
        return self._terms(lambda name, task: task.normalizers(batch.parts[name]))

    def targets(self, batch: Batch, taps: LayerTaps) -> dict[str, Any]:
        """See ``Task.targets``; by head name."""
        return {name: task.targets(batch.parts[name], taps) for name, task in self.tasks.items()}

    def loss_sums(self, output: Mapping[str, Any], batch: Batch, taps: LayerTaps) -> dict[str, Tensor]:
        """See ``Task.loss_sums``; named as ``normalizers``."""
        return self._terms(lambda name, task: task.loss_sums(output[name], batch.parts[name], taps))

    def _terms(self, terms_of: Callable[[str, Task], Mapping[str, Tensor]]) -> dict[str, Tensor]:
        return {
            self.config.qualified_name(name, term): value
            for name, task in self.tasks.items()
            for term, value in terms_of(name, task).items()
        }

    def write_report(
        self, forward: ForwardHead, evaluations: Mapping[str, Evaluation], folder: Path, *, title: str, count: int
    ) -> Path:
        """Writes each head's page to a subfolder, and an index page; a single page if heads do not share a crop."""
        if self.config.geometry is None:
            ((name, task),) = self.tasks.items()
            own_forward = functools.partial(forward, head=name)
            return task.write_report(own_forward, evaluations[name], folder, title=title, count=count)
        page = Page(title, "Several heads on one backbone, with one backbone pass per batch.")
        for name, task in self.tasks.items():
            evaluation = evaluations[name]
            # Higher scores are better, so metrics where lower is better are negated.
            metric = evaluation.score_name.removeprefix("neg_")
            page.heading(name.capitalize())
            page.figures([(f"{evaluation.metrics[metric]:.3g}", metric.replace("_", " "))])
            own_forward = functools.partial(forward, head=name)
            task.write_report(own_forward, evaluation, folder / name, title=f"{title}: {name}", count=count)
            page.link("All metrics and pictures", f"{name}/index.html")
        return page.write(folder)

    def fit_familiarity(self, model: Model, backbone: Backbone) -> None:
        """Fits ``Head.familiarity`` of the heads that have one, on the training images."""
        for name, task in self.tasks.items():
            familiarity = model.heads[name].familiarity
            if familiarity is not None and isinstance(task, ComparesFeatures):
                logger.info("%s: statistics of the training images' features, for --unfamiliarity", name)
                familiarity.fit(task.familiar_tokens(backbone, familiarity.layer).to(familiarity.centroids_CD.device))

    def describe(self) -> dict[str, Any]:
        """``Task.describe`` of each head's task, which bundles record, by head name."""
        return {name: task.describe() for name, task in self.tasks.items()}


def _crop_data(task: Task) -> CropData:
    data: Any = task.train_data()
    if not hasattr(data, "cropped"):
        raise ConfigError(f"--head {task.name}: this task does not support the shared crop of several heads.")
    return data
