"""Checks that a stopped run is resumed with the same settings, task, backbone and data.

Data files are compared by name, size and modification time; their contents are not read.
"""

from __future__ import annotations

import dataclasses
import json
import logging
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, get_args

from accelerate import Accelerator

from vitsplit.atomic_files import json_text, write_text
from vitsplit.backbone.backbone import Backbone
from vitsplit.config import Precision, to_dict
from vitsplit.data.folders import preview
from vitsplit.engine.checkpoint import TrainState, read_state
from vitsplit.engine.run_folder import RunFolder
from vitsplit.engine.run_tasks import RunTasks
from vitsplit.errors import DataError, RunError
from vitsplit.files import LARGE_FILE, read_json, shown, whole_number
from vitsplit.saved_config import config_to_dict, upgraded_config
from vitsplit.train_config import TrainConfig

logger = logging.getLogger(__name__)

Fingerprint = dict[str, tuple[int, int]]
"""File name to (size in bytes, modification time in seconds since 1970), in the order of the samples."""

TIME_TOLERANCE = 1
"""Seconds by which modification times may differ: archives and some file systems round them."""
FILES_SHOWN = 3
THREADS, CHUNK = 16, 512
_LARGEST = 1 << 62

# Settings that do not affect the weights: names, data loading, logging. Weight files may move; their hash is compared.
SHOWN = 5
FREE = frozenset(
    {
        "name",
        "backbone.weights",
        "loop.workers",
        "loop.log_every",
        "loop.checkpoint_every",
        "loop.track",
        "loop.cache_folder",
        "loop.cache_limit_gb",
        "task.allow_outside",
    }
)


def first_state(
    tasks: RunTasks,
    samples: int,
    accelerator: Accelerator,
    backbone: Backbone,
    run: RunFolder,
    checkpoint: Path | None,
    *,
    allow_changed_data: bool = False,
) -> TrainState:
    """The initial state: a checkpoint's, or that of step 0. Records the data files in the run's folder.

    Raises:
        RunError: The checkpoint cannot be read, or belongs to another task, data set or backbone.
    """
    files = tasks.files() if accelerator.is_main_process else None
    present = TrainState(
        samples=samples,
        processes=accelerator.num_processes,
        backbone_hash=backbone.info.weights_hash,
        description=tasks.describe(),
    )
    if checkpoint is None:
        check_same_files(files, run, resume=False, allow_changed=allow_changed_data)
        return present
    saved = read_state(checkpoint, tasks.tasks)
    check_same_task(saved, present, run)
    check_same_files(files, run, resume=True, allow_changed=allow_changed_data)
    check_same_world(saved, present, run, allow_changed=allow_changed_data)
    if saved.finished:
        named = tasks.config.qualified_name
        best = ", ".join(
            f"best {named(head, standing.score_name)} {standing.best_score:.4g} at step {standing.best_step}"
            for head, standing in saved.standings.items()
        )
        logger.info("already finished at step %d: %s", saved.step, best)
    else:
        logger.info("resuming from step %d (%s)", saved.step, checkpoint)
    return saved


def check_same_config(config: TrainConfig, run: RunFolder) -> Precision:
    """Refuses a configuration that would change the run's final weights.

    Returns:
        The run's precision, with ``auto`` resolved.

    Raises:
        RunError: Settings differ; the message names each with both values.
    """
    given = _by_setting(config_to_dict(config))
    (first, *_) = config.heads.values()
    read = upgraded_config(run.read_config(), first.task.name)
    saved = _by_setting(_with_new_settings(read, config))
    # `auto` means the precision that it was resolved to when the run started.
    free = FREE | {"loop.precision"} if given["loop.precision"] == "auto" else FREE
    differing = _differences(_without(saved, free), _without(given, free))
    if not differing:
        precision: Precision = saved["loop.precision"]
        if precision not in get_args(Precision):
            raise RunError(
                f"{run.config_file}: loop.precision must be one of {', '.join(get_args(Precision))}, not "
                f"{shown(precision)}. Restore the run's own file, or start a new run with another --out."
            )
        return precision
    other_length = saved.get("loop.steps") != given["loop.steps"]
    note = " The schedule depends on --steps, so the length of a run cannot change." if other_length else ""
    raise RunError(
        f"{run.path} cannot be resumed with other settings ({'; '.join(differing)}).{note} Use the run's own settings "
        f"(--config {run.config_file}), or start a new run with another --out."
    )


def _with_new_settings(saved: dict[str, Any], config: Any) -> dict[str, Any]:
    """Adds settings that an earlier version did not have; their defaults match what it did."""
    filled = dict(saved)
    for field in dataclasses.fields(config):
        value = getattr(config, field.name)
        if field.name in saved:
            if field.name == "heads" and isinstance(saved["heads"], dict):
                own = config.heads
                filled["heads"] = {
                    name: _with_new_settings(head, own[name]) if name in own and isinstance(head, dict) else head
                    for name, head in saved["heads"].items()
                }
            elif dataclasses.is_dataclass(value) and isinstance(saved[field.name], dict):
                filled[field.name] = _with_new_settings(saved[field.name], value)
        elif field.default is not dataclasses.MISSING:
            filled[field.name] = json.loads(json_text(field.default))
        elif field.default_factory is not dataclasses.MISSING:
            filled[field.name] = to_dict(field.default_factory())
    return filled


def check_same_task(saved: TrainState, present: TrainState, run: RunFolder) -> None:
    """Refuses a task whose description differs from the run's, such as other classes.

    Raises:
        RunError: The descriptions differ; the message names the differences.
    """
    differing = _differences(_described(saved.description), _described(present.description))
    if differing:
        shown = "; ".join(differing[:SHOWN]) + (f"; and {len(differing) - SHOWN} more" * (len(differing) > SHOWN))
        raise RunError(
            f"{run.path}: the data describe another task than when the run started ({shown}). Restore the data "
            "(for classes and colors: classes.json), or start a new run with another --out."
        )


def check_same_files(files: Mapping[str, Path] | None, run: RunFolder, *, resume: bool, allow_changed: bool) -> None:
    """Refuses to resume a run whose data files have changed; otherwise records them in ``data.json``.

    Args:
        files: The data files, see ``FromFiles``; None: the task has none.
        run: The run's folder.
        resume: Whether the run is resumed from a checkpoint.
        allow_changed: Only warn about changed files.

    Raises:
        RunError: Files have changed; the message counts and names them.
    """
    if files is None:
        return
    present = fingerprint(files)
    if resume and not run.data_file.exists():
        logger.warning("%s does not exist: the data files are not compared with those of the run", run.data_file)
    elif resume and (changed := changes(read_fingerprint(run.data_file), present)):
        if not allow_changed:
            raise RunError(
                f"{run.path}: the data have changed: {changed}. Restore them, resume with the changed data "
                "(--allow-changed-data), or start a new run with another --out."
            )
        logger.warning("the data have changed: %s; resuming with the changed data", changed)
    write_fingerprint(run.data_file, present)


def check_same_world(saved: TrainState, present: TrainState, run: RunFolder, *, allow_changed: bool) -> None:
    """Refuses another number of samples (unless that is allowed) or another backbone than the run started with.

    Another number of processes is only a warning.

    Raises:
        RunError: The training set has another size, or the backbone another hash.
    """
    if saved.samples != present.samples:
        difference = f"{run.path} was trained on {saved.samples} images, and now there are {present.samples}"
        if not allow_changed:
            raise RunError(
                f"{difference}, which changes their order. Restore the data, resume with another order "
                "(--allow-changed-data), or start a new run with another --out."
            )
        logger.warning("%s: the order of images changes from here on", difference)
        saved.samples = present.samples
    if saved.backbone_hash != present.backbone_hash:
        raise RunError(
            f"{run.path} was trained on a backbone with hash {saved.backbone_hash}, but this one has "
            f"{present.backbone_hash}. Use the same --weights, or resume with the version of vitsplit that wrote the "
            "run (see environment.json; earlier versions used another activation for CLIP and SigLIP), or start a new "
            "run with another --out."
        )
    if saved.processes != present.processes:
        logger.warning(
            "the run had %d process(es) and now has %d: batches are the same, results are equal up to rounding",
            saved.processes,
            present.processes,
        )
        saved.processes = present.processes


def _described(by_head: dict[str, Any]) -> dict[str, Any]:
    """Task descriptions by dotted names; the head's name is omitted if there is only one."""
    (first, *others) = by_head.values()
    return _flat(_by_index(by_head if others else first))


def _by_setting(values: dict[str, Any]) -> dict[str, Any]:
    """A configuration as values by dotted names. Settings of heads that share a crop begin with the head's name."""
    values = dict(values)
    heads = values.pop("heads", None)
    if not isinstance(heads, dict):
        return _flat(values)
    if values.get("geometry") is None and len(heads) == 1:
        values.pop("geometry", None)
        (head,) = heads.values()
        return _flat(values) | (_flat(head) if isinstance(head, dict) else {})
    return _flat(values) | _flat(heads)


def _differences(saved: dict[str, Any], present: dict[str, Any]) -> list[str]:
    """The differences, each with its name and both values."""
    return [
        f"{key}: {json.dumps(saved.get(key))} in the run, {json.dumps(present.get(key))} now"
        for key in sorted(saved.keys() | present.keys())
        if saved.get(key) != present.get(key)
    ]


def _without(flat: dict[str, Any], names: frozenset[str]) -> dict[str, Any]:
    # Settings of one head begin with its name.
    return {key: value for key, value in flat.items() if key not in names and key.partition(".")[2] not in names}


def _by_index(value: Any) -> Any:
    """Converts lists to dictionaries by index, so that differences are reported per class."""
    if isinstance(value, list | tuple):
        return {str(index): _by_index(item) for index, item in enumerate(value)}
    return {key: _by_index(item) for key, item in value.items()} if isinstance(value, dict) else value


def _flat(config: Any, prefix: str = "") -> dict[str, Any]:
    if not isinstance(config, dict):
        return {prefix: config}
    flat: dict[str, Any] = {}
    for key, value in config.items():
        flat |= _flat(value, f"{prefix}.{key}" if prefix else key)
    return flat


def fingerprint(files: Mapping[str, Path]) -> Fingerprint:
    """Sizes and modification times of the files of a data set, by their names in it.

    Takes about a second for 100,000 files on a local disk; threads hide the latency of network file systems.

    Raises:
        DataError: A file is missing.
    """
    names, paths = list(files), list(files.values())
    chunks = [paths[begin : begin + CHUNK] for begin in range(0, len(paths), CHUNK)]
    with ThreadPoolExecutor(THREADS) as pool:
        found = [state for states in pool.map(_states, chunks) for state in states]
    # Names that are not valid UTF-8 cannot be written as JSON.
    plain = [name.encode("utf-8", "backslashreplace").decode() for name in names]
    return dict(zip(plain, found, strict=True))


def _states(paths: list[Path]) -> list[tuple[int, int]]:
    states = []
    for path in paths:
        try:
            status = path.stat()
        except OSError as error:
            raise DataError(
                f"{path}: cannot be read ({error}). Restore the file, or remove it from the data set."
            ) from error
        states.append((status.st_size, int(status.st_mtime)))
    return states


def write_fingerprint(file: Path, present: Fingerprint) -> None:
    """Writes ``data.json``, one file per line.

    Raises:
        RunError: It could not be written.
    """
    rows = ",\n".join(f"{json_text(name)}: {json_text(list(state))}" for name, state in present.items())
    write_text(file, f"{{\n{rows}\n}}\n")


def read_fingerprint(file: Path) -> Fingerprint:
    """Reads ``data.json``.

    Raises:
        RunError: It cannot be read, or has another format.
    """
    advice = "Delete it to resume without comparing the data."
    saved = read_json(file, limit=LARGE_FILE, error=RunError, advice=advice)
    if not isinstance(saved, dict):
        raise RunError(f"{file}: not an object with files. {advice}")
    for name, state in saved.items():
        if not isinstance(state, list) or len(state) != 2:
            raise RunError(f"{file}: {name} must have two numbers, size and modification time. {advice}")
        for number in state:
            whole_number(number, f"{file}: {name}", -_LARGEST, _LARGEST, error=RunError, advice=advice)
    return {name: (state[0], state[1]) for name, state in saved.items()}


def changes(saved: Fingerprint, present: Fingerprint) -> str:
    """Describes how the files have changed, in words; empty if they have not."""
    both = saved.keys() & present.keys()
    missing = [name for name in saved if name not in present]
    new = [name for name in present if name not in saved]
    resized = [name for name in present if name in both and saved[name][0] != present[name][0]]
    same_size = both - set(resized)
    touched = [
        name for name in present if name in same_size and abs(saved[name][1] - present[name][1]) > TIME_TOLERANCE
    ]
    parts = [
        f"{len(names)} {what} ({preview(names, FILES_SHOWN)})"
        for names, what in (
            (missing, "missing"),
            (new, "new"),
            (resized, "of another size"),
            (touched, "of the same size with another modification time"),
        )
        if names
    ]
    if not parts and list(saved) != list(present):
        place = next(place for place, pair in enumerate(zip(saved, present, strict=True)) if pair[0] != pair[1])
        return f"the same files in another order, from {list(present)[place]} on"
    only_times = touched and len(parts) == 1
    note = ": only times differ, as after copying files without preserving times" if only_times else ""
    return f"of {len(saved)} files {', '.join(parts)}{note}" if parts else ""
