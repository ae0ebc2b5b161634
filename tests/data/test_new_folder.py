import pytest

from vitsplit.data.new_folder import new_folder
from vitsplit.errors import DataError


def test_the_folder_is_renamed_when_complete(tmp_path):
    root = tmp_path / "deep" / "set"
    with new_folder(root) as partial:
        (partial / "a.txt").write_text("a")
        assert not root.exists()
    assert [path.name for path in root.parent.iterdir()] == ["set"] and (root / "a.txt").read_text() == "a"


def test_errors_leave_no_files_and_stale_folders_are_replaced(tmp_path):
    with pytest.raises(ZeroDivisionError), new_folder(tmp_path / "set") as partial:
        (partial / "a.txt").write_text("a")
        raise ZeroDivisionError
    assert list(tmp_path.iterdir()) == []
    (tmp_path / partial.name / "old").mkdir(parents=True)
    with new_folder(tmp_path / "set"):
        pass
    assert [path.name for path in tmp_path.rglob("*")] == ["set"]


def test_existing_files_are_not_overwritten(tmp_path):
    for taken in (tmp_path / "file", tmp_path / "folder" / "file"):
        taken.parent.mkdir(exist_ok=True)
        taken.write_text("mine")
    for root in (tmp_path / "file", tmp_path / "folder"):
        with pytest.raises(DataError, match="not an empty folder"), new_folder(root):
            pytest.fail("the block ran")
    assert (tmp_path / "folder" / "file").read_text() == (tmp_path / "file").read_text() == "mine"


def test_empty_folders_links_and_the_current_folder_are_accepted(tmp_path, monkeypatch):
    for name in ("empty", "here"):
        (tmp_path / name).mkdir()
    (tmp_path / "link").symlink_to(tmp_path / "empty")
    with new_folder(tmp_path / "link") as partial:
        (partial / "a").mkdir()
    assert (tmp_path / "link").is_symlink() and (tmp_path / "empty" / "a").is_dir()
    monkeypatch.chdir(tmp_path / "here")
    with new_folder(type(tmp_path)(".")) as partial:
        (partial / "b").mkdir()
    assert (tmp_path / "here" / "b").is_dir()
