"""The tasks, by name: from a feature map to predictions, with data, loss and metrics.

A task is one folder here and one line of ``registry.TASKS``, or an entry point ``vitsplit.tasks`` of another package: a
subclass of ``TaskConfig`` with its settings and its capabilities.
"""

from typing import TYPE_CHECKING, Any

__all__ = [
    "TASKS",
    "IncludedModel",
    "Score",
    "TaskConfig",
    "bare_task",
    "check_data",
    "check_description",
    "open_task",
    "task_config",
]

if TYPE_CHECKING:
    from vitsplit.tasks.registry import (
        TASKS,
        IncludedModel,
        Score,
        TaskConfig,
        bare_task,
        check_data,
        check_description,
        open_task,
        task_config,
    )


def __getattr__(name: str) -> Any:
    """Imports public names on first use, since predictions (``tasks.*.prediction``) are used without their packages."""
    if name in __all__:
        import importlib

        return getattr(importlib.import_module("vitsplit.tasks.registry"), name)
    raise AttributeError(f"module 'vitsplit.tasks' has no attribute '{name}'")
