"""The evaluation loop: the same metrics for any number of workers and any batch size."""

from dataclasses import dataclass

import pytest
import torch
from tiny import TinyTask, TinyValSample, tiny_backbone, tiny_model

from vitsplit.engine import evaluation
from vitsplit.engine.evaluation import evaluate, images_at_once

SIDES = (28, 28, 28, 42, 28, 28, 28)


@dataclass
class MixedTask(TinyTask):
    """Images of two heights; records the batches that the model receives."""

    def val_data(self):
        return MixedData(super().val_data())

    def val_predictions(self, forward, image_BCHW, samples):
        self.seen.append([len(samples), image_BCHW.shape[-2]])
        output, _ = forward(image_BCHW)
        return [*output[:, :3, :2].argmax(1)]


@dataclass
class MixedData:
    data: object

    def __len__(self):
        return len(self.data)

    def load(self, index):
        sample = self.data.load(index)
        return TinyValSample(sample.image_CHW.repeat(1, 2, 1)[:, : SIDES[index]], sample.mask_hw)


@pytest.fixture
def forward():
    backbone, head = tiny_backbone(), tiny_model(TinyTask()).eval().heads["tiny"]

    @torch.no_grad()
    def forward(image_BCHW):
        taps = backbone(image_BCHW, head.request(train=False))
        return head(taps), taps

    return forward


def test_consecutive_images_of_one_size_share_a_pass(forward, monkeypatch):
    one = MixedTask()
    alone = evaluate(one, forward)
    assert one.seen == [[1, side] for side in SIDES]
    for most, pixels, workers, groups in (
        (2, 1 << 21, 0, [[2, 28], [1, 28], [1, 42], [2, 28], [1, 28]]),
        (8, 1 << 21, 2, [[3, 28], [1, 42], [3, 28]]),
        (8, 2 * 28 * 28, 0, [[2, 28], [1, 28], [1, 42], [2, 28], [1, 28]]),
        (8, 1, 0, [[1, side] for side in SIDES]),
    ):
        monkeypatch.setattr(evaluation, "PIXELS_AT_ONCE", pixels)
        task, images = MixedTask(), []
        on_image = lambda: images.append(0)  # noqa: B023  # called before the next turn
        assert evaluate(task, forward, images_at_once=most, workers=workers, on_image=on_image) == alone
        assert task.seen == groups and len(images) == len(SIDES)


def test_evaluation_batches_do_not_exceed_the_training_batch():
    assert [images_at_once(torch.device("cuda"), batch_size) for batch_size in (2, 16)] == [2, 8]
    assert images_at_once(torch.device("cpu"), 16) == 1
