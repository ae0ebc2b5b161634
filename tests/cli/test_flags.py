"""Flags of settings classes and of functions."""

from __future__ import annotations

import dataclasses
import logging
from collections.abc import Mapping, Sequence
from typing import Annotated, Any

import pytest
import tyro
from pydantic import Field

from vitsplit.cli.flags import FromArgv, Prefixed, call_with_flags, from_flags, split_by_method
from vitsplit.cli.values import Switch
from vitsplit.cli.words import leading_arguments, split_by_name, value_of
from vitsplit.config import Former, Settings, settings_of
from vitsplit.engine.override import override
from vitsplit.errors import ConfigError
from vitsplit.recipes import recipe

BASE = recipe("ade20k-small")


def test_no_flag_changes_nothing() -> None:
    assert from_flags(BASE, []) == BASE


@pytest.mark.parametrize(
    ("flags", "part", "changed"),
    [
        ("--lr 3e-4 --betas 0.9 0.95 --clip-norm 1", "optim", {"lr": 3e-4, "betas": (0.9, 0.95), "clip_norm": 1.0}),
        ("--num-tuned-layers 4 --no-task-head", "method", {"num_tuned_layers": 4, "task_head": False}),
        ("--selection explicit --prior-layers 0 3 7", "method", {"selection": "explicit", "prior_layers": (0, 3, 7)}),
        ("--crop-size 448 392 --image-scale None", "task", {"crop_size": (448, 392), "image_scale": None}),
        ("--test-stride 100 200 --test-flip", "task", {"test_stride": (100, 200), "test_flip": True}),
        ("--test-scales 0.5 1 1.5", "task", {"test_scales": (0.5, 1.0, 1.5)}),
        ("--workers -1 --seed=7 --compile --track", "loop", {"workers": -1, "seed": 7, "compile": True, "track": ()}),
        ("--track tensorboard wandb", "loop", {"track": ("tensorboard", "wandb")}),
        ("--backbone dinov3-base --weights a/b.pth", "backbone", {"backbone": "dinov3-base", "weights": "a/b.pth"}),
    ],
)
def test_flags_change_only_their_settings(flags: str, part: str, changed: dict[str, Any]) -> None:
    read = from_flags(BASE, flags.split())
    assert getattr(read, part) == dataclasses.replace(getattr(BASE, part), **changed)
    assert override(BASE, changed) == read, "and no other"


def test_settings_of_the_configuration_itself() -> None:
    assert from_flags(BASE, ["--method", "linear-probe"]) == override(BASE, {"method": "linear-probe"})


def test_every_setting_is_a_flag_with_help(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stop:
        from_flags(BASE, ["--help"], prog="vitsplit train segmentation")
    assert stop.value.code == 0
    text = capsys.readouterr().out
    assert "usage: vitsplit train segmentation" in text
    assert {setting.flag for setting in settings_of(BASE.flat("segmentation"))} <= set(text.replace(",", " ").split())
    assert "Peak learning rate." in text, "help is the field's docstring"
    assert "40000" in text, "defaults are the recipe's"


@pytest.mark.parametrize(
    "arguments",
    [
        ["--num-tuned-layer", "4"], ["--lrr=3"], ["--no-task-heads"], ["--zzz"], ["--lr", "abc"], ["--crop-size", "3"],
        ["--selection", "random"], ["--steps", "1.5"],
    ],
)  # fmt: skip
def test_invalid_flags_are_named_with_status_2(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stop:
        from_flags(BASE, arguments)
    output = capsys.readouterr().err
    assert stop.value.code == 2 and arguments[0].partition("=")[0] in output and len(output) < 6000


@pytest.mark.parametrize(
    "arguments",
    [
        ["--steps", "0"], ["--lr", "nan"], ["--crop-size", "0", "5"], ["--crop-size", "8192", "8192"],
        ["--seed", "9" * 30], ["--test-scales", "1e9"], ["--weights", ""], ["--track", *["wandb"] * 9],
    ],
)  # fmt: skip
def test_flags_out_of_range_are_named(arguments: list[str]) -> None:
    with pytest.raises(ConfigError, match=f"^{arguments[0]} "):
        from_flags(BASE, arguments)


def test_prefixes_of_flags_and_dots_in_values() -> None:
    words = ["--lr", "1e-4", "--a.no-flip", "--weights=a.pth", "--b.c", "1", "2", "--weights", "x.y"]
    shared = ["--lr", "1e-4", "--weights=a.pth", "--weights", "x.y"]
    assert split_by_name(words) == {"": shared, "a": ["--no-flip"], "b": ["--c", "1", "2"]}
    assert split_by_name(["--a.b", "--c.d"], {"a"}) == {"a": ["--b"], "": ["--c.d"]}


def test_flags_are_split_by_method() -> None:
    words = ["--lr", "1e-4", "--trunk-lora-rank", "4", "--drop_path=0.1", "--num-tuned-layers", "2"]
    shared, own = split_by_method(BASE.flat("segmentation"), words, ["vitsplit", "lora", "vpt"])
    assert shared == ["--lr", "1e-4", "--trunk-lora-rank", "4", "--num-tuned-layers", "2"]
    assert own == {"lora": ["--trunk-lora-rank", "4", "--drop_path=0.1"], "vpt": ["--drop_path=0.1"]}


@pytest.mark.parametrize("value", ["0", "x", "\x7f"])
def test_an_invalid_value_of_another_methods_flag_is_rejected(value: str) -> None:
    with pytest.raises((ConfigError, SystemExit)):
        from_flags(BASE, ["--num-prompts", value])
    assert from_flags(BASE, ["--num-prompts", "4"]) == BASE


def test_arguments_are_found_before_parsing() -> None:
    words = ["a", "b", "--recipe", "x", "--data=c", "--recipe=y", "--json"]
    assert leading_arguments(words) == ["a", "b"]
    assert leading_arguments([]) == [] and leading_arguments(["--json", "a"]) == []
    found = [value_of(words, flag) for flag in ("--recipe", "--data", "--json", "--rec")]
    assert found == ["y", "c", None, None]


class Group(Settings):
    """A group."""

    color: Annotated[float, Field(ge=0, le=1), Former("colour_share")] = 0.5
    """Of it."""
    flip: Annotated[bool, Former("mirrored")] = True
    """Of it too."""
    json: int = 3
    """Shadowed."""


def verb(
    names: tyro.conf.Positional[tuple[str, ...]] = (),
    /,
    count: Annotated[int, Field(ge=1, le=9)] = 1,
    json: Switch = False,
    group: Annotated[Group | None, FromArgv(lambda words: Group(color=0.1) if "with" in words else None)] = None,
    length: Annotated[int, FromArgv(len)] = 0,
    own: Annotated[Mapping[str, Sequence[str]], Prefixed()] = {},
) -> tuple[Any, ...]:
    """Do it.

    Args:
        names: Names.
        count: A count.
        json: A switch.
        group: A group.
        length: How many words.
        own: By name.
    """
    return names, count, json, group, length, own


def test_a_function_is_called_with_parsed_arguments() -> None:
    assert call_with_flags(verb, ["a", "--count", "3"], prog="x") == (("a",), 3, False, None, 3, {})
    words = ["with", "--color", "0.2", "--json", "--m.lr", "3"]
    assert call_with_flags(verb, words, prog="x")[2:] == (True, Group(color=0.2), 6, {"m": ["--lr", "3"]})
    for words, message in (
        (["--count", "10"], "--count .* 1 to 9, not 10"),
        (["with", "--color", "2"], "--color .*2.0"),
    ):
        with pytest.raises(ConfigError, match=f"^{message}"):
            call_with_flags(verb, words, prog="x")
    for wrong in (["--color", "0.2"], ["--length", "3"]):
        with pytest.raises(SystemExit) as stop:
            call_with_flags(verb, wrong, prog="x")
        assert stop.value.code == 2


def test_positional_arguments_between_flags() -> None:
    words = ["a", "--count", "3", "b", "--json", "c", "--count=4", "d"]
    assert call_with_flags(verb, words, prog="x")[:3] == (("a", "b", "c", "d"), 4, True)


def test_positional_arguments_and_flags_of_several_values() -> None:
    def f(
        runs: tyro.conf.Positional[tuple[str, ...]],
        /,
        *,
        out: str = "",
        format: tuple[str, ...] = ("a",),
        ask: tyro.conf.UseAppendAction[tuple[str, ...]] = (),
    ) -> tuple[Any, ...]:
        return runs, out, format, ask

    words = ["r1", "--format", "x", "y", "--out", "o", "r2", "--ask", "q", "r3"]
    assert call_with_flags(f, words, prog="f") == (("r1", "r2", "r3"), "o", ("x", "y"), ("q",))


def test_flags_of_an_earlier_version_work_with_a_warning(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING):
        assert from_flags(Group(), ["--colour-share", "0.25", "--no-mirrored"]) == Group(color=0.25, flip=False)
    assert [("--colour-share" in line, "--color" in line) for line in caplog.messages] == [(True, True), (False, False)]
    caplog.clear()
    with caplog.at_level(logging.WARNING):
        assert call_with_flags(verb, ["with", "--colour_share=0.75"], prog="x")[3] == Group(color=0.75)
        assert from_flags(Group(), ["--color", "0.25"]).color == 0.25
    assert len(caplog.messages) == 1
