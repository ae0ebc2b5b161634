"""Folders of Parquet files: each row once, after repeated tasks, killed commands and late processes."""

from __future__ import annotations

from pathlib import Path

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


def test_a_file_is_complete_or_absent(tmp_path: Path) -> None:
    """A process that is killed while it writes leaves nothing that a reader of the folder sees."""
    out = tmp_path / "out"
    with take_over(out, MADE_BY) as (destination, _):
        destination.commit(table("a"))
        (destination.staging / "half.parquet").write_bytes(b"half")
        assert ids(out) == ["a"] and read_done(out, MADE_BY) == {"a"}


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
    assert len({one.part(rows) for rows in (["a"], ["b"], ["a", "b"], ["b", "a"])}) == 4
