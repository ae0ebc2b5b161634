"""How the release prepares test images: ``MultiScaleFlipAug`` in ``data.test.pipeline``."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from vitsplit.importing.training_config import TrainingConfig, whole_numbers

PIPELINE = "data.test.pipeline"
_WITHOUT_EFFECT = ("RandomFlip", "ImageToTensor", "DefaultFormatBundle", "Collect")
"""Steps that predictions do not depend on; whether to flip is a setting of ``MultiScaleFlipAug``."""
_COLORS = {"mean": [123.675, 116.28, 103.53], "std": [58.395, 57.12, 57.375], "to_rgb": True}
"""``Normalize`` of DINOv2."""


def test_view(config: TrainingConfig, task: str) -> dict[str, Any]:
    """Size, scales and flip of test images: ``image_scale``, ``test_scales``, ``test_flip``; none if not recorded.

    Raises:
        ConfigError: Images are prepared in a way that bundles have no setting for.
    """
    if (pipeline := config.get(PIPELINE)) is None:
        return {}
    found = [step for step in _steps(pipeline, config) if step.get("type") == "MultiScaleFlipAug"]
    if len(found) != 1:
        raise config.invalid(PIPELINE, pipeline, "one MultiScaleFlipAug")
    step = found[0]
    flip, ratios = bool(step.get("flip")), step.get("img_ratios")
    _check(step, "flip", (None, False, True), config)
    _check(step, "scale_factor", (None,), config)
    if flip:
        _check(step, "flip_direction", (None, "horizontal", ["horizontal"]), config)
    resized = _check_steps(_steps(step.get("transforms"), config), task, config)
    return {
        "image_scale": _image_scale(step.get("img_scale"), config) if resized else None,
        "test_scales": tuple(ratios) if isinstance(ratios, list | tuple) else (1.0 if ratios is None else ratios,),
        "test_flip": flip,
    }


def _check_steps(steps: list[Mapping[str, Any]], task: str, config: TrainingConfig) -> bool:
    """Refuses steps that a bundle does not have.

    Returns:
        Whether images are resized.
    """
    resized = False
    for step in steps:
        match step.get("type"):
            case "Resize":
                resized = True
                _check(step, "keep_ratio", (None, True), config)
                _check(step, "min_size", (None,), config)
                _check(step, "override", (None, False), config)
            case "Normalize":
                for name, own in _COLORS.items():
                    _check(step, name, (None, own), config)
            case "Pad" if task == "detection":
                pass
            case kind if kind not in _WITHOUT_EFFECT:
                raise config.invalid(f"{PIPELINE}: type", kind, "Resize, Normalize and RandomFlip")
    return resized


def _check(step: Mapping[str, Any], name: str, allowed: tuple[Any, ...], config: TrainingConfig) -> None:
    value = step.get(name)
    if not any(value == each and isinstance(value, bool) == isinstance(each, bool) for each in allowed):
        need = " or ".join("not set" if each is None else str(each) for each in allowed)
        raise config.invalid(f"{PIPELINE}: {name} of {step.get('type')}", value, need)


def _image_scale(value: Any, config: TrainingConfig) -> tuple[int, int] | None:
    """Longest and shortest side; None: the size of the image."""
    if value is None:
        return None
    # mmcv's lists are of several sizes.
    sides = whole_numbers(value[0] if isinstance(value, list) and len(value) == 1 else value)
    if sides is None or len(sides) != 2:
        raise config.invalid(f"{PIPELINE}: img_scale", value, "one size of two whole numbers")
    return max(sides), min(sides)


def _steps(value: Any, config: TrainingConfig) -> list[Mapping[str, Any]]:
    if not isinstance(value, list | tuple) or not all(isinstance(each, Mapping) for each in value):
        raise config.invalid(PIPELINE, value, "a list of dictionaries")
    return [*value]
