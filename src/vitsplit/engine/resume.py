"""Whether a stopped run may be resumed: the same settings, task, backbone and data.

Of the data's files names, sizes and times are compared, and not a byte is read.
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
"""Name of a file to its bytes and the second of its last change (since 1970), in the order of the samples."""

SAME_TIME = 1
"""Seconds that the time of a file may differ: archives and some file systems keep it to one or two."""
FILES_SHOWN = 3
THREADS, CHUNK = 16, 512
_LARGEST = 1 << 62

# What changes no weight: names, how data are read, what is written how often. Weights may move; their hash may not.
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
    """The numbers to begin with: a checkpoint's, or those of step 0. Notes the data's files in the run's folder.

    Raises:
        RunError: The checkpoint cannot be read, or is of another task, other data or another backbone.
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
        named = tasks.config.named
        best = ", ".join(
            f"best {named(head, standing.score_name)} {standing.best_score:.4g} at step {standing.best_step}"
            for head, standing in saved.standings.items()
        )
        logger.info("already finished at step %d: %s", saved.step, best)
    else:
        logger.info("going on from step %d (%s)", saved.step, checkpoint)
    return saved


def check_same_config(config: TrainConfig, run: RunFolder) -> Precision:
    """Refuses a configuration under which the run would end with other weights than it would have.

    Returns:
        The run's precision: what ``auto`` came to.

    Raises:
        RunError: Settings differ; the message names each with both values.
    """
    given = _by_setting(config_to_dict(config))
    (first, *_) = config.heads.values()
    read = upgraded_config(run.read_config(), first.task.name)
    saved = _by_setting(_with_new_settings(read, config))
    # The precision that `auto` came to is the run's from then on.
    free = FREE | {"loop.precision"} if given["loop.precision"] == "auto" else FREE
    differing = _differences(_without(saved, free), _without(given, free))
    if not differing:
        precision: Precision = saved["loop.precision"]
        if precision not in get_args(Precision):
            raise RunError(
                f"{run.config_file}: loop.precision must be one of {', '.join(get_args(Precision))}, not "
                f"{shown(precision)}. Put the run's own file back, or start a new run with another --out."
            )
        return precision
    other_length = saved.get("loop.steps") != given["loop.steps"]
    longer = " The schedule depends on the length, so a longer run is a new run." if other_length else ""
    raise RunError(
        f"{run.path} cannot go on with other settings ({'; '.join(differing)}).{longer} Give the run's own settings "
        f"(--config {run.config_file}), or start a new run with another --out."
    )


def _with_new_settings(saved: dict[str, Any], config: Any) -> dict[str, Any]:
    """What an older version wrote, with the settings that it did not know: their defaults are what it did."""
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
    """Refuses a task that is described otherwise than the run's, such as other classes.

    Raises:
        RunError: Names what differs.
    """
    differing = _differences(_described(saved.description), _described(present.description))
    if differing:
        shown = "; ".join(differing[:SHOWN]) + (f"; and {len(differing) - SHOWN} more" * (len(differing) > SHOWN))
        raise RunError(
            f"{run.path} was trained for a task that the data now describe otherwise ({shown}). Restore the data "
            "(for classes and colours: their classes.json), or start a new run with another --out."
        )


def check_same_files(files: Mapping[str, Path] | None, run: RunFolder, *, resume: bool, allow_changed: bool) -> None:
    """Refuses to resume a run whose data files have changed; notes them in ``data.json`` otherwise.

    Args:
        files: The data's files, see ``FromFiles``; None: the task has none.
        run: The run's folder.
        resume: Whether something was trained already.
        allow_changed: Go on with the files as they are now, and only tell what has changed.

    Raises:
        RunError: Files have changed; the message counts and names them.
    """
    if files is None:
        return
    present = fingerprint(files)
    if resume and not run.data_file.exists():
        logger.warning("%s does not say which data files it began with: they are not compared", run.path)
    elif resume and (changed := changes(read_fingerprint(run.data_file), present)):
        if not allow_changed:
            raise RunError(
                f"{run.path}: the data are not what they were: {changed}. Restore them, give --allow-changed-data to "
                "go on with the data as they are, or start a new run with another --out."
            )
        logger.warning("the data are not what they were: %s; going on with them as they are", changed)
    write_fingerprint(run.data_file, present)


def check_same_world(saved: TrainState, present: TrainState, run: RunFolder, *, allow_changed: bool) -> None:
    """Refuses another number of samples (unless that is allowed) or another backbone than the run began with.

    Another number of processes is only told of.

    Raises:
        RunError: The training set has another size, or the backbone another hash.
    """
    if saved.samples != present.samples:
        said = f"{run.path} was trained on {saved.samples} images, and now there are {present.samples}"
        if not allow_changed:
            raise RunError(
                f"{said}: their order would change. Restore the data, give --allow-changed-data to go on in another "
                "order, or start a new run with another --out."
            )
        logger.warning("%s: from here on in another order", said)
        saved.samples = present.samples
    if saved.backbone_hash != present.backbone_hash:
        raise RunError(
            f"{run.path} was trained on a backbone with hash {saved.backbone_hash}, and this one has "
            f"{present.backbone_hash}. Give the same --weights, or go on with the version of vitsplit that wrote the "
            "run (environment.json names it: CLIP and SigLIP had another activation), or start a new run with another "
            "--out."
        )
    if saved.processes != present.processes:
        logger.warning(
            "the run had %d process(es) and now has %d: the same batches, but results equal only up to rounding",
            saved.processes,
            present.processes,
        )
        saved.processes = present.processes


def _described(by_head: dict[str, Any]) -> dict[str, Any]:
    """What tasks say of themselves, by dotted names; the name of an only head is omitted."""
    (first, *others) = by_head.values()
    return _flat(_by_index(by_head if others else first))


def _by_setting(values: dict[str, Any]) -> dict[str, Any]:
    """A configuration as values by dotted names: those of a head begin with its name, unless it has its task's own
    augmentation."""
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
    """What differs, by name and with both values."""
    return [
        f"{key}: {json.dumps(saved.get(key))} in the run, {json.dumps(present.get(key))} now"
        for key in sorted(saved.keys() | present.keys())
        if saved.get(key) != present.get(key)
    ]


def _without(flat: dict[str, Any], names: frozenset[str]) -> dict[str, Any]:
    # A name may be that of one head's setting.
    return {key: value for key, value in flat.items() if key not in names and key.partition(".")[2] not in names}


def _by_index(value: Any) -> Any:
    """With lists as dictionaries, so that one class of many is compared, and named, by itself."""
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
    """What is compared of the files of a data set, by their names in it.

    About a second for 100,000 files on a local disk; the waiting for a network is done by several threads.

    Raises:
        DataError: A file is not there.
    """
    names, paths = list(files), list(files.values())
    chunks = [paths[begin : begin + CHUNK] for begin in range(0, len(paths), CHUNK)]
    with ThreadPoolExecutor(THREADS) as pool:
        found = [state for states in pool.map(_states, chunks) for state in states]
    # A name of bytes that are no UTF-8 has no form in JSON.
    plain = [name.encode("utf-8", "backslashreplace").decode() for name in names]
    return dict(zip(plain, found, strict=True))


def _states(paths: list[Path]) -> list[tuple[int, int]]:
    states = []
    for path in paths:
        try:
            status = path.stat()
        except OSError as error:
            raise DataError(
                f"{path}: cannot be read ({error}). Restore the file, or remove it from the set."
            ) from error
        states.append((status.st_size, int(status.st_mtime)))
    return states


def write_fingerprint(file: Path, present: Fingerprint) -> None:
    """Writes ``data.json``, a file a line.

    Raises:
        RunError: It could not be written.
    """
    rows = ",\n".join(f"{json_text(name)}: {json_text(list(state))}" for name, state in present.items())
    write_text(file, f"{{\n{rows}\n}}\n")


def read_fingerprint(file: Path) -> Fingerprint:
    """Reads ``data.json``.

    Raises:
        RunError: It cannot be read, or is no such file.
    """
    advice = "Delete it: the data are then not compared."
    saved = read_json(file, limit=LARGE_FILE, error=RunError, advice=advice)
    if not isinstance(saved, dict):
        raise RunError(f"{file}: not an object with files. {advice}")
    for name, state in saved.items():
        if not isinstance(state, list) or len(state) != 2:
            raise RunError(f"{file}: {name} must have two numbers, its bytes and its time. {advice}")
        for number in state:
            whole_number(number, f"{file}: {name}", -_LARGEST, _LARGEST, error=RunError, advice=advice)
    return {name: (state[0], state[1]) for name, state in saved.items()}


def changes(saved: Fingerprint, present: Fingerprint) -> str:
    """What of the files is not as it was, in words; empty where all is."""
    both = saved.keys() & present.keys()
    missing = [name for name in saved if name not in present]
    new = [name for name in present if name not in saved]
    resized = [name for name in present if name in both and saved[name][0] != present[name][0]]
    same_size = both - set(resized)
    touched = [name for name in present if name in same_size and abs(saved[name][1] - present[name][1]) > SAME_TIME]
    said = [
        f"{len(names)} {what} ({preview(names, FILES_SHOWN)})"
        for names, what in (
            (missing, "gone"),
            (new, "new"),
            (resized, "of another size"),
            (touched, "of the same size but changed at another time"),
        )
        if names
    ]
    if not said and list(saved) != list(present):
        place = next(place for place, pair in enumerate(zip(saved, present, strict=True)) if pair[0] != pair[1])
        return f"the same files in another order, from {list(present)[place]} on"
    only_times = touched and len(said) == 1
    note = ": nothing but times differs, as where files were copied without them" if only_times else ""
    return f"of {len(saved)} files {', '.join(said)}{note}" if said else ""
