import errno
import json
from pathlib import Path

import pytest

from vitsplit.atomic_files import json_text, replace_folder
from vitsplit.errors import RunError


def test_a_failed_replacement_keeps_the_old_folder(tmp_path, monkeypatch):
    place = tmp_path / "best"
    place.mkdir()
    (place / "file").write_text("old")
    rename = Path.rename

    def fail_for_the_new_one(path, target):
        if path.name.endswith(".new"):
            raise OSError(errno.EIO, "Input/output error")
        return rename(path, target)

    monkeypatch.setattr(Path, "rename", fail_for_the_new_one)
    with pytest.raises(RunError, match="best"), replace_folder(place) as new:
        (new / "file").write_text("new")
    assert [path.name for path in tmp_path.iterdir()] == ["best"]
    assert (place / "file").read_text() == "old"


def test_non_finite_numbers_are_null_in_json():
    def refuse(word):
        raise AssertionError(f"{word} is not JSON")

    text = json_text({"a": [float("nan"), (1.5, -float("inf"))], "b": {"c": float("inf")}, "d": 3, "e": "NaN"})
    assert json.loads(text, parse_constant=refuse) == {"a": [None, [1.5, None]], "b": {"c": None}, "d": 3, "e": "NaN"}
