"""Graphs that are accepted by their scores on labeled images."""

from __future__ import annotations

import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from tiny_predictor import SMALLEST, tiny_predictor

from vitsplit.errors import ConfigError, ExportError
from vitsplit.exporting import writing
from vitsplit.exporting.formats import Traced, Written, trace
from vitsplit.exporting.graph import ExportGraph
from vitsplit.exporting.onnx_format import OnnxFormat
from vitsplit.exporting.scores import Labeled, check_comparable, compare_scores, is_close, score
from vitsplit.exporting.writing import ExportPlan, export_graphs
from vitsplit.inference.predictor import Predictor
from vitsplit.tasks.base import Evaluation


def scored(model: float, graph: float, measure: str = "miou") -> dict[str, dict[str, Any]]:
    """The comparison of a head that has one score as a model and another as a graph."""
    predictor = tiny_predictor(tasks=("depth",) if measure == "abs_rel" else ("segmentation",), depth=2)
    (name,) = predictor

    def labeled(value: float) -> Labeled:
        return Labeled("photos", lambda head: Evaluation({"abs_rel": value}, value, "miou"))

    return compare_scores({name: score(predictor[name], labeled(model))}, predictor, {name: labeled(graph)})


@pytest.mark.parametrize(
    ("model", "graph", "measure", "accepted"),
    [
        (0.4, 0.3951, "miou", True),
        (0.4, 0.4049, "miou", True),
        (0.4, 0.394, "miou", False),
        (0.4, 0.406, "miou", False),
        (0.4, float("nan"), "miou", False),
        (0.1, 0.1019, "abs_rel", True),
        (0.1, 0.1021, "abs_rel", False),
    ],
)
def test_limits_of_scores(model: float, graph: float, measure: str, accepted: bool) -> None:
    (found,) = scores = list(scored(model, graph, measure).values())
    assert scores[0]["measure"] == measure and found["model"] == model
    assert is_close(found) is accepted


@pytest.fixture(scope="module")
def exact(tmp_path_factory: pytest.TempPathFactory) -> tuple[Predictor, Traced, Written]:
    """A head, its operators, and its graph in float32."""
    predictor = tiny_predictor(tasks=("segmentation",), depth=2, method=SMALLEST)
    traced = trace(ExportGraph(predictor, deform="native").eval(), None)
    return predictor, traced, OnnxFormat().write(traced, tmp_path_factory.mktemp("exact"), "fp32")


@pytest.fixture
def predictor(exact: tuple[Predictor, Traced, Written], monkeypatch: pytest.MonkeyPatch) -> Predictor:
    """A head whose graph is that of float32 in every precision. No class ever agrees, and blocks are kept for it."""
    predictor, traced, written = exact

    def copy(each: Any, parts: Any, folder: Path, precision: Any, measure: Any) -> tuple[list[Written], dict[str, Any]]:
        graph = replace(written, path=folder / written.path.name)
        shutil.copy(written.path, graph.path)
        return [graph], {"in_fp32": ["block"] if measure([graph]) > 1 else []} if precision == "int8" else {}

    monkeypatch.setattr(writing, "trace", lambda part, size: traced)
    monkeypatch.setattr(writing, "write_graphs", copy)
    monkeypatch.setattr(writing, "distance", lambda records, limits, judged: 0.0 if judged else 2.0)
    monkeypatch.setattr("vitsplit.exporting.parity.exceeds", lambda errors, limits: "no class agrees")
    return predictor


def test_scores_replace_the_agreement_of_half_precision(predictor: Predictor, tmp_path: Path) -> None:
    given: list[Any] = []

    def evaluate(head: Any) -> Evaluation:
        given.append(head)
        return Evaluation({}, 0.25 if head is predictor["segmentation"] else 0.251, "miou")

    plan = ExportPlan(("onnx",), "fp16")
    with pytest.raises(ExportError, match="no class agrees"):
        export_graphs(predictor, tmp_path / "refused", plan)
    assert not (tmp_path / "refused").exists()
    plan = ExportPlan(("onnx",), "fp16", data={"segmentation": Labeled("photos", evaluate)})
    result = export_graphs(predictor, tmp_path / "accepted", plan)
    scores = result.card["graphs"]["onnx"]["scores"]["segmentation"]
    assert (scores["data"], scores["model"], scores["graph"]) == ("photos", 0.25, 0.251)
    assert scores["change"] == pytest.approx(0.001)
    assert len(given) == 2
    assert "miou 0.2510 on photos, the model 0.2500" in (tmp_path / "accepted" / "README.md").read_text()
    # In float32, the outputs must agree all the same.
    plan = ExportPlan(("onnx",), "fp32", data={"segmentation": Labeled("photos", evaluate)})
    with pytest.raises(ExportError, match="no class agrees"):
        export_graphs(predictor, tmp_path / "exact", plan)


@pytest.mark.parametrize("graphs", [[0.45], [0.3, 0.45], [0.3, 0.3]])
def test_int8_keeps_blocks_only_if_the_score_demands_it(
    graphs: list[float], predictor: Predictor, tmp_path: Path
) -> None:
    """Outputs choose the blocks of the second graph, and its scores alone decide whether it is accepted."""
    written = iter(graphs)

    def evaluate(head: Any) -> Evaluation:
        return Evaluation({}, 0.45 if head is predictor["segmentation"] else next(written), "miou")

    plan = ExportPlan(("onnx",), "int8", data={"segmentation": Labeled("photos", evaluate)})
    if graphs[-1] == 0.45:
        entry = export_graphs(predictor, tmp_path / "out", plan).card["graphs"]["onnx"]
        assert entry["scores"]["segmentation"]["graph"] == 0.45
        assert entry["in_fp32"] == ["block"] * (len(graphs) - 1)
    else:
        with pytest.raises(ExportError, match=r"segmentation.*0\.3000"):
            export_graphs(predictor, tmp_path / "out", plan)
        assert not (tmp_path / "out").exists()
    assert next(written, None) is None


def test_scores_that_noise_has_too_are_refused(predictor: Predictor, tmp_path: Path) -> None:
    def evaluate(head: Any) -> Evaluation:
        return Evaluation({}, 0.003 if head is predictor["segmentation"] else 0.0, "miou")

    plan = ExportPlan(("onnx",), "fp16", data={"segmentation": Labeled("photos", evaluate)})
    with pytest.raises(ExportError, match=r"segmentation.*0\.0030"):
        export_graphs(predictor, tmp_path / "out", plan)
    assert not (tmp_path / "out").exists()
    check_comparable({"depth": ("abs_rel", 0.0015, 0.002), "segmentation": ("miou", 0.3, 0.005)})


def test_data_without_a_head_or_a_format(tmp_path: Path) -> None:
    predictor = tiny_predictor(tasks=("segmentation",), depth=2)
    labeled = Labeled("photos", lambda head: Evaluation())
    with pytest.raises(ConfigError, match="rooms"):
        export_graphs(predictor, tmp_path / "a", ExportPlan(data={"rooms": labeled}))
    with pytest.raises(ConfigError, match="PyTorch"):
        export_graphs(predictor, tmp_path / "b", ExportPlan(("pt2",), data={"segmentation": labeled}))
    assert not list(tmp_path.iterdir())
