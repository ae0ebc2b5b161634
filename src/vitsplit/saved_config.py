"""JSON formats of configurations and states of runs: the current one, and conversion from those of earlier versions.

``config.json`` of a run holds ``geometry``, ``backbone``, ``loop`` and ``heads``: settings by head name, with the
task's name as ``task.kind``. Earlier versions wrote the settings of a run of one task without nesting (as in a bundle's
card, see ``FlatConfig``), and of several tasks under the tasks' names.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Collection, Mapping
from typing import Any

from vitsplit.config import former_names, from_dict, to_dict
from vitsplit.errors import ConfigError
from vitsplit.files import shown
from vitsplit.heads import check_head_name, from_flat
from vitsplit.methods.split.config import LowRankConfig, SplitConfig
from vitsplit.tasks import TASKS, task_config
from vitsplit.train_config import FlatConfig, HeadConfig, TrainConfig

KIND = "kind"
_SPLIT = {field.name for field in dataclasses.fields(SplitConfig)} - {
    field.name for field in dataclasses.fields(LowRankConfig)
}
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
"""Settings of the former section ``baseline`` that apply to some methods only: name to methods."""


def config_to_dict(config: TrainConfig) -> dict[str, Any]:
    """A run's configuration as JSON-serializable values."""
    values = to_dict(config)
    for name, head in config.heads.items():
        task = values["heads"][name]["task"]
        values["heads"][name]["task"] = {KIND: head.task.name, **task}
    return values


def config_from_dict(values: Any, source: str, *, task: str | None = None) -> TrainConfig:
    """Reads a configuration written by ``config_to_dict``, by an earlier version, or by hand.

    Args:
        values: The parsed JSON.
        source: Its file, for error messages.
        task: The task of a single-task run of an earlier version, whose file does not record it.

    Raises:
        ConfigError: A key is unknown or missing, a value has a wrong type or is out of range, or a task is unknown.
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
    """The configuration of a single head in the form of a bundle's card."""
    (name,) = config.heads
    return to_dict(config.flat(name))


def flat_from_dict(values: Any, task: str, source: str) -> TrainConfig:
    """Reads the configuration of a bundle's card: a single head, which has its task's name.

    Raises:
        ConfigError: As ``config_from_dict``.
    """
    kind: Any = FlatConfig[task_config(task)]  # type: ignore[misc]
    return from_flat(from_dict(kind, with_one_method(values), source), task)


def upgraded_config(values: Any, task: str | None) -> Any:
    """Converts a configuration of an earlier version to the current form; returns other values unchanged."""
    values = _with_heads(values, task)
    if not isinstance(values, dict) or not isinstance(values.get("heads"), dict):
        return values
    return {**values, "heads": {name: _renamed(with_one_method(head)) for name, head in values["heads"].items()}}


def _renamed(head: Any) -> Any:
    """A head's settings with the present names of those of its task that have been renamed."""
    settings = head.get("task") if isinstance(head, dict) else None
    if not isinstance(settings, dict):
        return head  # refused when it is read
    kind = settings.get(KIND)
    if not isinstance(kind, str) or kind not in TASKS.names():
        return head
    present = former_names(task_config(kind))
    return {**head, "task": {present.get(name, name): value for name, value in settings.items()}}


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
    """Converts a head's settings of an earlier version, with the sections ``split`` and ``baseline``, to ``method``."""
    if not isinstance(values, Mapping):
        return values  # refused when it is read
    sections = [values.get(name, {}) for name in ("split", "baseline")]
    name = values.get("method", "vitsplit" if any(sections) else None)
    if not isinstance(name, str) or not all(isinstance(section, Mapping) for section in sections):
        return values
    given = {key: value for section in sections for key, value in section.items()}
    own = {
        key: value
        for key, value in given.items()
        if name in _BASELINES.get(key, (name,)) and (key not in _SPLIT or name == "vitsplit")
    }
    others = {key: value for key, value in values.items() if key not in ("split", "baseline")}
    return {**others, "method": {"name": name, **own}}


def upgraded_state(values: dict[str, Any], heads: Collection[str]) -> dict[str, Any]:
    """Converts ``state.json`` of an earlier version, which did not record the name of a single head.

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
    """Converts the name of a checkpoint's tensor: in earlier versions names began with ``models.``, or had no prefix if
    there was only one head."""
    if name.startswith("heads."):
        return name
    return (
        f"heads.{name.removeprefix('models.')}" if name.startswith("models.") else f"heads.{next(iter(heads))}.{name}"
    )
