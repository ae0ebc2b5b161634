"""What torchrun starts in test_sharding: tiny runs, one after the other, whose settings come as JSON by name."""

import json
import os
import sys
from pathlib import Path

import torch
from accelerate import PartialState
from tiny import tiny_run
from worded import WordedTask

from vitsplit.errors import VitsplitError

TASK = ("tied", "frozen", "checkpointed", "interrupt_at", "terminate_at", "nan_for")


def one_run(out: Path, settings: dict) -> None:
    out.mkdir(exist_ok=True)
    rank, resume = os.environ["RANK"], settings.pop("resume", False)
    task = WordedTask(**{name: settings.pop(name) for name in TASK if name in settings})
    try:
        run = tiny_run(out / "run", task=task, resume=resume, **settings)
    except KeyboardInterrupt:
        assert not resume
        return
    except VitsplitError as error:
        (out / f"error-{rank}.txt").write_text(str(error))
        return
    assert PartialState().num_processes == 2
    assert {parameter.device.type for parameter in run.model.parameters()} == {"meta"}, "nothing whole is left over"
    (out / f"stopped-{rank}.txt").write_text(str(run.result.stopped_by))
    (out / f"score-{rank}.json").write_text(json.dumps(run.result.best_metrics))


torch.set_num_threads(1)
for name, several in json.loads(sys.argv[2]).items():
    for each in several:
        one_run(Path(sys.argv[1]) / name, each)
