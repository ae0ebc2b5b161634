"""Settings: ranges, checked for values from every source, and the conversion to JSON and back."""

from __future__ import annotations

import dataclasses
import json
import math
import pickle
import random
import subprocess
import sys
import types
import typing
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Any, Literal

import pytest
from pydantic import Field

import vitsplit
from vitsplit import train_config
from vitsplit.atomic_files import json_text
from vitsplit.backbone.config import BackboneConfig
from vitsplit.config import (
    Former,
    Name,
    Opens,
    Settings,
    changed_settings,
    checked,
    from_dict,
    override,
    settings_of,
    to_dict,
)
from vitsplit.config_errors import describe, field_kinds, marks
from vitsplit.data import classes
from vitsplit.demo_config import DemoConfig
from vitsplit.errors import ConfigError, VitsplitError
from vitsplit.methods import METHODS
from vitsplit.recipes import RECIPES, recipe
from vitsplit.recipes.starting_point import starting_config, starting_heads
from vitsplit.saved_config import config_from_dict, config_to_dict, flat_to_dict
from vitsplit.tasks import TASKS

GROUPS: list[Any] = [
    *(BackboneConfig, DemoConfig, train_config.OptimConfig, train_config.LoopConfig, train_config.GeometryConfig),
    *(table.load(name) for table in (METHODS, TASKS) for name in table.built_in),
]


class Inner(Settings):
    rate: Annotated[float, Field(gt=0, le=2)] = 0.5
    kind: Literal["a", "b"] = "a"


class Outer(Settings):
    count: int
    inner: Inner = Inner()
    size: tuple[int, int] | None = None
    names: Annotated[tuple[str, ...], Field(max_length=3)] = ()
    flag: bool = True
    where: Path | None = None
    weights: dict[str, float] = dataclasses.field(default_factory=dict)
    extra: Inner | None = None
    color: Annotated[float, Former("colour")] = 0.0
    file: Annotated[Name | None, Opens()] = None


OUTER = Outer(
    count=3,
    inner=Inner(rate=1e-7, kind="b"),
    size=(4, 5),
    names=("x", "y"),
    flag=False,
    where=Path("a/b"),
    weights={"car": 2.0},
    extra=Inner(),
    color=1.5,
)


def flat(name: str) -> Any:
    """The settings of a recipe's head together with those of the run."""
    config = recipe(name)
    return config.flat(next(iter(config.heads)))


def through_json(value: Any) -> Any:
    return json.loads(json.dumps(to_dict(value)))


def test_settings_survive_json_and_pickle() -> None:
    for config in (OUTER, Outer(count=1)):
        assert from_dict(Outer, through_json(config), "file") == config
        assert pickle.loads(pickle.dumps(config)) == config


@pytest.mark.parametrize("name", RECIPES)
def test_recipes_survive_json(name: str) -> None:
    config = recipe(name)
    assert config_from_dict(json.loads(json.dumps(config_to_dict(config))), "file") == config


def test_json_types_are_converted_and_missing_values_are_defaults() -> None:
    read = from_dict(Outer, {"count": 2, "inner": {"rate": 1}, "colour": 2}, "file")
    assert read == Outer(count=2, inner=Inner(rate=1), color=2.0)
    assert isinstance(read.inner.rate, float)
    assert Outer(count=1, size=[2, 3]).size == (2, 3)  # type: ignore[arg-type]


BAD: list[tuple[dict[str, Any], str]] = [
    ({"count": 1, "inner": {"rat": 1}}, r"no setting 'inner\.rat'.*\brate\b"),
    ({"count": 1, "zzz": 1}, r"no setting 'zzz'.*count.*inner"),
    ({}, r"'count' is missing"),
    ({"count": "3"}, r"'count' \(--count\).*'3'"),
    ({"count": True}, r"'count'.*true"),
    ({"count": 1.5}, r"'count'.*1\.5"),
    ({"count": 1.0}, r"'count'.*1\.0"),
    ({"count": 1, "flag": 1}, r"'flag'.*1"),
    ({"count": 1, "inner": {"kind": "c"}}, r"'inner\.kind'.*a, b.*'c'"),
    ({"count": 1, "inner": {"rate": 0}}, r"'inner\.rate'.*above 0 and at most 2.*0"),
    ({"count": 1, "inner": {"rate": 10**400}}, r"'inner\.rate'.*above 0"),
    ({"count": 1, "inner": {"rate": True}}, r"'inner\.rate'"),
    ({"count": 1, "inner": 3}, r"'inner'.*3"),
    ({"count": 1, "size": [1, 2, 3]}, r"'size'.*1 2 3"),
    ({"count": 1, "size": [1]}, r"'size'.*\b1\b"),
    ({"count": 1, "size": [1, "2"]}, r"'size'.*1 '2'"),
    ({"count": 1, "names": [1]}, r"'names'"),
    ({"count": 1, "names": ["a"] * 4}, r"'names'.*3"),
    ({"count": 1, "names": ["a" * 2000]}, r"'names'"),
    ({"count": 1, "names": ["a\0"]}, r"'names'"),
    ({"count": 1, "weights": {"car": "x"}}, r"'weights'"),
    ({"count": 1, "weights": {"a\x1b[31m": 1}}, r"'weights'"),
    ({"count": 1, "extra": {"rates": 1}}, r"no setting 'extra\.rates'"),
    ({"count": 1, "file": ""}, r"'file'.*''"),
    ({"count": 1, "color": 1, "colour": 1}, r"colou?r"),
    ([], r"configuration"),  # type: ignore[list-item]
]


@pytest.mark.parametrize(("data", "expected"), BAD)
def test_every_error_in_a_file_is_named(data: Any, expected: str) -> None:
    with pytest.raises(ConfigError, match=rf"^config\.json: .*{expected}"):
        from_dict(Outer, data, "config.json")


def test_non_finite_numbers_are_null_in_json() -> None:
    def refuse(word: str) -> None:
        raise AssertionError(f"{word} is not JSON")

    text = json_text({"a": [float("nan"), (1.5, -float("inf"))], "b": {"c": float("inf")}, "d": 3, "e": "NaN"})
    assert json.loads(text, parse_constant=refuse) == {"a": [None, [1.5, None]], "b": {"c": None}, "d": 3, "e": "NaN"}


def fields() -> Iterator[tuple[Any, str, Any]]:
    for group in GROUPS:
        for name, kind in field_kinds(group).items():
            yield group, name, kind


def parts(kind: Any) -> Iterator[Any]:
    """The annotation and all nested ones."""
    yield kind
    for each in typing.get_args(kind) if typing.get_origin(kind) is not Literal else ():
        yield from parts(each)


def bounds(kind: Any) -> dict[str, float]:
    names = ("ge", "gt", "le", "lt")
    return {name: getattr(mark, name) for mark in marks(kind) for name in names if hasattr(mark, name)}


def test_every_number_has_a_range_and_every_list_a_length() -> None:
    for group, name, kind in fields():
        inside = list(parts(kind))
        numbers = [each for each in inside if each in (int, float)]
        assert sum(len(bounds(each)) == 2 for each in inside) == len(numbers), f"{group.__name__}.{name}"
        has_length = any(getattr(mark, "max_length", None) for each in inside for mark in marks(each))
        assert has_length or Ellipsis not in inside, f"{group.__name__}.{name}"


def test_path_settings_are_marked() -> None:
    marked = {name for _, name, kind in fields() if any(isinstance(mark, Opens) for mark in marks(kind))}
    assert marked == {"weights", "cache_folder", "start_from", "language_weights", "train_file", "val_file",
                      "image_folder", "out", "allow_outside", "language_model"}  # fmt: skip


@pytest.mark.parametrize(
    ("opens", "path", "expected"),
    [
        (Opens(), "/home/ann/weights/dinov2.pth", "dinov2.pth"),
        (Opens(), r"C:\Users\ann\dinov2.pth", "dinov2.pth"),
        (Opens(), "~/runs/align/", "align"),
        (Opens(), "dinov2.pth", "dinov2.pth"),
        (Opens(inside_data=True), "deep/val.jsonl", "deep/val.jsonl"),
        (Opens(inside_data=True), "../../ann/val.jsonl", "../val.jsonl"),
        (Opens(inside_data=True), "/home/ann/val.jsonl", "../val.jsonl"),
        (Opens(or_name=True), "lmsys/vicuna-7b-v1.5", "lmsys/vicuna-7b-v1.5"),
        (Opens(or_name=True), "/home/ann/vicuna-7b-v1.5", "vicuna-7b-v1.5"),
        (Opens(or_name=True), "~/vicuna", "vicuna"),
        (Opens(or_name=True), "../ann/models/vicuna", "vicuna"),
    ],
)
def test_paths_without_folders(opens: Opens, path: str, expected: str) -> None:
    assert opens.without_folders(path) == expected
    assert opens.leads_out(expected) == (opens.leads_out(path) and not opens.or_name), "still known as a path"


def of_size(kind: Any, value: float) -> Any:
    """A value of the annotated type with all numbers equal to the given one."""
    if typing.get_origin(kind) is Annotated:
        length = next((mark.min_length for mark in marks(kind) if getattr(mark, "min_length", None)), 1)
        made = of_size(typing.get_args(kind)[0], value)
        return made * length if isinstance(made, tuple) else made
    if typing.get_origin(kind) is dict:
        return {"car": value}
    if typing.get_origin(kind) is tuple:
        return tuple(of_size(each, value) for each in typing.get_args(kind) if each is not Ellipsis)
    if typing.get_origin(kind) in (typing.Union, types.UnionType):
        number = next(each for each in typing.get_args(kind) if any(part in (int, float) for part in parts(each)))
        return of_size(number, value)
    return value


def test_values_outside_their_range_are_rejected_by_flag() -> None:
    for group, name, kind in fields():
        for number in [each for each in parts(kind) if len(bounds(each)) == 2]:
            is_whole = typing.get_args(number)[0] is int
            step = 1 if is_whole else 1e-3
            found = bounds(number)
            outside = [found["ge"] - step] if "ge" in found else [found["gt"]]
            outside += [found["le"] + (1 if is_whole else found["le"])] if "le" in found else [found["lt"]]
            outside += [] if is_whole else [math.nan, math.inf, -math.inf]
            flag = f"--{name.replace('_', '-')}"
            for value in [*outside, True]:
                with pytest.raises(ConfigError, match=rf"^{flag} must be "):
                    group(**{name: of_size(kind, value)})


def test_ends_of_ranges_are_accepted() -> None:
    from vitsplit.train_config import LoopConfig, OptimConfig

    assert LoopConfig(steps=1, batch_size=2**16, seed=2**63 - 1, workers=-1).seed == 2**63 - 1
    assert OptimConfig(warmup_start=1, layer_decay=1.0, betas=(0, 0.5)).betas == (0, 0.5)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("steps", 9 * 10**29), ("workers", 10**6), ("lr", math.nan), ("lr", math.inf), ("test_scales", [math.nan]),
        ("test_scales", [1e9]), ("dice_weight", -1), ("seed", -1), ("batch_size", 10**9), ("patch_size", 0),
        ("flip", 2), ("max_seconds", 0), ("steps", True), ("crop_size", [8192, 8192]), ("scale_range", (2, 1)),
    ],
)  # fmt: skip
def test_files_overrides_and_runs_have_the_same_ranges(tmp_path: Path, name: str, value: Any) -> None:
    base = recipe("laptop-segmentation")
    flag = f"--{name.replace('_', '-')}"
    with pytest.raises(ConfigError, match=flag):
        override(flat("laptop-segmentation"), {name: value})
    with pytest.raises(ConfigError, match=flag):
        vitsplit.train(data=tmp_path, **{name: value})
    if value is not math.nan:
        values = flat_to_dict(base)
        for group in values.values():
            if isinstance(group, dict) and name in group:
                group[name] = value
        text = json.dumps(values).replace("NaN", "1e999")
        (tmp_path / "config.json").write_text(text)
        with pytest.raises(ConfigError, match=r"config\.json"):
            starting_config("segmentation", config_file=tmp_path / "config.json")


def test_changed_settings_invert_override() -> None:
    base = flat("ade20k-small")
    changes = {"lr": 3e-4, "crop_size": (448, 392), "task_head": False, "weights": "a/b.pth"}
    changed = override(base, {**changes, "weights": Path("a/b.pth"), "crop_size": [448, 392]})
    assert changed_settings(base, changed) == changes
    assert changed_settings(changed, changed) == {} and override(base, {}) == base
    assert override(Outer(count=1), {"colour": 2.0, "rate": 1}) == Outer(count=1, color=2.0, inner=Inner(rate=1.0))
    for name, close in (("stepz", "steps"), ("zzz", "accumulate")):
        with pytest.raises(ConfigError, match=rf"'{name}'.*{close}"):
            override(base, {name: 3})


def test_settings_are_listed_once_with_unique_names() -> None:
    for name in ("ade20k-small", "laptop-vqa"):
        found = list(settings_of(recipe(name)))
        assert len({setting.flag for setting in found}) == len(found)
    assert {setting.place for setting in settings_of(OUTER)} >= {("inner", "rate"), ("count",), ("extra", "kind")}
    assert [setting.flag for setting in settings_of(OUTER) if setting.opens] == ["--file"]


def test_arguments_of_a_function() -> None:
    def verb(
        a: Annotated[int, Field(ge=1, le=3)], /, b: tuple[Annotated[int, Field(ge=0, le=5)], int] | None = None
    ) -> Any:
        return a, b

    assert checked(verb)(3, b=(0, 9)) == (3, (0, 9))
    for arguments, flag in ((((4,), {}), "--a"), (((1,), {"b": (6, 0)}), "--b"), (((True,), {}), "--a")):
        with pytest.raises(ConfigError, match=f"^{flag} must be"):
            checked(verb)(*arguments[0], **arguments[1])


def test_type_descriptions() -> None:
    assert describe(int | None) == "a whole number or None"
    assert describe(Annotated[float, Field(ge=0, lt=1)]) == "a finite number (at least 0 and below 1)"
    assert "from 1 to 8,192" in describe(Annotated[int, Field(ge=1, le=8192)])


def test_labels_support_the_maximum_number_of_classes() -> None:
    from vitsplit.cli.values import MAX_CLASSES

    assert MAX_CLASSES == classes.MAX_CLASSES


def test_random_configuration_files_give_one_error_or_a_configuration(tmp_path: Path) -> None:
    """Values of a valid file are replaced at random."""
    rng = random.Random(0)
    values = [None, True, -1, 0, 1.5, 10**30, 1e308, "", "x" * 5000, "1_0", [], [1], [[[]]], {}, {"a": 1}, "\u0000"]
    read = 0
    for index in range(400):
        task = rng.choice(TASKS.names())
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
    assert 8 < read < 250, "both happen"


def test_the_invalid_head_is_named() -> None:
    config = config_to_dict(starting_heads({"rooms": "segmentation", "depth": "depth"}))
    config["heads"]["depth"]["optim"]["lr"] = -1.0
    with pytest.raises(ConfigError, match=r"x\.json: heads\.depth: 'optim\.lr' \(--lr\)"):
        config_from_dict(config, "x.json")


def test_configurations_need_no_torch() -> None:
    code = (
        "import sys; from vitsplit.recipes import recipe; from vitsplit.cli.flags import from_flags; "
        "from_flags(recipe('ade20k-small'), ['--steps', '3']); assert 'torch' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
