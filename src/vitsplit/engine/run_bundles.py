"""The bundles of a run: those with the last weights, and of every head the one with its best weights."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from vitsplit.atomic_files import replace_folder
from vitsplit.engine.checkpoint import Standing, TrainState, last_good
from vitsplit.engine.run_folder import RunFolder
from vitsplit.errors import RunError
from vitsplit.train_config import TrainConfig

SaveBundle = Callable[[Path, TrainConfig, dict[str, Any], str], None]
"""Fills a folder, which it makes if there is none, with the bundle of a head's present weights. The second argument is
the resolved configuration; the third the metrics that the weights reached, empty where they were not evaluated; the
fourth the head's name."""


class RunBundles:
    """Replaces the bundles of a run, each folder as a whole.

    Args:
        run: The run's folder.
        save_bundle: Writes a bundle.
        config: The resolved configuration.
        main: Whether this is the main process: others write nothing.
    """

    def __init__(self, run: RunFolder, save_bundle: SaveBundle, config: TrainConfig, *, main: bool) -> None:
        self.run = run
        self.save_bundle = save_bundle
        self.config = config
        self.main = main

    def save_last(self, state: TrainState) -> None:
        """Saves the present weights of all heads as ``last``."""
        if not self.main:
            return
        evaluated = state.evaluated == state.step
        with self.replacing(self.run.last) as folder:
            for head in self.config.heads:
                metrics = state.standings[head].last_metrics if evaluated else {}
                self.save_bundle(folder / self.config.named(head, ""), self.config, metrics, head)

    def save_best(self, head: str, standing: Standing) -> None:
        """Saves the present weights of a head as its ``best``."""
        if not self.main:
            return
        with self.replacing(self.run.best / self.config.named(head, "")) as folder:
            self.save_bundle(folder, self.config, standing.last_metrics, head)

    @contextmanager
    def replacing(self, path: Path) -> Iterator[Path]:
        """See ``replace_folder``.

        Raises:
            RunError: It could not be written; the message names the last good checkpoint.
        """
        try:
            with replace_folder(path) as folder:
                yield folder
        except RunError as error:
            raise RunError(f"{error} {last_good(self.run.checkpoints)}") from error
