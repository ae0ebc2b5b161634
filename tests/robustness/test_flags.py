"""Invalid values of flags: each gives exit status 2 and one message that names the flag."""

import dataclasses
import signal
import types
import typing

import pytest

from small_run import SMALL_RUN
from vitsplit.cli.main import main
from vitsplit.recipes import recipe

HUGE = str(10**30)
TRAIN = {
    "segmentation": "laptop-segmentation",
    "depth": "laptop-depth",
    "detection": "laptop-detection",
    "vqa": "laptop-vqa",
}


def numbers(config, prefix=()):
    """Every numeric setting: its name, how many values it takes, and whether they are whole numbers."""
    hints = typing.get_type_hints(type(config))
    for field in dataclasses.fields(config):
        value = getattr(config, field.name)
        if dataclasses.is_dataclass(value):
            yield from numbers(value)
            continue
        kinds = [hints[field.name]]
        while typing.get_origin(kinds[0]) in (typing.Union, types.UnionType):
            kinds = [*typing.get_args(kinds[0]), *kinds[1:]]
        for kind in kinds:
            members = [each for each in typing.get_args(kind) if each is not Ellipsis] or [kind]
            if members[0] in (int, float):
                yield field.name, len(members), members[0] is int
                break


def bad_values(whole):
    return (HUGE, f"-{HUGE}", "1.5", "nan") if whole else ("nan", "inf", "-inf", "1e300", "-1e300", "text")


def cases():
    """Each setting with one bad value, in turn: tests/test_config.py gives every setting every value without flags."""
    for task, name in TRAIN.items():
        config = recipe(name)
        # Settings that all tasks share are tested with one of them.
        for index, (setting, count, whole) in enumerate(numbers(config if task == "segmentation" else config.task)):
            values = bad_values(whole)
            value = values[index % len(values)]
            yield pytest.param(task, setting.replace("_", "-"), [value] * count, id=f"{task} {setting} {value[:8]}")


def ends_with(argv, capsys):
    """The exit status and the output."""

    def raise_timeout(*_):
        raise AssertionError(f"{argv}: not refused within 10 s")

    before = signal.signal(signal.SIGALRM, raise_timeout)
    signal.setitimer(signal.ITIMER_REAL, 10)
    try:
        status = main(argv)
    except SystemExit as stop:
        status = stop.code
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)
    return status, capsys.readouterr().err


@pytest.mark.parametrize(("task", "flag", "values"), list(cases()))
def test_numeric_settings_have_bounds(task, flag, values, scenes, tmp_path, capsys):
    status, output = ends_with(
        ["train", task, "--data", str(scenes), "--out", str(tmp_path / "run"), f"--{flag}", *values], capsys
    )
    assert status == 2 and flag in output.replace("_", "-"), output
    assert "Traceback" not in output and len(output) < 5000
    assert not (tmp_path / "run").exists()


OTHERS = [
    ("train segmentation --data {data} --out= ", "--out"),
    ("train segmentation --data {data} --steps 9e29", "--steps"),
    ("train segmentation --data {data} --workers 1000000", "--workers"),
    ("train segmentation --data {data} --dice-weight -1", "--dice-weight"),
    ("train segmentation --data {data} --test-scales nan", "--test-scales"),
    ("train segmentation --data {data} --crop-size 0 64", "--crop-size"),
    ("train segmentation --data {data} --config {missing}", "missing"),
    ("train segmentation --data {missing}", "missing"),
    ("train segmentation --data {data} --data", "--data"),
    ("predict {run} {image} --out {out} --scale 1000", "--scale"),
    ("predict {run} {image} --out {out} --scale nan", "--scale"),
    ("predict {run} {image} --out {out} --scale 0", "--scale"),
    ("predict {run} {image} --out {out} --tile 0 64", "--tile"),
    ("predict {run} {image} --out {out} --tile 1000000 1000000", "--tile"),
    ("predict {run} {image} --out {out} --tile 64 64 --overlap -1", "--overlap"),
    ("predict {run} {image} --out {out} --tile 64 64 --overlap 64", "--overlap"),
    ("predict {run} {image} --out {out} --batch-size 0", "--batch-size"),
    ("predict {run} {image} --out {out} --batch-size 1000000000", "--batch-size"),
    ("predict {run} {image} --out {out} --device mps", "mps"),
    ("predict {run} {image} --out {out} --device cuda:9", "cuda:9"),
    ("predict {run} {image} --out {out} --device toaster", "toaster"),
    ("predict {run} {image} --out {out} --precision fp1", "--precision"),
    ("predict {run} {image} --out= ", "--out"),
    ("predict {run} {image} --out {out} --weights {missing}", "missing"),
    ("predict {missing} {image} --out {out}", "missing"),
    ("predict {run} {missing} --out {out}", "missing"),
    ("evaluate {run} --data {data} --pictures -1", "--pictures"),
    ("evaluate {run} --data {data} --pictures 1000000000", "--pictures"),
    ("evaluate {run} --data {data} --test-scales nan", "--test-scales"),
    ("evaluate {run} --data {data} --test-scales 1000", "--test-scales"),
    ("evaluate {run} --data {data} --test-stride 0 0", "--test-stride"),
    ("evaluate {run} --data {data} --out= ", "--out"),
    ("evaluate {run} --data {data} --split nowhere", "nowhere"),
    ("evaluate {run} --data {data} --device cuda:9", "cuda:9"),
    ("info laptop-segmentation --size 100000000 100000000", "--size"),
    ("info laptop-segmentation --size -5 5", "--size"),
    ("data check {data} --workers -7", "--workers"),
    ("data check {data} --workers 1000000", "--workers"),
    ("bench train-step --repeats -1", "--repeats"),
    ("demo --steps 0", "--steps"),
    ("demo --size 1 1", "--size"),
    ("demo --size 1000000 1000000", "--size"),
    ("demo --train-scenes -1", "--train-scenes"),
]


@pytest.mark.parametrize(("command", "named"), OTHERS, ids=[command for command, _ in OTHERS])
def test_invalid_values_are_rejected(command, named, scenes, run, tmp_path, capsys):
    fields = {
        "data": scenes,
        "run": run,
        "image": next((scenes / "images" / "val").iterdir()),
        "out": tmp_path / "out",
        "missing": tmp_path / "missing",
    }
    words = [word.format(**fields) for word in command.split()]
    before = sorted(run.rglob("*"))
    status, output = ends_with(words, capsys)
    assert status == 2 and named in output, output
    assert "Traceback" not in output
    assert not (tmp_path / "out").exists() and sorted(run.rglob("*")) == before


def test_valid_values_are_accepted(scenes, tmp_path, capsys):
    flags = []
    for name, value in SMALL_RUN.items():
        flag = f"--{name.replace('_', '-')}"
        if isinstance(value, bool):
            flags.append(flag)
        else:
            flags += [flag, *map(str, value if isinstance(value, tuple) else [value])]
    words = ["train", "segmentation", "--data", str(scenes), "--out", str(tmp_path / "run"), *flags]
    status, output = ends_with(words, capsys)
    assert status == 0, output
    assert (tmp_path / "run" / "best" / "head.safetensors").is_file()
