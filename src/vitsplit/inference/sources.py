"""What predictions are made with: bundles of one backbone, or exported folders."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from vitsplit.bundle import Card, find_bundle
from vitsplit.errors import ConfigError
from vitsplit.inference.exported import export_cards, export_ids, load_export
from vitsplit.inference.loading import read_bundles
from vitsplit.inference.prediction_log import bundle_ids
from vitsplit.inference.predictor import LoadedHead, Predictor, load_predictor
from vitsplit.runtime.card import is_export
from vitsplit.runtime.runtime import WITHOUT_PREDICTIONS
from vitsplit.runtime.sessions import RuntimeName


@dataclass(frozen=True)
class Source:
    """Heads that are not loaded yet.

    Attributes:
        cards: Cards of the bundles by head name.
        ids: Returns the identification of each head, for the log of predictions.
        load: Loads them.
    """

    cards: Mapping[str, Card]
    ids: Callable[[], dict[str, str]]
    load: Callable[[], Predictor]


def find_source(
    runs: Sequence[str | Path] | Mapping[str, str | Path], *, runtime: RuntimeName | None = None, **options: Any
) -> Source:
    """Reads the cards of runs, bundles or exported folders.

    Args:
        runs: Run or bundle folders, or a mapping from names to them; or exported folders, see ``Runtime``.
        runtime: Runtime of exported folders; None: see ``load_export``.
        options: Options of ``load_predictor`` for bundles.

    Raises:
        VitsplitError: As ``load_predictor`` and ``load_export``; or an option does not apply.
    """
    exported = [run for run in (runs.values() if isinstance(runs, Mapping) else runs) if is_export(run)]
    if not exported:
        if runtime is not None:
            raise ConfigError(
                f"--runtime {runtime} is for exported folders. Export the bundles first: vitsplit export."
            )
        bundles = read_bundles(runs)
        return Source(
            {name: card for name, (_, card) in bundles.items()},
            partial(bundle_ids, {name: folder for name, (folder, _) in bundles.items()}),
            partial(load_predictor, {name: folder for name, (folder, _) in bundles.items()}, **options),
        )
    if len(exported) < len(runs) or isinstance(runs, Mapping):
        raise ConfigError(
            f"{exported[0]} is an exported folder, which is used without names and without bundles. Export them too: "
            "vitsplit export RUN RUN ..."
        )
    check_graph_options(options, f"the exported folder {exported[0]}")
    return exported_source(export_cards(exported), lambda: exported, runtime)


def exported_source(
    cards: Mapping[str, Card], folders: Callable[[], Sequence[str | Path]], runtime: RuntimeName | None
) -> Source:
    """The heads of exported folders; of heads without predictions only if there are no others.

    Args:
        cards: Cards of their bundles by head name.
        folders: Returns the folders, which may be made by the first call.
        runtime: See ``load_export``.
    """
    predicting = {name: card for name, card in cards.items() if card.task not in WITHOUT_PREDICTIONS}
    return Source(predicting or cards, lambda: export_ids(folders()), lambda: load_export(folders(), runtime))


def check_graph_options(options: Mapping[str, Any], what: str) -> None:
    """Refuses options of ``load_predictor`` for a graph, which has its own weights and runs on the CPU.

    Raises:
        ConfigError: An option is given; ``what`` is what it does not apply to.
    """
    for name, value in options.items():
        if value is not None and not (name == "device" and str(value) == "cpu"):
            raise ConfigError(
                f"--{name.replace('_', '-')} {value}: not for {what}: a graph has its own weights and precision, and "
                "runs on the CPU. Omit it."
            )


def find_head(
    run: str | Path, head: str | None = None, *, runtime: RuntimeName | None = None, **options: Any
) -> tuple[Card, Callable[[], LoadedHead]]:
    """The card of one head, and a function that loads it.

    Args:
        run: A run with a single head, a bundle, or an exported folder.
        head: Name of a head of an exported folder; None: the only one.
        runtime: See ``find_source``.
        options: See ``find_source``.

    Raises:
        ConfigError: An exported folder has several heads and none is named, or there is none of that name.
        VitsplitError: As ``find_source``.
    """
    if not is_export(run):
        if head is not None:
            raise ConfigError(f"--head {head}: for exported folders. Give the folder of the bundle instead of {run}.")
        run = find_bundle(run)
    source = find_source([run], runtime=runtime, **options)
    if head is None and len(source.cards) > 1:
        raise ConfigError(f"{run} has the heads {', '.join(source.cards)}. Name one with --head.")
    name = next(iter(source.cards)) if head is None else head
    if name not in source.cards:
        raise ConfigError(f"--head {name}: {run} has the heads {', '.join(source.cards)}.")
    return source.cards[name], lambda: source.load()[name]
