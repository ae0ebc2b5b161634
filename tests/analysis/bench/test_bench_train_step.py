import dataclasses

import pytest
import torch

from vitsplit.analysis.bench.train_step import (
    PAPER,
    BenchPlan,
    MethodFigures,
    PaperRatio,
    TrainStepResult,
    measure,
    measure_memory,
)
from vitsplit.analysis.bench.train_step_report import (
    figures_table,
    parts_table,
    ratios_table,
    to_json,
    write_train_step,
)
from vitsplit.analysis.bench.workload import PARTS, Backbones, TimedStep, method_config, open_accelerator, random_batch
from vitsplit.analysis.cost import step_gmacs
from vitsplit.analysis.measure import PeakMemory
from vitsplit.engine.override import override
from vitsplit.engine.run_data import collate
from vitsplit.engine.sampling import ReadBatch
from vitsplit.engine.trainer import Trainer
from vitsplit.errors import ConfigError
from vitsplit.recipes import recipe
from vitsplit.tasks import bare_task

TINY = {"backbone": "vit_tiny_patch16_224", "random_weights": True, "num_tuned_layers": 2, "precision": "fp32"}


def plan(**changes):
    settings = {
        "config": override(recipe("ade20k-small"), TINY),
        "methods": ("vitsplit", "linear-probe"),
        "size": (32, 48),
        "num_classes": 3,
        "steps": 2,
        "warmup": 1,
        "memory": False,
        "product": False,
    }
    return BenchPlan(**{**settings, **changes})


def made_up(**changes):
    """Two turns of ViT-Split, of 1 and 2 seconds, and of full fine-tuning, of 3 and 4."""
    seconds = {"vitsplit": [1.0, 2.0], "full-finetune": [3.0, 4.0]}
    methods = {
        label: MethodFigures(
            method=label,
            decoder="linear",
            gmacs=gmacs,
            trained_parameters=trained,
            paper=paper,
            memory=PeakMemory(step, step + 500),
            seconds=seconds[label],
            parts={part: [0.25 * second for second in seconds[label]] for part in PARTS},
        )
        for label, gmacs, trained, paper, step in (
            ("vitsplit", 30.0, 10_000_000, None, 1000),
            ("full-finetune", 60.0, 22_000_000, PaperRatio(1.64), 2500),
        )
    }
    settings = {
        "recipe": "ade20k-small",
        "size": (512, 512),
        "batch_size": 4,
        "num_classes": 150,
        "precision": "fp32",
        "warmup": 1,
        "machine": {"device": "cpu", "cpu": "a processor", "threads": 2, "torch": "2"},
        "methods": methods,
        "product": [90.0, 110.0, 100.0],
    }
    return TrainStepResult(**{**settings, **changes})


def test_statistics_follow_from_the_times():
    found = to_json(made_up())
    split, full = found["methods"]["vitsplit"], found["methods"]["full-finetune"]
    assert split["seconds"] == {"median": 1.5, "q1": 1.25, "q3": 1.75}
    assert split["images_per_second"] == pytest.approx(4 / 1.5)
    assert full["seconds"]["median"] == 3.5
    assert full["gmacs_per_second"] == pytest.approx(60 / 3.5)
    assert full["share_of_matrix_product"] == pytest.approx(60 / 3.5 / 100)
    assert full["parts_seconds"]["backward"]["median"] == pytest.approx(0.875)
    # Turn by turn 3 and 2 times; by multiply-adds 2.
    assert full["ratio"]["time"] == {"median": 2.5, "q1": 2.25, "q3": 2.75}
    assert full["ratio"]["multiply_adds"] == 2.0
    assert full["ratio"]["memory"] == 2.5
    assert full["ratio"]["paper"] == {"value": 1.64, "rounded": False}
    assert split["ratio"]["time"]["median"] == split["ratio"]["memory"] == split["ratio"]["multiply_adds"] == 1.0
    assert full["peak_memory_bytes"] == {"step": 2500, "process": 3000}
    assert found["steps"] == 2 and found["matrix_product_gmacs_per_second"]["median"] == 100.0


def test_tables_contain_the_statistics():
    result = made_up()
    (head, *rows), (_, ratio) = figures_table(result), ratios_table(result)
    assert [len(row) for row in rows] == [len(head)] * 2
    assert rows[1][:4] == ["full-finetune", "3.500", "3.250 to 3.750", "1.14"]
    assert ratio == ["full-finetune", "2.50", "2.25 to 2.75", "2.00", "1.64", "2.50"]
    assert parts_table(result)[1] == ["vitsplit", *["0.375"] * len(PARTS)]


def test_missing_measurements_are_reported_as_missing():
    result = made_up(product=[])
    for found in result.methods.values():
        found.memory = None
    assert ratios_table(result)[1][-1] == "-"
    assert to_json(result)["methods"]["vitsplit"]["peak_memory_bytes"] is None
    assert to_json(result)["matrix_product_gmacs_per_second"] is None


def test_page_picture_and_json_are_written(tmp_path):
    page = write_train_step(made_up(), tmp_path / "bench", command="vitsplit bench train-step --methods <all>")
    text = page.read_text()
    assert "2.50x" in text and "about" not in text.split("Command")[0].split("Parts")[0] and "&lt;all&gt;" in text
    assert "<svg" in text and 'src="http' not in text and 'href="http' not in text
    assert (page.parent / "train-step.png").read_bytes().startswith(b"\x89PNG")
    assert (page.parent / "train-step.json").is_file()


def test_the_papers_ratios_follow_from_its_times():
    minutes = {384: (9 + 25 / 60, 15 + 28 / 60, 31 + 21 / 60), 768: (17 + 41 / 60, 25 + 16 / 60, 40 + 23 / 60)}
    minutes[1024] = (32 + 49 / 60, 44 + 22 / 60, 79 + 25 / 60)
    for width, (split, linear, upernet) in minutes.items():
        assert PAPER["full-finetune", "linear"][width].value == pytest.approx(linear / split, abs=0.005)
        assert PAPER["upernet", "upernet"][width].value == pytest.approx(upernet / split, abs=0.005)
    assert str(PAPER["vit-adapter", "upernet"][384]) == "about 4" and ("vit-adapter", "linear") not in PAPER


def test_a_measurement_has_all_statistics():
    messages = []
    result = measure(plan(product=True), say=messages.append)
    found = to_json(result)
    assert found["machine"]["cpu"] and found["machine"]["threads"] == torch.get_num_threads()
    assert found["machine"]["torch"] == torch.__version__ and found["precision"] == "fp32"
    for label, figures in result.methods.items():
        assert len(figures.seconds) == 2 and min(figures.seconds) > 0
        for turn, total in enumerate(figures.seconds):
            parts = {part: samples[turn] for part, samples in figures.parts.items()}
            assert sum(parts.values()) == pytest.approx(total, rel=0.02, abs=0.005)
            assert all(parts[part] > 0 for part in PARTS), label
        config = override(plan().config, {"method": figures.method})
        assert figures.gmacs == pytest.approx(2 * step_gmacs(config, (32, 48), num_classes=3)["step"])
    assert result.methods["linear-probe"].trained_parameters == 2 * 192 + 192 * 3 + 3
    assert found["methods"]["vitsplit"]["share_of_matrix_product"] > 0
    assert messages[0] == "building vitsplit" and messages[-1] == "turn 2 of 2"


def test_the_timed_step_equals_a_training_step():
    """Training without a stopwatch gives the same weights."""
    workload = plan(batch_size=4, config=override(plan().config, {"accumulate": 2})).workloads("fp32")[0]
    accelerator = open_accelerator("cpu")
    timed = TimedStep(workload, accelerator, Backbones())
    plain = TimedStep(workload, accelerator, Backbones())  # only for its untrained model
    config, backbone = workload.config, Backbones().open(workload.config)
    (name,) = config.heads
    task = bare_task(config.task, {"classes": ["a", "b", "c"], "colours": [[0, 0, 0]] * 3})
    trainer = Trainer(config, tasks={name: task}, backbone=backbone, model=plain.model)
    trainer.set_up(accelerator)
    share = dataclasses.replace(workload, batch_size=2)
    batch = ReadBatch(collate({name: [None]}, {name: lambda _: random_batch(share)}))
    before = {name: value.clone() for name, value in plain.model.state_dict().items()}
    for index in range(3):
        trainer.step(index, iter([batch, batch]))
        timed()
    after = plain.model.state_dict()
    assert any(not torch.equal(before[name], value) for name, value in after.items())
    assert all(torch.equal(value, timed.model.state_dict()[name]) for name, value in after.items())


def test_cached_features_skip_the_backbone_pass():
    """The statistics include no backbone pass, and cached features equal computed ones in bf16."""
    result = measure(plan(methods=("vitsplit", "vitsplit:cached"), warmup=0))
    kept, computed = result.methods["vitsplit:cached"], result.methods["vitsplit"]
    assert kept.parts["frozen forward"] == [0.0, 0.0] and min(computed.parts["frozen forward"]) > 0
    cost = step_gmacs(override(plan().config, {"method": "vitsplit"}), (32, 48), num_classes=3)
    assert kept.gmacs == pytest.approx(2 * 3 * cost["trained"])
    assert kept.trained_parameters == computed.trained_parameters


def test_features_of_a_trained_backbone_cannot_be_cached():
    with pytest.raises(ConfigError, match=r"--cache-features .* --method full-finetune"):
        method_config(plan().config, "full-finetune:cached")
    with pytest.raises(ConfigError, match=r"'kept'.*cached"):
        method_config(plan().config, "vitsplit:kept")


def test_depth_can_be_measured():
    config = override(recipe("laptop-depth"), {**TINY, "num_tuned_layers": 1})
    result = measure(plan(config=config, num_classes=None, steps=1, warmup=0))
    assert result.num_classes == 0 and result.methods["vitsplit"].seconds[0] > 0


@pytest.mark.slow
def test_peak_memory_is_measured_in_a_separate_process():
    workload = plan().workloads("fp32")[0]
    found = measure_memory(workload, threads=1)
    trained = TimedStep(workload, open_accelerator("cpu"), Backbones()).trained_parameters
    # Weights, gradients and two moments of the trainable parameters.
    assert 16 * trained < found.step < found.process < 8e9


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({"methods": ("linear-probe",)}, "--methods linear-probe: add vitsplit"),
        ({"methods": ("vitsplit", "vitsplit")}, "vitsplit was given more than once"),
        ({"methods": ("vitsplit", "vit-adaptor")}, "there is no method 'vit-adaptor'. Methods: vitsplit, linear-probe"),
        ({"methods": ("vitsplit", "linear-probe:big")}, "there is no decoder 'big'. Decoders: linear, probe, upernet"),
        ({"methods": ("vitsplit:",)}, "add vitsplit"),
        ({"steps": 0}, "--steps must be at least 1, not 0"),
        ({"warmup": -1}, "--warmup must be at least 0, not -1"),
        ({"batch_size": 0}, "--batch-size must be at least 1, not 0"),
        ({"size": (0, 5)}, "--size 0 5"),
        ({"num_classes": 300}, "--num-classes must be from 1 to 255, not 300"),
        ({"device": "cuda:99"}, "--device cuda:99: PyTorch finds no such GPU"),
        ({"device": "meta"}, "--device meta: choose cpu or cuda"),
        (
            {"config": override(recipe("ade20k-small"), TINY | {"accumulate": 2}), "batch_size": 3},
            "--batch-size 3 cannot",
        ),
        ({"config": override(recipe("laptop-detection"), TINY)}, "laptop-detection is for detection"),
    ],
)
def test_invalid_measurements_are_rejected(changes, expected):
    with pytest.raises(ConfigError) as raised:
        measure(plan(**changes))
    assert expected in str(raised.value)


def test_a_method_with_another_decoder():
    config = method_config(plan().config, "vit-adapter:linear")
    assert (config.method.name, config.method.decoder) == ("vit-adapter", "linear")
    assert method_config(config, "vitsplit").method.decoder == "auto"
