"""``vitsplit evaluate RUN --benchmark NAME``: ask a bundle the questions of a public benchmark."""

from __future__ import annotations

import argparse
import inspect
import json
from collections.abc import Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from rich.table import Table

from vitsplit.cli.loading import add_loading_flags, loading_options
from vitsplit.cli.values import positive, whole
from vitsplit.errors import ConfigError
from vitsplit.ranges import MAX_NEW_TOKENS

DESCRIPTION = """\
Asks a bundle of visual question answering the questions of a public benchmark, with LLaVA-1.5's prompts, and measures
its answers as the benchmark's own script does: figures on the screen and in metrics.json, and the files that its server
or judge reads. Answers are kept in answers.jsonl as they come: a command that was stopped goes on where it was.

The data are the official files; a folder that is laid out as LLaVA-1.5's evaluation wants it is understood.

  vitsplit evaluate runs/vqa --benchmark pope --data pope
  vitsplit evaluate runs/vqa --benchmark vqav2 --data vqav2/v2_OpenEnded_mscoco_test-dev2015_questions.json
  vitsplit evaluate runs/vqa --benchmark daquar --data my_rooms/daquar_val.jsonl --limit 100
"""


def main(argv: list[str]) -> int:
    """Runs the verb with ``--benchmark``."""
    options = _parser(_named(argv)).parse_args(argv)

    from vitsplit.atomic_files import write_json, writing_to
    from vitsplit.bundle import find_bundle, read_card
    from vitsplit.engine.folder_lock import hold_folder
    from vitsplit.inference.prediction_log import bundle_ids
    from vitsplit.inference.predictor import load_head
    from vitsplit.tasks.vqa.benchmarks import open_benchmark, run_benchmark
    from vitsplit.tasks.vqa.prompts import check_reads_questions

    bundle = find_bundle(options.run)
    card = read_card(bundle)
    if card.task != "vqa":
        raise ConfigError(
            f"{bundle}: a bundle of {card.task}; a benchmark asks one of visual question answering (vqa)."
        )
    check_reads_questions(card.config.task, str(bundle))
    benchmark = open_benchmark(options.benchmark, options.data, limit=options.limit, hint=card.config.task.answer_hint)
    predictor = load_head(options.run, **loading_options(options))
    name = Path(options.run).resolve().name
    folder = Path(options.out) if options.out else Path(options.run) / f"benchmark-{benchmark.name}"
    made_by = {"bundle": bundle_ids({name: bundle})[name], "precision": str(predictor.backbone.precision)}
    count = len(benchmark.questions)
    columns = (TextColumn(benchmark.name), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with hold_folder(folder), writing_to(folder, "answers"):
        with Progress(*columns, console=Console(stderr=True), transient=True) as progress:
            bar = progress.add_task("questions", total=count)
            answers = run_benchmark(
                predictor,
                benchmark,
                folder,
                made_by=made_by,
                max_new_tokens=options.max_new_tokens,
                on_question=lambda: progress.advance(bar),
            )
        report = {
            "benchmark": benchmark.name,
            "data": str(options.data),
            "questions": count,
            "limit": options.limit,
            "max_new_tokens": options.max_new_tokens or benchmark.max_new_tokens,
            "metrics": benchmark.measure(answers),
            **made_by,
        }
        files = benchmark.write(answers, folder, name)
        write_json(folder / "metrics.json", report)
    if options.json:
        print(json.dumps(report))
    else:
        Console().print(table(report, title=f"{name} on {benchmark.name}"))
        for file in files:
            print(f"written: {file}")
    return 0


def table(report: Mapping[str, Any], *, title: str) -> Table:
    """The figures for the screen. Under them stands how many questions were asked, and whether that is all."""
    limit = report["limit"]
    said = f"{report['questions']} questions"
    if limit is not None:
        said += f": only the first {limit} (--limit), so this is no figure of the benchmark"
    rows = list(_flat(report["metrics"]))
    shown = Table(title=title, caption=said, min_width=len(title) + 4)
    shown.add_column("metric")
    shown.add_column("value", justify="right")
    for name, value in rows:
        shown.add_row(name, f"{value:.2%}" if isinstance(value, float) else str(value))
    if not rows:
        shown.add_row("none here: its server or judge reads the written file", "")
    return shown


def _flat(metrics: Mapping[str, Any], before: str = "") -> Iterator[tuple[str, Any]]:
    for name, value in metrics.items():
        if isinstance(value, Mapping):
            yield from _flat(value, f"{before}{name}: ")
        else:
            yield f"{before}{name}".replace("_", " "), value


def _named(argv: Sequence[str]) -> str | None:
    """The benchmark that the words name, before they are read as a whole."""
    parser = argparse.ArgumentParser(add_help=False, allow_abbrev=False, exit_on_error=False)
    parser.add_argument("--benchmark", nargs="?")
    return parser.parse_known_args(argv)[0].benchmark


def _expects(name: str) -> str:
    """What the files of a benchmark are: the words of the function that reads them."""
    from vitsplit.tasks.vqa.benchmarks import BENCHMARKS

    opens = BENCHMARKS[name]
    words = inspect.getdoc(opens.func if isinstance(opens, partial) else opens) or ""
    return f"{name}: {words.partition('Raises:')[0].strip()}"


def _parser(name: str | None) -> argparse.ArgumentParser:
    from vitsplit.tasks.vqa.benchmarks import BENCHMARKS

    parser = argparse.ArgumentParser(
        prog="vitsplit evaluate",
        usage="vitsplit evaluate RUN --benchmark NAME --data PATH [options]",
        description=DESCRIPTION,
        epilog=_expects(name) if name in BENCHMARKS else None,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    parser.add_argument("run", metavar="RUN", help="a run folder (its best bundle) or a bundle folder")
    parser.add_argument("--benchmark", metavar="NAME", required=True, help=f"one of {', '.join(BENCHMARKS)}")
    parser.add_argument(
        "--data", metavar="PATH", required=True, help="the benchmark's folder, or its file of questions"
    )
    parser.add_argument("--out", metavar="FOLDER", help="where to write; default: benchmark-NAME in the run")
    parser.add_argument(
        "--max-new-tokens",
        type=whole(1, MAX_NEW_TOKENS),
        metavar="N",
        help="the most tokens of an answer; default: LLaVA-1.5's",
    )
    parser.add_argument(
        "--limit", type=positive, metavar="N", help="ask only the first questions (of pope, of every category)"
    )
    parser.add_argument("--json", action="store_true", help="print the figures as JSON instead of the table")
    add_loading_flags(parser)
    return parser
