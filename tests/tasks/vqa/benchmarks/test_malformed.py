"""Malformed benchmark files: every error is one message that names the file."""

from __future__ import annotations

import base64
import copy
import io
import json
import os
import random
import struct
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from vitsplit.data.decoding import decode_bytes
from vitsplit.errors import DataError, RunError
from vitsplit.inference.benchmark_run import run_benchmark
from vitsplit.tasks.vqa.benchmarks import open_benchmark
from vitsplit.tasks.vqa.benchmarks.base import BenchmarkQuestion

Put = Callable[..., Path]
TEN = [{"answer": "yes", "answer_id": n} for n in range(10)]
# Benchmark -> its files, each good.
GOOD: dict[str, dict[str, Any]] = {
    "daquar": {"d_val.jsonl": [{"image": "a.png", "question": "what?", "answer": "cup"}], "images/a.png": None},
    "gqa": {
        "testdev_balanced_questions.json": {"1": {"question": "Who?", "imageId": "n1", "answer": "boy", "types": {}}},
        "images/n1.jpg": None,
    },
    "llava-bench": {"questions.jsonl": [{"question_id": 0, "image": "a.png", "text": "what?"}], "images/a.png": None},
    "mmvet": {"mm-vet.json": {"v1_0": {"imagename": "a.png", "question": "what?"}}, "images/a.png": None},
    "scienceqa": {
        "pid_splits.json": {"test": ["5"]},
        "problems.json": {
            "5": {"question": "Which?", "choices": ["ice", "sun"], "answer": 1, "hint": "", "image": "i.png"}
        },
        "images/test/5/i.png": None,
    },
    "textvqa-ocr": {
        "TextVQA_0.5.1_val.json": {
            "data": [{"question_id": 1, "image_id": "a", "question": "what?", "answers": ["yes"] * 10}]
        },
        "TextVQA_Rosetta_OCR_v0.2_val.json": {"data": [{"image_id": "a", "ocr_tokens": ["x"]}]},
        "train_images/a.jpg": None,
    },
    "vizwiz": {
        "val.json": [{"image": "a.jpg", "question": "what?", "answers": TEN, "answer_type": "other"}],
        "val/a.jpg": None,
    },
    "vqav2": {
        "v2_OpenEnded_mscoco_val2014_questions.json": {
            "data_subtype": "val2014",
            "questions": [{"question_id": 1, "image_id": 9, "question": "what?"}],
        },
        "v2_mscoco_val2014_annotations.json": {
            "annotations": [{"question_id": 1, "answer_type": "other", "answers": TEN}]
        },
        "val2014/COCO_val2014_000000000009.jpg": None,
    },
    "pope": {
        **{
            f"coco_pope_{each}.json": [{"question_id": 1, "image": "a.jpg", "text": "Is it?", "label": "yes"}]
            for each in ("random", "popular", "adversarial")
        },
        "val2014/a.jpg": None,
    },
}
STRANGE = [None, True, 1.5, -1, 10**40, "", "x" * 5000, [], {}, [[]], {"a": 1}, "../../../outside.jpg", "/etc/passwd",
           "a\0b", "\ud800", float("nan"), "y" * 300]  # fmt: skip


def write(put: Put, files: dict[str, Any]) -> Path:
    for name, content in files.items():
        put(name, content)
    return put(next(iter(files)), files[next(iter(files))]).parent


def places(value: Any, path: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """The path of every value inside a JSON value."""
    items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, item in items:
        yield (*path, key)
        yield from places(item, (*path, key))


def changed(content: Any, path: tuple[Any, ...], value: Any) -> Any:
    content = copy.deepcopy(content)
    at = content
    for key in path[:-1]:
        at = at[key]
    at[path[-1]] = value
    return content


@pytest.mark.parametrize("name", GOOD)
def test_unexpected_values_are_rejected_or_harmless(name: str, put: Put, tmp_path: Path) -> None:
    root = write(put, GOOD[name])
    (tmp_path.parent / "outside.jpg").write_bytes(b"")
    assert len(open_benchmark(name, root).questions) >= 1
    rng = random.Random(name)
    tried = refused = 0
    for file, content in GOOD[name].items():
        if content is None:
            continue
        for path in list(places(content))[:40]:
            for value in rng.sample(STRANGE, 6):
                put(file, changed(content, path, value))
                tried += 1
                try:
                    benchmark = open_benchmark(name, root)
                except DataError as error:
                    refused += 1
                    assert str(tmp_path) in str(error), (path, value)
                    continue
                for question in benchmark.questions:
                    assert isinstance(question.prompt, str) and isinstance(question.id, str)
                    assert question.image is None or (
                        isinstance(question.image, Path) and question.image.resolve().is_relative_to(tmp_path)
                    ), (path, value)
                ids = {question.id: "yes" for question in benchmark.questions}
                json.dumps(benchmark.measure(ids), allow_nan=False)
        put(file, content)
    assert tried > 15 and refused > tried / 3


@pytest.mark.parametrize("name", GOOD)
def test_invalid_json_is_rejected(name: str, put: Put, tmp_path: Path) -> None:
    root = write(put, GOOD[name])
    first = root / next(iter(GOOD[name]))
    for content in (b"", b"{", b"\xff\xfe{}", b"[" * 100_000, b'{"a": 1, "a": 2}', b"7" * 10_000, b"NaN", b"\0"):
        first.write_bytes(content)
        with pytest.raises(DataError, match=first.name):
            open_benchmark(name, root)
    first.unlink()
    os.mkfifo(first)
    with pytest.raises(DataError):  # without waiting for a writer
        open_benchmark(name, root)


def test_malformed_mmbench_tables_are_rejected(tmp_path: Path) -> None:
    picture = io.BytesIO()
    Image.new("RGB", (4, 4)).save(picture, "PNG")
    cells = {"index": "1", "question": "which?", "A": "x", "B": "y", "answer": "A",
             "image": base64.b64encode(picture.getvalue()).decode()}  # fmt: skip
    file = tmp_path / "mmbench_dev_20230712.tsv"

    def put(**other: str) -> None:
        row = cells | other
        file.write_text("\t".join(row) + "\n" + "\t".join(row.values()) + "\n", encoding="utf-8")

    put()
    assert len(open_benchmark("mmbench", file).questions) == 2
    for other in (
        {"index": "-1"}, {"index": "1.0"}, {"index": "9" * 5000}, {"index": "\u0663"}, {"answer": "AB"}, {"A": ""},
        {"image": "#"}, {"image": "grün"}, {"image": ""}, {"image": "2"}, {"question": "x" * 2_000_000},
        {"image": "one cell\ttoo many"},
    ):  # fmt: skip
        put(**other)
        with pytest.raises(DataError, match=file.name):
            open_benchmark("mmbench", file)
    file.write_text("\t".join(cells) + "\n1\twhich?\n", encoding="utf-8")
    with pytest.raises(DataError, match="row 1 of the table"):
        open_benchmark("mmbench", file)
    file.write_bytes(b"index\tquestion\xff")
    with pytest.raises(DataError, match="UTF-8"):
        open_benchmark("mmbench", file)


def png_of(width: int, height: int) -> bytes:
    """A PNG header with this size and no pixel data."""
    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", b"") + chunk(b"IEND", b"")


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"no image",
        b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n",
        b"<svg xmlns='http://www.w3.org/2000/svg' width='9' height='9'/>",
        png_of(13_300, 13_300),
        png_of(2**31 - 1, 2**31 - 1),
        png_of(9, 9),
    ],
    ids=["empty", "text", "PostScript", "SVG", "177 million pixels", "2^62 pixels", "cut short"],
)
def test_embedded_images_are_limited_in_format_and_size(content: bytes) -> None:
    with pytest.raises(DataError, match="question 7: "):
        decode_bytes(content, "the image of question 7")


@pytest.mark.parametrize(
    "line",
    ['{"id": "a"}', '{"id": 1, "prompt": "what?", "text": "x"}', '{"id": "a", "prompt": "what?", "text": null}', "[]",
     '{"id": "a", "id": "b", "prompt": "what?", "text": "x"}', "{" * 9],
)  # fmt: skip
def test_malformed_answers_are_rejected(line: str, table_bundle: Any, tmp_path: Path) -> None:
    class One:
        name, max_new_tokens = "one", 5
        questions = (BenchmarkQuestion("a", Path("a.png"), "what?"),)

    run_benchmark(table_bundle({"what?": "cup"}), One(), tmp_path)  # type: ignore[arg-type]
    file = tmp_path / "answers.jsonl"
    head = file.read_text().split("\n")[0]
    file.write_text(f"{head}\n{line}\n")
    with pytest.raises(RunError, match=r"answers\.jsonl: .*line 2"):
        run_benchmark(table_bundle({}), One(), tmp_path)  # type: ignore[arg-type]
