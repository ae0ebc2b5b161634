"""``vitsplit evaluate RUN --benchmark NAME``: evaluates a bundle on a public VQA benchmark."""

from __future__ import annotations

import inspect
import json
from collections.abc import Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from vitsplit.cli.progress import progress_bar
from vitsplit.cli.values import Loading
from vitsplit.cli.words import value_of
from vitsplit.errors import ConfigError


def evaluate_benchmark(
    run: Path,
    name: str,
    data: Path,
    out: Path | None,
    *,
    limit: int | None,
    max_new_tokens: int | None,
    as_json: bool,
    loading: Loading,
) -> int:
    """Answers the questions and prints the metrics; returns the exit status. Arguments: see ``vitsplit evaluate``.

    Raises:
        ConfigError: The benchmark does not exist, or the bundle is not for visual question answering.
    """
    from vitsplit.atomic_files import write_json, writing_to
    from vitsplit.bundle import find_bundle, read_card
    from vitsplit.folder_lock import hold_folder
    from vitsplit.inference.benchmark_run import run_benchmark
    from vitsplit.inference.prediction_log import bundle_ids
    from vitsplit.inference.predictor import load_head
    from vitsplit.tasks.vqa.benchmarks import open_benchmark
    from vitsplit.tasks.vqa.prompts import check_reads_questions

    bundle = find_bundle(run)
    card = read_card(bundle)
    if card.task != "vqa":
        raise ConfigError(f"{bundle}: a bundle for {card.task}, but --benchmark requires one for vqa.")
    check_reads_questions(card.config.task, str(bundle))
    benchmark = open_benchmark(name, data, limit=limit, hint=card.config.task.answer_hint)
    predictor = load_head(run, **loading.arguments())
    title = run.resolve().name
    folder = out or run / f"benchmark-{benchmark.name}"
    made_by = {"bundle": bundle_ids({title: bundle})[title], "precision": str(predictor.backbone.precision)}
    count = len(benchmark.questions)
    with hold_folder(folder), writing_to(folder, "answers"):
        with progress_bar(benchmark.name) as progress:
            bar = progress.add_task("questions", total=count)
            answers = run_benchmark(
                predictor,
                benchmark,
                folder,
                made_by=made_by,
                max_new_tokens=max_new_tokens,
                on_question=lambda: progress.advance(bar),
            )
        report = {
            "benchmark": benchmark.name,
            "data": str(data),
            "questions": count,
            "limit": limit,
            "max_new_tokens": max_new_tokens or benchmark.max_new_tokens,
            "metrics": benchmark.measure(answers),
            **made_by,
        }
        files = benchmark.write(answers, folder, title)
        write_json(folder / "metrics.json", report)
    if as_json:
        print(json.dumps(report))
    else:
        Console().print(table(report, title=f"{title} on {benchmark.name}"))
        for file in files:
            print(f"written: {file}")
    return 0


def table(report: Mapping[str, Any], *, title: str) -> Table:
    """The metrics as a table, with the number of questions in its caption."""
    limit = report["limit"]
    caption = f"{report['questions']} questions"
    if limit is not None:
        caption += f": only the first {limit} (--limit), not a result of the full benchmark"
    rows = list(_flat(report["metrics"]))
    shown = Table(title=title, caption=caption, min_width=len(title) + 4)
    shown.add_column("metric")
    shown.add_column("value", justify="right")
    for name, value in rows:
        shown.add_row(name, f"{value:.2%}" if isinstance(value, float) else str(value))
    if not rows:
        shown.add_row("none: the written file is scored by the benchmark's server or judge", "")
    return shown


def _flat(metrics: Mapping[str, Any], before: str = "") -> Iterator[tuple[str, Any]]:
    for name, value in metrics.items():
        if isinstance(value, Mapping):
            yield from _flat(value, f"{before}{name}: ")
        else:
            yield f"{before}{name}".replace("_", " "), value


def describe_benchmark(argv: Sequence[str]) -> str:
    """Description of the files of the benchmark in the arguments, from the docstring of its reader."""
    name = value_of(argv, "--benchmark")
    if name is None:
        return ""
    from vitsplit.tasks.vqa.benchmarks import BENCHMARKS

    if name not in BENCHMARKS:
        return f"Benchmarks: {', '.join(BENCHMARKS)}."
    reader = BENCHMARKS[name]
    text = inspect.getdoc(reader.func if isinstance(reader, partial) else reader) or ""
    return f"{name}: {text.partition('Raises:')[0].strip()}"
