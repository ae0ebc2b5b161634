"""Whether a stopped run may go on with the configuration at hand."""

from __future__ import annotations

import dataclasses
import json
import logging
from typing import Any

from vitsplit.errors import RunError
from vitsplit.training.checkpoint import TrainState
from vitsplit.training.config import RunConfig
from vitsplit.training.run_folder import RunFolder
from vitsplit.training.serialise import json_text, to_dict

logger = logging.getLogger(__name__)

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
    }
)


def check_same_config(config: RunConfig, run: RunFolder) -> None:
    """Refuses a configuration under which the run would end with other weights than it would have.

    Raises:
        RunError: Settings differ; the message names each with both values.
    """
    saved, given = _flat(_with_new_settings(run.read_config(), config)), _flat(to_dict(config))
    # The precision that `auto` came to is the run's from then on.
    free = FREE | {"loop.precision"} if given["loop.precision"] == "auto" else FREE
    differing = _differences(_without(saved, free), _without(given, free))
    if not differing:
        return
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
            if dataclasses.is_dataclass(value) and isinstance(saved[field.name], dict):
                filled[field.name] = _with_new_settings(saved[field.name], value)
        elif field.default is not dataclasses.MISSING:
            filled[field.name] = json.loads(json_text(field.default))
        elif field.default_factory is not dataclasses.MISSING:
            filled[field.name] = to_dict(field.default_factory())
    return filled


def check_same_world(saved: TrainState, present: TrainState, run: RunFolder) -> None:
    """Refuses other data or another backbone than the run began with; another number of processes is only told of.

    Raises:
        RunError: The training set has another size, the task another description (such as other classes), or the
            backbone another hash.
    """
    differing = _differences(_flat(_by_index(saved.description)), _flat(_by_index(present.description)))
    if differing:
        shown = "; ".join(differing[:SHOWN]) + (f"; and {len(differing) - SHOWN} more" * (len(differing) > SHOWN))
        raise RunError(
            f"{run.path} was trained for a task that the data now describe otherwise ({shown}). Restore the data "
            "(for classes and colours: their classes.json), or start a new run with another --out."
        )
    if saved.samples != present.samples:
        raise RunError(
            f"{run.path} was trained on {saved.samples} images, and now there are {present.samples}: their order would "
            "change. Restore the data, or start a new run with another --out."
        )
    if saved.backbone_hash != present.backbone_hash:
        raise RunError(
            f"{run.path} was trained on a backbone with hash {saved.backbone_hash}, and this one has "
            f"{present.backbone_hash}. Give the same --weights, or start a new run with another --out."
        )
    if saved.processes != present.processes:
        logger.warning(
            "the run had %d process(es) and now has %d: the same batches, but results equal only up to rounding",
            saved.processes,
            present.processes,
        )
        saved.processes = present.processes


def _differences(saved: dict[str, Any], present: dict[str, Any]) -> list[str]:
    """What differs, by name and with both values."""
    return [
        f"{key}: {json.dumps(saved.get(key))} in the run, {json.dumps(present.get(key))} now"
        for key in sorted(saved.keys() | present.keys())
        if saved.get(key) != present.get(key)
    ]


def _without(flat: dict[str, Any], names: frozenset[str]) -> dict[str, Any]:
    return {key: value for key, value in flat.items() if key not in names}


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
