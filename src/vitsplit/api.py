"""The public functions: train, evaluate, load, predict, export, serve. The command line uses them too."""

from __future__ import annotations

import logging
import shlex
import shutil
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from vitsplit.analysis.short_runs import begin_run, with_choice_of
from vitsplit.atomic_files import write_json
from vitsplit.bundle import WEIGHTS
from vitsplit.config import Precision
from vitsplit.engine.assemble import assemble
from vitsplit.engine.evaluation import evaluate as evaluate_task
from vitsplit.engine.evaluation import images_at_once
from vitsplit.engine.override import override
from vitsplit.engine.processes import process_state
from vitsplit.engine.run_folder import RunFolder
from vitsplit.engine.sharding import check_sharding
from vitsplit.engine.tracking import log_to, standard_output
from vitsplit.engine.trainer import Trainer
from vitsplit.errors import BundleError, ConfigError
from vitsplit.exporting.formats import FormatName, file_hash
from vitsplit.exporting.formats import Precision as ExportPrecision
from vitsplit.exporting.graph import Layout
from vitsplit.exporting.scores import Labeled
from vitsplit.exporting.writing import DeformChoice, ExportPlan, ExportResult, export_graphs, load_float32
from vitsplit.folder_lock import hold_folder
from vitsplit.inference.loading import read_bundles
from vitsplit.inference.predictor import LoadedHead, Predictions, Predictor, single_head
from vitsplit.inference.sources import find_head, find_source
from vitsplit.recipes import recipe as named_recipe
from vitsplit.recipes.starting_point import stage_file, starting_config, starting_heads
from vitsplit.runtime.sessions import RuntimeName
from vitsplit.saved_config import config_to_dict
from vitsplit.serving.limits import Limits
from vitsplit.tasks import open_task
from vitsplit.tasks.base import Evaluation, Task
from vitsplit.train_config import TrainConfig

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class TrainResult:
    """The result of ``train``.

    Attributes:
        run: The run folder. ``run / "best"`` is the best bundle, or contains one per head for several heads.
        metrics: Metrics of the best evaluation; by head for several heads.
        stopped_by: Name of the signal that stopped the run early, or None.

    Example:
        >>> result = vitsplit.train(data="my_data", out="runs/first")  # doctest: +SKIP
        >>> result.metrics["miou"], result.run / "best"  # doctest: +SKIP
        (0.83, PosixPath('runs/first/best'))
    """

    run: Path
    metrics: Mapping[str, Any]
    stopped_by: str | None


def train(
    config: TrainConfig | None = None,
    *,
    data: str | Path | Mapping[str, str | Path | tuple[str, str | Path]],
    task: str | None = None,
    recipe: str | None = None,
    out: str | Path | None = None,
    resume: bool = False,
    allow_changed_data: bool = False,
    layers: Literal["recipe", "auto"] = "recipe",
    max_minutes: float | None = None,
    max_head_gmacs: float | None = None,
    **settings: Any,
) -> TrainResult:
    """Trains a head bundle, or several heads on the same images, with one pass of the backbone per batch.

    Args:
        config: A complete configuration; None: that of the recipe, or of the run to resume.
        data: Folder of the data set; for several heads, a mapping from head names to folders. The name of a head is
            its task, or any name if the task is given too: ``{"rooms": ("segmentation", "my_data")}``.
        task: The task if ``data`` is one folder; None: that of the recipe, or segmentation.
        recipe: Name of the recipe to start from if ``data`` is one folder; None: the task's laptop recipe.
        out: The run folder; None: a new one under ``runs/``.
        resume: Resume the run in ``out``, with the same result as an uninterrupted run.
        allow_changed_data: Resume although files of the data set have changed; changes are logged.
        layers: K_t and the tuning of the copied blocks: those of the configuration (``recipe``), or those that short
            runs on the training data choose (``auto``), the last of which is continued. They take at most a fifth of
            ``max_minutes`` or, without it, of the steps. A resumed run keeps its layers.
        max_minutes: Set the number of steps so that training, with the choice of layers and without evaluations, takes
            this time on this machine.
        max_head_gmacs: With ``layers="auto"``: the most multiply-adds, in 10^9 per image, that one more head may take
            on a shared pass.
        settings: Fields of the configuration by name, such as ``steps=1000`` or ``crop_size=(448, 448)``. They apply to
            all heads; fields of one head are given under its name: ``depth={"lr": 3e-4}``.

    Returns:
        The run and the metrics of its best bundle.

    Raises:
        VitsplitError: Settings, data, weights or the run folder are invalid; the message names the remedy.

    Example:
        >>> result = vitsplit.train(data="my_data", out="runs/first", steps=500)  # doctest: +SKIP
        >>> heads = {"rooms": ("segmentation", "my_rooms"), "parts": ("segmentation", "my_parts"), "depth": "my_depth"}
        >>> result = vitsplit.train(data=heads, out="runs/all", depth={"lr": 3e-4})  # doctest: +SKIP
    """
    if resume and out is None:
        raise ConfigError("Missing required option --out: the folder of the run to resume.")
    if layers not in ("recipe", "auto"):
        raise ConfigError(f"layers='{layers}': must be 'recipe' or 'auto'.")
    if max_head_gmacs is not None and layers != "auto":
        raise ConfigError("--max-head-gmacs limits the choice of --layers auto. Add it, or omit the limit.")
    if config is not None and recipe is not None:
        raise ConfigError("A configuration and a recipe were both given. Give one of them.")
    resumed = out if resume else None
    if isinstance(data, Mapping):
        if recipe is not None:
            raise ConfigError("Several heads start from the laptop recipes of their tasks. Omit recipe.")
        tasks = {name: name if isinstance(value, str | Path) else value[0] for name, value in data.items()}
        folders = {name: value if isinstance(value, str | Path) else value[1] for name, value in data.items()}
        config = config or starting_heads(tasks, resumed=resumed)
    else:
        if task is None:
            task = "segmentation" if recipe is None else named_recipe(recipe).task.name
        config = config or starting_config(task, recipe=recipe, resumed=resumed)
        folders = _folder_of_single_head(config, data)
    config = override(config, settings)
    run_path = Path(out) if out is not None else _new_run_path(config)
    return _train(
        config,
        folders,
        run_path,
        resume=resume,
        allow_changed_data=allow_changed_data,
        layers=layers,
        max_minutes=max_minutes,
        max_head_gmacs=max_head_gmacs,
    )


def _folder_of_single_head(config: TrainConfig, data: str | Path) -> dict[str, str | Path]:
    if len(config.heads) > 1:
        heads = ", ".join(config.heads)
        raise ConfigError(f"The configuration has several heads ({heads}). Give a mapping with a data set for each.")
    return dict.fromkeys(config.heads, data)


def _train(
    config: TrainConfig,
    data: Mapping[str, str | Path],
    run_path: Path,
    *,
    resume: bool,
    allow_changed_data: bool = False,
    layers: Literal["recipe", "auto"] = "recipe",
    max_minutes: float | None = None,
    max_head_gmacs: float | None = None,
    resume_command: str | None = None,
) -> TrainResult:
    """Trains with a complete configuration. ``resume_command`` is shown if the run is stopped; None: the default."""
    check_sharding(config, process_state().num_processes)
    main = process_state().is_main_process
    with RunFolder.open(run_path, resume=resume) as run, log_to(run, standard_output(), main=main):
        if main and not run.holds_run:
            run.write_start(config_to_dict(config))
        chooses = layers == "auto" or max_minutes is not None
        if not chooses and not run.holds_run and run.search.exists():
            raise ConfigError(
                f"{run_path}: the run was stopped while it chose its layers or steps. Give --layers auto or "
                "--max-minutes again, as before, or another --out."
            )
        if chooses:
            if run.holds_run:
                shutil.rmtree(run.search, ignore_errors=True)  # of a start that was killed after its choice
                config = with_choice_of(run, config, layers=layers == "auto", steps=max_minutes is not None)
            else:
                config = begin_run(
                    config,
                    data,
                    run,
                    choose_layers=layers == "auto",
                    max_minutes=max_minutes,
                    max_head_gmacs=max_head_gmacs,
                )
                resume = run.holds_run
        backbone, tasks, model, save = assemble(config, data, choice=run.read_choice())
        if config.loop.cache_features and len(tasks) == 1:
            logger.info("%s", _describe_cache_speedup(config, next(iter(tasks.values())).describe()))
        trainer = Trainer(config, tasks=tasks, backbone=backbone, model=model)
        result = trainer.fit(
            run,
            save,
            resume=resume,
            allow_changed_data=allow_changed_data,
            resume_command=resume_command or _resume_command(config, data, run_path),
        )
    metrics = result.best_metrics
    if config.geometry is None:
        metrics = next(iter(metrics.values()), {})
    return TrainResult(run=run_path, metrics=metrics, stopped_by=result.stopped_by)


def train_stages(
    align: TrainConfig,
    instruct: TrainConfig,
    *,
    data: str | Path,
    out: str | Path | None = None,
    resume: bool = False,
    allow_changed_data: bool = False,
) -> TrainResult:
    """Trains both stages of visual question answering: the connector, then the connector and the language model.

    Args:
        align: Configuration of the first stage; its run is ``out / "align"``.
        instruct: Configuration of the second stage; its run is ``out / "instruct"`` and starts from the connector of
            the first stage.
        data: The data set of both stages.
        out: Folder of the two runs; None: a new one under ``runs/``.
        resume: Resume the stages in ``out``.
        allow_changed_data: See ``train``.

    Returns:
        The result of the second stage, or of the first if a signal stopped it.

    Raises:
        VitsplitError: See ``train``.
    """
    if resume and out is None:
        raise ConfigError("Missing required option --out: the folder of the run to resume.")
    root = Path(out) if out is not None else _new_run_path(instruct)
    first, second = root / "align", root / "instruct"
    folders = _folder_of_single_head(align, data)
    # Determined before the main process creates the folders.
    started = {stage: resume and stage.exists() for stage in (first, second)}
    options: dict[str, Any] = {
        "allow_changed_data": allow_changed_data,
        "resume_command": _resume_command(align, folders, root, stage="both"),
    }
    main = process_state().is_main_process
    with hold_folder(root) if main else nullcontext():
        if main and not RunFolder(first).config_file.exists():
            # The run of the second stage does not exist yet, but its configuration is needed to resume the first stage.
            for stage, config in (("align", align), ("instruct", instruct)):
                write_json(stage_file(root, stage), config_to_dict(config))
        result = _train(align, folders, first, resume=started[first], **options)
        if result.stopped_by is not None:
            return result
        instruct = override(instruct, {"start_from": str(first)})
        return _train(instruct, folders, second, resume=started[second], **options)


def load(
    run: str | Path | Mapping[str, str | Path],
    *more: str | Path,
    weights: str | Path | None = None,
    language_weights: str | Path | None = None,
    language_model: str | None = None,
    device: str | None = None,
    precision: Precision | None = None,
    runtime: RuntimeName | None = None,
) -> Predictor:
    """Loads one or several heads on their shared backbone.

    The backbone is in memory once, and one pass of it per image serves all heads. Heads can be added and removed later,
    see ``Predictor``.

    Args:
        run: Run folder (its best bundle) or bundle folder; or ``hf://namespace/name[@revision]``, a repository on the
            Hugging Face hub, here and wherever a run is accepted; or a mapping from names to several of them; or an
            exported folder, which takes no other argument than ``runtime``.
        more: Further run or bundle folders. The name of a head is its name in the run (by default its task), or that of
            the run folder if several heads have the same name.
        weights: File or folder of the backbone's weights, if they are neither cached nor available from the hub.
            Required for a bundle that was trained with weights from a file, since paths in bundles are not opened.
        language_weights: Folder of the language model of a bundle for visual question answering. Required for a bundle
            that was trained with one from a folder.
        language_model: Name of the language model on the hub, if it is not one that vitsplit knows.
        device: The device; None: the first GPU, else the CPU.
        precision: The precision; None: float32 if the run was trained in float32, else ``auto``.
        runtime: Runtime of an exported folder, ``onnx`` or ``openvino``; None: its first format that is installed.

    Returns:
        The heads by name, on one backbone.

    Raises:
        BundleError: A bundle is invalid, or bundles were trained on different backbones or in different precisions.
        HubError: A repository on the hub is missing, not accessible or too large.
        ConfigError: Two heads have the same name, or ``language_weights`` is given and no bundle has a language model.
        WeightsError: The weights of the backbone or of a language model are unavailable.

    Example:
        >>> model = vitsplit.load("runs/first")  # doctest: +SKIP
        >>> model.predict("image.jpg")["segmentation"].overlay().show()  # doctest: +SKIP
        >>> both = vitsplit.load("runs/first", "runs/depth")  # doctest: +SKIP
        >>> both.predict("image.jpg")["depth"].overlay().show()  # doctest: +SKIP
        >>> vitsplit.load({"rooms": "runs/first", "streets": "runs/second"})  # doctest: +SKIP
        >>> vitsplit.load("hf://namespace/name@v1")  # doctest: +SKIP
        >>> vitsplit.load("runs/vqa").ask("desk.jpg", "What is on the desk?")  # doctest: +SKIP
    """
    options: dict[str, Any] = {
        "weights": weights,
        "language_weights": language_weights,
        "language_model": language_model,
        "device": device,
        "precision": precision,
        "runtime": runtime,
    }
    if isinstance(run, Mapping):
        if more:
            raise ConfigError("Give either a mapping from names to runs, or several runs, not both.")
        return find_source(run, **options).load()
    return find_source([run, *more], **options).load()


def predict(
    run: str | Path | Sequence[str | Path] | Mapping[str, str | Path], images: Iterable[Any], **options: Any
) -> list[Predictions]:
    """Predictions for several images.

    Args:
        run: A run or bundle folder; or several of one backbone, as a list or a mapping from names.
        images: Images as for ``Predictor.predict``.
        options: See ``load``.

    Returns:
        One dictionary of predictions by head name per image.

    Raises:
        DataError: An image cannot be read or has an unsupported format.
        VitsplitError: As ``load``.

    Example:
        >>> vitsplit.predict("runs/first", ["a.jpg", "b.jpg"])[0]["segmentation"].mask  # doctest: +SKIP
        >>> vitsplit.predict(["runs/first", "runs/depth"], ["a.jpg"])[0]["depth"].depth  # doctest: +SKIP
    """
    predictor = find_source([run] if isinstance(run, str | Path) else run, **options).load()
    return [predictor.predict(image) for image in images]


def export(
    run: str | Path | Sequence[str | Path] | Mapping[str, str | Path] | Predictor,
    *,
    out: str | Path,
    formats: Sequence[FormatName] = ("onnx",),
    precision: ExportPrecision = "fp32",
    size: tuple[int, int] | None = None,
    deform: DeformChoice = "auto",
    layout: Layout = "nchw",
    images: str | Path | None = None,
    data: str | Path | Mapping[str, str | Path] | None = None,
    split: bool = False,
    weights: str | Path | None = None,
    language_weights: str | Path | None = None,
    language_model: str | None = None,
    say: Callable[[str], None] = lambda line: None,
) -> ExportResult:
    """Exports one or several heads with their backbone as one graph, which runs without this package.

    The input is a batch of images, uint8; normalization and padding are in the graph. Outputs are named
    ``HEAD.OUTPUT``, at the size of the input: ``segmentation.logits`` and ``segmentation.classes``; ``depth.depth`` in
    meters; of one image, ``detection.boxes`` in its pixels, ``scores``, ``labels`` and ``masks``; ``vqa.tokens``, the
    visual tokens, without the language model. Every written graph is compared with the model, in its own runtime and
    in float32.

    Args:
        run: A run or bundle folder; several of one backbone, as a list or a mapping from names; or a predictor in
            float32 on the CPU.
        out: The folder to create, with the graphs, ``card.json`` and ``README.md``.
        formats: ``onnx`` (ONNX Runtime), ``openvino`` and ``pt2`` (PyTorch).
        precision: The precision of the graphs.
        size: Height and width of the input in pixels; None: any size, of more than one patch per side.
        deform: The deformable convolutions: ``native`` as one operator, ``grid`` as sampling on a grid; ``auto``:
            native where the runtime has the operator.
        layout: Layout of the input: ``nchw`` or ``nhwc``.
        images: Folder of images for the comparison; None: generated scenes.
        data: A data set, or one per head, on which graph and model are evaluated (split ``val``): mIoU and AP must
            agree within half a point, relative errors of depths within 0.002. Below float32, nothing else is limited.
        split: Write a graph of the backbone and one of each head instead. That of the backbone is the same file in
            every such export from it, so that heads can be exported one by one, and run together (``Runtime``).
        weights: See ``load``.
        language_weights: See ``load``.
        language_model: See ``load``.
        say: Receives a line on each finished graph.

    Returns:
        The folder and its card.

    Raises:
        ExportError: A head cannot be exported, a package is missing, or a graph differs from the model.
        VitsplitError: As ``load``; or ``out`` is not empty.

    Example:
        >>> vitsplit.export(["runs/first", "runs/depth"], out="exported")  # doctest: +SKIP
        >>> vitsplit.export("runs/first", out="fast", formats=["onnx", "openvino"], size=(518, 518))  # doctest: +SKIP
    """
    hashes: dict[str, str] = {}
    if not isinstance(run, Predictor):
        runs = [run] if isinstance(run, str | Path) else run
        folders = {name: folder for name, (folder, _) in read_bundles(runs).items()}
        hashes = {name: file_hash(folder / WEIGHTS) for name, folder in folders.items()}
        run = load_float32(folders, weights=weights, language_weights=language_weights, language_model=language_model)
    if isinstance(data, str | Path):
        if len(run) > 1:
            raise ConfigError(f"--data {data}: there are {len(run)} heads. Give HEAD=FOLDER for each to be evaluated.")
        data = dict.fromkeys(run, data)
    plan = ExportPlan(
        tuple(formats),
        precision,
        size,
        deform,
        layout,
        None if images is None else Path(images),
        {name: _labeled(folder) for name, folder in (data or {}).items()},
        split,
    )
    return export_graphs(run, Path(out), plan, weights=hashes, say=say)


def _labeled(data: str | Path) -> Labeled:
    return Labeled(Path(data).name, lambda head: evaluate(head, data=data)[0])


def serve(
    runs: Sequence[str | Path],
    *,
    host: str = "127.0.0.1",
    port: int = 8000,
    workers: int = 1,
    batch_size: int | None = None,
    runtime: Literal["torch", "onnx", "openvino"] | None = None,
    bundle_root: str | Path | None = None,
    admin_token_file: str | Path | None = None,
    allowed_hosts: Sequence[str] = (),
    trusted_proxies: Sequence[str] = (),
    limits: Limits | None = None,
    **options: Any,
) -> int:
    """Serves heads over HTTP until a signal stops the process; requires the extra ``serve``.

    Args:
        runs: Run or bundle folders of one backbone, or an exported folder.
        host: The address.
        port: The port; 0: any free one.
        workers: Number of processes behind the port, each with the model in memory.
        batch_size: Maximum number of images of a batch; None: 1 on a CPU, up to 8 on a GPU.
        runtime: PyTorch, ONNX Runtime or OpenVINO; None: PyTorch, or that of an exported folder.
        bundle_root: Folder below which bundles may be added while the server runs.
        admin_token_file: File of the token for adding and removing bundles.
        allowed_hosts: Names in ``Host`` of requests that are accepted beside those of this machine. All are accepted if
            there are none and ``host`` is not of this machine alone.
        trusted_proxies: Addresses or networks of reverse proxies, whose ``X-Forwarded-For`` names the client.
        limits: Limits of requests.
        options: See ``load``.

    Returns:
        The exit status: 0, or 1 if a worker ended by itself.

    Raises:
        VitsplitError: As ``load``; an option is invalid; or the port is taken.

    Example:
        >>> vitsplit.serve(["runs/rooms", "runs/depth"], port=8000)  # doctest: +SKIP
    """
    from vitsplit.serving import server  # its packages are optional

    served = server.ServeOptions(
        [str(run) for run in runs],
        runtime,
        options,
        batch_size,
        limits or Limits(),
        None if bundle_root is None else Path(bundle_root),
    )
    token_file = None if admin_token_file is None else Path(admin_token_file)
    return server.serve(
        served,
        host=host,
        port=port,
        workers=workers,
        admin_token_file=token_file,
        allowed_hosts=allowed_hosts,
        trusted_proxies=trusted_proxies,
    )


def evaluate(
    run: str | Path | Predictor | LoadedHead,
    *,
    data: str | Path,
    split: str = "val",
    workers: int = -1,
    on_image: Any = None,
    **settings: Any,
) -> tuple[Evaluation, Task]:
    """Evaluates a bundle on labeled images.

    Args:
        run: Run or bundle folder of one head, a predictor with one head, or a head of a predictor. For a bundle
            that was trained with weights or a language model from a folder, give ``load(run, weights=...)``.
        data: Folder of the data set.
        split: The split to evaluate on.
        workers: Number of data loading processes; -1: the number of cores, at most 8 (0 on a machine with two cores).
        on_image: Called after every image.
        settings: Fields of the task's settings to change, such as ``test_flip=True``.

    Returns:
        The evaluation, and the task opened on the data set (for pictures).

    Raises:
        BundleError: The classes of the data set differ from those of the bundle, or there are several heads.
        ConfigError: A setting is invalid, or the bundle was trained with files outside of the data set, which must be
            given.
        DataError: The data set is invalid.

    Example:
        >>> evaluation, task = vitsplit.evaluate("runs/first", data="my_data")  # doctest: +SKIP
        >>> evaluation.metrics["miou"]  # doctest: +SKIP
    """
    if isinstance(run, Predictor):
        run = single_head(run)
    head = run if isinstance(run, LoadedHead) else find_head(run)[1]()
    config = override(head.card.config, settings)
    for flag in ("--train-file", "--val-file", "--image-folder"):
        if flag in head.card.paths and flag.lstrip("-").replace("-", "_") not in settings:
            raise ConfigError(
                f"The bundle was trained with {flag} {head.card.paths[flag]!r}, outside of the data set. Paths in "
                f"bundles are not opened: give {flag}."
            )
    task: Any = open_task(config.task, Path(data), (split,))
    if task.describe().get("classes") != head.task.describe().get("classes"):
        raise BundleError(_class_mismatch(head, task, data))
    if config.task.calibrated:
        trained: Any = head.task
        task.temperature = trained.temperature or 1.0  # not fitted again
    loop, device = head.card.config.loop, head.backbone.mean_C11.device
    at_once = images_at_once(device, loop.batch_size // loop.accumulate)
    return evaluate_task(task, head.forward, workers=workers, images_at_once=at_once, on_image=on_image), task


def _class_mismatch(head: LoadedHead, task: Task, data: str | Path) -> str:
    ours, theirs = head.task.describe()["classes"], task.describe()["classes"]
    missing = [name for name in ours if name not in theirs]
    extra = [name for name in theirs if name not in ours]
    detail = f"only in the bundle: {missing or 'none'}; only in the data: {extra or 'none'}"
    if not missing and not extra:
        detail = f"the same names in different order: {ours} and {theirs}"
    return (
        f"{data} has {len(theirs)} classes, but the bundle has {len(ours)} ({detail}). Evaluate on data with the "
        "classes of the bundle, or map the labels in classes.json."
    )


def _resume_command(config: TrainConfig, data: Mapping[str, str | Path], run: Path, *, stage: str | None = None) -> str:
    kinds = {name: head.task.name for name, head in config.heads.items()}
    if config.geometry is None:
        ((name, kind),) = kinds.items()
        stages = f" --stage {stage}" if stage is not None else ""
        options = f"{kind}{stages} --data {shlex.quote(str(data[name]))}"
    else:
        options = " ".join(f"--head {shlex.quote(f'{name}={kind}:{data[name]}')}" for name, kind in kinds.items())
    return f"vitsplit train {options} --out {shlex.quote(str(run))} --resume"


def _describe_cache_speedup(config: TrainConfig, description: Mapping[str, Any]) -> str:
    """Estimated speedup of a training step by cached features, from multiply-adds."""
    from vitsplit.analysis.cost import step_gmacs

    cost = step_gmacs(config, config.task.crop_size, num_classes=len(description.get("classes", ())) or None)
    share = cost["frozen"] / cost["step"]
    return (
        f"the frozen pass takes {share:.0%} of a step's multiply-adds (without a language model): with cached features "
        f"a step can be up to {1 / (1 - share):.2f} times as fast"
    )


def _new_run_path(config: TrainConfig) -> Path:
    return Path("runs") / f"{'-'.join(config.heads)[:60]}-{time.strftime('%Y%m%d-%H%M%S')}"
