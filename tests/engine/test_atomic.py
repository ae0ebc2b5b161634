import errno
from pathlib import Path

import pytest

from vitsplit.engine.atomic import replace_folder
from vitsplit.errors import RunError


def test_a_folder_that_cannot_take_its_place_leaves_the_old_one(tmp_path, monkeypatch):
    place = tmp_path / "best"
    place.mkdir()
    (place / "file").write_text("old")
    rename = Path.rename

    def fail_for_the_new_one(path, target):
        if path.name.endswith(".new"):
            raise OSError(errno.EIO, "Input/output error")
        return rename(path, target)

    monkeypatch.setattr(Path, "rename", fail_for_the_new_one)
    with pytest.raises(RunError, match=r"best could not be written.*untouched"), replace_folder(place) as new:
        (new / "file").write_text("new")
    assert [path.name for path in tmp_path.iterdir()] == ["best"]
    assert (place / "file").read_text() == "old"
