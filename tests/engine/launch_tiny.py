"""What torchrun starts in test_distributed: tiny runs, one after the other, whose settings come as JSON by name."""

import json
import os
import sys
from pathlib import Path

import torch
from accelerate import PartialState
from safetensors.torch import save_file
from tiny import TinyTask, tiny_run

from vitsplit.errors import TrainingError


class Watched(TinyTask):
    """Remembers what the evaluated model computes for one image, as each process sees it."""

    def val_predictions(self, forward, *given):
        output, _ = forward(torch.arange(3 * 28 * 28).view(1, 3, 28, 28).remainder(256).to(torch.uint8))
        self.computed = output.flatten().tolist()
        return super().val_predictions(forward, *given)


def one_run(out: Path, settings: dict) -> None:
    out.mkdir(exist_ok=True)
    rank = os.environ["RANK"]
    task = Watched(nan_for=settings.pop("nan_for", None))
    try:
        run = tiny_run(out / "run", task=task, **settings)
    except TrainingError as error:
        (out / f"error-{rank}.txt").write_text(str(error))
        return
    assert PartialState().num_processes == 2
    save_file(run.weights, out / f"weights-{rank}.safetensors")
    (out / f"printed-{rank}.txt").write_text(run.printed)
    (out / f"computed-{rank}.json").write_text(json.dumps(task.computed))
    (out / f"seen-{rank}.json").write_text(json.dumps(task.seen))
    (out / f"score-{rank}.json").write_text(json.dumps(run.result.best_metrics))


torch.set_num_threads(1)
for name, settings in json.loads(sys.argv[2]).items():
    one_run(Path(sys.argv[1]) / name, settings)
