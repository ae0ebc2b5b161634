import io
import json
import os
import shlex
import signal

import pytest
import torch
from rich.console import Console
from safetensors.torch import load_file
from tiny import (
    NUM_VAL,
    TinyMetric,
    TinyTask,
    save_tiny_bundle,
    tiny_backbone,
    tiny_config,
    tiny_head,
    tiny_model,
    tiny_run,
)

from vitsplit import precision
from vitsplit.engine.run_folder import RunFolder
from vitsplit.engine.sampling import SampleStream
from vitsplit.engine.trainer import LAG, Trainer, checkpoint_every, evaluate_every
from vitsplit.errors import ConfigError, TrainingError
from vitsplit.tasks.base import Evaluation


def equal(first, second):
    return first.keys() == second.keys() and all(first[name].equal(second[name]) for name in first)


def test_a_run_leaves_the_documented_folder(tmp_path):
    run = tiny_run(tmp_path / "run", track=("tensorboard",))
    assert {path.name for path in (tmp_path / "run").iterdir()} == {
        *("config.json", "environment.json", "log.txt", "metrics.jsonl"),
        *("best", "last", "checkpoints", "pictures", "tensorboard"),
    }
    rows = run.rows("loss")
    assert [row["step"] for row in rows] == [2, 4, 6, 8, 10, 12]
    expected = {"step", "loss", "loss_patches", "loss_mean", "grad_norm", "lr", "lr_task_head"}
    assert rows[0].keys() == expected | {"images_per_second", "seconds", "peak_memory_gb"}
    assert rows[-1]["loss"] < rows[0]["loss"]
    assert [row["step"] for row in run.rows("eval")] == [12]
    assert run.result.exit_status == 0 and run.result.state.finished
    assert "step 12/12" in run.printed and "images/s" in run.printed and "peak memory" in run.printed


def test_a_row_averages_the_steps_since_the_previous_one(tmp_path):
    every = tiny_run(tmp_path / "every", log_every=1).rows("loss")
    fourth = tiny_run(tmp_path / "fourth", log_every=4).rows("loss")
    for index, row in enumerate(fourth):
        losses = [each["loss"] for each in every[4 * index : 4 * index + 4]]
        assert row["loss"] == pytest.approx(sum(losses) / 4)


def test_best_and_last_bundles(tmp_path):
    kept = {}

    class Task(TinyTask):
        def metric(self):
            kept[len(kept)] = {name: tensor.clone() for name, tensor in self.head.trainable_state().items()}
            return super().metric()

    task = Task(scores=[0.1, 0.7, 0.3])
    model = tiny_model(task)
    task.head = model.heads["tiny"]
    with RunFolder.open(tmp_path / "run") as run:
        trainer = Trainer(tiny_config(eval_every=4), tasks={"tiny": task}, backbone=tiny_backbone(), model=model)
        result = trainer.fit(run, save_tiny_bundle(model), console=Console(file=io.StringIO()))
    assert equal(load_file(run.best / "head.safetensors"), kept[1])
    assert equal(load_file(run.last / "head.safetensors"), kept[2])
    assert (result.state.standings["tiny"].best_score, result.state.standings["tiny"].best_step) == (0.7, 8)
    assert repr(result.best_metrics["tiny"]) == (run.best / "metrics.txt").read_text()
    assert not equal(kept[1], kept[2])


def test_patience_counts_evaluations_without_improvement(tmp_path):
    run = tiny_run(tmp_path / "run", eval_every=2, patience=2, task=TinyTask(scores=[0.5, 0.4, 0.6, 0.6, 0.1, 0.9]))
    assert run.result.state.step == 10 and run.result.state.finished
    assert run.result.state.standings["tiny"].best_step == 6
    assert [row["step"] for row in run.rows("eval")] == [2, 4, 6, 8, 10]
    assert "no better result in 2 evaluations" in run.printed


def test_evaluation_uses_eval_mode_and_training_train_mode(tmp_path):
    modes = []

    class Task(TinyTask):
        def val_predictions(self, forward, image_BCHW, samples):
            output, _ = forward(image_BCHW)  # the head itself checks which layers it was given
            modes.append(output.requires_grad)
            return super().val_predictions(forward, image_BCHW, samples)

    run = tiny_run(tmp_path / "run", eval_every=4, head={"batch_norm": True, "dropout": 0.5}, task=Task())
    assert modes == [False] * 3 * NUM_VAL
    assert run.model.training
    assert run.weights["head.norm.num_batches_tracked"] == 12


def test_the_average_is_evaluated_and_saved(tmp_path):
    plain = tiny_run(tmp_path / "plain", steps=1, eval_every=1)
    start = tiny_head(TinyTask()).trainable_state()
    averaged = tiny_run(tmp_path / "averaged", steps=1, eval_every=1, ema=0.75)
    assert equal(plain.weights, averaged.weights)
    for name, saved in averaged.last.items():
        torch.testing.assert_close(saved, 0.75 * start[name] + 0.25 * plain.weights[name])
    assert equal(plain.last, plain.weights)


def test_dropout_depends_only_on_seed_and_step(tmp_path):
    first = tiny_run(tmp_path / "first", head={"dropout": 0.5})
    torch.manual_seed(999)
    assert equal(first.weights, tiny_run(tmp_path / "again", head={"dropout": 0.5}).weights)
    assert not equal(first.weights, tiny_run(tmp_path / "seed", head={"dropout": 0.5}, seed=1).weights)
    assert not equal(first.weights, tiny_run(tmp_path / "without").weights)


def test_workers_do_not_change_the_weights(tmp_path):
    assert equal(tiny_run(tmp_path / "none").weights, tiny_run(tmp_path / "two", workers=2).weights)


@pytest.mark.parametrize(
    ("steps", "evaluate", "checkpoint"), [(40_000, 4000, 1000), (300, 200, 30), (3000, 300, 300), (5, 200, 1)]
)
def test_a_run_has_ten_evaluations_and_checkpoints_by_default(steps, evaluate, checkpoint):
    loop = tiny_config(steps=steps).loop
    assert (evaluate_every(loop), checkpoint_every(loop)) == (evaluate, checkpoint)
    given = tiny_config(steps=steps, eval_every=7, checkpoint_every=9).loop
    assert (evaluate_every(given), checkpoint_every(given)) == (7, 9)


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
def test_a_signal_stops_the_run_after_the_step_and_it_can_be_resumed(tmp_path, number, status):
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
    assert equal(resumed.weights, tiny_run(tmp_path / "uninterrupted", head={"dropout": 0.3}).weights)


@pytest.mark.parametrize(("number", "times"), [(signal.SIGINT, 3), (signal.SIGTERM, 1)])
def test_workers_leave_signals_to_the_parent(tmp_path, number, times):
    """Ctrl-C also reaches the data workers; here only them, while they read, and they continue."""
    run = tiny_run(tmp_path / "run", workers=1, task=Signalling(number, after=3, times=times))
    assert run.result.state.finished and run.result.exit_status == 0


CLOCKS = {"seconds", "images_per_second", "peak_memory_gb"}


def test_delayed_reading_of_results_gives_the_same_run(tmp_path, monkeypatch):
    """Reads results one step later, as on a GPU."""
    settings = {"eval_every": 4, "checkpoint_every": 2, "log_every": 1, "head": {"dropout": 0.3}}
    plain = tiny_run(tmp_path / "plain", **settings)
    monkeypatch.setitem(LAG, "cpu", 1)
    late = tiny_run(tmp_path / "late", **settings)
    assert equal(late.weights, plain.weights) and late.rows("eval") == plain.rows("eval")
    rows = [[{key: row[key] for key in row.keys() - CLOCKS} for row in run.rows("loss")] for run in (late, plain)]
    assert rows[0] == rows[1] and len(rows[0]) == 12
    stopped = tiny_run(tmp_path / "stopped", task=Signalling(signal.SIGTERM, after=5), **settings)
    assert (stopped.result.stopped_by, stopped.result.state.step) == ("SIGTERM", 6), "a step after the signal's"
    assert [row["step"] for row in stopped.rows("loss")] == [1, 2, 3, 4, 5, 6], "all steps were looked at"
    assert equal(tiny_run(tmp_path / "stopped", resume=True, **settings).weights, plain.weights)


def test_a_non_finite_step_with_delayed_reading_reaches_no_file(tmp_path, monkeypatch):
    monkeypatch.setitem(LAG, "cpu", 1)
    bad_image = f"image-{SampleStream(23, 0)[4 * 4 + 1][0]:02d}.png"  # in the fifth step's batch
    task = TinyTask(nan_for=bad_image)
    model = tiny_model(task)
    config = tiny_config(checkpoint_every=2, log_every=1)
    with RunFolder.open(tmp_path / "run") as run, pytest.raises(TrainingError, match=r"Step 5: .*nan"):
        trainer = Trainer(config, tasks={"tiny": task}, backbone=tiny_backbone(), model=model)
        trainer.fit(run, save_tiny_bundle(model), console=Console(file=io.StringIO()))
    assert all(bool(tensor.isfinite().all()) for tensor in model.trainable_state().values())
    assert sorted(path.name for path in run.checkpoints.iterdir()) == ["step-00000002", "step-00000004"]
    assert [json.loads(line)["step"] for line in run.metrics_file.read_text().splitlines()] == [1, 2, 3, 4]


def test_a_signal_interrupts_an_evaluation_and_resume_repeats_it(tmp_path):
    class Task(TinyTask):
        def val_predictions(self, *given):
            if not images:
                os.kill(os.getpid(), signal.SIGTERM)
            images.append(0)
            return super().val_predictions(*given)

    images = []
    stopped = tiny_run(tmp_path / "run", task=Task(), eval_every=4)
    assert len(images) == 1
    assert (stopped.result.stopped_by, stopped.result.state.step) == ("SIGTERM", 4)
    assert stopped.rows("eval") == []
    resumed = tiny_run(tmp_path / "run", resume=True, eval_every=4)
    uninterrupted = tiny_run(tmp_path / "uninterrupted", eval_every=4)
    assert resumed.rows("eval") == uninterrupted.rows("eval")
    assert equal(resumed.weights, uninterrupted.weights)


def compile_with(monkeypatch, backend):
    """Uses torch.compile with a backend that needs no C++ compiler."""
    original, graphs = torch.compile, []

    def counting(graph, inputs):
        graphs.append(len(inputs))
        return backend(graph)

    monkeypatch.setattr(torch, "compile", lambda module: original(module, backend=counting))
    return graphs


def test_compiled_training_is_equal_within_rounding(tmp_path, monkeypatch):
    class Task(TinyTask):
        def val_predictions(self, forward, *given):
            before = len(graphs)
            forward(torch.zeros(1, 3, 28, 42, dtype=torch.uint8))  # of another size than the images of the steps
            assert len(graphs) == before
            return super().val_predictions(forward, *given)

    plain = tiny_run(tmp_path / "plain", steps=2)
    graphs = compile_with(monkeypatch, lambda graph: graph.forward)
    run = tiny_run(tmp_path / "compiled", steps=2, eval_every=1, compile=True, task=Task())
    assert graphs, "the steps must be compiled, or this test shows nothing"
    for name, tensor in plain.weights.items():
        torch.testing.assert_close(run.weights[name], tensor, rtol=0, atol=1e-5)
    assert run.last.keys() == plain.last.keys()


def test_a_failed_compilation_names_its_flag(tmp_path, monkeypatch):
    def no_compiler(graph):
        raise RuntimeError("No working C++ compiler found in clang++, g++\nmore")

    compile_with(monkeypatch, no_compiler)
    with pytest.raises(ConfigError, match=r"--compile .*clang\+\+, g\+\+"):
        tiny_run(tmp_path / "run", steps=1, compile=True)


def test_a_finished_run_writes_pictures_of_its_last_evaluation(tmp_path):
    averaged = tiny_run(tmp_path / "run", eval_every=4, ema=0.5, task=TinyTask(scores=[0.3, 0.7, 0.6]))
    page = json.loads((averaged.folder.pictures / "index.html").read_text())
    assert (page["title"], page["count"], page["score"]) == ("run, step 12", 12, 0.6)
    model = tiny_head(TinyTask())
    model.load_trainable_state(averaged.last)
    backbone = tiny_backbone()
    taps = backbone(torch.zeros(1, 3, 28, 28, dtype=torch.uint8), model.head.request(train=False))
    torch.testing.assert_close(torch.tensor(page["output"]), model.eval()(taps).detach())
    assert averaged.model.training


def test_only_finished_runs_have_pictures(tmp_path):
    """A run stopped by patience has them, and so does a run that was killed while drawing and is resumed."""
    early = tiny_run(tmp_path / "early", eval_every=2, patience=1, task=TinyTask(scores=[0.5, 0.4]))
    assert json.loads((early.folder.pictures / "index.html").read_text())["score"] == 0.4
    stopped = tiny_run(tmp_path / "stopped", task=Signalling(signal.SIGTERM, after=5))
    assert not stopped.folder.pictures.exists()

    class Killed(TinyTask):
        def write_report(self, *args, **options):
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        tiny_run(tmp_path / "killed", task=Killed(scores=[0.8]))
    assert not (tmp_path / "killed" / "pictures").exists()
    resumed = tiny_run(tmp_path / "killed", resume=True)
    assert json.loads((resumed.folder.pictures / "index.html").read_text())["score"] == 0.8
    assert equal(resumed.weights, tiny_run(tmp_path / "uninterrupted").weights)


def test_resuming_a_finished_run_reports_that_it_is_finished(tmp_path):
    tiny_run(tmp_path / "run", eval_every=4, task=TinyTask(scores=[0.3, 0.7, 0.6]))
    again = tiny_run(tmp_path / "run", eval_every=4, resume=True)
    assert "already finished at step 12: best accuracy 0.7 at step 8" in again.printed
    assert "resuming" not in again.printed


def test_the_printed_resume_command_is_valid(tmp_path):
    folder = tmp_path / "my first run"
    printed = tiny_run(folder, task=Signalling(signal.SIGINT, after=2)).printed.replace("\n", " ")
    command = shlex.split(printed[printed.index("To resume: ") :])
    assert command[command.index("--out") + 1] == str(folder)


def test_bundles_have_the_resolved_configuration(tmp_path, monkeypatch):
    monkeypatch.setattr(precision, "bf16_speedup", lambda: 9.0)
    run = tiny_run(tmp_path / "run", steps=2, precision="auto")
    for bundle in (run.folder.best, run.folder.last):
        assert json.loads((bundle / "config.json").read_text()) == run.folder.read_config()
    assert run.folder.read_config()["loop"]["precision"] == "bf16"


def test_non_finite_values_are_null_on_disk_and_never_the_best_score(tmp_path):
    class Metric(TinyMetric):
        def compute(self):
            found = super().compute()
            return Evaluation(found.metrics | {"rare": float("nan")}, found.score, found.score_name)

    class Task(TinyTask):
        def metric(self):
            return Metric(self.scores)

    def refuse(word):
        raise AssertionError(f"{word} is not JSON")

    scores = [float("nan"), float("nan"), 0.4, float("nan"), 0.3, 0.2]
    run = tiny_run(tmp_path / "run", eval_every=2, task=Task(scores=[*scores]))
    standing = run.result.state.standings["tiny"]
    assert (standing.best_step, standing.without_gain) == (6, 3)
    rows = [json.loads(line, parse_constant=refuse) for line in run.folder.metrics_file.read_text().splitlines()]
    assert [row["eval"]["rare"] for row in rows if "eval" in row] == [None] * 6
    for state in run.folder.checkpoints.glob("*/state.json"):
        json.loads(state.read_text(), parse_constant=refuse)
    stopping = Signalling(signal.SIGTERM, after=5)
    stopping.scores = scores[:2]
    tiny_run(tmp_path / "again", eval_every=2, task=stopping)
    resumed = tiny_run(tmp_path / "again", eval_every=2, resume=True, task=Task(scores=scores[2:]))
    standing = resumed.result.state.standings["tiny"]
    assert (standing.best_step, standing.without_gain) == (6, 3)


def test_the_time_limit_ends_a_run_with_an_evaluation(tmp_path, monkeypatch):
    seconds = iter(range(1000))
    monkeypatch.setattr("vitsplit.engine.trainer.time.perf_counter", lambda: float(next(seconds)))
    run = tiny_run(tmp_path / "run", max_seconds=4.5)  # every step takes one second of this clock
    assert run.result.state.step == 5 and run.result.state.finished
    assert [row["step"] for row in run.rows("eval")] == [5]
    assert "after 5 s: --max-seconds" in run.printed
