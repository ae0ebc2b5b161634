import json
import types

import pytest
import torch
from accelerate.utils import DistributedType
from tiny import TinyTask, tiny_backbone, tiny_config, tiny_model, tiny_run
from torch import nn

from vitsplit.training import setup


def stub_accelerator(kind):
    return types.SimpleNamespace(distributed_type=kind, device=torch.device("cpu"), prepare_model=lambda model: model)


@pytest.mark.parametrize(
    ("kind", "expected"),
    [
        (DistributedType.MULTI_GPU, nn.SyncBatchNorm),
        (DistributedType.MULTI_CPU, nn.BatchNorm2d),
        (DistributedType.NO, nn.BatchNorm2d),
    ],
)
def test_batch_norm_is_synchronised_over_gpus_only(kind, expected):
    model = tiny_model(TinyTask(), batch_norm=True)
    names = list(model.trainable_state())
    _, trained = setup.set_up_model(stub_accelerator(kind), tiny_config(), tiny_backbone(), model)
    assert type(model.head.norm) is expected
    assert list(model.trainable_state()) == names
    assert any(p is model.head.norm.weight for group in trained.optimizer.param_groups for p in group["params"])


@pytest.fixture
def fp16(monkeypatch):
    """fp16 with a gradient scaler, on a processor: slow, but the same arithmetic as on an old GPU."""
    monkeypatch.setattr(setup, "resolve_precision", lambda precision, device: "fp16")


def test_fp16_scales_its_loss_and_learns(tmp_path, fp16):
    run = tiny_run(tmp_path / "run", clip_norm=1.0)
    plain_norm = tiny_like_fp32(tmp_path)
    rows = run.rows("loss")
    assert rows[-1]["loss"] < rows[0]["loss"]
    assert rows[0]["grad_norm"] == pytest.approx(plain_norm, rel=0.05), "the norm is that of the unscaled gradient"


def tiny_like_fp32(tmp_path):
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(setup, "resolve_precision", lambda precision, device: "fp32")
        return tiny_run(tmp_path / "plain", clip_norm=1.0).rows("loss")[0]["grad_norm"]


def test_an_overflow_in_fp16_skips_the_step_and_lowers_the_scale(tmp_path, fp16):
    class Overflow(torch.autograd.Function):
        @staticmethod
        def forward(ctx, value):
            return value.clone()

        @staticmethod
        def backward(ctx, gradient):
            return gradient * float("inf")

    class Task(TinyTask):
        def loss_sums(self, output, batch, taps):
            return super().loss_sums(Overflow.apply(output) if not self.seen else output, batch, taps)

    run = tiny_run(tmp_path / "run", steps=1, task=Task())
    start = tiny_model(TinyTask()).trainable_state()
    assert all(tensor.equal(run.weights[name]) for name, tensor in start.items())
    state = json.loads((run.folder.checkpoints / "step-00000001" / "state.json").read_text())
    assert state["loss_scale"]["scale"] == 2.0**15


def test_the_scaler_goes_on_after_a_resume(tmp_path, fp16):
    class Stop(TinyTask):
        def collate(self, samples):
            if len(self.seen) == 5:
                raise KeyboardInterrupt
            return super().collate(samples)

    with pytest.raises(KeyboardInterrupt):
        tiny_run(tmp_path / "run", checkpoint_every=2, precision="auto", task=Stop())
    resumed = tiny_run(tmp_path / "run", checkpoint_every=2, precision="auto", resume=True)
    straight = tiny_run(tmp_path / "straight")
    assert all(tensor.equal(resumed.weights[name]) for name, tensor in straight.weights.items())
    scales = [
        json.loads((run.folder.checkpoints / "step-00000012" / "state.json").read_text())["loss_scale"]
        for run in (resumed, straight)
    ]
    assert scales[0] == scales[1] and scales[0]["_growth_tracker"] == 12
