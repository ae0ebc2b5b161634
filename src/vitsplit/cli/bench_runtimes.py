"""``vitsplit bench runtimes``: prediction time of exported graphs against PyTorch."""

from __future__ import annotations

import json as json_module
from pathlib import Path
from typing import Annotated

import tyro
from pydantic import Field

from vitsplit.cli.values import BatchSize, Count, ImageSize, Limit, Switch
from vitsplit.errors import ConfigError


def runtimes(
    sources: tyro.conf.Positional[Annotated[tuple[str, ...], tyro.conf.arg(metavar="RUN ... EXPORT ...")]],
    /,
    *,
    size: ImageSize | None = None,
    batch_size: BatchSize = 1,
    turns: Count = 10,
    warmup: Limit = 2,
    threads: Annotated[int, Field(ge=1, le=1024)] | None = None,
    images: Path | None = None,
    weights: str | None = None,
    language_weights: str | None = None,
    language_model: str | None = None,
    json: Switch = False,
) -> int:
    """Measure the prediction time of exported graphs against PyTorch, alternating between them in one process.

    Shows wall time, CPU time, the ratio to PyTorch in float32, the size of the files, and the share of pixels or
    objects that are predicted as by PyTorch. Timed is a call on images in memory, from pixels to all outputs of the
    graph.

    Examples:
        vitsplit bench runtimes runs/rooms exported small --size 252 336 --threads 1
        vitsplit bench runtimes runs/rooms runs/depth exported --images photos/ --json

    Args:
        sources: Run or bundle folders, followed by folders that `vitsplit export` has written from them.
        size: Height and width of the images; None: the crop size of the first bundle.
        batch_size: Number of images at once.
        turns: Number of measured turns.
        warmup: Number of turns before.
        threads: Number of CPU threads; None: PyTorch's default.
        images: Folder of images; None: generated scenes.
        weights: Weights of the backbone, if they cannot be downloaded or a run was trained with --weights.
        language_weights: Folder of the language model, if a run was trained with --language-weights.
        language_model: Name of the language model on the hub, if it is not one that vitsplit knows.
        json: Print JSON instead of a table.
    """
    import torch
    from rich.console import Console

    from vitsplit.analysis.bench.report import terminal_table
    from vitsplit.analysis.bench.runtimes import describe_setting, measure_runtimes, table, to_json
    from vitsplit.exporting.writing import load_float32
    from vitsplit.runtime.card import is_export

    exports = [Path(source) for source in sources if is_export(source)]
    runs = [source for source in sources if not is_export(source)]
    if not runs or not exports:
        raise ConfigError("Give at least one run, and at least one folder that `vitsplit export` has written from it.")
    if len({folder.name for folder in exports}) < len(exports):
        raise ConfigError(
            f"Two of the exported folders have the same name: {', '.join(map(str, exports))}. Rename one."
        )
    if threads is not None:
        torch.set_num_threads(threads)
    predictor = load_float32(runs, weights=weights, language_weights=language_weights, language_model=language_model)
    progress = Console(stderr=True)
    with progress.status("starting") as status:
        result = measure_runtimes(
            predictor,
            exports,
            size=size or next(iter(predictor.values())).card.config.task.crop_size,
            batch_size=batch_size,
            turns=turns,
            warmup=warmup,
            images=images,
            say=status.update,
        )
    if json:
        print(json_module.dumps(to_json(result)))
        return 0
    console = Console()
    console.print(describe_setting(result), soft_wrap=True, highlight=False)
    console.print(terminal_table(table(result)))
    return 0
