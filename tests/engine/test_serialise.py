import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

import pytest

from vitsplit.engine.config import LoopConfig, one_head
from vitsplit.engine.saved_config import config_from_dict, config_to_dict
from vitsplit.engine.serialise import from_dict, to_dict
from vitsplit.errors import ConfigError
from vitsplit.tasks.segmentation.config import SegmentationConfig


@dataclass(frozen=True, kw_only=True)
class Inner:
    rate: float = 0.5
    kind: Literal["a", "b"] = "a"


@dataclass(frozen=True, kw_only=True)
class Outer:
    count: int
    inner: Inner = field(default_factory=Inner)
    size: tuple[int, int] | None = None
    names: tuple[str, ...] = ()
    flag: bool = True
    where: Path | None = None
    weights: dict[str, float] = field(default_factory=dict)
    extra: Inner | None = None


def through_json(value):
    return json.loads(json.dumps(to_dict(value)))


def test_a_configuration_survives_json():
    outer = Outer(
        count=3,
        inner=Inner(rate=1e-7, kind="b"),
        size=(4, 5),
        names=("x", "y"),
        flag=False,
        where=Path("a/b"),
        weights={"car": 2.0},
        extra=Inner(),
    )
    assert from_dict(Outer, through_json(outer), "file") == outer
    assert from_dict(Outer, through_json(Outer(count=1)), "file") == Outer(count=1)


def test_the_packages_own_configuration_survives_json():
    config = one_head(task=SegmentationConfig(image_scale=None), loop=LoopConfig(ema=0.999, track=()))
    assert config_from_dict(json.loads(json.dumps(config_to_dict(config))), "file") == config


def test_whole_numbers_are_numbers_and_what_is_left_out_is_default():
    read = from_dict(Outer, {"count": 2, "inner": {"rate": 1}}, "file")
    assert read == Outer(count=2, inner=Inner(rate=1.0))
    assert isinstance(read.inner.rate, float)


@pytest.mark.parametrize(
    ("data", "message"),
    [
        ({"count": 1, "inner": {"rat": 1}}, r"config.json: there is no setting 'inner.rat'. Did you mean rate\?"),
        ({"count": 1, "zzz": 1}, r"no setting 'zzz'. Settings here: count, inner"),
        ({}, "'count' is missing"),
        ({"count": "3"}, r"config.json: 'count' must be a whole number, not '3'"),
        ({"count": True}, "'count' must be a whole number, not true"),
        ({"count": 1.5}, "'count' must be a whole number, not 1.5"),
        ({"count": 1, "flag": 1}, "'flag' must be true or false, not 1"),
        ({"count": 1, "inner": {"kind": "c"}}, "'inner.kind' must be one of 'a', 'b', not 'c'"),
        ({"count": 1, "inner": 3}, "inner must be an object with settings, not 3"),
        ({"count": 1, "size": [1, 2, 3]}, "'size' must be"),
        ({"count": 1, "size": [1, "2"]}, "'size' must be"),
        ({"count": 1, "names": [1]}, r"'names\[0\]' must be a text, not 1"),
        ({"count": 1, "weights": {"car": "x"}}, "'weights.car' must be a number"),
        ({"count": 1, "extra": {"rates": 1}}, "no setting 'extra.rates'"),
        ([], "the configuration must be an object"),
    ],
)
def test_every_mistake_is_named(data, message):
    with pytest.raises(ConfigError, match=message):
        from_dict(Outer, data, "config.json")
