"""Which methods there are for which tasks, what decodes their maps, and which settings contradict one another."""

from __future__ import annotations

from dataclasses import replace

from vitsplit.engine.config import BackboneConfig, MethodName, TrainConfig
from vitsplit.errors import ConfigError
from vitsplit.ranges import check_ranges
from vitsplit.tasks import task_name
from vitsplit.tasks.base import DecoderKind

FOR_DENSE_TASKS: frozenset[MethodName] = frozenset({"linear-probe", "frozen-head", "full-finetune"})
"""Baselines of segmentation, depth and detection; all others are of segmentation alone."""
ADAPTERS: frozenset[MethodName] = frozenset({"vit-adapter", "vit-comer"})
SHARES_WEIGHTS: frozenset[MethodName] = frozenset({"lora", "vpt", "adaptformer"})
"""Baselines that compute with the frozen backbone's own weights, with something put in."""
WITHOUT_TRUNK: frozenset[MethodName] = frozenset({"vitsplit", "linear-probe", "frozen-head"})
ADAPTER_PATCH_SIZE = 16
"""Pixels per side: the maps of the adapters then have strides of powers of two."""


def backbone_settings(config: TrainConfig) -> BackboneConfig:
    """The settings of a configuration's backbone, with the patch size that its method wants where none is given.

    Whatever opens a backbone for a configuration or a bundle opens this one.
    """
    if config.method in ADAPTERS and config.backbone.patch_size is None:
        return replace(config.backbone, patch_size=ADAPTER_PATCH_SIZE)
    return config.backbone


def decoder_kind(config: TrainConfig) -> DecoderKind:
    """What decodes the maps of a configuration's method, see ``BaselineConfig.decoder``."""
    if config.method == "linear-probe":
        return "probe"
    with_upernet = config.method == "upernet" or config.method in ADAPTERS
    if config.baseline.decoder == "auto":
        return "upernet" if with_upernet else "own"
    return "upernet" if config.baseline.decoder == "upernet" else "own"


def check_method(config: TrainConfig) -> None:
    """Refuses a method for a task that it is not for, and settings that contradict it.

    Raises:
        ConfigError: Names both, and what to do.
    """
    _check_task(config.method, task_name(config))
    _check_decoder(config.method, config.baseline.decoder)
    check_ranges(config.baseline)
    if config.baseline.drop_path and config.method in WITHOUT_TRUNK:
        raise ConfigError(
            f"--drop-path is of methods that train through a whole transformer, and --method {config.method} does "
            "not. Leave it away."
        )
    if config.loop.cache_features and config.method not in WITHOUT_TRUNK:
        raise ConfigError(
            f"--cache-features keeps what a frozen backbone computes, and --method {config.method} trains one of its "
            "own: leave it away, or choose --method vitsplit, frozen-head or linear-probe."
        )
    if config.method in SHARES_WEIGHTS and config.loop.sharding != "none":
        raise ConfigError(
            f"--sharding {config.loop.sharding} spreads what trains over processes, and of --method {config.method} "
            "that is little: the rest are the frozen backbone's own weights. Leave --sharding away."
        )


def _check_task(method: MethodName, task: str) -> None:
    if method == "vitsplit" or task == "segmentation":
        return
    if task == "vqa":
        raise ConfigError(
            f"--method {method}: visual question answering has --method vitsplit alone, and baselines of its own: "
            "--connector mlp2x, linear or vitsplit-release."
        )
    if method not in FOR_DENSE_TASKS:
        raise ConfigError(
            f"--method {method} is for segmentation, not for {task}. For {task} choose vitsplit, "
            f"{', '.join(sorted(FOR_DENSE_TASKS))}."
        )


def _check_decoder(method: MethodName, decoder: str) -> None:
    if decoder == "auto" or method in ADAPTERS:
        return
    if decoder == "upernet" and method != "upernet":
        remedy = "--method upernet is full fine-tuning with it" if method == "full-finetune" else "Leave it away"
        raise ConfigError(f"--decoder upernet reads four maps, and --method {method} has one. {remedy}.")
    if decoder == "linear" and method == "upernet":
        raise ConfigError(
            "--decoder linear contradicts --method upernet: full fine-tuning with the task's own decoder is --method "
            "full-finetune."
        )
    if decoder == "linear" and method == "linear-probe":
        raise ConfigError(
            "--decoder linear is the task's own decoder, and --method linear-probe has batch norm and one convolution "
            "in its place: the frozen last layer with the task's own decoder is --method frozen-head."
        )
