"""``vitsplit predict RUN... IMAGES``: run bundles on images, folders of images and videos."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from vitsplit.cli.loading import add_loading_flags, loading_options
from vitsplit.cli.values import real, side, whole
from vitsplit.errors import ConfigError, DataError
from vitsplit.ranges import MAX_NEW_TOKENS, MAX_SIDE, Range

if TYPE_CHECKING:
    from vitsplit.bundle import Card
    from vitsplit.inference.folder import Summary, Tiling
    from vitsplit.inference.inputs import Input
    from vitsplit.inference.prediction_log import PredictionLog

DESCRIPTION = """\
Runs one or several bundles on images, folders of them and videos. Several bundles that were trained on one backbone
have it in memory once, and one pass of it per image serves them all.

Segmentation writes, per image, NAME_mask.png (class ids, with a palette) and NAME_overlay.jpg; depth NAME_depth.npy
(metres), .png and .jpg; detection NAME_detections.json (COCO results) and NAME_overlay.jpg; visual question answering
NAME_answers.json and .jpg. Where two bundles have a file of the same name, the bundle's name is put into it. A video
becomes NAME_overlay.mp4, without sound; with several bundles their pictures stand side by side.

Questions (--ask) are about a whole image, also where others are cut into tiles, and are not asked about videos. Without
--out the answers are printed.

A command that was stopped goes on where it was. Files that cannot be read are listed at the end, and the exit status
is then 1.

  vitsplit predict runs/first photo.jpg more_photos/ --out predictions
  vitsplit predict runs/rooms runs/depth photos/ --out predictions
  vitsplit predict runs/rooms runs/depth clip.mp4 --out predictions
  vitsplit predict runs/vqa desk.jpg --ask "What is on the desk?" --ask "What colour is it?"
  vitsplit predict runs/rooms runs/vqa photos/ --ask "How many chairs are there?" --out predictions
"""


def main(argv: list[str]) -> int:
    """Runs the verb."""
    options = _parser().parse_intermixed_args(argv)

    from vitsplit.inference.folder import Summary, Tiling
    from vitsplit.inference.inputs import find_inputs, split_runs
    from vitsplit.inference.loading import read_bundles
    from vitsplit.inference.prediction_log import PredictionLog, bundle_ids
    from vitsplit.inference.video import require_av

    runs, words = split_runs(options.words)
    bundles = read_bundles(runs)
    _check_questions({name: card for name, (_, card) in bundles.items()}, options)
    inputs = find_inputs(words, options.out and Path(options.out))
    if options.out is None:
        return _print_answers(runs, inputs, options)
    for item in inputs:
        if item.is_video:
            require_av(item.path)
    names = ("precision", "tile", "overlap", "scale", "ask", "max_new_tokens")
    settings = {name: getattr(options, name) for name in names}
    made_by = {
        "bundles": bundle_ids({name: folder for name, (folder, _) in bundles.items()}),
        **{name: value for name, value in settings.items() if value is not None},
    }
    # Before a folder is made: what cannot be done leaves none.
    tiling = Tiling(
        options.tile and tuple(options.tile), options.overlap, 1.0 if options.scale is None else options.scale
    )
    with PredictionLog.open(Path(options.out), made_by, overwrite=options.overwrite) as log:
        todo = [item for item in inputs if not log.is_done(item)]
        summary = _predict(runs, todo, log, tiling, options) if todo else Summary()
    _report(summary, len(inputs), len(inputs) - len(todo), options.out)
    return 1 if summary.failed else 0


def _predict(
    runs: Sequence[str], todo: Sequence[Input], log: PredictionLog, tiling: Tiling, options: argparse.Namespace
) -> Summary:
    from vitsplit.inference.folder import FolderWriter
    from vitsplit.inference.predictor import load_predictor

    model = load_predictor(runs, **loading_options(options))
    with _Bars(len(todo)) as bars:
        writer = FolderWriter(
            model,
            log,
            batch_size=options.batch_size,
            tiling=tiling,
            questions=options.ask or (),
            max_new_tokens=options.max_new_tokens,
            on_done=bars.done,
            on_part=lambda item, done, total: bars.part(item.path.name, done, total),
        )
        summary = writer.run(todo)
    if len(model) > 1 and model.passes:
        print(f"passes of {model.backbone.name} (height x width): {model.describe_passes()}")
    return summary


def _check_questions(cards: Mapping[str, Card], options: argparse.Namespace) -> None:
    """Questions and bundles that answer them must come together, and what is drawn must go somewhere."""
    from vitsplit.inference.asking import check_questions, names_to_ask

    asked = names_to_ask(cards)
    others = [name for name in cards if name not in asked]
    if asked and not options.ask:
        raise ConfigError(f'{asked[0]} answers questions, and there is none. Add --ask "What is on the desk?"')
    if options.ask and not asked:
        raise ConfigError(f"--ask: none of the bundles answers questions ({', '.join(others)}). Name one of vqa too.")
    if options.max_new_tokens is not None and not asked:
        raise ConfigError("--max-new-tokens is of answers to --ask, and none of the bundles answers questions.")
    check_questions(options.ask or ())
    if options.out is None and others:
        raise ConfigError(
            f"Where should the results of {', '.join(others)} go? Give a folder with --out. "
            "Only answers to --ask are printed without it."
        )
    for name in asked:
        if cards[name].config.task.conversation == "plain":
            print(f"{name} was trained on captions alone (plain): it reads no question", file=sys.stderr)


def _print_answers(runs: Sequence[str], inputs: Sequence[Input], options: argparse.Namespace) -> int:
    """Asks about one image after the other, and prints every answer under its question."""
    from vitsplit.inference.asking import read_whole
    from vitsplit.inference.predictor import load_predictor

    model = load_predictor(runs, **loading_options(options))
    failed = 0
    for item in inputs:
        try:
            if item.is_video:
                raise DataError(f"{item.path}: questions are not asked about videos. Ask about an image out of it.")
            image_CHW = read_whole(item.path)
        except (DataError, ConfigError) as error:
            print(f"skipped: {error}", file=sys.stderr)
            failed += 1
            continue
        for name, prediction in model.predict(image_CHW).items():
            heading = [str(item.path)] * (len(inputs) > 1) + [name] * (len(model) > 1)
            if heading:
                print(": ".join(heading))
            answers = prediction.ask_many(options.ask, max_new_tokens=options.max_new_tokens)
            for question, answer in zip(options.ask, answers, strict=True):
                print(f"{question}\n  {answer}", flush=True)
    return 1 if failed else 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="vitsplit predict",
        usage="vitsplit predict RUN [RUN ...] IMAGE|FOLDER|VIDEO [...] [--out FOLDER] [options]",
        description=DESCRIPTION,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument(
        "words",
        metavar="RUN ... IMAGE ...",
        nargs="+",
        help="first run folders (their best bundles) or bundle folders; then images, folders of them, and videos",
    )
    parser.add_argument("--out", metavar="FOLDER", help="where to write; answers to --ask are printed without it")
    parser.add_argument(
        "--ask", action="append", metavar="QUESTION", help="of bundles of visual question answering; may be repeated"
    )
    parser.add_argument(
        "--max-new-tokens",
        type=whole(1, MAX_NEW_TOKENS),
        metavar="N",
        help="the most tokens of an answer; default: the bundle's",
    )
    parser.add_argument(
        "--overwrite", action="store_true", help="predict anew what is there; results of other bundles are removed"
    )
    parser.add_argument(
        "--batch-size",
        type=whole(1, 2**16),
        metavar="N",
        help="images of equal size that go through the network together; default: 1 on a processor, and up to 8 on a "
        "GPU, fewer where they are large",
    )
    parser.add_argument(
        "--tile",
        type=side,
        nargs=2,
        metavar=("H", "W"),
        help="cut every image into tiles of this size; default: only images of more than 50 million pixels",
    )
    parser.add_argument(
        "--overlap", type=whole(0, MAX_SIDE), metavar="PIXELS", help="of tiles; default: a quarter of their side"
    )
    parser.add_argument(
        "--scale", type=real(Range(0.01, 16)), help="factor on images that are cut into tiles (default: 1)"
    )
    add_loading_flags(parser)
    return parser


def _report(summary: Summary, inputs: int, skipped: int, out: str) -> None:
    kind = f"files ({summary.frames} frames of video, written without sound)" if summary.frames else "images"
    before = f", {skipped} of them predicted before" if skipped else ""
    print(f"{summary.done + skipped} of {inputs} {kind}{before}: {out}")
    for message in summary.failed:
        print(f"skipped: {message}", file=sys.stderr)


class _Bars:
    """One bar for the inputs, and one for the tiles or frames of the present one."""

    def __init__(self, total: int) -> None:
        columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
        self._progress = Progress(*columns, console=Console(stderr=True), transient=True)
        self._files = self._progress.add_task("predicting", total=total)
        self._parts = self._progress.add_task("", total=None, visible=False)

    def __enter__(self) -> _Bars:
        self._progress.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._progress.stop()

    def done(self) -> None:
        """One more input is done."""
        self._progress.advance(self._files)
        self._progress.update(self._parts, visible=False)

    def part(self, name: str, done: int, total: int | None) -> None:
        """So many tiles or frames of an input are done."""
        self._progress.update(self._parts, description=name, completed=done, total=total, visible=True)
