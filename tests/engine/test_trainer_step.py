"""One optimizer step against plain PyTorch. Shapes: B batch."""

import pytest
import torch
import torch.nn.functional as F
from tiny import IGNORE, BadGradients, TinyTask, tiny_backbone, tiny_config, tiny_head, tiny_run

from vitsplit.engine.optim import lr_factor, set_lr
from vitsplit.engine.sampling import SampleStream
from vitsplit.errors import TrainingError


def close(first, second, tolerance=1e-5):
    assert first.keys() == second.keys()
    for name in first:
        torch.testing.assert_close(first[name], second[name], rtol=0, atol=tolerance, msg=name)


def by_hand(steps, *, clip_norm=None, **changes):
    """A plain PyTorch training loop: one batch, mean losses, torch's AdamW and clipping."""
    config = tiny_config(steps=steps, **changes)
    task, backbone = TinyTask(), tiny_backbone()
    model = tiny_head(task)
    head = [p for name, p in model.named_parameters() if "task_head" in name]
    base = [p for name, p in model.named_parameters() if "task_head" not in name and "frozen" not in name]
    groups = [{"head": "tiny", "params": head, "peak_lr": 1e-3}, {"head": "tiny", "params": base, "peak_lr": 1e-2}]
    optimizer = torch.optim.AdamW(groups, weight_decay=1e-2, foreach=False)
    stream, data = SampleStream(23, 0), task.train_data()
    losses, norms = [], []
    for step in range(steps):
        batch = task.collate([data[stream[position]] for position in range(step * 4, step * 4 + 4)])
        taps = backbone(batch.image_BCHW, model.head.request(train=True))
        output = model(taps)
        cross_entropy = F.cross_entropy(output[:, :3], batch.mask_Bhw, ignore_index=IGNORE)
        loss = cross_entropy + F.mse_loss(output[:, 3].mean((1, 2)), batch.mean_B)
        optimizer.zero_grad()
        loss.backward()
        norms.append(torch.nn.utils.clip_grad_norm_(model.parameters(), clip_norm or float("inf")).item())
        set_lr(optimizer, lr_factor(step, steps, config.optim), "tiny")
        optimizer.step()
        losses.append(loss.item())
    return model.trainable_state(), losses, norms


def test_a_run_equals_a_plain_training_loop(tmp_path):
    run = tiny_run(tmp_path / "run", steps=6, log_every=1)
    weights, losses, norms = by_hand(6)
    close(run.weights, weights)
    rows = run.rows("loss")
    assert [row["loss"] for row in rows] == pytest.approx(losses, abs=1e-5)
    assert [row["grad_norm"] for row in rows] == pytest.approx(norms, abs=1e-4)


@pytest.mark.parametrize("accumulate", [2, 4])
def test_micro_batches_equal_one_batch(tmp_path, accumulate):
    """Micro-batches have different numbers of ignored patches, so a mean of means would differ."""
    whole = tiny_run(tmp_path / "whole", steps=6, clip_norm=0.05)
    spread = tiny_run(tmp_path / "spread", steps=6, clip_norm=0.05, accumulate=accumulate)
    close(spread.weights, whole.weights)


def test_the_whole_gradient_is_clipped_once(tmp_path):
    weights, _, norms = by_hand(6, clip_norm=0.05)
    assert min(norms) > 0.05, "every step must be clipped, or this test shows nothing"
    close(tiny_run(tmp_path / "run", steps=6, clip_norm=0.05, accumulate=2).weights, weights)


def test_a_loss_term_without_targets_is_zero(tmp_path):
    class AllIgnored(TinyTask):
        def collate(self, samples):
            batch = super().collate(samples)
            batch.mask_Bhw.fill_(IGNORE)
            return batch

    run = tiny_run(tmp_path / "run", steps=2, log_every=1, task=AllIgnored())
    for row in run.rows("loss"):
        assert row["loss_patches"] == 0.0
        assert row["loss"] == row["loss_mean"] > 0
    assert all(bool(tensor.isfinite().all()) for tensor in run.weights.values())


def test_only_trainable_parameters_change(tmp_path):
    run = tiny_run(tmp_path / "run")
    before = tiny_head(TinyTask())
    for (name, parameter), start in zip(run.model.named_parameters(), before.parameters(), strict=True):
        assert parameter.equal(start) == ("frozen" in name), name
    assert not any("frozen" in name for name in run.last)


@pytest.mark.parametrize("accumulate", [1, 2])
def test_a_non_finite_loss_stops_and_names_the_images(tmp_path, accumulate):
    stream = SampleStream(23, 0)
    bad_image = f"image-{stream[4 * 4 + 1][0]:02d}.png"  # in the fifth step's batch, still in the first epoch
    files = [f"image-{stream[position][0]:02d}.png" for position in range(16, 20)]
    with pytest.raises(TrainingError) as caught:
        tiny_run(
            tmp_path / "run", task=TinyTask(nan_for=bad_image), checkpoint_every=2, accumulate=accumulate, log_every=1
        )
    message = str(caught.value)
    assert "Step 5: the loss is nan" in message
    named = [name for name in files if name in message]
    assert named == (files if accumulate == 1 else files[:2]), "the micro-batch that it came from"
    assert "step-00000004" in message and "--lr" in message
    left = sorted(path.name for path in (tmp_path / "run" / "checkpoints").iterdir())
    assert left == ["step-00000002", "step-00000004"]
    assert not (tmp_path / "run" / "last").exists()
    assert "nan" not in (tmp_path / "run" / "metrics.jsonl").read_text().lower()


def test_a_non_finite_gradient_stops_before_the_update(tmp_path):
    with pytest.raises(TrainingError, match=r"Step 1: .*gradient"):
        tiny_run(tmp_path / "run", task=BadGradients(factor=float("inf")))


def test_bf16_computes_in_bf16_and_keeps_float32_weights(tmp_path):
    dtypes = set()

    class Task(TinyTask):
        def loss_sums(self, output, batch, taps):
            dtypes.update([output.dtype, taps.maps[3].dtype])
            return super().loss_sums(output, batch, taps)

    run = tiny_run(tmp_path / "run", precision="bf16", task=Task())
    assert dtypes == {torch.bfloat16}
    assert {tensor.dtype for tensor in run.weights.values()} == {torch.float32}
    rows = run.rows("loss")
    assert rows[-1]["loss"] < rows[0]["loss"]


@pytest.mark.parametrize("settings", [{}, {"accumulate": 2}, {"cache_features": 1}])
def test_the_backbone_gets_the_extent_of_the_image(tmp_path, settings):
    """Images that are all padding have the mean color, which is not a uint8 value here (127.5)."""

    class Padded(TinyTask):
        def collate(self, samples):
            batch = super().collate(samples)
            batch.extent_B2 = torch.zeros(len(batch.names), 2, dtype=torch.int64)
            return batch

    class Mean(TinyTask):
        def collate(self, samples):
            batch = super().collate(samples)
            batch.image_BCHW = torch.full_like(batch.image_BCHW, 0.5, dtype=torch.float32)
            return batch

    runs = {}
    for kind in (Padded, Mean, TinyTask):
        name = kind.__name__
        runs[name] = tiny_run(tmp_path / name, steps=4, task=kind(), cache_folder=str(tmp_path / "kept"), **settings)
    close(runs["Padded"].weights, runs["Mean"].weights, 0)
    assert not runs["Padded"].weights["head.task_head.weight"].equal(runs["TinyTask"].weights["head.task_head.weight"])
