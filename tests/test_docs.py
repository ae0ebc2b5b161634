"""The documentation site builds without warnings, and has every public name."""

import contextlib
import functools
import html
import io
import os
import re
import shlex
import subprocess
import sys
from itertools import takewhile
from pathlib import Path

import pytest

import vitsplit
from vitsplit.backbone.config import BackboneConfig
from vitsplit.cli.main import VERBS, main
from vitsplit.methods import METHODS
from vitsplit.recipes import RECIPES
from vitsplit.tasks import TASKS
from vitsplit.train_config import GeometryConfig, LoopConfig, OptimConfig

DOCS = Path(__file__).parents[1] / "docs"


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("site")
    # The notebooks, and so the pictures from them in the gallery, are those of test_notebooks.py.
    without_notebooks = ["-D", "nb_execution_mode=off", "-D", "suppress_warnings=mystnb.glue_ref"]
    options = ["--quiet", "--fail-on-warning", "-b", "html", *without_notebooks]
    command = [sys.executable, "-m", "sphinx", *options, DOCS, folder]
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
    homes |= {name: [path.replace(":", ".")] for name, path in METHODS.built_in.items()}
    homes |= {name: [f"{make.__module__}.{make.__name__}"] for name, make in RECIPES.items()}
    assert [name for name, ids in homes.items() if not any(f'id="{each}"' in pages for each in ids)] == []


def test_the_reference_of_settings_has_flag_range_default_and_text(site: Path) -> None:
    page = (site / "reference" / "settings.html").read_text(encoding="utf-8")
    text = " ".join(html.unescape(re.sub(r"<[^>]+>", "", page)).split())
    built_in = [table.load(name) for table in (TASKS, METHODS) for name in table.built_in]
    for config in (OptimConfig, LoopConfig, GeometryConfig, BackboneConfig, *built_in):
        for name, value in vars(config()).items():
            assert f'id="{config.__module__}.{config.__name__}.{name}"' in page
            assert f"{name} = {value!r}" in text and f"--{name.replace('_', '-')}" in text
    assert "Peak learning rate. --lr: a finite number (above 0 and at most 1,000)." in text
    assert "warmup_steps = 1500¶ Steps of linear warm-up; at most a tenth of the run. --warmup-steps: a whole" in text
    assert not any("FieldInfo" in path.read_text(encoding="utf-8") for path in (site / "reference").glob("*.html"))


def documents() -> list[Path]:
    return [DOCS.parent / "README.md", *sorted(DOCS.rglob("*.md"))]


def blocks(document: Path, language: str) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", document.read_text(encoding="utf-8"), flags=re.DOTALL)


@pytest.mark.parametrize("document", documents(), ids=lambda path: path.stem)
def test_python_blocks_compile(document: Path) -> None:
    for number, block in enumerate(blocks(document, "python")):
        compile(block, f"{document.name}, block {number}", "exec")


@functools.cache
def help_of(*words: str) -> str:
    printed = io.StringIO()
    with contextlib.redirect_stdout(printed), contextlib.redirect_stderr(printed), contextlib.suppress(SystemExit):
        main([*words, "--help"])
    return printed.getvalue()


@pytest.mark.parametrize("document", documents(), ids=lambda path: path.stem)
def test_commands_have_flags_that_exist(document: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "500")
    for block in blocks(document, "bash"):
        for line in block.replace("\\\n", " ").splitlines():
            if not line.startswith("vitsplit "):
                continue
            words = shlex.split(line, comments=True)[1:]
            verb = words[:2] if " ".join(words[:2]) in VERBS else words[:1]
            assert " ".join(verb) in VERBS or not verb[0][0].isalpha(), line  # vitsplit --help
            # The flags of some verbs depend on what they are given: `vitsplit info ade20k-small --backbone ...`.
            known = help_of(*takewhile(lambda word: not word.startswith("-"), words)) + help_of(*verb)
            # A head's name can precede its flag: --depth.lr.
            flags = [re.sub(r"^--\w+\.", "--", word.partition("=")[0]) for word in words if word.startswith("--")]
            unknown = [flag for flag in flags if not re.search(rf"{flag}(?![\w-])", known)]
            assert not unknown, line
