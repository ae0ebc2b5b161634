"""The documentation site builds without warnings, and has every public name."""

import inspect
import os
import subprocess
import sys
from pathlib import Path

import pytest

import vitsplit

DOCS = Path(__file__).parents[1] / "docs"


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("site")
    command = [sys.executable, "-m", "sphinx", "--quiet", "--fail-on-warning", "-b", "html", DOCS, folder]
    built = subprocess.run(
        command, capture_output=True, text=True, env=os.environ | {"PYTHONPATH": str(DOCS.parent / "src")}
    )
    assert built.returncode == 0, built.stderr
    return folder


def test_every_page_is_built(site: Path) -> None:
    pages = {path.relative_to(DOCS).with_suffix(".html") for path in DOCS.rglob("*.md") if "_build" not in path.parts}
    assert {page for page in pages if not (site / page).is_file()} == set()


def test_every_public_name_is_in_the_reference(site: Path) -> None:
    pages = "".join(path.read_text(encoding="utf-8") for path in (site / "reference").glob("*.html"))
    public = [name for name in vitsplit.__all__ if callable(getattr(vitsplit, name))]
    homes = {name: [f"vitsplit.{name}", f"{getattr(vitsplit, name).__module__}.{name}"] for name in public}
    assert [name for name, ids in homes.items() if not any(f'id="{each}"' in pages for each in ids)] == []


@pytest.mark.parametrize("name", [name for name in vitsplit.__all__ if inspect.isfunction(getattr(vitsplit, name))])
def test_every_public_function_documents_arguments_errors_and_an_example(name: str) -> None:
    function = getattr(vitsplit, name)
    text = inspect.getdoc(function) or ""
    assert all(heading in text for heading in ("Args:", "Raises:", "Example:"))
    arguments = text.partition("Args:")[2]
    assert [each for each in inspect.signature(function).parameters if f"{each}: " not in arguments] == []
