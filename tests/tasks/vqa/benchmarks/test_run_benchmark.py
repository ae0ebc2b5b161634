"""Running a benchmark: every image is encoded once, answers are saved as they are generated, and runs resume."""

from __future__ import annotations

import io
import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from bundles import write_segmentation_bundle
from PIL import Image

from vitsplit.cli.main import main
from vitsplit.errors import DataError, RunError
from vitsplit.inference.benchmark_run import run_benchmark
from vitsplit.tasks.vqa.benchmarks import BenchmarkQuestion
from vitsplit.tasks.vqa.config import VqaConfig

Put = Callable[..., Path]


@dataclass(frozen=True)
class Plain:
    """Questions and nothing else."""

    questions: tuple[BenchmarkQuestion, ...]
    name: str = "plain"
    max_new_tokens: int = 5


ONE, TWO = Path("one.jpg"), Path("two.jpg")
QUESTIONS = (
    BenchmarkQuestion("a", ONE, "what?"),
    BenchmarkQuestion("b", TWO, "where?"),
    BenchmarkQuestion("c", ONE, "who?"),
    BenchmarkQuestion("d", TWO, "why?"),
)
TABLE = {"what?": "cup", "where?": "here", "who?": "me", "why?": "so"}
ANSWERS = {"a": "cup", "b": "here", "c": "me", "d": "so"}


def test_questions_on_one_image_are_batched(table_bundle: Any, tmp_path: Path) -> None:
    bundle, done = table_bundle(TABLE), []
    answers = run_benchmark(bundle, Plain(QUESTIONS), tmp_path / "new", on_question=lambda: done.append(1))
    assert answers == ANSWERS
    assert list(answers) == ["a", "b", "c", "d"]  # in the benchmark's order, not in that of asking
    assert bundle.looked == [ONE, TWO]
    assert bundle.asked == [["what?", "who?"], ["where?", "why?"]]
    assert bundle.tokens == {5}
    assert len(done) == 4


def test_an_interrupted_run_resumes(table_bundle: Any, tmp_path: Path) -> None:
    stopped = table_bundle(TABLE, fail_after=1)
    with pytest.raises(KeyboardInterrupt):
        run_benchmark(stopped, Plain(QUESTIONS), tmp_path)
    kept = (tmp_path / "answers.jsonl").read_text()
    assert [json.loads(line).get("text") for line in kept.splitlines()] == [None, "cup", "me"]
    # A kill during a write leaves an incomplete line.
    (tmp_path / "answers.jsonl").write_text(kept + '{"id": "b", "prompt": "wh')
    bundle, done = table_bundle(TABLE), []
    assert run_benchmark(bundle, Plain(QUESTIONS), tmp_path, on_question=lambda: done.append(1)) == ANSWERS
    assert bundle.looked == [TWO]
    assert len(done) == 4
    finished = table_bundle({})
    assert run_benchmark(finished, Plain(QUESTIONS), tmp_path) == ANSWERS
    assert finished.looked == []


def test_a_larger_limit_resumes_from_a_smaller_one(table_bundle: Any, tmp_path: Path) -> None:
    assert run_benchmark(table_bundle(TABLE), Plain(QUESTIONS[:1]), tmp_path) == {"a": "cup"}
    bundle = table_bundle(TABLE)
    assert run_benchmark(bundle, Plain(QUESTIONS[:2]), tmp_path) == {"a": "cup", "b": "here"}
    assert bundle.asked == [["where?"]]
    assert run_benchmark(table_bundle({}), Plain(QUESTIONS[:1]), tmp_path) == {"a": "cup"}


def test_answers_of_another_bundle_are_rejected(table_bundle: Any, tmp_path: Path) -> None:
    run_benchmark(table_bundle(TABLE), Plain(QUESTIONS), tmp_path, made_by={"bundle": "abc"})
    for kwargs, expected in (
        ({"made_by": {"bundle": "xyz"}}, "bundle abc"),
        ({"made_by": {"bundle": "abc"}, "max_new_tokens": 9}, "max_new_tokens 5"),
    ):
        with pytest.raises(RunError, match=expected):
            run_benchmark(table_bundle(TABLE), Plain(QUESTIONS), tmp_path, **kwargs)
    changed = Plain((BenchmarkQuestion("a", ONE, "what now?"),))
    with pytest.raises(RunError, match="question a "):
        run_benchmark(table_bundle(TABLE), changed, tmp_path, made_by={"bundle": "abc"})
    file = tmp_path / "answers.jsonl"
    file.write_text(file.read_text().replace('{"id": "c"', '{"id": "c'))
    with pytest.raises(RunError, match=r"line 3: .*JSON"):
        run_benchmark(table_bundle(TABLE), Plain(QUESTIONS), tmp_path, made_by={"bundle": "abc"})


def test_embedded_images_and_questions_without_an_image(
    table_bundle: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = io.BytesIO()
    Image.new("RGB", (5, 3), (9, 8, 7)).save(file, "PNG")
    asked: list[list[str]] = []

    def without_image(bundle: Any, questions: Sequence[str], *, max_new_tokens: int) -> list[str]:
        asked.append(list(questions))
        return ["blind " + question for question in questions]

    monkeypatch.setattr("vitsplit.tasks.vqa.predict.ask_without_image", without_image)
    carried = [BenchmarkQuestion(f"i{n}", file.getvalue(), f"i{n}?") for n in range(2)]
    blind = [BenchmarkQuestion(f"n{n}", None, f"n{n}?") for n in range(9)]
    bundle = table_bundle({"i0?": "x", "i1?": "y"})
    answers = run_benchmark(bundle, Plain((*carried, *blind)), tmp_path)
    assert (answers["i0"], answers["i1"], answers["n8"]) == ("x", "y", "blind n8?")
    (image,) = bundle.looked
    assert (image.size, image.getpixel((0, 0))) == ((5, 3), (9, 8, 7))
    assert [len(group) for group in asked] == [8, 1]
    with pytest.raises(DataError, match="question z: "):
        run_benchmark(bundle, Plain((BenchmarkQuestion("z", b"no image", "?"),)), tmp_path / "other")


@pytest.fixture
def command(table_bundle: Any, tmp_path: Path, put: Put, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The command on a run whose bundle answers "4" to all, and two questions, one of which has that answer."""

    class Fours(dict[str, str]):
        def get(self, key: str, default: Any = None) -> str:
            return "4"

    card = SimpleNamespace(task="vqa", config=SimpleNamespace(task=VqaConfig()))
    monkeypatch.setattr("vitsplit.bundle.find_bundle", lambda run: Path(run))
    monkeypatch.setattr("vitsplit.bundle.read_card", lambda bundle: card)
    monkeypatch.setattr("vitsplit.inference.prediction_log.bundle_ids", lambda folders: {"first": "abc"})
    monkeypatch.setattr("vitsplit.inference.predictor.load_head", lambda run, **_: table_bundle(Fours()))
    put("images/1.jpg")
    data = put("daquar_val.jsonl", [{"image": "1.jpg", "question": f"q{n}", "answer": str(n)} for n in (3, 4)])
    return ["evaluate", str(tmp_path / "first"), "--benchmark", "daquar", "--data", str(data)]


def test_the_command_writes_metrics_and_files(command: list[str], tmp_path: Path,
                                              capsys: pytest.CaptureFixture[str]) -> None:  # fmt: skip
    assert main([*command, "--json"]) == 0
    shown = json.loads(capsys.readouterr().out)
    folder = tmp_path / "first" / "benchmark-daquar"
    assert shown == json.loads((folder / "metrics.json").read_text())
    assert (shown["metrics"]["exact_match"], shown["questions"], shown["limit"], shown["max_new_tokens"]) == (
        0.5,
        2,
        None,
        32,
    )
    assert {file.name for file in folder.iterdir()} == {"answers.jsonl", "daquar-answers.jsonl", "metrics.json"}
    assert main(command) == 0
    assert "50.00%" in capsys.readouterr().out


def test_a_limit_is_reported(command: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([*command, "--limit", "1", "--out", str(tmp_path / "out")]) == 0
    shown = " ".join(capsys.readouterr().out.split())
    assert "only the first 1 (--limit)" in shown
    assert json.loads((tmp_path / "out" / "metrics.json").read_text())["limit"] == 1


def test_a_bundle_without_questions_is_rejected(
    command: list[str], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    card = SimpleNamespace(task="vqa", config=SimpleNamespace(task=VqaConfig(conversation="plain")))
    monkeypatch.setattr("vitsplit.bundle.read_card", lambda bundle: card)
    assert main(command) == 2
    assert "trained on captions only (--conversation plain)" in capsys.readouterr().err


def test_help_describes_the_files_of_a_benchmark(capsys: pytest.CaptureFixture[str]) -> None:
    for name, expected in (("pope", "coco_pope_{random,popular,adversarial}.json"), ("mmbench-cn", "tsv")):
        assert main(["evaluate", "--benchmark", name, "--help"]) == 0
        assert expected in capsys.readouterr().out


def test_bundles_of_other_tasks_are_rejected(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    bundle = write_segmentation_bundle(tmp_path / "rooms")
    assert main(["evaluate", str(bundle), "--benchmark", "pope", "--data", str(tmp_path)]) == 2
    error = capsys.readouterr().err
    assert "segmentation" in error and "--benchmark" in error
