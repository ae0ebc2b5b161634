"""``vitsplit predict RUN... IMAGES``: runs bundles on images, folders of images and videos."""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import tyro
from pydantic import Field

from vitsplit.cli.progress import progress_bar
from vitsplit.cli.values import BatchSize, ImageSize, Loading, Switch
from vitsplit.cluster.options import RayOptions
from vitsplit.config import Margin, MaxNewTokens, Share
from vitsplit.errors import ConfigError, DataError
from vitsplit.files import exists
from vitsplit.inference.label_tools import ExportFormat
from vitsplit.runtime.card import is_export

if TYPE_CHECKING:
    from vitsplit.bundle import Card
    from vitsplit.inference.folder import Summary
    from vitsplit.inference.inputs import Input


def predict(
    paths: tyro.conf.Positional[Annotated[tuple[str, ...], tyro.conf.arg(metavar="RUN ... IMAGE ...")]],
    /,
    out: Path | None = None,
    ask: tyro.conf.UseAppendAction[tuple[str, ...]] = (),
    max_new_tokens: MaxNewTokens | None = None,
    overwrite: Switch = False,
    shard: Annotated[str | None, tyro.conf.arg(metavar="I/N")] = None,
    batch_size: BatchSize | None = None,
    tile: ImageSize | None = None,
    overlap: Margin | None = None,
    scale: Annotated[float, Field(ge=0.01, le=16)] | None = None,
    export_format: ExportFormat | None = None,
    export_score: Share | None = None,
    runtime: Literal["torch", "onnx", "openvino"] | None = None,
    engine: Literal["local", "ray"] = "local",
    dry_run: Switch = False,
    ray: RayOptions = RayOptions(),  # noqa: B008  (frozen)
    loading: Loading = Loading(),  # noqa: B008  (frozen)
) -> int:
    """Run one or several bundles, or exported folders, on images, folders of images and videos.

    Several bundles must be of one backbone, which is in memory once and runs once per image and input size. A folder
    that `vitsplit export` has written is used like its bundles, by ONNX Runtime or OpenVINO on the CPU.

    Segmentation writes, per image, NAME_mask.png (class ids, with a palette) and NAME_overlay.jpg; depth NAME_depth.npy
    (meters), .png and .jpg; detection NAME_detections.json (COCO results) and NAME_overlay.jpg; visual question
    answering NAME_answers.json and .jpg. If several bundles write files of the same name, the bundle's name is
    inserted. A video becomes NAME_overlay.mp4, without sound, with the overlays of several bundles in a grid.

    Questions (--ask) are about a whole image, even if it is split into tiles for other bundles. Videos are not
    supported. Without --out, answers are printed.

    --export-format also writes the masks and boxes of all images for a label tool (docs/label-tools.md), once they are
    predicted: HEAD_coco.json, HEAD_cvat.xml, HEAD_label-studio.json, or the folder HEAD_fiftyone.

    The same command resumes predictions that were stopped. Unreadable files are listed at the end; the exit status is
    then 1.

    Examples:
        vitsplit predict runs/first photo.jpg more_photos/ --out predictions
        vitsplit predict runs/rooms runs/depth photos/ --out predictions
        vitsplit predict runs/rooms runs/depth clip.mp4 --out predictions
        vitsplit predict exported photos/ --out predictions
        vitsplit predict runs/rooms photos/ --out predictions --runtime openvino
        vitsplit predict runs/vqa desk.jpg --ask "What is on the desk?" --ask "What color is it?"
        vitsplit predict runs/rooms runs/vqa photos/ --ask "How many chairs are there?" --out predictions
        vitsplit predict runs/rooms photos/ --out predictions --shard 1/8
        vitsplit predict runs/rooms photos/ --out predictions --export-format cvat
        vitsplit predict runs/rooms runs/depth photos/ --engine ray --out table --num-actors 2

    Args:
        paths: Run folders (their best bundles) or bundle folders, or exported folders, followed by images, folders of
            images, and videos.
        out: Output folder; None: answers to --ask are printed.
        ask: A question, for bundles of visual question answering; can be repeated.
        max_new_tokens: Maximum number of tokens of an answer; None: the bundle's setting.
        overwrite: Predict everything again; results of other bundles are removed.
        shard: Predict the I-th of N disjoint parts of the inputs only, such as 1/8. The parts can be predicted into one
            folder at the same time; the command without --shard then merges their logs, and predicts what is missing.
        batch_size: Batch size, for images of equal size; None: 1 on a CPU, up to 8 on a GPU, depending on the image
            size.
        tile: Height and width of tiles, for all images; None: only images of more than 50 million pixels are split
            into tiles.
        overlap: Overlap of tiles in pixels; None: a quarter of their shorter side.
        scale: Scale factor for images that are split into tiles; None: 1.
        export_format: Label tool to write the predictions for, as pre-annotations; for segmentation and detection.
        export_score: Minimum score of objects for --export-format; None: 0.5, as in overlays.
        runtime: PyTorch, ONNX Runtime or OpenVINO. Bundles are exported for the last two, on the CPU in fp32, and the
            export is kept in the cache. None: PyTorch for bundles; for an exported folder its first format that is
            installed.
        engine: local: files per image, in this process. ray: Parquet files with one row per image, by Ray on this
            machine or a cluster (docs/scale.md); inputs can also be lists (.txt), Parquet files and tar files.
        dry_run: With --engine ray, print an estimate of time, disk and cost from a few measured images.
        ray: Settings of Ray.
        loading: Loading options.
    """
    from vitsplit.exporting.cache import find_source_for
    from vitsplit.inference.folder import FolderWriter, Summary, Tiling
    from vitsplit.inference.inputs import find_inputs, split_runs
    from vitsplit.inference.label_tools.export import check_export, write_labels
    from vitsplit.inference.prediction_log import PredictionLog
    from vitsplit.inference.shard import Shard
    from vitsplit.inference.video import require_av

    part = None if shard is None else Shard.parse(shard)
    _check_export_flags(export_format, export_score, shard, out)
    if part is not None and overwrite:
        raise ConfigError("--overwrite removes results that other shards may be writing. Give a new folder with --out.")
    runs, input_paths = split_runs(paths)
    if engine == "local" and (dry_run or ray != RayOptions()):
        raise ConfigError("Options of Ray (--num-actors and others, --dry-run) require --engine ray.")
    source = find_source_for(runs, runtime, say=lambda line: print(line, file=sys.stderr), **loading.arguments())
    _check_questions(source.cards, ask, max_new_tokens, has_folder=out is not None)
    if export_format is not None:
        check_export(export_format, source.cards)
    settings = {
        "precision": loading.precision,
        "runtime": runtime,
        "tile": tile and list(tile),
        "overlap": overlap,
        "scale": scale,
        "ask": list(ask) or None,
        "max_new_tokens": max_new_tokens,
    }
    made_by: dict[str, Any] = {name: value for name, value in settings.items() if value is not None}
    if engine == "ray":
        from vitsplit.cli.predict_ray import predict_with_ray
        from vitsplit.files import is_address

        given = {"--tile": tile, "--overlap": overlap, "--scale": scale, "--shard": shard}
        table = _check_table(runs, out, given | {"--export-format": export_format}, runtime)
        predictor = {
            "bundles": [run if is_address(run) else str(Path(run).absolute()) for run in runs],
            "questions": ask,
            "max_new_tokens": max_new_tokens,
            "batch_size": batch_size,
            **_with_absolute_paths(loading),
            **({} if runtime in (None, "torch") else {"runtime": runtime}),
        }
        made_by = {"bundles": source.ids()} | made_by
        return predict_with_ray(input_paths, table, made_by, predictor, ray, overwrite=overwrite, dry_run=dry_run)
    inputs = find_inputs(input_paths, out)
    if part is not None:
        inputs = part.of(inputs)
    if out is None:
        return _print_answers(source.load(), inputs, ask, max_new_tokens)
    for item in inputs:
        if item.is_video:
            require_av(item.path)
    made_by = {"bundles": source.ids()} | made_by
    # Checked before the output folder is created.
    tiling = Tiling(tile, overlap, 1.0 if scale is None else scale)
    with PredictionLog.open(out, made_by, overwrite=overwrite, shard=part) as log:
        todo = [item for item in inputs if not log.is_done(item)]
        summary = Summary()
        if todo:
            model = source.load()
            with _ProgressBars(len(todo)) as bars:
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
        else:
            log.begin()
            log.close()
        if export_format is not None:
            videos = sum(item.is_video for item in inputs)
            for file in write_labels(export_format, source.cards, inputs, log, export_score):
                print(f"labels for {export_format}{f' (videos left out: {videos})' * (videos > 0)}: {file}")
    _report(summary, len(inputs), len(inputs) - len(todo), out)
    return 1 if summary.failed else 0


def _check_export_flags(kind: str | None, score: float | None, shard: str | None, out: Path | None) -> None:
    """Checks that ``--export-format`` and other flags fit together."""
    if kind is None and score is not None:
        raise ConfigError(f"--export-score {score} requires --export-format. Give it, or omit both.")
    if kind is not None and shard is not None:
        raise ConfigError(f"--export-format {kind} is for all images: give it to the command without --shard.")
    if kind is not None and out is None:
        raise ConfigError(f"Missing required option --out: the output folder for --export-format {kind}.")


def _check_table(runs: Sequence[str], out: Path | None, given: Mapping[str, Any], runtime: str | None) -> Path:
    """Checks the arguments of ``--engine ray``; returns the output folder."""
    if out is None:
        raise ConfigError("Missing required option --out: the output folder for the Parquet files.")
    for flag, value in given.items():
        if value is not None:
            raise ConfigError(f"{flag} is not available with --engine ray. Omit one of them.")
    if runtime not in (None, "torch") and not is_export(runs[0]):
        raise ConfigError(f"--engine ray --runtime {runtime}: requires an exported folder (`vitsplit export`).")
    return out


def _with_absolute_paths(loading: Loading) -> dict[str, Any]:
    """Arguments of ``vitsplit.load`` for processes with another current folder; weights may also be names."""
    found = loading.arguments()
    for name in ("weights", "language_weights"):
        if found[name] is not None and exists(Path(found[name])):
            found[name] = str(Path(found[name]).absolute())
    return found


def _check_questions(
    cards: Mapping[str, Card], ask: Sequence[str], max_new_tokens: int | None, *, has_folder: bool
) -> None:
    """Checks that questions, bundles and ``--out`` fit together."""
    from vitsplit.inference.asking import check_questions, vqa_heads

    vqa = vqa_heads(cards)
    others = [name for name in cards if name not in vqa]
    if vqa and not ask:
        raise ConfigError(f'Missing required option --ask for {vqa[0]}, such as --ask "What is on the desk?"')
    if ask and not vqa:
        raise ConfigError(f"--ask requires a bundle for vqa, but these are given: {', '.join(others)}.")
    if max_new_tokens is not None and not vqa:
        raise ConfigError("--max-new-tokens requires a bundle for vqa. Omit it.")
    check_questions(ask)
    if not has_folder and others:
        raise ConfigError(f"Missing required option --out: the output folder for the results of {', '.join(others)}.")
    for name in vqa:
        if cards[name].config.task.conversation == "plain":
            print(f"{name} was trained on captions only (plain) and ignores questions", file=sys.stderr)


def _print_answers(model: Any, inputs: Sequence[Input], ask: Sequence[str], max_new_tokens: int | None) -> int:
    """Prints questions and answers for each image."""
    from vitsplit.inference.asking import read_whole

    failed = 0
    for item in inputs:
        try:
            if item.is_video:
                raise DataError(f"{item.path}: questions about videos are not supported. Use a frame of the video.")
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
    before = f", {skipped} of them predicted earlier" if skipped else ""
    print(f"{summary.done + skipped} of {inputs} {kind}{before}: {out}")
    for message in summary.failed:
        print(f"skipped: {message}", file=sys.stderr)


class _ProgressBars:
    """Progress bars for the inputs, and for the tiles or frames of the current input."""

    def __init__(self, total: int) -> None:
        self._progress = progress_bar()
        self._files = self._progress.add_task("predicting", total=total)
        self._parts = self._progress.add_task("", total=None, visible=False)

    def __enter__(self) -> _ProgressBars:
        self._progress.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._progress.stop()

    def done(self) -> None:
        """Advances the bar of the inputs."""
        self._progress.advance(self._files)
        self._progress.update(self._parts, visible=False)

    def part(self, name: str, done: int, total: int | None) -> None:
        """Updates the bar of the tiles or frames."""
        self._progress.update(self._parts, description=name, completed=done, total=total, visible=True)
