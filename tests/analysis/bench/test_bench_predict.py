"""``vitsplit bench predict``: the timed functions give the predictions, and the arithmetic of the table."""

import json

import pytest
import torch

from vitsplit.analysis.bench import predict, workload
from vitsplit.analysis.bench.predict import PredictPlan, PredictResult, SharingTimes, measure_predictions, sharing_bound
from vitsplit.analysis.bench.predict_report import methods_table, sharing_table
from vitsplit.backbone import open_backbone
from vitsplit.backbone.backbone import Backbone
from vitsplit.cli.main import main
from vitsplit.engine.override import override
from vitsplit.errors import ConfigError
from vitsplit.recipes import recipe

TINY = ["--backbone", "vit_tiny_patch16_224", "--num-tuned-layers", "2", "--size", "32", "48", "--num-classes", "3"]
QUICK = ["--turns", "2", "--warmup", "0", "--precision", "fp32", "--device", "cpu", "--batch-size", "2"]


def tiny_plan(**changes):
    config = override(
        recipe("ade20k-small"),
        {"backbone": "vit_tiny_patch16_224", "num_tuned_layers": 2, "random_weights": True, "precision": "fp32"},
    )
    plan = {"methods": ("vitsplit",), "bundles": (1, 3), "size": (32, 48), "batch_size": 2, "num_classes": 3}
    return PredictPlan(config=config, turns=2, warmup=1, **plan | changes)


def test_shared_and_separate_predictions_are_equal(monkeypatch):
    taken = {}

    passes: list[int] = []

    class CountedBackbone(Backbone):
        def forward(self, image_BCHW, request):
            passes.append(len(image_BCHW))
            return super().forward(image_BCHW, request)

    def take_each_once(functions, **options):
        for name, take in functions.items():
            passes.clear()
            taken[name] = (take.args[0](), list(passes))
        return {name: [1.0] for name in functions}

    def counted(settings):
        plain = open_backbone(settings)
        return CountedBackbone(plain.model, plain.info)

    monkeypatch.setattr(workload, "open_backbone", counted)
    monkeypatch.setattr(predict, "run_interleaved", take_each_once)
    measure_predictions(tiny_plan())
    shared, separate = taken["3 shared"], taken["3 separate"]
    assert shared[1] == [1] and separate[1] == [1, 1, 1], "passes of the backbone, by images"
    assert len(shared[0]) == 3
    for one, other in zip(shared[0], separate[0], strict=True):
        assert torch.equal(one, other)
    assert not torch.equal(shared[0][0], shared[0][1]), "the bundles are different ones"
    assert taken["3 shared, a batch"][1] == [2] and taken["3 separate, a batch"][1] == [2, 2, 2]
    assert taken["vitsplit, a batch"][1] == [2]
    assert taken["vitsplit, a batch"][0][0].shape[:2] == (2, 3)


def test_bound_on_the_speedup_of_sharing():
    # Five of six parts are shared: three models cost 18 parts apart, and 5 + 3 together.
    assert sharing_bound(5.0, 1.0, 3) == pytest.approx(18 / 8)
    assert sharing_bound(5.0, 1.0, 1) == 1.0


def made_up() -> PredictResult:
    methods = {
        "vitsplit": predict.MethodTimes(gmacs=10.0, seconds=[1.0, 2.0, 4.0], batch=[4.0, 4.0, 4.0]),
        "full-finetune": predict.MethodTimes(gmacs=5.0, seconds=[0.5, 1.0, 1.0], batch=[2.0, 2.0, 2.0]),
    }
    times = {"shared_batch": [2.0, 2.0, 2.0], "separate_batch": [8.0, 5.0, 1.0]}
    sharing = {4: SharingTimes(bound=2.5, shared=[1.0, 2.0, 4.0], separate=[2.0, 4.0, 12.0], **times)}
    machine = {"device": "cpu", "cpu": "some", "threads": 2, "torch": "2"}
    return PredictResult(
        recipe="r", size=(8, 8), batch_size=4, num_classes=3, precision="fp32", machine=machine,
        methods=methods, sharing=sharing,
    )  # fmt: skip


def test_ratios_are_computed_per_turn():
    head, vitsplit, other = methods_table(made_up())
    found = dict(zip(head, other, strict=True))
    assert found["relative to vitsplit"] == "0.50"  # 0.5, 0.5, 0.25
    assert found["by multiply-adds"] == "0.50"
    assert found["paper"] == "about 0.7"
    assert found["images/s, 4 at a time"] == "2.00"
    assert dict(zip(head, vitsplit, strict=True))["seconds, one image"] == "2.000"
    assert sharing_table(made_up())[1] == ["4", "2.000", "4.000", "2.00", "2.00 to 2.50", "2.50", "2.00", "0.80"]


def test_page_json_and_table_output(tmp_path, capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "200")
    arguments = ["predict", *TINY, *QUICK, "--methods", "vitsplit", "vit-adapter:linear", "--bundles", "1", "2"]
    assert main(["bench", *arguments, "--out", str(tmp_path / "bench")]) == 0
    output = capsys.readouterr()
    assert "ade20k-small, random images of 32 x 48 pixels, fp32" in output.out
    assert "vit-adapter:linear" in output.out
    found = json.loads((tmp_path / "bench" / "predict.json").read_text())
    assert found["sharing"].keys() == {"1", "2"}
    assert found["sharing"]["1"]["bound"] == 1.0
    assert found["machine"]["torch"] == torch.__version__
    assert (tmp_path / "bench" / "predict.png").stat().st_size > 1000
    assert "<svg" in (tmp_path / "bench" / "index.html").read_text()


def test_invalid_plans_are_rejected():
    for changes, message in (
        ({"methods": ("linear-probe",)}, "add vitsplit"),
        ({"methods": ("vitsplit", "vitsplit")}, "vitsplit was given more than once"),
        ({"methods": ("vitsplit", "magic")}, "there is no method 'magic'"),
        ({"bundles": (0,)}, "--bundles 0"),
        ({"batch_size": 0}, "--batch-size must be at least 1"),
    ):
        with pytest.raises(ConfigError, match=message):
            measure_predictions(tiny_plan(**changes))
