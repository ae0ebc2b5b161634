"""Validation of the task description in a bundle's card, which may come from an untrusted source."""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping
from typing import Any

from vitsplit.data.classes import MAX_CLASSES, ClassList
from vitsplit.errors import BundleError, DataError
from vitsplit.files import LONGEST_NAME, real_number, shown, string, whole_number

TEMPERATURES = (0.1, 10.0)
"""The least and the largest temperature of calibrated probabilities."""
ADVICE = "Copy the bundle again from where it was trained."
_HASH = re.compile(r"[0-9a-f]{64}")
_CONTROL = re.compile(r"[\x00-\x1f\x7f-\x9f]")


def fields(
    description: Any, where: str, *, required: Collection[str], optional: Collection[str] = ()
) -> Mapping[str, Any]:
    """Checks that the description is an object with these fields, and returns it.

    Raises:
        BundleError: It is not an object, or a field is missing or unknown.
    """
    if not isinstance(description, dict):
        raise BundleError(f"{where} must be an object, not {shown(description)}. {ADVICE}")
    for name in required:
        if name not in description:
            raise BundleError(f"{where}: {name} is missing. {ADVICE}")
    for name in description:
        if name not in required and name not in optional:
            raise BundleError(f"{where}: {shown(name)} is unknown. Update vitsplit, or remove it.")
    return description


def line(value: Any, where: str) -> str:
    """Checks that the value is a single line of text, and returns it.

    Raises:
        BundleError: It is not.
    """
    text = string(value, where, LONGEST_NAME, error=BundleError, advice=ADVICE)
    if not text.strip() or _CONTROL.search(text):
        raise BundleError(f"{where} must be a single line of text, not {shown(text)}. {ADVICE}")
    return text


def check_classes(description: Mapping[str, Any], where: str) -> int:
    """Checks ``classes`` and ``colours``; returns the number of classes.

    Raises:
        BundleError: The names are not a list of unique strings, or the colors do not match them.
    """
    names, colors = description["classes"], description["colours"]
    for key, value in (("classes", names), ("colours", colors)):
        if not isinstance(value, list) or not 1 <= len(value) <= MAX_CLASSES:
            raise BundleError(f"{where}: {key} must be a list of 1 to {MAX_CLASSES}, not {shown(value)}. {ADVICE}")
    for name in names:
        line(name, f"{where}: classes")
    for color in colors:
        if not isinstance(color, list) or len(color) != 3:
            raise BundleError(f"{where}: colours: {shown(color)} is not [red, green, blue]. {ADVICE}")
        for part in color:
            whole_number(part, f"{where}: colours", 0, 255, error=BundleError, advice=ADVICE)
    try:
        ClassList(names=tuple(names), colors=tuple((red, green, blue) for red, green, blue in colors))
    except DataError as error:
        raise BundleError(f"{where}: classes: {error}") from error
    return len(names)


def check_temperature(description: Mapping[str, Any], where: str) -> float | None:
    """Checks ``temperature``; None if the description has none, as those of earlier versions.

    Raises:
        BundleError: It is not a number within ``TEMPERATURES``.
    """
    if "temperature" not in description:
        return None
    return real_number(
        description["temperature"], f"{where}: temperature", *TEMPERATURES, error=BundleError, advice=ADVICE
    )


def check_hash(value: Any, where: str) -> None:
    """Checks that the value is a SHA-256 in lower-case hexadecimal digits.

    Raises:
        BundleError: It is not.
    """
    if not isinstance(value, str) or not _HASH.fullmatch(value):
        raise BundleError(f"{where} must be 64 hexadecimal digits, not {shown(value)}. {ADVICE}")
