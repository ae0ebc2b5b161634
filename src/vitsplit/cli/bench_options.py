"""What ``vitsplit bench train-step`` and ``predict`` have in common: their words, and how figures are shown."""

from __future__ import annotations

import argparse
import json
import shlex
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from vitsplit.cli.options import config_from_cli, split_by_method
from vitsplit.cli.values import MAX_CLASSES, side, whole, writable
from vitsplit.engine.override import changed_settings, override
from vitsplit.recipes import recipe

DEFAULT_RECIPE = "ade20k-small"


def bench_parser(verb: str, description: str, *, methods: Sequence[str], batch_size: int) -> argparse.ArgumentParser:
    """A parser with the words of both; ``methods`` and ``batch_size`` are the defaults."""
    parser = argparse.ArgumentParser(
        prog=f"vitsplit bench {verb}",
        usage="%(prog)s [RECIPE] [options]",
        description=description,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        add_help=False,
        allow_abbrev=False,
    )
    parser.add_argument("--methods", nargs="+", default=methods, metavar="NAME[:DECODER]", help=" ".join(methods))
    parser.add_argument("--size", type=side, nargs=2, metavar=("H", "W"), help="of the images; the recipe's crops")
    parser.add_argument(
        "--batch-size", type=whole(1, 2**16), default=batch_size, metavar="N", help=f"images at a time; {batch_size}"
    )
    parser.add_argument(
        "--num-classes", type=whole(1, MAX_CLASSES), metavar="N", help="as many as the recipe's data has"
    )
    parser.add_argument("--warmup", type=whole(0), default=2, metavar="N", help="turns before those that count; 2")
    parser.add_argument("--device", metavar="DEVICE", help="cpu, cuda, cuda:1; the first GPU, else the processor")
    parser.add_argument("--threads", type=whole(1, 1024), metavar="N", help="of the processor; as PyTorch chooses")
    parser.add_argument("--json", action="store_true", help="print the figures as JSON")
    parser.add_argument("--out", type=Path, metavar="FOLDER", help="write JSON, a picture and a page there")
    parser.add_argument("-h", "--help", action="store_true", help="this text, and all settings of training")
    return parser


def read_words(parser: argparse.ArgumentParser, argv: list[str]) -> tuple[Any, argparse.Namespace]:
    """The recipe's settings with those of the words, and the words of the benchmark.

    Settings that only methods other than the recipe's have are in ``own`` of the words, by the method's name.
    """
    named = bool(argv) and not argv[0].startswith("-")
    name = argv[0] if named else DEFAULT_RECIPE
    options, rest = parser.parse_known_args(argv[named:])
    if options.help:
        parser.print_help()
        print(f"\nsettings of {name}:\n")
        rest = [*rest, "--help"]
    prog = f"{parser.prog} {name}"
    base, methods = recipe(name), [label.partition(":")[0] for label in options.methods]
    rest, of_methods = split_by_method(base.flat(base.task.name), rest, methods)
    config = config_from_cli(base, rest, prog=prog)
    options.own = {}
    for method, flags in of_methods.items():
        plain = override(config, {"method": method})
        options.own[method] = changed_settings(plain, config_from_cli(plain, flags, prog=prog))
    return config, options


def measure_and_show(
    measure: Callable[[Callable[[str], None]], Any],
    options: argparse.Namespace,
    *,
    to_json: Callable[[Any], dict[str, Any]],
    describe: Callable[[Any], str],
    tables: Callable[[Any], Sequence[list[list[str]]]],
    write: Callable[..., Path],
    command: Sequence[str],
) -> None:
    """Measures, telling how far it is, and shows the figures.

    Args:
        measure: Measures; is given what tells how far it is.
        options: The words.
        to_json: The figures, JSON-ready.
        describe: What was measured, in words.
        tables: The figures as tables, each a head and rows.
        write: Writes the figures and a page into a folder, with ``command``; returns the page.
        command: The command line that was given.
    """
    import torch
    from rich.console import Console

    from vitsplit.analysis.bench.report import on_screen

    if options.threads is not None:
        torch.set_num_threads(options.threads)
    if options.out is not None:
        writable(options.out)
    progress = Console(stderr=True)
    with progress.status("starting") as status:
        result = measure(status.update)
    if options.json:
        print(json.dumps(to_json(result)))
    else:
        console = Console()
        console.print(describe(result), soft_wrap=True, highlight=False)
        for rows in tables(result):
            if len(rows) > 1:
                console.print(on_screen(rows))
    if options.out is not None:
        page = write(result, options.out, command=shlex.join(command))
        progress.print(f"page: {page}", soft_wrap=True, highlight=False)
