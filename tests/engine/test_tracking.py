import importlib.machinery
import importlib.util
import io
import logging
import sys
import types

import pytest
from rich.console import Console
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from tiny import tiny_run

from vitsplit.engine.run_folder import RunFolder
from vitsplit.engine.tracking import log_to
from vitsplit.errors import ConfigError


def scalars(run, name):
    events = EventAccumulator(str(run.folder.tensorboard)).Reload()
    return {event.step: event.value for event in events.Scalars(name)}


def test_tensorboard_has_the_rows_of_the_metrics_file(tmp_path):
    run = tiny_run(tmp_path / "run", track=("tensorboard",), eval_every=4)
    expected = {row["step"]: pytest.approx(row["loss"]) for row in run.rows("loss")}
    assert scalars(run, "train/loss") == expected
    assert set(scalars(run, "eval/accuracy")) == {4, 8, 12}


def test_missing_wandb_is_named_before_the_folder_is_used(tmp_path, monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(ConfigError, match=r"vitsplit\[wandb\]"):
        tiny_run(tmp_path / "run", track=("wandb",))
    assert tiny_run(tmp_path / "run", steps=1).result.state.finished


def test_wandb_continues_the_same_run_after_a_resume(tmp_path, monkeypatch):
    calls = []
    fake = types.ModuleType("wandb")
    fake.__spec__ = importlib.machinery.ModuleSpec("wandb", None)
    fake.config = types.SimpleNamespace(update=lambda values, **_: calls.append(("config", values["loop"]["steps"])))
    started = types.SimpleNamespace(
        log=lambda values, step: calls.append(("log", step, sorted(values))), finish=lambda: calls.append(("finish",))
    )
    fake.init = lambda **options: calls.append(("init", options["id"], options["resume"])) or started
    monkeypatch.setitem(sys.modules, "wandb", fake)
    tiny_run(tmp_path / "run", track=("wandb",), steps=2)
    (_, first_id, how), config, *logs, end = calls
    assert (how, config, end) == ("allow", ("config", 2), ("finish",))
    assert [log[:2] for log in logs] == [("log", 2), ("log", 2)] and "train/loss" in logs[0][2]
    calls.clear()
    tiny_run(tmp_path / "run", resume=True, track=("wandb",), steps=2)
    assert calls[0] == ("init", first_id, "allow")


def test_log_messages_reach_the_screen_and_the_file_once(tmp_path):
    run = RunFolder(tmp_path)
    text = io.StringIO()
    console = Console(file=text, width=40)
    logger = logging.getLogger("vitsplit.somewhere")
    long_command = "go on with: vitsplit train segmentation --data a/long/path --out [runs]/first --resume"
    with log_to(run, console), log_to(run, console):
        logger.info(long_command)
        logger.warning("careful")
    logger.info("afterwards")
    assert text.getvalue().splitlines() == [long_command, "warning: careful"]
    assert run.log_file.read_text().count("go on with") == 1
    assert "afterwards" not in run.log_file.read_text()
