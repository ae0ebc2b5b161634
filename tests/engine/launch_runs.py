"""What torchrun starts: runs, one after the other, whose settings come as JSON by the name of their folder.

Settings with ``command`` are a command line; with ``kind`` they are those of a tiny run: ``tiny``, or ``worded`` for
a run with a language model that is sharded.
"""

import json
import os
import sys
from pathlib import Path

import torch
from accelerate import PartialState
from safetensors.torch import save_file
from tiny import TinyTask, tiny_run
from worded import WordedTask

from vitsplit.cli.main import main
from vitsplit.engine import trainer
from vitsplit.engine.optim import moments
from vitsplit.errors import VitsplitError

TASK = ("tied", "frozen", "checkpointed", "adapted", "interrupt_at", "terminate_at", "nan_for")
RANK = os.environ["RANK"]


class Watched(TinyTask):
    """Records the evaluated model's output for one image, on each process."""

    def val_predictions(self, forward, *given):
        output, _ = forward(torch.arange(3 * 28 * 28).view(1, 3, 28, 28).remainder(256).to(torch.uint8))
        self.computed = output.flatten().tolist()
        return super().val_predictions(forward, *given)


def tiny(out: Path, **settings) -> None:
    task = Watched(nan_for=settings.pop("nan_for", None))
    run = tiny_run(out / "run", task=task, **settings)
    save_file(run.weights, out / f"weights-{RANK}.safetensors")
    (out / f"printed-{RANK}.txt").write_text(run.printed)
    (out / f"computed-{RANK}.json").write_text(json.dumps(task.computed))
    (out / f"seen-{RANK}.json").write_text(json.dumps(task.seen))
    (out / f"score-{RANK}.json").write_text(json.dumps(run.result.best_metrics))


def worded(out: Path, **settings) -> None:
    task = WordedTask(**{name: settings.pop(name) for name in TASK if name in settings})
    spread, original = [], trainer.parallelize
    trainer.parallelize = lambda *given: spread.append(original(*given)) or spread[-1]
    try:
        run = tiny_run(out / "run", task=task, **settings)
    except KeyboardInterrupt:
        return
    finally:
        trainer.parallelize = original
    assert {parameter.device.type for parameter in run.model.parameters()} == {"meta"}, "nothing whole is left over"
    (out / f"score-{RANK}.json").write_text(json.dumps(run.result.best_metrics))
    (out / f"held-{RANK}.json").write_text(json.dumps(numbers_held(spread[0])))


def numbers_held(parallel) -> dict[str, int]:
    """Number of parameter and moment elements in this process."""
    parameters = list(parallel.trained.parameters())
    if hasattr(parallel, "flat"):  # DeepSpeed
        optimizer = parallel.zero.optimizer
        moments_held = sum(optimizer.state[flat]["exp_avg"].numel() for flat in parallel.flat)
        return {"parameters": sum(getattr(p, "ds_tensor", p).numel() for p in parameters), "moments": moments_held}
    first = [value for key, value in moments(parallel.trained, parallel.optimizer).items() if "avg_sq" in key]
    return {
        "parameters": sum(p.to_local().numel() for p in parameters),
        "moments": sum(value.to_local().numel() for value in first),
    }


def one_run(out: Path, settings: dict) -> None:
    out.mkdir(exist_ok=True)
    if "command" in settings:
        assert main(settings["command"]) == 0
        return
    kind = {"tiny": tiny, "worded": worded}[settings.pop("kind")]
    try:
        kind(out, **settings)
    except VitsplitError as error:
        (out / f"error-{RANK}.txt").write_text(str(error))
        return
    assert PartialState().num_processes == 2


torch.set_num_threads(1)
for name, several in json.loads(sys.argv[2]).items():
    for each in several:
        one_run(Path(sys.argv[1]) / name, each)
