"""Folders of Parquet files: each row once, after repeated tasks, killed commands and late processes."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import pytest

from vitsplit.errors import RunError

pa = pytest.importorskip("pyarrow")
import pyarrow.parquet as pq  # noqa: E402

from vitsplit.cluster.parquet_folder import Destination, read_done, take_over  # noqa: E402

MADE_BY = {"bundles": {"rooms": "ab" * 32}}


def table(*ids: str) -> pa.Table:
    return pa.table({"id": list(ids), "error": pa.array([None] * len(ids), pa.string())})


def ids(folder: Path) -> list[str]:
    return sorted(pq.read_table(folder).column("id").to_pylist())


def test_rows_are_done_once_they_are_written(tmp_path: Path) -> None:
    with take_over(tmp_path / "out", MADE_BY) as (destination, done):
        assert done == set()
        destination.commit(table("a", "b"))
        destination.commit(table("a", "b"))  # as by a task that Ray repeats
        destination.commit(table("c"))
    assert ids(tmp_path / "out") == ["a", "b", "c"]
    assert read_done(tmp_path / "out", MADE_BY) == {"a", "b", "c"}
    with take_over(tmp_path / "out", MADE_BY) as (_, done):
        assert done == {"a", "b", "c"}
    assert not [*(tmp_path / "out").glob(".staging*")]


def test_rows_with_an_error_are_predicted_again(tmp_path: Path) -> None:
    out = tmp_path / "out"
    with take_over(out, MADE_BY) as (destination, _):
        destination.commit(pa.table({"id": ["a", "b"], "error": pa.array([None, "out of memory"])}))
        destination.commit(pa.table({"id": ["c"], "error": ["damaged"]}))
    assert read_done(out, MADE_BY) == {"a"}
    with take_over(out, MADE_BY) as (destination, done):
        assert done == {"a"} and ids(out) == ["a"]
        destination.commit(table("b", "c"))
    assert ids(out) == ["a", "b", "c"]
    assert read_done(out, MADE_BY) == {"a", "b", "c"}


def test_processes_of_a_killed_command_cannot_write_later(tmp_path: Path) -> None:
    out = tmp_path / "out"
    with take_over(out, MADE_BY) as (destination, _):
        destination.commit(table("a"))
    destination.staging.mkdir()  # as after kill -9
    (destination.staging / "half.parquet").write_bytes(b"half")
    with take_over(out, MADE_BY) as (new, done):
        assert done == {"a"}
        with pytest.raises(RunError):
            destination.commit(table("b", "c"))
        new.commit(table("b"))
        new.commit(table("c"))
    assert ids(out) == ["a", "b", "c"]
    assert sorted(path.name for path in out.iterdir() if path.name.startswith(".")) == []


def test_a_file_is_complete_or_absent(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A process that is killed while it writes leaves nothing that a reader of the folder sees."""
    out = tmp_path / "out"
    write = pq.write_table

    def write_half(rows: pa.Table, file: Any, **options: Any) -> None:
        content = io.BytesIO()
        write(rows, content, **options)
        file.write(content.getvalue()[: content.tell() // 2])
        file.flush()
        raise KeyboardInterrupt

    with take_over(out, MADE_BY) as (destination, _):
        destination.commit(table("a"))
        with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
            patch.setattr(pq, "write_table", write_half)
            destination.commit(table("b"))
        assert ids(out) == ["a"] and read_done(out, MADE_BY) == {"a"}
        destination.commit(table("b"))
    assert ids(out) == ["a", "b"]


def test_files_of_other_programs_are_kept(tmp_path: Path) -> None:
    out, names = tmp_path / "out", ("part-00000.parquet", "part-0-0123456789abcdef01234567.parquet")
    out.mkdir()
    pq.write_table(table("x"), out / names[0])
    for overwrite in (False, True):
        with pytest.raises(RunError, match=names[0]), take_over(out, MADE_BY, overwrite=overwrite):
            pass
    with pytest.raises(RunError, match=names[0]):
        read_done(out, MADE_BY)
    assert [path.name for path in out.iterdir()] == [names[0]]
    with take_over(tmp_path / "own", MADE_BY) as (destination, _):
        destination.commit(table("a"))
    for name in names:
        pq.write_table(table("x"), tmp_path / "own" / name)
    with take_over(tmp_path / "own", MADE_BY, overwrite=True) as (_, done):
        assert done == set()
    assert {path.name for path in (tmp_path / "own").glob("*.parquet")} == {*names}


def test_other_bundles_are_refused_or_overwritten(tmp_path: Path) -> None:
    out, other = tmp_path / "out", {"bundles": {"rooms": "cd" * 32}}
    with take_over(out, MADE_BY) as (destination, _):
        destination.commit(table("a", "b"))
    with pytest.raises(RunError), take_over(out, other):
        pass
    assert ids(out) == ["a", "b"]
    with take_over(out, other, overwrite=True) as (destination, done):
        assert done == set()
        destination.commit(table("a"))
    assert ids(out) == ["a"] and read_done(out, other) == {"a"}


def test_damaged_files_are_named(tmp_path: Path) -> None:
    out = tmp_path / "out"
    with take_over(out, MADE_BY) as (destination, _):
        part = destination.commit(table("a"))
    part.write_bytes(part.read_bytes()[:50])
    with pytest.raises(RunError, match=part.name):
        read_done(out, MADE_BY)


def test_names_depend_on_the_rows_only(tmp_path: Path) -> None:
    one, other = (Destination(tmp_path, tmp_path / name) for name in ("x", "y"))
    assert one.part(["a", "b"]) == other.part(["a", "b"])
    assert len({one.part(rows) for rows in (["a"], ["b"], ["a", "b"], ["b", "a"], ["a\nb"])}) == 5
