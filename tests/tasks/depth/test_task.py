import dataclasses
import json
import logging

import numpy as np
import pytest
import torch
from depth_files import RNG, RedIsDepth, millimeters, write_map, write_set
from PIL import Image

import vitsplit
from small_run import SMALL_RUN
from vitsplit.engine.evaluation import evaluate
from vitsplit.errors import ConfigError, DataError
from vitsplit.tasks import bare_task, open_task
from vitsplit.tasks.depth.config import DepthConfig
from vitsplit.tasks.depth.data import DepthBatch
from vitsplit.tasks.depth.metrics import METRICS
from vitsplit.tasks.depth.prediction import DepthPrediction
from vitsplit.tasks.depth.report import describe_protocol, relative_error
from vitsplit.tasks.depth.task import DepthTask
from vitsplit.train_config import one_head
from vitsplit.types import LayerTaps, Padding

CONFIG = DepthConfig(test_flip=False)


@pytest.fixture
def red_set(tmp_path):
    """Five images of one red each, for which ``RedIsDepth`` predicts 1, 2, 3, 4 or 5 m; the ground truth is 4 m."""
    write_set(tmp_path, [np.full((12, 16), 4000, np.uint16)] * 5, split="val")
    for k in range(5):
        red = np.zeros((12, 16, 3), np.uint8)
        red[..., 0] = 10 * (k + 1)
        Image.fromarray(red).save(tmp_path / f"images/val/{k}.png")
    return tmp_path


def opened(root, **settings):
    return DepthTask.open(dataclasses.replace(CONFIG, **settings), root, ("val",))


def test_metrics_are_means_over_images(red_set):
    seen = []
    evaluation = evaluate(opened(red_set), RedIsDepth(), on_image=lambda: seen.append(1))
    metrics = evaluation.metrics
    assert len(seen) == metrics["images"] == 5
    assert metrics["rmse"] == pytest.approx((3 + 2 + 1 + 0 + 1) / 5, rel=1e-5)
    assert metrics["abs_rel"] == pytest.approx(7 / 5 / 4, rel=1e-5)
    assert metrics["delta1"] == pytest.approx(1 / 5), "5/4 is not below 1.25"
    assert metrics["delta3"] == pytest.approx(3 / 5), "4/3 is below 1.25^2"
    assert (evaluation.score, evaluation.score_name) == (-metrics["rmse"], "neg_rmse")
    assert json.loads(json.dumps(metrics))["protocol"]["median_scaling"] is False


def test_metrics_merge_across_processes(red_set):
    write_map(red_set / "depth/val/1.png", np.zeros((12, 16), np.uint16))
    task = opened(red_set)
    metrics = [task.metric() for _ in range(2)]
    for index in range(5):
        sample = task.val_data().load(index)
        (prediction,) = task.val_predictions(RedIsDepth(), sample.image_CHW[None], [sample])
        metrics[index % 2].update(prediction, sample)
    states = [metric.state() for metric in metrics]
    whole = evaluate(task, RedIsDepth())
    for metric in metrics:
        metric.merge(states)
        assert metric.compute().score == pytest.approx(whole.score, rel=1e-12)
        assert (metric.compute().metrics["images"], metric.compute().metrics["images_without_depth"]) == (4, 1)


def test_images_without_depth_are_skipped_and_named(red_set, caplog):
    write_map(red_set / "depth/val/0.png", np.zeros((12, 16), np.uint16))
    with caplog.at_level(logging.WARNING, logger="vitsplit"):
        metrics = evaluate(opened(red_set), RedIsDepth()).metrics
    assert (metrics["images"], metrics["images_without_depth"]) == (4, 1)
    assert metrics["rmse"] == pytest.approx((2 + 1 + 0 + 1) / 4, rel=1e-5)
    assert "1 images have no valid depth" in caplog.text and "images/val/0.png" in caplog.text
    for k in range(5):
        write_map(red_set / f"depth/val/{k}.png", np.zeros((12, 16), np.uint16))
    with pytest.raises(DataError, match="val split"):
        evaluate(opened(red_set), RedIsDepth())


def test_median_scaling_is_stated(red_set):
    task = opened(red_set, median_scaling=True)
    evaluation = evaluate(task, RedIsDepth())
    assert evaluation.metrics["rmse"] == pytest.approx(0, abs=1e-5)
    assert "scaled to the median" in describe_protocol(evaluation.metrics)
    assert "scaled to the median" in str(task.table(evaluation).caption)
    assert "median" not in describe_protocol(evaluate(opened(red_set), RedIsDepth()).metrics)


def test_predictions_and_tile_outputs(red_set):
    task = opened(red_set)
    images = torch.stack([task.val_images().load(k).image_CHW for k in (0, 4)])
    first, second = task.predict(RedIsDepth(), images)
    assert isinstance(first, DepthPrediction) and first.depth.dtype == np.float32
    assert np.allclose(first.depth, 1.0) and np.allclose(second.depth, 5.0)
    assert np.array_equal(second.image, images[1].permute(1, 2, 0).numpy())
    dense = task.dense(RedIsDepth(), images)
    assert dense.shape == (2, 1, 12, 16)
    assert np.array_equal(task.postprocess(dense)[1].numpy(), second.depth)


def test_the_loss_equals_the_release():
    depth, truth = RNG.uniform(1, 9, (2, 4, 6)), RNG.uniform(1, 9, (2, 4, 6))
    truth[0, :2] = 0
    task = DepthTask(CONFIG)
    batch = DepthBatch(torch.zeros(2, 3, 4, 6), torch.tensor(truth).float(), ["a", "b"])
    taps = LayerTaps((4, 6), Padding(), (4, 6), 1)
    g = np.log(depth[truth > 0] + 1e-3) - np.log(truth[truth > 0] + 1e-3)
    expected = 10 * np.sqrt(g.var(ddof=1) + 0.15 * g.mean() ** 2)
    (sums,) = task.loss_sums(torch.tensor(depth).float()[:, None], batch, taps).values()
    (count,) = task.normalizers(batch).values()
    assert float(count) == 36 and count.dtype == torch.float64
    assert float(sums / count) == pytest.approx(expected, rel=1e-5)


def test_an_unlikely_unit_is_warned_about_once(tmp_path, caplog):
    write_set(tmp_path, [millimeters()] * 3, split="val", scale=1.0)
    with caplog.at_level(logging.WARNING, logger="vitsplit"):
        opened(tmp_path)
    assert len(caplog.records) == 1 and "--depth-scale" in caplog.text and "outside 0.01..1000 m" in caplog.text


@pytest.mark.parametrize(
    ("settings", "flag"),
    [({"crop_size": (0, 5)}, "--crop-size.* 0 5"), ({"image_scale": (5, -1)}, "--image-scale.* 5 -1"),
     ({"border": (0, -1, 0, 0)}, "--border.* 0 -1 0 0"), ({"depth_scale": 0.0}, "--depth-scale.* 0.0"),
     ({"depth_scale": float("nan")}, "--depth-scale.* nan"), ({"min_depth": 0.0}, "--min-depth.* 0.0"),
     ({"max_depth": 0.001}, "--max-depth 0.001"), ({"start_depth": 0.0}, "--start-depth.* 0.0"),
     ({"flip": 1.5}, "--flip.* 1.5"), ({"variance_focus": -0.1}, "--variance-focus.* -0.1")],
)  # fmt: skip
def test_invalid_settings_name_their_flag(settings, flag):
    with pytest.raises(ConfigError, match=flag):
        DepthTask(DepthConfig(**settings))


def test_a_task_of_a_bundle_needs_no_data():
    config = one_head(task=dataclasses.replace(CONFIG, max_depth=10.0))
    description = DepthTask(config.task).describe()
    assert description == {"unit": "metres", "min_depth": 1e-3, "max_depth": 10.0}
    assert bare_task(config.task, description).describe() == description


def test_the_default_start_depth_is_the_geometric_mean(tmp_path):
    maps = [millimeters() for _ in range(3)]
    maps[0][:3] = 0
    maps.append(np.full((12, 16), 30000, np.uint16))
    write_set(tmp_path, maps)
    write_set(tmp_path, [np.full((12, 16), 900, np.uint16)], split="val")
    config = dataclasses.replace(CONFIG, start_depth=None, max_depth=20.0)
    means = [np.log(values[values > 0] / 1000).mean() for values in maps[:3]]
    decoder = open_task(config, tmp_path).build_decoder("linear", 64, 14)
    torch.nn.init.zeros_(decoder.regress.weight)
    depth = decoder(torch.randn(1, 64, 2, 3)).detach()
    assert depth.flatten().tolist() == pytest.approx([np.exp(np.mean(means))] * 96, rel=1e-5)
    # A bundle's weights are loaded: its task has no images, and needs none.
    DepthTask(config).build_decoder("linear", 64, 14)
    with pytest.raises(DataError, match="4 depth maps of the train split"):
        open_task(dataclasses.replace(config, max_depth=0.2), tmp_path).build_decoder("linear", 64, 14)


def test_relative_error_map():
    error = relative_error(np.array([[1.0, 3.0, 5.0]], np.float32), np.array([[2.0, 0.0, 4.0]], np.float32))
    assert error.tolist() == [[0.5, 0.0, 0.25]]


@pytest.mark.parametrize("method", ["vitsplit", "linear-probe"])
def test_train_evaluate_predict(scenes, tmp_path, method):
    settings = {**SMALL_RUN, "max_depth": 40.0}
    result = vitsplit.train(data=scenes, task="depth", out=tmp_path / "run", method=method, **settings)
    assert set(METRICS) < set(result.metrics)
    assert result.metrics["images"] == 3
    evaluation, task = vitsplit.evaluate(result.run, data=scenes)
    assert evaluation.metrics["rmse"] == pytest.approx(result.metrics["rmse"], rel=1e-5)
    predictor = vitsplit.load(result.run)
    image = next((scenes / "images" / "val").iterdir())
    answer = predictor.predict(image)
    assert answer.depth.shape == (48, 64) and answer.depth.min() >= 1e-3 and answer.depth.max() <= 40.0
    page = task.write_report(predictor.forward, evaluation, tmp_path / "page", title="Depth", count=2)
    text = page.read_text()
    assert text.count("<img") == 8 and f"{evaluation.metrics['rmse']:.3f} m" in text
    saved = json.loads((tmp_path / "page" / "metrics.json").read_text())
    assert saved["rmse"] == pytest.approx(evaluation.metrics["rmse"])
    table = task.table(evaluation)
    assert f"RMSE {evaluation.metrics['rmse']:.3f} m" in str(table.title) and table.row_count == len(METRICS)


def test_training_rejects_a_map_of_another_size(tmp_path):
    write_set(tmp_path, [millimeters(size=(48, 64))] * 2)
    write_set(tmp_path, [millimeters(size=(48, 64))], split="val")
    for k in range(2):
        write_map(tmp_path / f"depth/train/{k}.png", millimeters(size=(24, 32)))
    with pytest.raises(DataError, match=r"depth/train/\d\.png: .*32x24 .*64x48"):
        vitsplit.train(data=tmp_path, task="depth", out=tmp_path / "run", **SMALL_RUN)


def test_data_are_opened_by_task_name(scenes):
    task = open_task(CONFIG, scenes)
    assert task.name == "depth" and len(task.train_data()) == 6 and len(task.val_images()) == 3
