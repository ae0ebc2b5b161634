"""Folder locks: real processes, running and killed, and file systems without locks."""

import errno
import json
import multiprocessing
import os
import platform
import signal
import subprocess
import sys
import time

import pytest

from vitsplit import folder_lock
from vitsplit.errors import RunError
from vitsplit.folder_lock import LOCK, hold_folder, hold_free_folder

HOLD = """
import os, sys, time
from pathlib import Path
from vitsplit.folder_lock import hold_folder
with hold_folder(Path(sys.argv[1])):
    if sys.argv[2] == "forks":
        ready, tell = os.pipe()
        child = os.fork()
        if not child:
            os.write(tell, b".")
            time.sleep(60)
            os._exit(0)
        os.read(ready, 1)  # the child has been through what it does after a fork
        print(child, flush=True)
    print("held", flush=True)
    time.sleep(60)
"""


@pytest.fixture
def holder(tmp_path):
    """Starts another process that holds the folder, and terminates it afterwards."""
    started, children = [], []

    def start(how="alone"):
        process = subprocess.Popen(
            [sys.executable, "-c", HOLD, str(tmp_path / "run"), how], stdout=subprocess.PIPE, text=True
        )
        started.append(process)
        if how == "forks":
            children.append(int(process.stdout.readline()))
        assert process.stdout.readline() == "held\n"
        return process

    start.children = children
    yield start
    for process in started:
        process.kill()
        process.wait()
        process.stdout.close()
    for child in children:
        os.kill(child, signal.SIGKILL)


def alive(pid):
    os.kill(pid, 0)
    return True


def hold(folder):
    with hold_folder(folder):
        return json.loads((folder / LOCK).read_text())


def test_a_second_process_is_rejected_and_changes_nothing(tmp_path, holder):
    process = holder()
    (tmp_path / "run" / "work.txt").write_text("hours of it")
    before = time.time()
    with pytest.raises(RunError, match=rf"process {process.pid} on {platform.node()} since 2\d{{3}}-\d\d-\d\dT.*--out"):
        hold(tmp_path / "run")
    assert time.time() - before < 5
    assert (tmp_path / "run" / "work.txt").read_text() == "hours of it"
    assert json.loads((tmp_path / "run" / LOCK).read_text())["pid"] == process.pid
    with pytest.raises(RunError):  # the refusal has not released the lock
        hold(tmp_path / "run")


@pytest.mark.parametrize("how", ["alone", "forks"])
def test_a_killed_process_releases_the_lock(tmp_path, holder, how):
    process = holder(how)
    process.kill()
    process.wait()
    assert (tmp_path / "run" / LOCK).exists()
    assert all(alive(child) for child in holder.children)
    assert hold(tmp_path / "run")["pid"] == os.getpid()
    assert not (tmp_path / "run" / LOCK).exists()


def test_a_forked_child_does_not_release_the_lock(tmp_path):
    with hold_folder(tmp_path):
        process = multiprocessing.get_context("fork").Process(target=hold, args=(tmp_path / "other",))
        process.start()
        process.join()
        assert process.exitcode == 0
        refused = multiprocessing.get_context("fork").Process(target=hold, args=(tmp_path,))
        refused.start()
        refused.join()
        assert refused.exitcode == 1
        with pytest.raises(RunError, match=f"process {os.getpid()} "):
            hold(tmp_path)


def test_an_empty_new_folder_is_removed(tmp_path):
    hold(tmp_path / "deep" / "empty")
    assert not (tmp_path / "deep" / "empty").exists()
    with hold_folder(tmp_path / "kept") as folder:
        (folder / "file").touch()
    assert [path.name for path in (tmp_path / "kept").iterdir()] == ["file"]
    (tmp_path / "there").mkdir()
    hold(tmp_path / "there")
    assert (tmp_path / "there").is_dir()


def test_concurrent_requests_get_separate_folders(tmp_path):
    with hold_free_folder(tmp_path / "page") as first, hold_free_folder(tmp_path / "page") as second:
        assert (first.name, second.name) == ("page", "page-2")


@pytest.mark.parametrize("make", ["link", "pipe", "folder", "in a file"])
def test_invalid_lock_files_are_rejected(tmp_path, make):
    folder = tmp_path / "run"
    if make == "in a file":
        folder.write_text("")
    else:
        folder.mkdir()
    outside = tmp_path / "outside"
    outside.write_text("precious")
    match make:
        case "link":
            (folder / LOCK).symlink_to(outside)
        case "pipe":
            os.mkfifo(folder / LOCK)
        case "folder":
            (folder / LOCK).mkdir()
    with pytest.raises(RunError, match=r"run"):
        hold(folder / "run" if make == "in a file" else folder)
    assert outside.read_text() == "precious"


@pytest.fixture
def without_locks(monkeypatch):
    def flock(descriptor, how):
        raise OSError(errno.ENOSYS, "Function not implemented")

    monkeypatch.setattr(folder_lock.fcntl, "flock", flock)


def ended_process():
    process = subprocess.Popen([sys.executable, "-c", ""])
    process.wait()
    return process.pid


@pytest.mark.parametrize(
    ("content", "held"),
    [
        ({"pid": "ended"}, False),
        ({"pid": "parent"}, True),
        ({"pid": "ended", "host": "another-machine"}, True),
        ({"pid": "own"}, False),  # of an earlier process of the same number, as in containers
        ("", False),
        ("{", True),
        ({"pid": -1}, True),
        ({"pid": "ended", "host": 7}, True),
    ],
    ids=str,
)
def test_without_file_locks_the_content_decides(tmp_path, without_locks, content, held):
    pids = {"ended": ended_process(), "parent": os.getppid(), "own": os.getpid()}
    if isinstance(content, dict):
        content = {"host": platform.node(), "started": "2026-01-02T03:04:05+0000"} | content
        content["pid"] = pids.get(content["pid"], content["pid"])
        content = json.dumps(content)
    (tmp_path / LOCK).write_text(content)
    if not held:
        assert hold(tmp_path)["pid"] == os.getpid()
        assert not (tmp_path / LOCK).exists()
        return
    with pytest.raises(RunError, match=rf"remove {tmp_path / LOCK}"):
        hold(tmp_path)
    assert (tmp_path / LOCK).read_text() == content


def test_without_file_locks_the_process_excludes_itself(tmp_path, without_locks):
    with hold_folder(tmp_path), pytest.raises(RunError, match=f"process {os.getpid()}"):
        hold(tmp_path)


def test_exactly_one_of_many_processes_gets_the_lock(tmp_path):
    """Of eight processes that start together, exactly one gets the lock, every time."""
    context = multiprocessing.get_context("fork")
    for attempt in range(5):
        begin, won = context.Barrier(8), context.Queue()
        processes = [context.Process(target=_contend, args=(tmp_path / f"run{attempt}", begin, won)) for _ in range(8)]
        for process in processes:
            process.start()
        results = [won.get(timeout=60) for _ in processes]
        for process in processes:
            process.join()
        assert sum(results) == 1


def _contend(folder, begin, won):
    begin.wait()
    try:
        with hold_folder(folder):
            begin.wait(timeout=30)
            won.put(True)
    except RunError:
        begin.wait(timeout=30)  # nobody has ended before all have tried
        won.put(False)
