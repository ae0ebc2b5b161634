"""The bundles of a run: every head with its last weights, and with its best weights."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from vitsplit.atomic_files import replace_folder
from vitsplit.engine.checkpoint import Standing, TrainState, recovery_advice
from vitsplit.engine.run_folder import RunFolder
from vitsplit.errors import RunError
from vitsplit.train_config import TrainConfig

SaveBundle = Callable[[Path, TrainConfig, dict[str, Any], str], None]
"""Writes the bundle of a head's current weights into a folder, which is created if it does not exist. Arguments: the
folder; the resolved configuration; the metrics of these weights, empty if they were not evaluated; the head's name."""


class RunBundles:
    """Replaces the bundles of a run, each folder atomically.

    Args:
        run: The run's folder.
        save_bundle: Writes a bundle.
        config: The resolved configuration.
        main: Whether this is the main process; others write nothing.
    """

    def __init__(self, run: RunFolder, save_bundle: SaveBundle, config: TrainConfig, *, main: bool) -> None:
        self.run = run
        self.save_bundle = save_bundle
        self.config = config
        self.main = main

    def save_last(self, state: TrainState) -> None:
        """Saves the current weights of all heads as ``last``."""
        if not self.main:
            return
        evaluated = state.evaluated == state.step
        with self.replacing(self.run.last) as folder:
            for head in self.config.heads:
                metrics = state.standings[head].last_metrics if evaluated else {}
                self.save_bundle(folder / self.config.qualified_name(head, ""), self.config, metrics, head)

    def save_best(self, head: str, standing: Standing) -> None:
        """Saves the current weights of a head as its ``best``."""
        if not self.main:
            return
        with self.replacing(self.run.best / self.config.qualified_name(head, "")) as folder:
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
            raise RunError(f"{error} {recovery_advice(self.run.checkpoints)}") from error
