"""``vitsplit evaluate RUN``: measure a bundle on labelled images, or with the questions of a benchmark."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Annotated, Any

import tyro
from pydantic import Field
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from vitsplit.atomic_files import json_text
from vitsplit.cli.evaluate_benchmark import describe_benchmark, evaluate_benchmark
from vitsplit.cli.flags import FromWords
from vitsplit.cli.values import Count, Loading, SplitName, Switch
from vitsplit.cli.words import leading_words, value_of
from vitsplit.config import MaxNewTokens, Settings, changed_settings
from vitsplit.errors import ConfigError


def _task_settings(argv: Sequence[str]) -> Settings | None:
    """The settings of the bundle's task, which are flags too; None where there is no bundle, or a benchmark."""
    if not leading_words(argv) or value_of(argv, "--benchmark") is not None:
        return None
    from vitsplit.bundle import read_card

    settings: Settings = read_card(argv[0]).config.task
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
    loading: Loading = Loading(),  # noqa: B008  (frozen)
    task: Annotated[Settings | None, FromWords(_task_settings)] = None,
    expected: Annotated[str, FromWords(describe_benchmark, in_help=True)] = "",
) -> int:
    """Measure a bundle on labelled images.

    Shows a table on the screen, and writes metrics.json and a page of pictures (input, truth, prediction, error) to the
    output folder. Every setting of the bundle's task is a flag here too, such as the layout of the data (--format),
    where it is not that of the training data: vitsplit evaluate RUN --help.

    With --benchmark a bundle of visual question answering is asked the questions of a public benchmark, with
    LLaVA-1.5's prompts, and its answers are measured as the benchmark's own script does: figures on the screen and in
    metrics.json, and the files that its server or judge reads. Answers are kept in answers.jsonl as they come: a
    command that was stopped continues where it was. The data are the official files; a folder that is laid out as
    LLaVA-1.5's evaluation wants it is understood. vitsplit evaluate --benchmark NAME --help says what the files are.

    Examples:
        vitsplit evaluate runs/first --data my_data
        vitsplit evaluate runs/first --data my_data --test-scales 0.75 1 1.25 --test-flip --test-mode slide
        vitsplit evaluate runs/depth --data my_depths --median-scaling --eval-crop nyu-eigen
        vitsplit evaluate runs/vqa --benchmark pope --data pope
        vitsplit evaluate runs/vqa --benchmark vqav2 --data vqav2/v2_OpenEnded_mscoco_test-dev2015_questions.json
        vitsplit evaluate runs/vqa --benchmark daquar --data my_rooms/daquar_val.jsonl --limit 100

    Args:
        run: A run folder (its best bundle) or a bundle folder.
        data: The data set; of a benchmark, its folder or its file of questions.
        split: Which split of the data set.
        out: Folder to write to; None: a new evaluation-SPLIT, or benchmark-NAME, in the run.
        pictures: Images on the page.
        workers: Processes that read images; -1: by the number of cores.
        json: Print the figures as JSON instead of the table.
        benchmark: Name of a benchmark.
        limit: With --benchmark: ask only the first questions (of pope, of every category).
        max_new_tokens: The most tokens of an answer; None: the bundle's, with --benchmark LLaVA-1.5's.
        loading: How the bundle is loaded.
        task: Settings of the bundle's task.
        expected: What the files of the benchmark are.
    """
    if benchmark is not None:
        return evaluate_benchmark(
            run, benchmark, data, out, limit=limit, max_new_tokens=max_new_tokens, as_json=json, loading=loading
        )
    if limit is not None:
        raise ConfigError(f"--limit {limit} goes with --benchmark. Omit it.")

    from vitsplit import api
    from vitsplit.atomic_files import writing_to
    from vitsplit.bundle import read_card
    from vitsplit.folder_lock import hold_folder, hold_free_folder
    from vitsplit.inference.predictor import load_head

    settings: dict[str, Any] = {} if task is None else changed_settings(read_card(run).config.task, task)
    if max_new_tokens is not None:
        settings["max_new_tokens"] = max_new_tokens
    predictor = load_head(run, **loading.arguments())
    columns = (TextColumn("evaluating"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with ExitStack() as stack:
        # Before the work, so that a folder that cannot be written to is reported at once.
        held = hold_free_folder(run / f"evaluation-{split}") if out is None else hold_folder(out)
        folder = stack.enter_context(held)
        with Progress(*columns, console=Console(stderr=True), transient=True) as progress:
            bar = progress.add_task("images", total=None)
            evaluation, opened = api.evaluate(
                predictor,
                data=data,
                split=split,
                workers=workers,
                on_image=lambda: progress.advance(bar),
                **settings,
            )
        # The figures before the pictures, so that they are there if the disk is full.
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
