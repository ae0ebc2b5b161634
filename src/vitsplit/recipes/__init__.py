"""Recipes: one function per row of the paper's tables, and small ones for laptops. Each returns a ``TrainConfig``.

A recipe is a complete configuration; every field is a flag of ``vitsplit train``. Values follow the paper, and the
release where the paper does not specify them. Docstrings list other differences to the release and their flags.
"""

from __future__ import annotations

import difflib
from collections.abc import Callable

from vitsplit.errors import ConfigError
from vitsplit.recipes import ade20k, cityscapes, coco, laptop, nyuv2, pascal_context, vqa
from vitsplit.train_config import TrainConfig

RECIPES: dict[str, Callable[[], TrainConfig]] = {
    "laptop-segmentation": laptop.laptop_segmentation,
    "laptop-segmentation-paper": laptop.laptop_segmentation_paper,
    "laptop-depth": laptop.laptop_depth,
    "laptop-depth-paper": laptop.laptop_depth_paper,
    "laptop-detection": laptop.laptop_detection,
    "laptop-vqa": vqa.laptop_vqa,
    "laptop-vqa-align": vqa.laptop_vqa_align,
    "ade20k-small": ade20k.ade20k_small,
    "ade20k-base": ade20k.ade20k_base,
    "ade20k-large": ade20k.ade20k_large,
    "ade20k-large-896": ade20k.ade20k_large_896,
    "ade20k-giant-896": ade20k.ade20k_giant_896,
    "ade20k-mae-base": ade20k.ade20k_mae_base,
    "ade20k-sam-base": ade20k.ade20k_sam_base,
    "ade20k-siglip-base": ade20k.ade20k_siglip_base,
    "ade20k-small-gate": ade20k.ade20k_small_gate,
    "ade20k-base-gate": ade20k.ade20k_base_gate,
    "ade20k-large-gate": ade20k.ade20k_large_gate,
    "cityscapes-small": cityscapes.cityscapes_small,
    "cityscapes-base": cityscapes.cityscapes_base,
    "cityscapes-large": cityscapes.cityscapes_large,
    "cityscapes-large-gate": cityscapes.cityscapes_large_gate,
    "pascal-context-base": pascal_context.pascal_context_base,
    "pascal-context-large": pascal_context.pascal_context_large,
    "nyuv2-small": nyuv2.nyuv2_small,
    "nyuv2-base": nyuv2.nyuv2_base,
    "nyuv2-large": nyuv2.nyuv2_large,
    "coco-small": coco.coco_small,
    "coco-base": coco.coco_base,
    "coco-large": coco.coco_large,
    "llava15-7b-align": vqa.llava15_7b_align,
    "llava15-7b-instruct": vqa.llava15_7b_instruct,
    "llava15-7b-align-release": vqa.llava15_7b_align_release,
    "llava15-7b-instruct-release": vqa.llava15_7b_instruct_release,
}
"""Name to function. ``vitsplit recipes`` shows the first line of a function's docstring."""

DATASET_CLASSES = {"ade20k": 150, "cityscapes": 19, "pascal-context": 59, "coco": 80}
"""Data format to its number of classes: enough to count a decoder without the data."""


def recipe(name: str) -> TrainConfig:
    """The configuration of a recipe.

    Args:
        name: Its name, as ``vitsplit recipes`` lists it.

    Returns:
        The configuration, for ``vitsplit.train``.

    Raises:
        ConfigError: The recipe is unknown; the message lists similar names.

    Example:
        >>> vitsplit.train(recipe("ade20k-small"), data="ADEChallengeData2016")  # doctest: +SKIP
    """
    if name not in RECIPES:
        close = difflib.get_close_matches(name, RECIPES, n=3)
        hint = f"Did you mean {' or '.join(close)}?" if close else f"Recipes: {', '.join(RECIPES)}."
        raise ConfigError(f"Unknown recipe '{name}'. {hint} `vitsplit recipes` describes them.")
    return RECIPES[name]()


def count_classes(config: TrainConfig) -> int:
    """The number of classes of a configuration's data set if it is known, otherwise a typical one; 0 for depth."""
    return DATASET_CLASSES.get(config.task.format, config.task.num_classes)
