import json
import resource

import pytest
from safetensors.torch import load_file
from tiny import TinyTask, tiny_model, tiny_run

from vitsplit.errors import RunError
from vitsplit.training.checkpoint import RunTensors, TrainState, latest_checkpoint, save_checkpoint
from vitsplit.training.config import OptimConfig
from vitsplit.training.optim import build_optimizer, moments


def run_tensors():
    model = tiny_model(TinyTask(), batch_norm=True)
    moment = moments(model, build_optimizer(model, OptimConfig()))
    return RunTensors(weights=model.trainable_state(), moments=moment, average=None, loss_scale={})


def test_a_checkpoint_holds_what_trains_and_no_pickle(tmp_path):
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
    buffers = {f"head.norm.{name}" for name in ("running_mean", "running_var", "num_batches_tracked")}
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
    """Lets no file grow beyond a number of bytes: writing more fails in the kernel, as it does on a full disk."""
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)

    def limit(size):
        resource.setrlimit(resource.RLIMIT_FSIZE, (size, limits[1]))

    yield limit
    resource.setrlimit(resource.RLIMIT_FSIZE, limits)


def test_a_full_disk_leaves_the_last_good_checkpoint(tmp_path, disk_with_room_for):
    tensors = run_tensors()
    good = save_checkpoint(tmp_path, tensors, TrainState(step=3))
    before = {path.name: path.read_bytes() for path in good.iterdir()}
    disk_with_room_for(4096)
    with pytest.raises(
        RunError, match=r"step-00000006 could not be written.*last good checkpoint is .*step-00000003.*--resume"
    ):
        save_checkpoint(tmp_path, tensors, TrainState(step=6))
    with pytest.raises(RunError, match="step-00000003"):
        save_checkpoint(tmp_path, tensors, TrainState(step=3))
    assert [path.name for path in tmp_path.iterdir()] == ["step-00000003"]
    assert {path.name: path.read_bytes() for path in good.iterdir()} == before


def test_a_disk_that_is_full_in_the_middle_of_a_run(tmp_path, disk_with_room_for):
    class FullAfter(TinyTask):
        fetched = 0

        def collate(self, samples):
            self.fetched += 1
            if self.fetched == 7:
                disk_with_room_for(4096)
            return super().collate(samples)

    with pytest.raises(RunError, match=r"last good checkpoint is .*step-00000006"):
        tiny_run(tmp_path / "run", checkpoint_every=3, log_every=1000, task=FullAfter())
    disk_with_room_for(resource.RLIM_INFINITY)
    resumed = tiny_run(tmp_path / "run", checkpoint_every=3, log_every=1000, resume=True)
    straight = tiny_run(tmp_path / "straight")
    assert all(tensor.equal(resumed.weights[name]) for name, tensor in straight.weights.items())


def test_a_disk_that_is_full_while_bundles_are_saved_leaves_the_earlier_ones(tmp_path, disk_with_room_for):
    class FullAtSecondEvaluation(TinyTask):
        evaluated = 0

        def evaluate(self, forward, **options):
            self.evaluated += 1
            if self.evaluated == 2:
                kept.update({path: path.read_bytes() for path in bundle_files()})
                disk_with_room_for(4096)
            return super().evaluate(forward, **options)

    def bundle_files():
        return [path for bundle in ("best", "last") for path in sorted((tmp_path / "run" / bundle).iterdir())]

    kept = {}
    settings = {"eval_every": 4, "checkpoint_every": 3, "log_every": 1000}
    task = FullAtSecondEvaluation(scores=[0.1, 0.9])
    with pytest.raises(RunError, match=r"last could not be written.*last good checkpoint is .*step-00000006.*--resume"):
        tiny_run(tmp_path / "run", task=task, **settings)
    disk_with_room_for(resource.RLIM_INFINITY)
    assert kept and {path: path.read_bytes() for path in bundle_files()} == kept
    resumed = tiny_run(tmp_path / "run", resume=True, task=TinyTask(scores=[0.9, 0.2]), **settings)
    assert resumed.result.state.standings[""].best_step == 8
