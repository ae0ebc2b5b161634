import io
import os
import signal

import pytest
import torch
from rich.console import Console
from safetensors.torch import load_file
from tiny import TinyTask, save_tiny_bundle, tiny_backbone, tiny_config, tiny_model, tiny_run

from vitsplit.training.loop import fit
from vitsplit.training.run_folder import RunFolder
from vitsplit.training.setup import Cadence


def equal(first, second):
    return first.keys() == second.keys() and all(first[name].equal(second[name]) for name in first)


def test_a_run_leaves_the_documented_folder(tmp_path):
    run = tiny_run(tmp_path / "run", track=("tensorboard",))
    assert {path.name for path in (tmp_path / "run").iterdir()} == {
        *("config.json", "environment.json", "log.txt", "metrics.jsonl"),
        *("best", "last", "checkpoints", "tensorboard"),
    }
    rows = run.rows("loss")
    assert [row["step"] for row in rows] == [2, 4, 6, 8, 10, 12]
    expected = {"step", "loss", "loss_patches", "loss_mean", "grad_norm", "lr", "lr_task_head"}
    assert rows[0].keys() == expected | {"images_per_second", "seconds", "peak_memory_gb"}
    assert rows[-1]["loss"] < rows[0]["loss"]
    assert [row["step"] for row in run.rows("eval")] == [12]
    assert run.result.exit_status == 0 and run.result.state.finished
    assert "step 12/12" in run.printed and "images/s" in run.printed and "peak memory" in run.printed


def test_a_row_averages_the_steps_since_the_last_one(tmp_path):
    every = tiny_run(tmp_path / "every", log_every=1).rows("loss")
    fourth = tiny_run(tmp_path / "fourth", log_every=4).rows("loss")
    for index, row in enumerate(fourth):
        losses = [each["loss"] for each in every[4 * index : 4 * index + 4]]
        assert row["loss"] == pytest.approx(sum(losses) / 4)


def test_the_best_bundle_is_the_best_evaluations_and_the_last_one_the_last(tmp_path):
    kept = {}

    class Task(TinyTask):
        def evaluate(self, forward, **options):
            kept[len(kept)] = {name: tensor.clone() for name, tensor in self.model.trainable_state().items()}
            return super().evaluate(forward, **options)

    task = Task(scores=[0.1, 0.7, 0.3])
    task.model = tiny_model(task)
    run = RunFolder.open(tmp_path / "run")
    result = fit(
        tiny_config(eval_every=4),
        task=task,
        backbone=tiny_backbone(),
        model=task.model,
        run=run,
        save_bundle=save_tiny_bundle(task.model),
        console=Console(file=io.StringIO()),
    )
    assert equal(load_file(run.best / "head.safetensors"), kept[1])
    assert equal(load_file(run.last / "head.safetensors"), kept[2])
    assert (result.state.best_score, result.state.best_step) == (0.7, 8)
    assert repr(result.best_metrics) == (run.best / "metrics.txt").read_text()
    assert not equal(kept[1], kept[2])


def test_patience_counts_evaluations_without_a_better_one(tmp_path):
    run = tiny_run(tmp_path / "run", eval_every=2, patience=2, task=TinyTask(scores=[0.5, 0.4, 0.6, 0.6, 0.1, 0.9]))
    assert run.result.state.step == 10 and run.result.state.finished
    assert run.result.state.best_step == 6
    assert [row["step"] for row in run.rows("eval")] == [2, 4, 6, 8, 10]
    assert "no better result in 2 evaluations" in run.printed


def test_evaluation_sees_eval_mode_and_training_goes_on_in_train_mode(tmp_path):
    modes = []

    class Task(TinyTask):
        def evaluate(self, forward, **options):
            output, _ = forward(torch.zeros(1, 3, 28, 28, dtype=torch.uint8))
            modes.append(output.requires_grad)
            return super().evaluate(forward, **options)  # the head itself checks which layers it was given

    run = tiny_run(tmp_path / "run", eval_every=4, head={"batch_norm": True, "dropout": 0.5}, task=Task())
    assert modes == [False, False, False]
    assert run.model.training
    assert run.weights["head.norm.num_batches_tracked"] == 12


def test_the_average_is_what_is_evaluated_and_saved_and_training_is_untouched(tmp_path):
    plain = tiny_run(tmp_path / "plain", steps=1, eval_every=1)
    start = tiny_model(TinyTask()).trainable_state()
    averaged = tiny_run(tmp_path / "averaged", steps=1, eval_every=1, ema=0.75)
    assert equal(plain.weights, averaged.weights)
    for name, saved in averaged.last.items():
        torch.testing.assert_close(saved, 0.75 * start[name] + 0.25 * plain.weights[name])
    assert equal(plain.last, plain.weights)


def test_dropout_depends_on_seed_and_step_alone(tmp_path):
    first = tiny_run(tmp_path / "first", head={"dropout": 0.5})
    torch.manual_seed(999)
    assert equal(first.weights, tiny_run(tmp_path / "again", head={"dropout": 0.5}).weights)
    assert not equal(first.weights, tiny_run(tmp_path / "seed", head={"dropout": 0.5}, seed=1).weights)
    assert not equal(first.weights, tiny_run(tmp_path / "without").weights)


def test_workers_change_no_weight(tmp_path):
    assert equal(tiny_run(tmp_path / "none").weights, tiny_run(tmp_path / "two", workers=2).weights)


@pytest.mark.parametrize(
    ("steps", "evaluate", "checkpoint"), [(40_000, 4000, 1000), (300, 200, 30), (3000, 300, 300), (5, 200, 1)]
)
def test_evaluations_and_checkpoints_are_ten_in_a_run_by_default(steps, evaluate, checkpoint):
    cadence = Cadence.of(tiny_config(steps=steps).loop)
    assert (cadence.evaluate, cadence.checkpoint) == (evaluate, checkpoint)
    given = Cadence.of(tiny_config(steps=steps, eval_every=7, checkpoint_every=9).loop)
    assert (given.evaluate, given.checkpoint) == (7, 9)


class Signalling(TinyTask):
    """Sends this process a signal while it fetches its n-th micro-batch."""

    def __init__(self, number, after, times=1):
        super().__init__()
        self.number, self.after, self.times, self.fetched = number, after, times, 0

    def collate(self, samples):
        self.fetched += 1
        if self.after <= self.fetched < self.after + self.times:
            os.kill(os.getpid(), self.number)
        return super().collate(samples)


@pytest.mark.parametrize(("number", "status"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_a_signal_ends_the_run_after_the_step_and_resume_goes_on(tmp_path, number, status):
    handlers = signal.getsignal(signal.SIGINT), signal.getsignal(signal.SIGTERM)
    stopped = tiny_run(tmp_path / "run", task=Signalling(number, after=5), head={"dropout": 0.3})
    assert stopped.result.exit_status == status
    assert stopped.result.state.step == 5
    assert (stopped.folder.checkpoints / "step-00000005").is_dir()
    assert equal(stopped.last, stopped.weights)
    last_line = stopped.printed.rstrip().splitlines()[-1]
    assert "stopped by " + number.name in last_line and "step 5 of 12" in last_line and "--resume" in last_line
    assert (signal.getsignal(signal.SIGINT), signal.getsignal(signal.SIGTERM)) == handlers
    resumed = tiny_run(tmp_path / "run", resume=True, head={"dropout": 0.3})
    assert resumed.result.exit_status == 0
    assert equal(resumed.weights, tiny_run(tmp_path / "straight", head={"dropout": 0.3}).weights)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_workers_leave_signals_to_the_parent(tmp_path, number):
    """Ctrl-C reaches the workers too; here it reaches them alone, in the middle of reading, and they read on."""
    run = tiny_run(tmp_path / "run", workers=1, task=Signalling(number, after=3, times=3))
    assert run.result.state.finished and run.result.exit_status == 0


def test_a_signal_during_an_evaluation_leaves_it_at_once_and_resume_makes_it_up(tmp_path):
    class Task(TinyTask):
        def evaluate(self, forward, *, on_image=None, **options):
            def then_signal():
                if not images:
                    os.kill(os.getpid(), signal.SIGTERM)
                images.append(0)
                on_image()

            return super().evaluate(forward, on_image=then_signal, **options)

    images = []
    stopped = tiny_run(tmp_path / "run", task=Task(), eval_every=4)
    assert len(images) == 1
    assert (stopped.result.stopped_by, stopped.result.state.step) == ("SIGTERM", 4)
    assert stopped.rows("eval") == []
    resumed = tiny_run(tmp_path / "run", resume=True, eval_every=4)
    straight = tiny_run(tmp_path / "straight", eval_every=4)
    assert resumed.rows("eval") == straight.rows("eval")
    assert equal(resumed.weights, straight.weights)


def test_compiled_is_the_same_within_rounding(tmp_path, monkeypatch):
    """Through torch.compile's graph capture, without its code generation, which needs a compiler and half a minute."""
    compiled = []

    def with_eager_backend(module, **options):
        compiled.append(type(module).__name__)
        module._compiled_call_impl = torch.compile(module._call_impl, backend="eager")

    plain = tiny_run(tmp_path / "plain", steps=4)
    monkeypatch.setattr(torch.nn.Module, "compile", with_eager_backend)
    run = tiny_run(tmp_path / "compiled", steps=4, compile=True)
    assert compiled == ["Backbone", "TaskModel"]
    for name, tensor in plain.weights.items():
        torch.testing.assert_close(run.weights[name], tensor, rtol=0, atol=1e-5)
