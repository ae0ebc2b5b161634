import json
import os
import signal
import types

import pytest
import torch
from accelerate.utils import DistributedType
from tiny import BadGradients, TinyTask, tiny_backbone, tiny_config, tiny_head, tiny_model, tiny_run
from torch import nn

from vitsplit.engine import trainer as trainer_module
from vitsplit.engine.trainer import Trainer
from vitsplit.errors import ConfigError, TrainingError


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
def test_batch_norm_is_synchronized_over_gpus_only(kind, expected):
    model = tiny_model(TinyTask(), batch_norm=True)
    names = list(model.trainable_state())
    trainer = Trainer(tiny_config(), tasks={"tiny": TinyTask()}, backbone=tiny_backbone(), model=model)
    trainer.set_up(stub_accelerator(kind))
    assert type(model.heads["tiny"].head.norm) is expected
    assert list(model.trainable_state()) == names
    assert any(
        p is model.heads["tiny"].head.norm.weight
        for group in trainer.parallel.optimizer.param_groups
        for p in group["params"]
    )


@pytest.fixture
def fp16(monkeypatch):
    """fp16 with a gradient scaler on a CPU: slow, but the same arithmetic as on a GPU."""
    monkeypatch.setattr(trainer_module, "resolve_precision", lambda precision, device: "fp16")


def test_fp16_training_uses_a_loss_scale(tmp_path, fp16):
    run = tiny_run(tmp_path / "run", clip_norm=1.0)
    plain_norm = tiny_like_fp32(tmp_path)
    rows = run.rows("loss")
    assert rows[-1]["loss"] < rows[0]["loss"]
    assert rows[0]["grad_norm"] == pytest.approx(plain_norm, rel=0.05), "the norm is that of the unscaled gradient"


def tiny_like_fp32(tmp_path):
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(trainer_module, "resolve_precision", lambda precision, device: "fp32")
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
    start = tiny_head(TinyTask()).trainable_state()
    assert all(tensor.equal(run.weights[name]) for name, tensor in start.items())
    state = json.loads((run.folder.checkpoints / "step-00000001" / "state.json").read_text())
    assert state["loss_scale"]["scale"] == 2.0**15


def test_fp16_without_a_finite_step_is_an_error(tmp_path, fp16):
    # 17 skipped steps bring the scale from 65536 = 2**16 to below 1.
    expected = r"Step 18: the norm of the gradient is nan\. Files of the batch: image"
    with pytest.raises(TrainingError, match=expected) as error:
        tiny_run(tmp_path / "run", steps=40, task=BadGradients(factor=float("nan")))
    assert "--precision fp32" in str(error.value)


def test_an_overflow_before_a_stop_is_saved(tmp_path, fp16):
    """The checkpoint has the sums of an incomplete row, with null for non-finite values."""

    class Stop(BadGradients):
        def collate(self, samples):
            if len(self.seen) == 3:
                os.kill(os.getpid(), signal.SIGTERM)
            return super().collate(samples)

    settings = {"steps": 8, "log_every": 6, "precision": "auto"}
    tiny_run(tmp_path / "run", task=Stop(factor=float("nan")), **settings)
    resumed = tiny_run(tmp_path / "run", resume=True, **settings)
    assert [row["grad_norm"] is None for row in resumed.rows("loss")] == [True, False]


def test_the_scaler_state_is_resumed(tmp_path, fp16):
    class Stop(TinyTask):
        def collate(self, samples):
            if len(self.seen) == 5:
                raise KeyboardInterrupt
            return super().collate(samples)

    with pytest.raises(KeyboardInterrupt):
        tiny_run(tmp_path / "run", checkpoint_every=2, precision="auto", task=Stop())
    resumed = tiny_run(tmp_path / "run", checkpoint_every=2, precision="auto", resume=True)
    uninterrupted = tiny_run(tmp_path / "uninterrupted")
    assert all(tensor.equal(resumed.weights[name]) for name, tensor in uninterrupted.weights.items())
    scales = [
        json.loads((run.folder.checkpoints / "step-00000012" / "state.json").read_text())["loss_scale"]
        for run in (resumed, uninterrupted)
    ]
    assert scales[0] == scales[1] and scales[0]["_growth_tracker"] == 12


@pytest.mark.parametrize(
    ("change", "flag"),
    [
        *[({name: 0}, flag) for name, flag in [("steps", "--steps"), ("batch_size", "--batch-size")]],
        *[({name: 0}, flag) for name, flag in [("accumulate", "--accumulate"), ("log_every", "--log-every")]],
        *[({"patience": count}, "--patience") for count in (0, -1)],
        *[({"lr": lr}, "--lr") for lr in (0.0, -1e-3, float("nan"), float("inf"))],
        *[({"clip_norm": norm}, "--clip-norm") for norm in (0.0, -1.0, float("nan"))],
        *[({"betas": betas}, "--betas") for betas in ((1.0, 0.9), (0.9, 1.0), (-0.1, 0.9), (0.9, float("nan")))],
        *[({"ema": decay}, "--ema") for decay in (-0.1, 0.0, 1.0, 1.1, float("nan"))],
        *[({"eval_every": -1}, "--eval-every"), ({"checkpoint_every": -1}, "--checkpoint-every")],
        *[({"weight_decay": -0.1}, "--weight-decay"), ({"warmup_steps": -1}, "--warmup-steps")],
        *[({"layer_decay": rate}, "--layer-decay") for rate in (0.0, -0.5, float("nan"))],
        *[({"step_milestones": shares}, "--step-milestones") for shares in ((8, 11), (0.0, 0.5), (float("nan"),))],
        *[({"final_div_factor": factor}, "--final-div-factor") for factor in (0.5, float("nan"), float("inf"))],
        *[({"workers": -2}, "--workers"), ({"task_head_lr_scale": -1.0}, "--task-head-lr-scale")],
    ],
)
def test_invalid_settings_are_rejected_by_their_flag(change, flag):
    with pytest.raises(ConfigError, match=rf"^{flag} "):
        tiny_config(**change)


def test_settings_at_the_ends_of_their_range_are_accepted():
    edge = {"ema": 0.5, "betas": (0.0, 0.999), "clip_norm": 1e-9, "patience": 1, "task_head_lr_scale": 0.0}
    assert tiny_config(steps=1, batch_size=1, log_every=1, weight_decay=0.0, warmup_steps=0, **edge).loop.ema == 0.5


def test_settings_are_checked_before_the_folder_is_used(tmp_path):
    with pytest.raises(ConfigError, match="--lr"):
        tiny_run(tmp_path / "run", lr=-1.0)
    assert tiny_run(tmp_path / "run", steps=1).result.state.finished
