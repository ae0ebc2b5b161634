"""Exports that are made once and kept in the cache, for ``vitsplit predict --runtime``."""

from __future__ import annotations

import functools
import hashlib
import json
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any, Literal

from vitsplit.bundle import WEIGHTS
from vitsplit.errors import ConfigError, FolderInUseError
from vitsplit.exporting.formats import FormatName, file_hash
from vitsplit.exporting.writing import ExportPlan, export_graphs, load_float32
from vitsplit.folder_lock import LOCK, hold_folder
from vitsplit.inference.loading import read_bundles
from vitsplit.inference.prediction_log import bundle_ids
from vitsplit.inference.sources import Source, check_graph_options, exported_source, find_source
from vitsplit.registry_package import cache_folder
from vitsplit.runtime.card import is_export
from vitsplit.runtime.runtime import WITHOUT_PREDICTIONS
from vitsplit.version import __version__

SECONDS = 1.0
"""Time between two attempts to lock an export."""


def find_source_for(
    runs: Sequence[str | Path],
    runtime: Literal["torch", "onnx", "openvino"] | None = None,
    *,
    say: Callable[[str], None] = lambda line: None,
    **options: Any,
) -> Source:
    """The heads of runs, bundles or an exported folder in a runtime.

    Args:
        runs: Run or bundle folders, or an exported folder.
        runtime: The runtime. Bundles are exported into the cache for another one than PyTorch, when they are loaded.
            None: PyTorch for bundles, for an exported folder its first format that is installed.
        say: Receives a line before and after an export.
        options: Options of ``load_predictor``.

    Raises:
        VitsplitError: As ``find_source``; or an option does not apply to the runtime.
    """
    graph = None if runtime == "torch" else runtime
    exported = [run for run in runs if is_export(run)]
    if exported and runtime == "torch":
        raise ConfigError(f"--runtime torch: {exported[0]} is an exported folder. Give its bundles, or omit the flag.")
    if exported or graph is None:
        return find_source(runs, runtime=graph, **options)
    cards = find_source(runs).cards
    for name, card in cards.items():
        if card.task in WITHOUT_PREDICTIONS:
            raise ConfigError(
                f"--runtime {graph}: {name} is for {card.task}, which a graph does not predict. Omit it, or the flag."
            )
    weights = options.pop("weights", None)
    check_graph_options(options, f"--runtime {graph}")

    @functools.cache
    def export() -> list[Path]:
        return [cached_export(runs, graph, weights=weights, say=say)]

    return exported_source(cards, export, graph)


def cached_export(
    runs: Sequence[str | Path],
    format_name: FormatName,
    *,
    weights: str | Path | None = None,
    say: Callable[[str], None] = lambda line: None,
) -> Path:
    """The folder of an export in float32 for images of any size, which is made if it is not in the cache.

    Of several processes that need the same export, one makes it, and the others wait.

    Args:
        runs: Run or bundle folders.
        format_name: The format.
        weights: See ``vitsplit.load``.
        say: Receives a line before and after the export, and before waiting for another process.

    Raises:
        ExportError: As ``export_graphs``.
        RunError: The cache is not writable.
        VitsplitError: As ``load_predictor``.
    """
    folders = {name: folder for name, (folder, _) in read_bundles(runs).items()}
    key = json.dumps([bundle_ids(folders), format_name, __version__])
    root = cache_folder() / "exports"
    folder = root / hashlib.sha256(key.encode()).hexdigest()[:32]
    if is_export(folder):
        return folder
    with _locked(root, folder.name, say):
        if is_export(folder):  # of a process that was waited for
            return folder
        say(f"exporting to {folder}")
        predictor = load_float32(folders, weights=weights)
        hashes = {name: file_hash(each / WEIGHTS) for name, each in folders.items()}
        export_graphs(predictor, folder, ExportPlan((format_name,)), weights=hashes, say=say)
    return folder


@contextmanager
def _locked(root: Path, name: str, say: Callable[[str], None]) -> Iterator[None]:
    """Locks an export within the block, as soon as no other process does."""
    with ExitStack() as lock:
        waiting = False
        while True:
            try:
                lock.enter_context(hold_folder(root, name=f"{LOCK}-{name}"))
                break
            except FolderInUseError as error:
                if not waiting:
                    say(f"waiting for another process, which exports to {root / name}: {error}")
                waiting = True
                time.sleep(SECONDS)
        yield
