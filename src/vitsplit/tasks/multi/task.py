"""Several tasks on the same images, as the training engine sees them: what each says, under its name.

Shapes: B batch.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar

from torch import Tensor

from vitsplit.engine.optim import named
from vitsplit.report import Page
from vitsplit.tasks.base import Evaluation, FromFiles, Task
from vitsplit.tasks.multi.config import GeometryConfig, with_geometry
from vitsplit.tasks.multi.data import MultiBatch, MultiData, collate
from vitsplit.tasks.multi.labels import open_labels
from vitsplit.tasks.segmentation.config import SegmentationConfig
from vitsplit.tasks.segmentation.task import check_settings
from vitsplit.types import LayerTaps


class MultiTask:
    """Tasks that are trained together.

    Args:
        geometry: The augmentation that they share.
        tasks: The tasks by name, opened on their data.

    Raises:
        ConfigError: The augmentation cannot work.
    """

    name: ClassVar[str] = "multi"
    same_size: ClassVar[bool] = True

    def __init__(self, geometry: GeometryConfig, tasks: Mapping[str, Task]) -> None:
        # The crops are segmentation's, so what cannot work there cannot work here, whichever tasks there are.
        check_settings(with_geometry(SegmentationConfig(), geometry))
        self.geometry = geometry
        self.tasks = tasks

    def train_data(self) -> MultiData:
        """Training samples with the labels of all tasks.

        Raises:
            DataError: The tasks have other images; the message counts and names them.
        """
        return MultiData.match(self.geometry, open_labels(self.tasks))

    def files(self) -> dict[str, Path]:
        """Each task's, named ``task/name``."""
        by_task = {name: task.files() for name, task in self.tasks.items() if isinstance(task, FromFiles)}
        return {named(name, file): path for name, files in by_task.items() for file, path in files.items()}

    def collate(self, samples: Sequence[Mapping[str, Any]]) -> MultiBatch:
        """Samples to a batch."""
        by_task = {name: [sample[name] for sample in samples] for name in self.tasks}
        return collate(by_task, {name: task.collate for name, task in self.tasks.items()})

    def normalisers(self, batch: MultiBatch) -> dict[str, Tensor]:
        """Each task's, named ``task/term``."""
        return self._terms(lambda name, task: task.normalisers(batch.parts[name]))

    def targets(self, batch: MultiBatch, taps: LayerTaps) -> dict[str, Any]:
        """Each task's, by its name."""
        return {name: task.targets(batch.parts[name], taps) for name, task in self.tasks.items()}

    def loss_sums(self, output: Mapping[str, Any], batch: MultiBatch, taps: LayerTaps) -> dict[str, Tensor]:
        """Each task's, named ``task/term``."""
        return self._terms(lambda name, task: task.loss_sums(output[name], batch.parts[name], taps))

    def _terms(self, ask: Callable[[str, Task], Mapping[str, Tensor]]) -> dict[str, Tensor]:
        return {
            named(name, term): value for name, task in self.tasks.items() for term, value in ask(name, task).items()
        }

    def evaluate(
        self,
        forward: Callable[..., tuple[Any, LayerTaps]],
        *,
        shard: tuple[int, int] = (0, 1),
        gather: Callable[[Tensor], Tensor] = lambda tensor: tensor,
        on_image: Callable[[], None] | None = None,
    ) -> Evaluation:
        """Each task's evaluation on its own validation images, which need not be those of the others.

        Args:
            forward: Takes the name of a head too (``head="depth"``) and runs no other.
            shard: See ``Task.evaluate``.
            gather: See ``Task.evaluate``.
            on_image: See ``Task.evaluate``.
        """
        by_head = {
            name: task.evaluate(functools.partial(forward, head=name), shard=shard, gather=gather, on_image=on_image)
            for name, task in self.tasks.items()
        }
        return Evaluation(metrics={name: found.metrics for name, found in by_head.items()}, by_head=by_head)

    def write_report(
        self,
        forward: Callable[..., tuple[Any, LayerTaps]],
        evaluation: Evaluation,
        folder: Path,
        *,
        title: str,
        count: int,
    ) -> Path:
        """Each task's page in a folder of its name, and a page that leads to them."""
        page = Page(title, "One backbone, one pass per batch, several heads.")
        for name, task in self.tasks.items():
            found = evaluation.by_head[name]
            # Scores grow with quality, so what is better when small is a score with its sign changed.
            figure = found.score_name.removeprefix("neg_")
            page.heading(name.capitalize())
            page.figures([(f"{found.metrics[figure]:.3g}", figure.replace("_", " "))])
            own_forward = functools.partial(forward, head=name)
            task.write_report(own_forward, found, folder / name, title=f"{title}: {name}", count=count)
            page.link("All figures, and pictures", f"{name}/index.html")
        return page.write(folder)

    def describe(self) -> dict[str, Any]:
        """What each task's bundle must record, by its name."""
        return {name: task.describe() for name, task in self.tasks.items()}
