"""docs/results.md says what the measured figures say. (What it counts is compared with the paper elsewhere.)"""

from __future__ import annotations

import importlib
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]


@pytest.mark.parametrize("part", ["measured", "beyond", "not_covered"])
def test_the_page_is_up_to_date(part: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(ROOT / "benchmarks"))
    section = getattr(importlib.import_module("results_page"), part)()
    page = (ROOT / "docs" / "results.md").read_text(encoding="utf-8")
    assert section in page, "write it anew: python benchmarks/results_page.py"
