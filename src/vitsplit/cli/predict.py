"""``vitsplit predict RUN... IMAGES``: run bundles on images, folders of images and videos."""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import tyro
from pydantic import Field
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from vitsplit.cli.values import BatchSize, ImageSize, Loading, Switch
from vitsplit.config import Margin, MaxNewTokens
from vitsplit.errors import ConfigError, DataError

if TYPE_CHECKING:
    from vitsplit.bundle import Card
    from vitsplit.inference.folder import Summary
    from vitsplit.inference.inputs import Input


def predict(
    words: tyro.conf.Positional[Annotated[tuple[str, ...], tyro.conf.arg(metavar="RUN ... IMAGE ...")]],
    /,
    out: Path | None = None,
    ask: tyro.conf.UseAppendAction[tuple[str, ...]] = (),
    max_new_tokens: MaxNewTokens | None = None,
    overwrite: Switch = False,
    batch_size: BatchSize | None = None,
    tile: ImageSize | None = None,
    overlap: Margin | None = None,
    scale: Annotated[float, Field(ge=0.01, le=16)] | None = None,
    loading: Loading = Loading(),  # noqa: B008  (frozen)
) -> int:
    """Run one or several bundles on images, folders of them and videos.

    Several bundles that were trained on one backbone have it in memory once, and one pass of it per image serves them
    all.

    Segmentation writes, per image, NAME_mask.png (class ids, with a palette) and NAME_overlay.jpg; depth NAME_depth.npy
    (metres), .png and .jpg; detection NAME_detections.json (COCO results) and NAME_overlay.jpg; visual question
    answering NAME_answers.json and .jpg. Where two bundles have a file of the same name, the bundle's name is put into
    it. A video becomes NAME_overlay.mp4, without sound; with several bundles their pictures stand side by side.

    Questions (--ask) are about a whole image, also where others are cut into tiles, and are not asked about videos.
    Without --out the answers are printed.

    A command that was stopped continues where it was. Files that cannot be read are listed at the end, and the exit
    status is then 1.

    Examples:
        vitsplit predict runs/first photo.jpg more_photos/ --out predictions
        vitsplit predict runs/rooms runs/depth photos/ --out predictions
        vitsplit predict runs/rooms runs/depth clip.mp4 --out predictions
        vitsplit predict runs/vqa desk.jpg --ask "What is on the desk?" --ask "What colour is it?"
        vitsplit predict runs/rooms runs/vqa photos/ --ask "How many chairs are there?" --out predictions

    Args:
        words: First run folders (their best bundles) or bundle folders; then images, folders of them, and videos.
        out: Folder to write to; without it answers to --ask are printed.
        ask: A question, for bundles of visual question answering; may be repeated.
        max_new_tokens: The most tokens of an answer; None: the bundle's.
        overwrite: Predict again what is there; results of other bundles are removed.
        batch_size: Images of equal size that go through the network together; None: 1 on a CPU, and up to 8 on a GPU,
            fewer where they are large.
        tile: Height and width of tiles that every image is cut into; None: only images of more than 50 million pixels
            are cut.
        overlap: Pixels that tiles have in common; None: a quarter of their side.
        scale: Factor on images that are cut into tiles; None: 1.
        loading: How the bundles are loaded.
    """
    from vitsplit.inference.folder import FolderWriter, Summary, Tiling
    from vitsplit.inference.inputs import find_inputs, split_runs
    from vitsplit.inference.loading import read_bundles
    from vitsplit.inference.prediction_log import PredictionLog, bundle_ids
    from vitsplit.inference.predictor import load_predictor
    from vitsplit.inference.video import require_av

    runs, paths = split_runs(words)
    bundles = read_bundles(runs)
    cards = {name: card for name, (_, card) in bundles.items()}
    _check_questions(cards, ask, max_new_tokens, has_folder=out is not None)
    inputs = find_inputs(paths, out)
    load = partial(load_predictor, runs, **loading.arguments())
    if out is None:
        return _print_answers(load(), inputs, ask, max_new_tokens)
    for item in inputs:
        if item.is_video:
            require_av(item.path)
    made_by: dict[str, Any] = {"bundles": bundle_ids({name: folder for name, (folder, _) in bundles.items()})}
    settings = {
        "precision": loading.precision,
        "tile": tile and list(tile),
        "overlap": overlap,
        "scale": scale,
        "ask": list(ask) or None,
        "max_new_tokens": max_new_tokens,
    }
    made_by |= {name: value for name, value in settings.items() if value is not None}
    # Before a folder is made: what cannot be done leaves none.
    tiling = Tiling(tile, overlap, 1.0 if scale is None else scale)
    with PredictionLog.open(out, made_by, overwrite=overwrite) as log:
        todo = [item for item in inputs if not log.is_done(item)]
        summary = Summary()
        if todo:
            model = load()
            with _Bars(len(todo)) as bars:
                writer = FolderWriter(
                    model,
                    log,
                    batch_size=batch_size,
                    tiling=tiling,
                    questions=ask,
                    max_new_tokens=max_new_tokens,
                    on_done=bars.done,
                    on_part=lambda item, done, total: bars.part(item.path.name, done, total),
                )
                summary = writer.run(todo)
            if len(model) > 1 and model.passes:
                print(f"passes of {model.backbone.name} (height x width): {model.describe_passes()}")
    _report(summary, len(inputs), len(inputs) - len(todo), out)
    return 1 if summary.failed else 0


def _check_questions(
    cards: Mapping[str, Card], ask: Sequence[str], max_new_tokens: int | None, *, has_folder: bool
) -> None:
    """Questions and bundles that answer them must come together, and what is drawn must go somewhere."""
    from vitsplit.inference.asking import check_questions, names_to_ask

    asked = names_to_ask(cards)
    others = [name for name in cards if name not in asked]
    if asked and not ask:
        raise ConfigError(f'{asked[0]} answers questions, and there is none. Add --ask "What is on the desk?"')
    if ask and not asked:
        raise ConfigError(f"--ask: none of the bundles answers questions ({', '.join(others)}). Name one of vqa too.")
    if max_new_tokens is not None and not asked:
        raise ConfigError("--max-new-tokens is of answers to --ask, and none of the bundles answers questions.")
    check_questions(ask)
    if not has_folder and others:
        raise ConfigError(
            f"Missing required option --out: a folder for the results of {', '.join(others)}. Only answers to --ask "
            "are printed without it."
        )
    for name in asked:
        if cards[name].config.task.conversation == "plain":
            print(f"{name} was trained on captions alone (plain): it reads no question", file=sys.stderr)


def _print_answers(model: Any, inputs: Sequence[Input], ask: Sequence[str], max_new_tokens: int | None) -> int:
    """Asks about one image after the other, and prints every answer under its question."""
    from vitsplit.inference.asking import read_whole

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
            answers = prediction.ask_many(ask, max_new_tokens=max_new_tokens)
            for question, answer in zip(ask, answers, strict=True):
                print(f"{question}\n  {answer}", flush=True)
    return 1 if failed else 0


def _report(summary: Summary, inputs: int, skipped: int, out: Path) -> None:
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
