"""Ranges of settings: on every number, and checked wherever settings come from."""

from __future__ import annotations

import dataclasses
import json
import math
import random
import types
import typing
from collections.abc import Iterator
from typing import Any

import pytest

import vitsplit
from vitsplit.cli.options import config_from_cli
from vitsplit.data import classes
from vitsplit.engine import config as settings
from vitsplit.engine.config import GeometryConfig
from vitsplit.engine.override import override
from vitsplit.engine.saved_config import config_from_dict, config_to_dict, flat_to_dict
from vitsplit.engine.starting_point import starting_config, starting_heads
from vitsplit.errors import ConfigError, VitsplitError
from vitsplit.methods import METHODS
from vitsplit.ranges import Length, Opens, Range, check_arguments, check_ranges, checked, settings_of
from vitsplit.recipes import RECIPES, recipe
from vitsplit.tasks import TASKS

GROUPS = [
    *(settings.BackboneConfig, settings.OptimConfig, settings.LoopConfig, settings.DemoConfig, GeometryConfig),
    *(table.load(name) for table in (METHODS, TASKS) for name in table.built_in),
]


def numbers(kind: Any) -> bool:
    """Whether values of an annotation hold numbers."""
    if kind in (int, float):
        return True
    return any(numbers(each) for each in typing.get_args(kind)) and typing.get_origin(kind) is not typing.Literal


def ranged() -> Iterator[tuple[type, str, Any, list[Any]]]:
    for group in GROUPS:
        for name, kind in typing.get_type_hints(group, include_extras=True).items():
            if typing.get_origin(kind) is typing.ClassVar:
                continue
            yield group, name, kind, list(getattr(kind, "__metadata__", ()))


def test_every_number_has_a_range_and_every_list_of_any_length_a_length() -> None:
    for group, name, kind, marks in ranged():
        plain = typing.get_args(kind)[0] if marks else kind
        has_range = any(isinstance(mark, Range) for mark in marks)
        assert has_range == numbers(plain), f"{group.__name__}.{name} needs Annotated[..., Range(...)]"
        members = typing.get_args(plain) if isinstance(plain, types.UnionType) else (plain,)
        open_ended = any(Ellipsis in typing.get_args(member) for member in members)
        assert not open_ended or any(isinstance(mark, Length) for mark in marks), f"{group.__name__}.{name}"


def test_every_setting_that_is_a_path_is_marked_as_one() -> None:
    marked = {name for _, name, _, marks in ranged() if any(isinstance(mark, Opens) for mark in marks)}
    assert marked == {"weights", "cache_folder", "start_from", "language_weights", "train_file", "val_file",
                      "image_folder", "out", "allow_outside"}  # fmt: skip


def test_defaults_and_recipes_are_in_their_ranges() -> None:
    for name in RECIPES:
        check_ranges(recipe(name))
    check_ranges(settings.DemoConfig())
    check_ranges(starting_heads({"segmentation": "segmentation", "depth": "depth", "detection": "detection"}))


def just_outside(mark: Range) -> Iterator[float]:
    yield mark.least if mark.above else mark.least - (1 if isinstance(mark.least, int) else 1e-3)
    yield mark.most if mark.below else mark.most * 1.01 + 1
    yield from (math.nan, math.inf, -math.inf)


def test_what_is_just_outside_is_refused_by_its_flag_and_the_ends_are_not() -> None:
    for group, name, kind, marks in ranged():
        plain = typing.get_args(kind)[0] if marks else kind
        for mark in [mark for mark in marks if isinstance(mark, Range)]:
            count = len([each for each in typing.get_args(plain) if each in (int, float)])
            for part in typing.get_args(plain):
                count = max(count, len(typing.get_args(part)) if typing.get_origin(part) is tuple else 0)
            is_tuple = "tuple" in str(plain)
            length = next((each.least for each in marks if isinstance(each, Length)), count) or 1

            def made(value: float, size: int = max(length, 1), is_tuple: bool = is_tuple,
                     group: Any = group, name: str = name) -> Any:  # fmt: skip
                required = {"task": None} if "task" in {field.name for field in dataclasses.fields(group)} else {}
                if name == "class_weights":
                    return group(**required, class_weights={"car": value})
                return group(**required, **{name: (value,) * size if is_tuple else value})

            flag = f"--{name.replace('_', '-')}"
            for value in just_outside(mark):
                with pytest.raises(ConfigError, match=rf"^{flag} must be "):
                    check_ranges(made(value))
                with pytest.raises(ConfigError, match=rf"^a\.json: {flag} must be "):
                    check_ranges(made(value), "a.json")
            for value in (mark.least, mark.most):
                if value in mark:
                    check_ranges(made(value))
            with pytest.raises(ConfigError, match=flag):
                check_ranges(made(True))


@pytest.mark.parametrize(
    ("flag", "value"),
    [
        ("--steps", "900000000000000000000000000000"), ("--workers", "1000000"), ("--lr", "nan"), ("--lr", "inf"),
        ("--test-scales", "nan"), ("--test-scales", "1e9"), ("--dice-weight", "-1"), ("--seed", "-1"),
        ("--batch-size", "1000000000"), ("--patch-size", "0"), ("--flip", "2"), ("--max-seconds", "0"),
    ],
)  # fmt: skip
def test_flags_files_overrides_and_runs_are_held_to_the_same_ranges(tmp_path: Any, flag: str, value: str) -> None:
    base = recipe("laptop-segmentation")
    with pytest.raises(ConfigError, match=rf"^{flag} must be"):
        config_from_cli(base, [flag, value])
    name = flag[2:].replace("-", "_")
    number = float(value) if any(letter in value for letter in "enai") else int(value)
    given = (number,) if name == "test_scales" else number
    with pytest.raises(ConfigError, match=flag):
        override(base, {name: given})
    with pytest.raises(ConfigError, match=flag):
        vitsplit.train(data=tmp_path, **{name: given})
    if math.isfinite(number):
        values = flat_to_dict(base)
        for group in [*values.values(), values]:
            if isinstance(group, dict) and name in group:
                group[name] = given
        (tmp_path / "config.json").write_text(json.dumps(values))
        with pytest.raises(ConfigError, match=rf"config\.json: {flag}"):
            starting_config("segmentation", config_file=tmp_path / "config.json")


def test_one_head_of_a_joint_run_is_named() -> None:
    config = config_to_dict(starting_heads({"segmentation": "segmentation", "depth": "depth"}))
    config["heads"]["depth"]["optim"]["lr"] = -1.0
    with pytest.raises(ConfigError, match=r"x\.json: --depth\.lr must be"):
        config_from_dict(config, "x.json")


@pytest.mark.parametrize("text", ["a\0b", "a\x1b[31m", "x" * 2000])
def test_texts_are_of_one_kind(text: str) -> None:
    with pytest.raises(ConfigError, match="--backbone"):
        check_ranges(settings.BackboneConfig(backbone=text))


def test_arguments_of_a_function() -> None:
    def verb(
        a: typing.Annotated[int, Range(1, 3)], b: typing.Annotated[tuple[int, int] | None, Range(0, 5)] = None
    ) -> int:
        return a

    verb.__annotations__ = {"a": typing.Annotated[int, Range(1, 3)], "b": typing.Annotated[Any, Range(0, 5)]}
    assert checked(verb)(3, b=(0, 5)) == 3
    for wrong, flag in (({"a": 4}, "--a"), ({"a": 1, "b": (1, 6)}, "--b")):
        with pytest.raises(ConfigError, match=f"^{flag} must be"):
            checked(verb)(**wrong)
        with pytest.raises(ConfigError, match=f"^{flag} must be"):
            check_arguments(verb, wrong)


def test_settings_are_walked_once_each() -> None:
    config = recipe("ade20k-small")
    places = [setting.place for setting in settings_of(config)]
    assert len(places) == len(set(places))
    flat: dict[tuple[str, ...], Any] = {}

    def walk(value: Any, place: tuple[str, ...]) -> None:
        if dataclasses.is_dataclass(value):
            for field in dataclasses.fields(value):
                walk(getattr(value, field.name), (*place, field.name))
        elif place == ("heads",):
            for name, head in value.items():
                walk(head, (*place, name))
        else:
            flat[place] = value

    walk(config, ())
    assert {setting.place: setting.value for setting in settings_of(config)} == flat


def test_labels_hold_as_many_classes_as_flags_allow() -> None:
    from vitsplit.cli.values import MAX_CLASSES

    assert MAX_CLASSES == classes.MAX_CLASSES


def test_whatever_a_configuration_file_holds_ends_in_one_error_or_in_a_configuration(tmp_path: Any) -> None:
    """Values of a good file replaced at random."""
    rng = random.Random(0)
    values = [None, True, -1, 0, 1.5, 10**30, 1e308, "", "x" * 5000, "1_0", [], [1], [[[]]], {}, {"a": 1}, "\u0000"]
    read = 0
    for index in range(400):
        task = rng.choice(list(TASKS))
        config = flat_to_dict(recipe(f"laptop-{task}"))
        group = config[rng.choice([name for name, value in config.items() if isinstance(value, dict)])]
        name = rng.choice(list(group))
        group[name] = rng.choice(values)
        file = tmp_path / f"{index}.json"
        file.write_text(json.dumps(config))
        try:
            starting_config(task, config_file=file)
            read += 1
        except VitsplitError as error:
            assert str(file) in str(error) and name.replace("_", "-") in str(error).replace("_", "-")
            assert len(str(error)) < 1000
    assert 5 < read < 250, "both happen"
