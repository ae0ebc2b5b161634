"""What torchrun starts in test_sharding: tiny runs, one after the other, whose settings come as JSON by name."""

import json
import os
import sys
from pathlib import Path

import torch
from accelerate import PartialState
from tiny import tiny_run
from worded import WordedTask

from vitsplit.engine import loop
from vitsplit.engine.optim import moments
from vitsplit.errors import VitsplitError

TASK = ("tied", "frozen", "checkpointed", "adapted", "interrupt_at", "terminate_at", "nan_for")
RANK = os.environ["RANK"]


class Watch:
    """Sets a run's model up as always, and remembers what trains it."""

    def __init__(self):
        self.original = loop.set_up_model

    def __call__(self, *args):
        backbone, self.engine = self.original(*args)
        return backbone, self.engine

    def numbers_held(self) -> dict[str, int]:
        """How many numbers of parameters and of moments this process holds."""
        parameters = list(self.engine.trained.parameters())
        if hasattr(self.engine, "flat"):  # DeepSpeed
            optimizer = self.engine.zero.optimizer
            moments_held = sum(optimizer.state[flat]["exp_avg"].numel() for flat in self.engine.flat)
            return {
                "parameters": sum(getattr(p, "ds_tensor", p).numel() for p in parameters),
                "moments": moments_held,
            }
        first = [value for key, value in moments(self.engine.trained, self.engine.optimizer).items() if "avg_sq" in key]
        return {
            "parameters": sum(p.to_local().numel() for p in parameters),
            "moments": sum(value.to_local().numel() for value in first),
        }


def one_run(out: Path, settings: dict) -> None:
    out.mkdir(exist_ok=True)
    resume = settings.pop("resume", False)
    task = WordedTask(**{name: settings.pop(name) for name in TASK if name in settings})
    watch = loop.set_up_model = Watch()
    try:
        run = tiny_run(out / "run", task=task, resume=resume, **settings)
    except KeyboardInterrupt:
        return
    except VitsplitError as error:
        (out / f"error-{RANK}.txt").write_text(str(error))
        return
    finally:
        loop.set_up_model = watch.original
    assert PartialState().num_processes == 2
    assert {parameter.device.type for parameter in run.model.parameters()} == {"meta"}, "nothing whole is left over"
    (out / f"stopped-{RANK}.txt").write_text(str(run.result.stopped_by))
    (out / f"score-{RANK}.json").write_text(json.dumps(run.result.best_metrics))
    (out / f"held-{RANK}.json").write_text(json.dumps(watch.numbers_held()))


torch.set_num_threads(1)
for name, several in json.loads(sys.argv[2]).items():
    for each in several:
        one_run(Path(sys.argv[1]) / name, each)
