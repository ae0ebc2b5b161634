import json
import os
import re
import resource
import shutil

import pytest
import torch
from safetensors.torch import load_file, save_file
from tiny import TinyTask, tiny_model, tiny_run

from vitsplit.engine.checkpoint import RunTensors, TrainState, latest_checkpoint, save_checkpoint
from vitsplit.engine.optim import build_optimizer, moments
from vitsplit.errors import RunError
from vitsplit.train_config import OptimConfig


def run_tensors():
    model = tiny_model(TinyTask(), batch_norm=True)
    moment = moments(model, build_optimizer(model.heads, {"tiny": OptimConfig()}))
    return RunTensors(weights=model.trainable_state(), moments=moment, average=None, loss_scale={})


def test_a_checkpoint_has_trainable_state_and_no_pickle(tmp_path):
    run = tiny_run(tmp_path / "run", head={"batch_norm": True}, ema=0.9)
    newest = latest_checkpoint(run.folder.checkpoints)
    assert {path.name for path in newest.iterdir()} == {
        "weights.safetensors",
        "optimizer.safetensors",
        "ema.safetensors",
        "state.json",
    }
    weights = load_file(newest / "weights.safetensors")
    training = {name for name, parameter in run.model.named_parameters() if parameter.requires_grad}
    buffers = {f"heads.tiny.head.norm.{name}" for name in ("running_mean", "running_var", "num_batches_tracked")}
    assert weights.keys() == training | buffers
    moments = load_file(newest / "optimizer.safetensors")
    assert moments.keys() == {f"{name}/{kind}" for name in training for kind in ("step", "exp_avg", "exp_avg_sq")}
    assert json.loads((newest / "state.json").read_text())["step"] == 12


def test_the_last_two_are_kept(tmp_path):
    tensors = run_tensors()
    for step in (0, 5, 10, 1000):
        save_checkpoint(tmp_path, tensors, TrainState(step=step))
    assert sorted(path.name for path in tmp_path.iterdir()) == ["step-00000010", "step-00001000"]
    assert latest_checkpoint(tmp_path).name == "step-00001000"
    assert latest_checkpoint(tmp_path / "nowhere") is None


@pytest.fixture
def disk_with_room_for(monkeypatch):
    """Limits the file size: writing more bytes fails in the kernel, as on a full disk."""
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)

    def limit(size):
        resource.setrlimit(resource.RLIMIT_FSIZE, (size, limits[1]))

    yield limit
    resource.setrlimit(resource.RLIMIT_FSIZE, limits)


def test_a_full_disk_keeps_the_last_valid_checkpoint(tmp_path, disk_with_room_for):
    tensors = run_tensors()
    good = save_checkpoint(tmp_path, tensors, TrainState(step=3))
    before = {path.name: path.read_bytes() for path in good.iterdir()}
    disk_with_room_for(4096)
    with pytest.raises(RunError, match=r"step-00000006.*step-00000003.*--resume"):
        save_checkpoint(tmp_path, tensors, TrainState(step=6))
    with pytest.raises(RunError, match="step-00000003"):
        save_checkpoint(tmp_path, tensors, TrainState(step=3))
    assert [path.name for path in tmp_path.iterdir()] == ["step-00000003"]
    assert {path.name: path.read_bytes() for path in good.iterdir()} == before


def test_a_full_disk_during_a_run(tmp_path, disk_with_room_for):
    class FullAfter(TinyTask):
        fetched = 0

        def collate(self, samples):
            self.fetched += 1
            if self.fetched == 7:
                disk_with_room_for(4096)
            return super().collate(samples)

    with pytest.raises(RunError, match=r"step-00000006"):
        tiny_run(tmp_path / "run", checkpoint_every=3, log_every=1000, task=FullAfter())
    disk_with_room_for(resource.RLIM_INFINITY)
    resumed = tiny_run(tmp_path / "run", checkpoint_every=3, log_every=1000, resume=True)
    uninterrupted = tiny_run(tmp_path / "uninterrupted")
    assert all(tensor.equal(resumed.weights[name]) for name, tensor in uninterrupted.weights.items())


@pytest.mark.filterwarnings("error::pytest.PytestUnhandledThreadExceptionWarning")
@pytest.mark.parametrize("at", ["log.txt", "tensorboard", "pictures"])
def test_a_full_disk_gives_one_message_at_any_file(tmp_path, disk_with_room_for, capfd, at):
    class Full(TinyTask):
        def collate(self, samples):
            if at != "pictures":
                log = tmp_path / "run" / "log.txt"
                disk_with_room_for(log.stat().st_size if at == "log.txt" else 4096)
            return super().collate(samples)

        def write_report(self, *args, **options):
            if at == "pictures":
                disk_with_room_for(16)
            return super().write_report(*args, **options)

    settings = {"steps": 400, "eval_every": 399, "log_every": 1} if at == "tensorboard" else {"steps": 4}
    settings |= {"checkpoint_every": 10_000, "track": ("tensorboard",)}
    with pytest.raises(RunError, match=r"--resume"):
        tiny_run(tmp_path / "run", task=Full(), **settings)
    disk_with_room_for(resource.RLIM_INFINITY)
    output = capfd.readouterr()
    assert "Traceback" not in output.err + output.out and "Logging error" not in output.err
    resumed = tiny_run(tmp_path / "run", resume=True, **settings)
    assert resumed.folder.pictures.exists() and resumed.result.state.finished


def test_a_full_disk_while_saving_bundles_keeps_the_earlier_ones(tmp_path, disk_with_room_for):
    class FullAtSecondEvaluation(TinyTask):
        evaluated = 0

        def metric(self):
            self.evaluated += 1
            if self.evaluated == 2:
                kept.update({path: path.read_bytes() for path in bundle_files()})
                disk_with_room_for(4096)
            return super().metric()

    def bundle_files():
        return [path for bundle in ("best", "last") for path in sorted((tmp_path / "run" / bundle).iterdir())]

    kept = {}
    settings = {"eval_every": 4, "checkpoint_every": 3, "log_every": 1000}
    task = FullAtSecondEvaluation(scores=[0.1, 0.9])
    with pytest.raises(RunError, match=r"last .*step-00000006.*--resume"):
        tiny_run(tmp_path / "run", task=task, **settings)
    disk_with_room_for(resource.RLIM_INFINITY)
    assert kept and {path: path.read_bytes() for path in bundle_files()} == kept
    resumed = tiny_run(tmp_path / "run", resume=True, task=TinyTask(scores=[0.9, 0.2]), **settings)
    assert resumed.result.state.standings["tiny"].best_step == 8


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """A run of four steps, whose checkpoint is damaged by the tests."""
    run = tiny_run(tmp_path_factory.mktemp("finished") / "run", **SETTINGS)
    return run.folder, latest_checkpoint(run.folder.checkpoints)


SETTINGS = {"steps": 4, "ema": 0.9, "head": {"batch_norm": True}}


def resume_damaged(finished, tmp_path, damage):
    """Resumes a copy of the run with a damaged checkpoint; returns the error message."""
    folder, checkpoint = finished
    copy = tmp_path / "run"
    shutil.copytree(folder.path, copy)
    damage(copy / "checkpoints" / checkpoint.name)
    with pytest.raises(RunError) as error:
        tiny_run(copy, resume=True, **SETTINGS)
    return str(error.value)


def change(**values):
    def damage(checkpoint):
        state = json.loads((checkpoint / "state.json").read_text())
        for name, value in values.items():
            where = state["standings"]["tiny"] if name in state["standings"]["tiny"] else state
            where[name] = value
        (checkpoint / "state.json").write_text(json.dumps(state))

    return damage


@pytest.mark.parametrize(
    "values",
    [
        {"step": -1}, {"step": "4"}, {"step": True}, {"step": 4.0}, {"step": 10**30}, {"step": None},
        {"seconds": "a"}, {"seconds": -1}, {"seconds": [1]},
        {"evaluated": 5}, {"evaluated": -1}, {"finished": 1}, {"finished": "no"},
        {"standings": {}}, {"standings": []}, {"standings": {"tiny": 3}}, {"standings": {"depth": {}}},
        {"best_step": 9}, {"without_gain": -2}, {"best_score": "high"}, {"last_metrics": [1]}, {"score_name": 3},
        {"window": {"loss": "x"}, "window_steps": 1}, {"window": {"loss": 1.0}, "window_steps": 0},
        {"loss_scale": {"scale": "x"}}, {"loss_scale": [1]}, {"samples": 1.5}, {"processes": 0}, {"backbone_hash": 1},
        {"description": []},
    ],
    ids=str,
)  # fmt: skip
def test_invalid_values_in_state_json_are_rejected(finished, tmp_path, values):
    message = resume_damaged(finished, tmp_path, change(**values))
    assert "step-00000004" in message and ("state.json" in message or "standings" in values)


@pytest.mark.parametrize(
    "content",
    [b"", b"{", b"[]", b"7", b"\xff", b'{"step": NaN}', b'{"step": 1, "step": 2}', b"[" * 10**5, b'{"seconds": 1e999}',
     b'{"standings": {}, "step": ' + b"9" * 5000 + b"}"],
)  # fmt: skip
def test_invalid_state_json_is_rejected(finished, tmp_path, content):
    message = resume_damaged(finished, tmp_path, lambda checkpoint: (checkpoint / "state.json").write_bytes(content))
    assert "state.json" in message and "elete this checkpoint" in message


def rewrite(file, changed):
    def damage(checkpoint):
        tensors = load_file(checkpoint / file)
        changed(tensors)
        save_file(tensors, checkpoint / file)

    return damage


def set_to(name, make):
    return lambda tensors: tensors.update({name: make(tensors[name])})


def poisoned(tensor):
    tensor = tensor.clone()
    tensor.view(-1)[0] = torch.nan
    return tensor


WEIGHT, MOMENT = "heads.tiny.head.task_head.weight", "heads.tiny.head.task_head.weight/exp_avg"


@pytest.mark.parametrize(
    ("damage", "named"),
    [
        (rewrite("weights.safetensors", set_to(WEIGHT, lambda tensor: tensor.int())), r"torch\.int32"),
        (rewrite("weights.safetensors", set_to(WEIGHT, lambda tensor: tensor.double())), r"torch\.float64"),
        (rewrite("weights.safetensors", set_to(WEIGHT, lambda tensor: tensor + 0j)), r"torch\.complex64"),
        (rewrite("weights.safetensors", set_to(WEIGHT, lambda tensor: tensor[:1])), r"\[1, 32\] .*\[32, 32\]"),
        (rewrite("weights.safetensors", set_to(WEIGHT, poisoned)), "not finite"),
        (rewrite("ema.safetensors", set_to(WEIGHT, poisoned)), "not finite"),
        (rewrite("ema.safetensors", set_to(WEIGHT, lambda tensor: tensor[0])), r"\[32\]"),
        (rewrite("weights.safetensors", lambda tensors: tensors.pop(WEIGHT)), f"missing.*{WEIGHT}"),
        (rewrite("weights.safetensors", set_to(WEIGHT[:-6] + "bias", lambda tensor: tensor.half())), "float16"),
        (
            rewrite("optimizer.safetensors", set_to(MOMENT, lambda tensor: tensor.T[:2].contiguous())),
            r"\[2, 32\]",
        ),
        (rewrite("optimizer.safetensors", set_to(MOMENT, lambda tensor: tensor.long())), "int64"),
        (rewrite("optimizer.safetensors", set_to(MOMENT, poisoned)), "not finite"),
        (rewrite("optimizer.safetensors", lambda tensors: tensors.pop(MOMENT)), "missing.*exp_avg"),
        (rewrite("optimizer.safetensors", lambda tensors: tensors.update(a=torch.zeros(1))), "unexpected.*a'"),
    ],
)
def test_tensors_of_another_model_are_rejected_before_loading(finished, tmp_path, damage, named):
    message = resume_damaged(finished, tmp_path, damage)
    assert re.search(named, message) and "step-00000004" in message and "\n" not in message


@pytest.mark.parametrize("file", ["weights", "optimizer", "ema"])
@pytest.mark.parametrize("put", ["nothing", "pipe", "folder", "pickle"])
def test_invalid_tensor_files_are_rejected(finished, tmp_path, file, put):
    def damage(checkpoint):
        path = checkpoint / f"{file}.safetensors"
        path.unlink()
        match put:
            case "pipe":
                os.mkfifo(path)
            case "folder":
                path.mkdir()
            case "pickle":
                torch.save({"a": torch.zeros(1)}, path)

    assert "step-00000004 cannot be read" in resume_damaged(finished, tmp_path, damage)


def test_non_finite_moments_and_statistics_are_accepted(finished, tmp_path):
    """In a valid run squared gradients may overflow float32, and norm statistics may be NaN."""
    folder, checkpoint = finished
    shutil.copytree(folder.path, tmp_path / "run")
    copy = tmp_path / "run" / "checkpoints" / checkpoint.name
    rewrite("optimizer.safetensors", set_to(f"{WEIGHT}/exp_avg_sq", lambda tensor: tensor + torch.inf))(copy)
    rewrite("weights.safetensors", set_to("heads.tiny.head.norm.running_var", poisoned))(copy)
    tiny_run(tmp_path / "run", resume=True, **SETTINGS)
