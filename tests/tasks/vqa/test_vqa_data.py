"""Images at their size, and the order of questions."""

from pathlib import Path

import pytest
import torch
from PIL import Image
from tiny_language import tiny_tokenizer

from vitsplit.errors import DataError
from vitsplit.tasks.vqa.config import VqaConfig
from vitsplit.tasks.vqa.data import BORDER, TrainVqa, collate, fit_image
from vitsplit.tasks.vqa.prompts import Prompter, Turn
from vitsplit.tasks.vqa.samples import Sample, SampleSet

GREEN, RED, BLUE = (10, 200, 30), (250, 0, 0), (0, 0, 250)


def filled(height, width, color=GREEN):
    return torch.tensor(color, dtype=torch.uint8)[:, None, None].expand(3, height, width).clone()


def color_at(image_CHW, row, column):
    return tuple(image_CHW[:, row, column].tolist())


@pytest.mark.parametrize("size", [(20, 40), (40, 20), (7, 3), (30, 30)])
@pytest.mark.parametrize("crop_size", [(30, 30), (20, 40), (40, 24)])
@pytest.mark.parametrize("fit", ["pad", "crop", "stretch"])
def test_images_are_resized_to_the_input_size(fit, crop_size, size):
    image_CHW = fit_image(filled(*size), VqaConfig(fit=fit, crop_size=crop_size))
    assert image_CHW.shape == (3, *crop_size) and image_CHW.dtype == torch.uint8


def test_pad_adds_borders_of_the_mean_color():
    wide_CHW = fit_image(filled(20, 60), VqaConfig(fit="pad", crop_size=(60, 60)))
    for row in (0, 10, 16, 43, 59):
        assert color_at(wide_CHW, row, 30) == BORDER == (122, 116, 104)
    assert color_at(wide_CHW, 24, 0) == color_at(wide_CHW, 36, 59) == GREEN
    high_CHW = fit_image(filled(60, 20), VqaConfig(fit="pad", crop_size=(30, 30)))
    assert color_at(high_CHW, 15, 3) == color_at(high_CHW, 15, 26) == BORDER and color_at(high_CHW, 0, 15) == GREEN


def test_crop_removes_both_ends():
    image_CHW = filled(20, 60)
    image_CHW[:, :, :18] = filled(20, 18, RED)
    image_CHW[:, :, 42:] = filled(20, 18, BLUE)
    cut_CHW = fit_image(image_CHW, VqaConfig(fit="crop", crop_size=(20, 20)))
    assert torch.equal(cut_CHW, filled(20, 20)), "the middle 20 of 60 columns, unscaled"
    wider_CHW = fit_image(image_CHW, VqaConfig(fit="crop", crop_size=(20, 40)))
    assert torch.equal(wider_CHW, image_CHW[:, :, 10:50])


def test_stretch_keeps_both_ends():
    image_CHW = filled(20, 60)
    image_CHW[:, :, :20], image_CHW[:, :, 40:] = filled(20, 20, RED), filled(20, 20, BLUE)
    stretched_CHW = fit_image(image_CHW, VqaConfig(fit="stretch", crop_size=(20, 30)))
    columns = [color_at(stretched_CHW, 10, column) for column in (2, 15, 27)]
    assert columns == [RED, GREEN, BLUE]


@pytest.fixture
def images(tmp_path):
    paths = []
    for index in range(5):
        paths.append(tmp_path / f"{index}.png")
        Image.new("RGB", (8, 8), (50 * index, 0, 0)).save(paths[-1])
    return paths


def data_of(images, **settings):
    samples = tuple(
        Sample(image, tuple((Turn(f"question {n}?", f"{n}"),) for n in range(6)), f"sample {index}")
        for index, image in enumerate(images)
    )
    config = VqaConfig(crop_size=(8, 8), **settings)
    return TrainVqa(SampleSet(Path("train.jsonl"), "train", samples), config, Prompter(tiny_tokenizer(), "template"))


def asked(data, sample):
    return [int("".join(c for c in data.prompter.tokenizer.decode([i for i in each.ids if i >= 0]).split("?")[0]
                        if c.isdigit())) for each in sample.conversations]  # fmt: skip


def test_samples_depend_only_on_index_and_seed(images):
    data = data_of(images, questions_per_image=4)
    draws = []
    for seed in range(20):
        sample, again = data[1, seed], data[1, seed]
        torch.rand(3)  # whatever else is drawn
        assert sample.conversations == again.conversations == data[1, seed].conversations
        assert torch.equal(sample.image_CHW, again.image_CHW)
        draws.append(asked(data, sample))
        assert len(draws[-1]) == len(set(draws[-1])) == 4
    assert {number for draw in draws for number in draw} == set(range(6))
    assert len({tuple(draw) for draw in draws}) > 10
    assert sorted(asked(data_of(images), data_of(images)[1, 0])) == list(range(6))


def red_of(sample):
    return int(sample.image_CHW[0, 0, 0]) // 50


def test_shuffled_images_belong_to_another_sample(images):
    for given in (images, images[:2], [images[0], images[0], images[1]], [*images, None, None]):
        data, plain = data_of(given, shuffle_images=True), data_of(given)
        for index, image in enumerate(given):
            if image is None:
                assert data[index, 0].image_CHW is None
                continue
            assert red_of(plain[index, 0]) == int(image.stem)
            assert red_of(data[index, 0]) != int(image.stem)
            assert red_of(data[index, 0]) == red_of(data[index, 99])


def test_one_image_cannot_be_shuffled(images):
    with pytest.raises(DataError, match="--shuffle-images"):
        data_of([images[0], images[0], None], shuffle_images=True)[0, 0]


def test_batches_map_images_to_conversations(images):
    data = data_of([images[1], None, images[4]], questions_per_image=1)
    samples = [data[index, 0] for index in range(3)]
    batch = collate(samples, data.config, 1)
    assert batch.tokens.image_B.tolist() == [0, -1, 1]
    assert [int(image[0, 0, 0]) // 50 for image in batch.image_BCHW] == [1, 4]
    assert batch.names == ["sample 0", "sample 1", "sample 2"]
    text = collate([samples[1]], data.config, 1)
    assert text.image_BCHW.shape == (1, 3, 8, 8) and text.image_BCHW.sum() == 0
    assert text.tokens.image_B.tolist() == [-1]
