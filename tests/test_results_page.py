"""docs/results.md agrees with the measured figures. (Counts are compared with the paper in other tests.)"""

from __future__ import annotations

import importlib
import shlex
from pathlib import Path
from types import ModuleType

import pytest

from vitsplit.cli.flags import from_flags
from vitsplit.recipes import recipe
from vitsplit.tasks import TASKS

ROOT = Path(__file__).parents[1]


@pytest.fixture
def claims(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    monkeypatch.syspath_prepend(str(ROOT / "benchmarks"))
    return importlib.import_module("results_claims")


def test_commands_for_users_with_data_are_valid(claims: ModuleType) -> None:
    """Recipes and settings of the commands exist. Those of `analyze` and `evaluate` have settings of runs, too."""
    for beyond in claims.BEYOND:
        words = shlex.split(beyond.command.partition(", then ")[0])
        verb = next(word for word in words if word in ("train", "evaluate", "analyze"))
        rest = words[words.index(verb) + 1 :]
        name = "ade20k-small"
        for flag in ("--recipe", "--data", "--out", "--from"):
            if flag in rest:
                at = rest.index(flag)
                name = rest[at + 1] if flag == "--recipe" else name
                del rest[at : at + 2]
        names = ("ablate", "sweep", "RUN", *TASKS.names())
        config = from_flags(recipe(name), [word for word in rest if word not in names])
        assert verb != "train" or config.task.name in rest, beyond.command


@pytest.mark.parametrize("part", ["measured", "beyond", "not_covered"])
def test_the_page_is_up_to_date(part: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(ROOT / "benchmarks"))
    section = getattr(importlib.import_module("results_page"), part)()
    page = (ROOT / "docs" / "results.md").read_text(encoding="utf-8")
    assert section in page, "write it anew: python benchmarks/results_page.py"


def test_commands_follow_the_text_of_the_paper(claims: ModuleType) -> None:
    """Table 14's layer-wise decay, and Tables 2 and 3's fine-tuned rows at 896 pixels."""
    table_14 = [each.command for each in claims.BEYOND if each.claim.startswith("Table 14")]
    assert len(table_14) == 6
    for command in table_14:
        assert "--layer-decay 0.95" in command and "--task-head-lr-scale 1 " in command
    tuned = [each for each in claims.BEYOND if each.claim.startswith(("Table 2, DINOv2", "Table 3, DINOv2"))]
    assert {each.paper for each in tuned} == {"58.1 / 58.5 mIoU", "81.2 / 82.3 mIoU", "83.5 / 84.3 mIoU"}
    assert all("--method full-finetune" in each.command for each in tuned)
    named = [each.command.partition("--recipe ")[2].split()[0] for each in tuned]
    assert {recipe(name).task.crop_size for name in named} == {(896, 896)}
