"""Configurations and states of runs as JSON: as they are written today, and as earlier versions wrote them.

``config.json`` of a run holds ``geometry``, ``backbone``, ``loop`` and ``heads``: settings by the heads' names, with
the task's name as ``task.kind``. An earlier version wrote the settings of a run of one task side by side (as a bundle's
card has them, see ``FlatConfig``), and of several tasks under the tasks' names. Everything that turns the one into the
other is here.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Collection, Mapping
from typing import Any

from vitsplit.config import from_dict, to_dict
from vitsplit.errors import ConfigError
from vitsplit.files import shown
from vitsplit.heads import check_head_name, from_flat
from vitsplit.methods.split.config import SplitConfig
from vitsplit.tasks import TASKS, task_config
from vitsplit.train_config import FlatConfig, HeadConfig, TrainConfig

KIND = "kind"
_SPLIT = frozenset(field.name for field in dataclasses.fields(SplitConfig)) - {"decoder"}
_BASELINES = {
    "drop_path": ("full-finetune", "upernet", "lora", "vpt", "adaptformer", "vit-adapter", "vit-comer"),
    "trunk_lora_rank": ("lora",),
    "trunk_lora_alpha": ("lora",),
    "trunk_lora_dropout": ("lora",),
    "num_prompts": ("vpt",),
    "prompt_dropout": ("vpt",),
    "bottleneck": ("adaptformer",),
    "bottleneck_scale": ("adaptformer",),
}
"""Settings of the section ``baseline`` that were of some methods alone, and of which."""


def config_to_dict(config: TrainConfig) -> dict[str, Any]:
    """A run's configuration as JSON-ready values."""
    values = to_dict(config)
    for name, head in config.heads.items():
        task = values["heads"][name]["task"]
        values["heads"][name]["task"] = {KIND: head.task.name, **task}
    return values


def config_from_dict(values: Any, source: str, *, task: str | None = None) -> TrainConfig:
    """The configuration that ``config_to_dict`` or an earlier version wrote, or that somebody wrote by hand.

    Args:
        values: The parsed JSON.
        source: Where it comes from, for messages.
        task: What a run of one task by an earlier version is for, which it does not say.

    Raises:
        ConfigError: An unknown or missing key, a value of a wrong type or out of its range, or a task that is none.
    """
    values = upgraded_config(values, task)
    shared = {**values, "heads": {}} if isinstance(values, dict) else values
    config: TrainConfig = from_dict(TrainConfig, shared, source)
    heads = values.get("heads")
    if not isinstance(heads, dict) or not heads:
        raise ConfigError(f"{source}: 'heads' must be an object with the settings of each head, by its name.")
    several = len(heads) > 1
    return dataclasses.replace(
        config,
        heads={
            name: _read_head(head, name, f"{source}: heads.{name}" if several else source)
            for name, head in heads.items()
        },
    )


def _read_head(values: Any, name: str, source: str) -> HeadConfig[Any]:
    check_head_name(name)
    given = values.get("task") if isinstance(values, dict) else None
    kind = given.get(KIND) if isinstance(given, dict) else None
    if not isinstance(kind, str) or kind not in TASKS.names():
        raise ConfigError(f"{source}: task.{KIND} must be one of {', '.join(TASKS.names())}, not {shown(kind)}.")
    settings = {key: value for key, value in given.items() if key != KIND}  # type: ignore[union-attr]
    cls: Any = HeadConfig[task_config(kind)]  # type: ignore[misc]
    head: HeadConfig[Any] = from_dict(cls, {**values, "task": settings}, source)
    return head


def flat_to_dict(config: TrainConfig) -> dict[str, Any]:
    """The configuration of one head as a bundle's card has it."""
    (name,) = config.heads
    return to_dict(config.flat(name))


def flat_from_dict(values: Any, task: str, source: str) -> TrainConfig:
    """The configuration of a bundle's card, which is that of one head under its task's name.

    Raises:
        ConfigError: As ``config_from_dict``.
    """
    kind: Any = FlatConfig[task_config(task)]  # type: ignore[misc]
    return from_flat(from_dict(kind, with_one_method(values), source), task)


def upgraded_config(values: Any, task: str | None) -> Any:
    """What an earlier version wrote, in today's form; what is of today, or no configuration, as it is."""
    values = _with_heads(values, task)
    if not isinstance(values, dict) or not isinstance(values.get("heads"), dict):
        return values
    return {**values, "heads": {name: with_one_method(head) for name, head in values["heads"].items()}}


def _with_heads(values: Any, task: str | None) -> Any:
    if not isinstance(values, dict) or "heads" in values:
        return values
    of_several = {name: head for name, head in values.items() if name in TASKS.names() and isinstance(head, dict)}
    if of_several:
        shared = {name: value for name, value in values.items() if name not in TASKS.names()}
        return {"geometry": {}, **shared, "heads": {name: _with_kind(head, name) for name, head in of_several.items()}}
    if task is None:
        return values
    shared = {name: value for name, value in values.items() if name in ("backbone", "loop")}
    head = {name: value for name, value in values.items() if name not in shared}
    return {"geometry": None, **shared, "heads": {task: _with_kind(head, task)}}


def _with_kind(head: Mapping[str, Any], task: str) -> dict[str, Any]:
    settings = head.get("task", {})
    return {**head, "task": {KIND: task, **settings} if isinstance(settings, dict) else settings}


def with_one_method(values: Any) -> Any:
    """Settings of a head, of which an earlier version wrote those of all methods: ``split`` and ``baseline``."""
    if not isinstance(values, Mapping):
        return values  # refused when it is read
    sections = [values.get(name, {}) for name in ("split", "baseline")]
    name = values.get("method", "vitsplit" if any(sections) else None)
    if not isinstance(name, str) or not all(isinstance(section, Mapping) for section in sections):
        return values
    given = {key: value for section in sections for key, value in section.items()}
    kept = {
        key: value
        for key, value in given.items()
        if name in _BASELINES.get(key, (name,)) and (key not in _SPLIT or name == "vitsplit")
    }
    others = {key: value for key, value in values.items() if key not in ("split", "baseline")}
    return {**others, "method": {"name": name, **kept}}


def upgraded_state(values: dict[str, Any], heads: Collection[str]) -> dict[str, Any]:
    """The numbers of a checkpoint (``state.json``), where an earlier version did not name the only head.

    Args:
        values: The parsed JSON.
        heads: The names of the run's heads.
    """
    values = dict(values)
    (first, *_) = heads
    standings, description = values.get("standings"), values.get("description")
    if isinstance(standings, dict) and "" in standings:
        values["standings"] = {first: standings[""]}
    if isinstance(description, dict) and description.keys() != set(heads):
        values["description"] = {first: description}
    return values


def upgraded_name(name: str, heads: Collection[str]) -> str:
    """The name of a checkpoint's tensor, where an earlier version began those of several heads with ``models.``, and
    those of the only head with nothing."""
    if name.startswith("heads."):
        return name
    return (
        f"heads.{name.removeprefix('models.')}" if name.startswith("models.") else f"heads.{next(iter(heads))}.{name}"
    )
