"""``vitsplit evaluate RUN``: evaluates a bundle on labeled images or on a VQA benchmark."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Annotated, Any

import tyro
from pydantic import Field
from rich.console import Console

from vitsplit.atomic_files import json_text
from vitsplit.cli.evaluate_benchmark import describe_benchmark, evaluate_benchmark
from vitsplit.cli.flags import FromArgv
from vitsplit.cli.progress import progress_bar
from vitsplit.cli.values import Count, GraphRuntime, Loading, SplitName, Switch
from vitsplit.cli.words import leading_arguments, value_of
from vitsplit.config import MaxNewTokens, Settings, changed_settings
from vitsplit.errors import ConfigError
from vitsplit.files import is_address


def _task_settings(argv: Sequence[str]) -> Settings | None:
    """The settings of the bundle's task, which become flags; None without a bundle or with ``--benchmark``."""
    if not leading_arguments(argv) or value_of(argv, "--benchmark") is not None:
        return None
    from vitsplit.inference.sources import find_head

    card, _ = find_head(argv[0], value_of(argv, "--head"))
    settings: Settings = card.config.task
    return settings


def evaluate(
    run: tyro.conf.Positional[Path],
    /,
    *,
    data: Path,
    split: SplitName = "val",
    out: Path | None = None,
    pictures: Annotated[int, Field(ge=0, le=10**4)] = 12,
    workers: Annotated[int, Field(ge=-1, le=256)] = -1,
    json: Switch = False,
    benchmark: str | None = None,
    limit: Count | None = None,
    max_new_tokens: MaxNewTokens | None = None,
    head: str | None = None,
    runtime: GraphRuntime = None,
    loading: Loading = Loading(),  # noqa: B008  (frozen)
    task: Annotated[Settings | None, FromArgv(_task_settings)] = None,
    expected: Annotated[str, FromArgv(describe_benchmark, in_help=True)] = "",
) -> int:
    """Evaluate a bundle, or a head of an exported folder, on labeled images.

    Prints a table, and writes metrics.json and a page of pictures (input, ground truth, prediction, error) to the
    output folder. Every setting of the bundle's task is a flag, such as the layout of the data set (--format), see
    vitsplit evaluate RUN --help.

    With --benchmark, a bundle of visual question answering answers the questions of a public benchmark with LLaVA-1.5's
    prompts. The answers are scored as by the benchmark's official script: metrics are printed and written to
    metrics.json, with the files for the benchmark's server or judge. Answers are saved to answers.jsonl incrementally,
    so the same command resumes an evaluation that was stopped. The data are the official files; the folder layout of
    LLaVA-1.5's evaluation is supported too. vitsplit evaluate --benchmark NAME --help describes the files.

    Examples:
        vitsplit evaluate runs/first --data my_data
        vitsplit evaluate runs/first --data my_data --test-scales 0.75 1 1.25 --test-flip --test-mode slide
        vitsplit evaluate runs/depth --data my_depths --median-scaling --eval-crop nyu-eigen
        vitsplit evaluate exported --head depth --data my_depths
        vitsplit evaluate runs/vqa --benchmark pope --data pope
        vitsplit evaluate runs/vqa --benchmark vqav2 --data vqav2/v2_OpenEnded_mscoco_test-dev2015_questions.json
        vitsplit evaluate runs/vqa --benchmark daquar --data my_rooms/daquar_val.jsonl --limit 100

    Args:
        run: A run folder (its best bundle), a bundle folder or an exported folder.
        data: Folder of the data set; with --benchmark, its folder or file of questions.
        split: Split of the data set.
        out: Output folder; None: a new folder evaluation-SPLIT, or benchmark-NAME, in the run.
        pictures: Number of images on the page.
        workers: Number of data loading processes; -1: from the number of cores.
        json: Print the metrics as JSON instead of a table.
        benchmark: Name of a benchmark.
        limit: With --benchmark: use only the first questions (for pope, of every category).
        max_new_tokens: Maximum number of tokens of an answer; None: the bundle's setting, or LLaVA-1.5's with
            --benchmark.
        head: Name of a head of an exported folder; None: the only one.
        runtime: Runtime of an exported folder; None: its first format that is installed.
        loading: Loading options.
        task: Settings of the bundle's task.
        expected: Description of the benchmark's files.
    """
    if is_address(run) and out is None:
        raise ConfigError(f"Missing required option --out: {run} is on the hub, and has no folder for the results.")
    if benchmark is not None:
        return evaluate_benchmark(
            run, benchmark, data, out, limit=limit, max_new_tokens=max_new_tokens, as_json=json, loading=loading
        )
    if limit is not None:
        raise ConfigError(f"--limit {limit} requires --benchmark. Omit it.")

    from vitsplit import api
    from vitsplit.atomic_files import writing_to
    from vitsplit.folder_lock import hold_folder, hold_free_folder
    from vitsplit.inference.sources import find_head

    card, load = find_head(run, head, runtime=runtime, **loading.arguments())
    settings: dict[str, Any] = {} if task is None else changed_settings(card.config.task, task)
    if max_new_tokens is not None:
        settings["max_new_tokens"] = max_new_tokens
    predictor = load()
    with ExitStack() as stack:
        # Before the evaluation, so that a folder that is not writable is reported at once.
        held = hold_free_folder(run / f"evaluation-{split}") if out is None else hold_folder(out)
        folder = stack.enter_context(held)
        with progress_bar("evaluating") as progress:
            bar = progress.add_task("images", total=None)
            evaluation, opened = api.evaluate(
                predictor,
                data=data,
                split=split,
                workers=workers,
                on_image=lambda: progress.advance(bar),
                **settings,
            )
        # Metrics are printed before pictures are written, in case the disk is full.
        if json:
            print(json_text(evaluation.metrics), flush=True)
        else:
            Console().print(opened.table(evaluation))
        title = f"{run.name} on {data.name} ({split})"
        with writing_to(folder, "pictures"):
            page = opened.write_report(predictor.forward, evaluation, folder, title=title, count=pictures)
        if not json:
            print(f"pictures: {page}")
    return 0
