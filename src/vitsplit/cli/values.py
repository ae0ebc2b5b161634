"""Values of flags that argparse cannot check by itself."""

from __future__ import annotations

import argparse


def positive(text: str) -> int:
    """A whole number of at least 1, as the ``type`` of an argument."""
    number = int(text)
    if number < 1:
        raise argparse.ArgumentTypeError(f"{text} must be at least 1")
    return number
