"""docs/architecture.md names the packages and their order as they are."""

import importlib
import re
import tomllib
from pathlib import Path

import pytest

import vitsplit

ROOT = Path(__file__).parents[1]
PAGE = (ROOT / "docs" / "architecture.md").read_text(encoding="utf-8")
CONTRACT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["tool"]["importlinter"]["contracts"][0]
NAMES = sorted(set(re.findall(r"`(vitsplit(?:\.\w+)+(?::\w+)?)`", PAGE)))


def test_packages_match_the_import_contract():
    rows = re.findall(r"^\| (`.*?`) \|", PAGE, flags=re.MULTILINE)
    packages = [set(re.findall(r"`(\w+)`", row)) for row in rows]
    assert packages == [set(re.findall(r"\w+", layer)) for layer in CONTRACT["layers"]]
    package = Path(vitsplit.__file__).parent
    modules = {path.stem for path in package.glob("*.py")} | {
        path.parent.name for path in package.glob("*/__init__.py")
    }
    assert set.union(*packages) == modules - {"__init__"}


@pytest.mark.parametrize("name", NAMES)
def test_names_on_the_page_exist(name):
    module, _, attribute = name.partition(":")
    assert hasattr(importlib.import_module(module), attribute or "__name__")


def test_the_page_names_enough():
    assert len(NAMES) > 15
