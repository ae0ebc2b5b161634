import json
import math
import os
import random
from pathlib import PureWindowsPath

import pytest
import yaml

from vitsplit.errors import BundleError, DataError
from vitsplit.files import (
    inside,
    parse_json,
    read_json,
    read_json_lines,
    read_text,
    read_yaml,
    real_number,
    shown,
    string,
    whole_number,
)

BROKEN = {
    "not json": b"{",
    "nothing": b"",
    "nan": b'{"a": NaN}',
    "infinity": b"[-Infinity]",
    "overflow": b'[1, {"a": -1e999}]',
    "overflow of digits": b"[" + b"1" * 400 + b".5]",
    "twice": b'{"a": {"b": 1, "b": 1}}',
    "deep": b"[" * 100_000,
    "long number": b"[" + b"9" * 10_000 + b"]",
    "surrogate": b'{"a": "\\ud800"}',
    "surrogate key": b'{"\\udfff": 1}',
    "not utf-8": b'["\xff"]',
    "utf-16": '{"a": 1}'.encode("utf-16"),
    "null bytes": b"\x00" * 64,
}


@pytest.mark.parametrize("content", BROKEN.values(), ids=BROKEN)
def test_invalid_json_names_the_file(tmp_path, content):
    file = tmp_path / "broken.json"
    file.write_bytes(content)
    with pytest.raises(BundleError, match=r"broken\.json"):
        read_json(file, error=BundleError)


@pytest.mark.parametrize("name", ["pipe", "folder", "missing", "null\x00"])
def test_only_regular_files_are_read(tmp_path, name):
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "folder").mkdir()
    with pytest.raises(DataError):
        read_text(tmp_path / name)


def test_devices_and_large_files_are_not_read(tmp_path):
    with pytest.raises(DataError, match="/dev/zero"):
        read_text("/dev/zero")
    large = tmp_path / "large.json"
    with large.open("wb") as file:
        file.truncate(1 << 40)  # sparse: a terabyte without a block
    with pytest.raises(DataError, match=r"large\.json"):
        read_json(large)
    with pytest.raises(DataError, match=r"/proc/self/maps"):  # reports a size of zero bytes
        read_text("/proc/self/maps", limit=10)


def test_json_equals_the_standard_library(tmp_path):
    generator = random.Random(0)

    def value(depth):
        kinds = [None, True, generator.random() * 1e9, generator.randrange(10**18), "é\U0001f600\n\u2028", ""]
        if depth and generator.random() < 0.7:
            items = [value(depth - 1) for _ in range(generator.randrange(4))]
            return items if generator.random() < 0.5 else {f"k{n}": item for n, item in enumerate(items)}
        return generator.choice(kinds)

    for ascii_only in (True, False):
        content = value(6)
        file = tmp_path / "good.json"
        file.write_text(json.dumps(content, ensure_ascii=ascii_only), encoding="utf-8")
        assert read_json(file) == content
    file.write_bytes(b'\xef\xbb\xbf{"a":\r\n1}')
    assert read_json(file) == {"a": 1}


def test_many_keys_take_linear_time():
    # A comparison of every pair of 300,000 keys would take hours.
    text = json.dumps({f"k{n}": n for n in range(300_000)})
    with pytest.raises(DataError, match="duplicate key 'k7'"):
        parse_json(text[:-1] + ', "k7": 0}', "here")


def test_json_lines(tmp_path):
    file = tmp_path / "rows.jsonl"
    file.write_text('{"a": 1}\n\n{"a": "\u2028"}\n{"a": ', encoding="utf-8")
    assert read_json_lines(file, may_end_early=True) == [(1, {"a": 1}), (3, {"a": "\u2028"})]
    with pytest.raises(DataError, match="line 4"):
        read_json_lines(file)
    file.write_text('{"a": 1}\n[1]\n{"a": 1}\n', encoding="utf-8")
    with pytest.raises(DataError, match="line 2"):
        read_json_lines(file, may_end_early=True)


@pytest.mark.parametrize("value", [True, 1.0, "1", None, [1], -1, 11, 10**4000])
def test_integers_are_parsed_strictly(value):
    assert whole_number(10, "x", 0, 10) == 10
    with pytest.raises(DataError, match=r"^x must be"):
        whole_number(value, "x", 0, 10)


@pytest.mark.parametrize("value", [True, "1", None, math.nan, math.inf, -0.1, 10**4000])
def test_floats_are_parsed_strictly(value):
    assert real_number(3, "x", 0, 10) == 3.0
    with pytest.raises(DataError, match=r"^x must be"):
        real_number(value, "x", 0)


def test_strings_are_parsed_strictly():
    assert string("é", "x") == "é"
    with pytest.raises(DataError, match=r"^x has 2000 characters"):
        string("a" * 2000, "x")


@pytest.mark.parametrize("name", ["", ".", "..", "/etc/passwd", "a/../../b", "a\nb", "a\x00", 7, None, "a" * 5000])
def test_names_outside_the_folder_are_rejected(tmp_path, name):
    with pytest.raises(DataError, match=r"^list, line 3"):
        inside(tmp_path, name, "list, line 3")


@pytest.mark.parametrize("name", ["C:\\b", "c:b", "\\b", "/b", "a\\..\\..\\b", "..\\b"])
def test_windows_names_outside_the_folder_are_rejected(monkeypatch, name):
    monkeypatch.setattr("os.name", "nt")
    with pytest.raises(DataError, match=r"^list"):
        inside(PureWindowsPath("D:/data"), name, "list")
    assert inside(PureWindowsPath("D:/data"), "a\\b.png", "list") == PureWindowsPath("D:/data/a/b.png")


def test_names_inside_the_folder_are_accepted(tmp_path):
    for name in ("a.jpg", "b/c d.jpg", "b/../a.jpg", "./a.jpg", "...", "..a", "é"):
        assert inside(tmp_path, name, "list") == tmp_path / name
    (tmp_path / "root").mkdir()
    (tmp_path / "root" / "out").symlink_to(tmp_path)
    assert inside(tmp_path / "root", "out/a", "list") == tmp_path / "root" / "out" / "a"
    with pytest.raises(DataError, match="is a link"):
        inside(tmp_path / "root", "out/a", "list", follow_links=False)


def test_shown_values_are_short():
    for value in ["a" * 10**6, ["a" * 10**6] * 10**4, {"k" * 10**6: 1}, 10**4000, [10**4000], [[[1]]], math.nan]:
        assert len(shown(value)) < 300
    assert shown("a") == "'a'" and shown(None) == "null" and shown([1, "b"]) == "[1, 'b']" and shown(True) == "true"


@pytest.mark.parametrize(
    "text",
    [
        "names: [cat, 'no', 7]\nnc: 3\n",
        "a: {b: [1, 2.5, null, true]}\n# remark\nc:\n- d: e\n- |\n  two\n  lines\n",
        "[[[[1]]]]",
        "",
        "just text",
        "? a\n: b\n",
    ],
)
def test_yaml_equals_pyyaml(tmp_path, text):
    (tmp_path / "a.yaml").write_text(text)
    assert read_yaml(tmp_path / "a.yaml") == yaml.safe_load(text)
