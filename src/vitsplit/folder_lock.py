"""One process at a time writes into a folder: the folder of a run, of predictions, of an evaluation, of a study.

A hidden file in the folder, ``.lock``, is locked by the operating system (``flock``; on Windows a byte of it), which
ends the lock with the process however that ends: what a killed process leaves is no lock. The file says who holds it,
``{"pid", "host", "started"}``. Own code and not the package filelock: that leaves its file behind, needs a second one
to say who holds it, and only recent versions end the lock of a killed process whose forked children live on.

On a file system without locks what the file says must do: a process of this machine holds the folder as long as it
runs, and one of another machine until its file is removed.
"""

from __future__ import annotations

import contextlib
import errno
import itertools
import json
import os
import platform
import stat
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from vitsplit.errors import RunError, VitsplitError
from vitsplit.files import parse_json, read_text, shown, string, whole_number

if sys.platform == "win32":
    import msvcrt
else:
    import fcntl

LOCK = ".lock"
_LARGEST = 4096
"""Bytes: the most of a lock file."""
_LOCKED_BYTE = 1 << 20
"""Where Windows locks: not within the content, which nobody could read then."""
_NO_LOCKS = frozenset({errno.ENOSYS, errno.ENOTSUP, errno.EOPNOTSUPP, errno.ENOLCK, errno.EINVAL})
"""What file systems without locks answer."""
_HELD = frozenset({errno.EAGAIN, errno.EWOULDBLOCK, errno.EACCES, errno.EDEADLK})

_held: set[int] = set()
"""Descriptors of the locks of this process."""


@contextmanager
def hold_folder(folder: Path, *, exist_ok: bool = True) -> Iterator[Path]:
    """Makes a folder if there is none; within the block no other process, and no other block of this one, holds it.

    Yields the folder.

    At the end the lock file is gone, and so is the folder, if it was made here and is still empty.

    Args:
        folder: The folder.
        exist_ok: Whether it may be there already.

    Raises:
        RunError: Somebody holds it (the message says which process, on which machine, since when), or it cannot be
            made or written to.
        FileExistsError: It is there, and must not be.
    """
    made = _make(folder, exist_ok)
    file = folder / LOCK
    owner = os.getpid()
    try:
        descriptor = _lock(file)
    except BaseException:
        _remove_if_empty(folder, made)
        raise
    _held.add(descriptor)
    try:
        yield folder
    finally:
        if os.getpid() == owner:  # a forked child has no lock to end
            _release(descriptor, file)
            _remove_if_empty(folder, made)


@contextmanager
def hold_free_folder(path: Path) -> Iterator[Path]:
    """Makes and holds ``path``, or the first of ``path-2``, ``path-3``, ... that is free: nothing is written over.

    Raises:
        RunError: As ``hold_folder``.
    """
    with contextlib.ExitStack() as stack:
        for number in itertools.count(1):
            free = path if number == 1 else path.with_name(f"{path.name}-{number}")
            with contextlib.suppress(FileExistsError):
                stack.enter_context(hold_folder(free, exist_ok=False))
                break
        yield free


def _make(folder: Path, exist_ok: bool) -> bool:
    """Whether the folder was not there."""
    try:
        folder.mkdir(parents=True)
        return True
    except FileExistsError as error:
        if not exist_ok:
            raise
        if not folder.is_dir():
            raise RunError(f"{folder} is a file, not a folder. Give another folder with --out.") from error
        return False
    except (OSError, ValueError) as error:  # ValueError: a null character
        raise RunError(f"{folder} cannot be made: {error}. Give another folder with --out.") from error


def _remove_if_empty(folder: Path, made: bool) -> None:
    if made:
        with contextlib.suppress(OSError):
            folder.rmdir()


def _lock(file: Path) -> int:
    """A descriptor of the locked file, which says that this process holds it."""
    while True:
        descriptor = _open(file)
        try:
            by_system = _ask_system(descriptor)
            if by_system is None:
                _check_without_locks(descriptor, file)
            elif not by_system:
                raise RunError(_taken(file, _holder(file, patient=True)))
            # Whoever held it before may have removed the file since it was opened here.
            if _is_file(descriptor, file):
                _write_holder(descriptor)
                if by_system is None:
                    _check_still_own(file)
                return descriptor
        except OSError as error:
            os.close(descriptor)
            raise RunError(_unwritable(file, error)) from error
        except BaseException:
            os.close(descriptor)
            raise
        os.close(descriptor)


def _open(file: Path) -> int:
    # A link could lead anywhere, and a pipe would block.
    flags = os.O_RDWR | os.O_CREAT | getattr(os, "O_NOFOLLOW", 0) | getattr(os, "O_NONBLOCK", 0)
    try:
        descriptor = os.open(file, flags, 0o666)
    except OSError as error:
        raise RunError(_unwritable(file, error)) from error
    if not stat.S_ISREG(os.fstat(descriptor).st_mode):
        os.close(descriptor)
        raise RunError(f"{file}: not a regular file. Remove it, and give the same command again.")
    return descriptor


def _ask_system(descriptor: int) -> bool | None:
    """Whether the operating system gave the lock; None: it has none for this file."""
    try:
        if sys.platform == "win32":
            os.lseek(descriptor, _LOCKED_BYTE, os.SEEK_SET)
            msvcrt.locking(descriptor, msvcrt.LK_NBLCK, 1)
        else:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        if error.errno in _HELD:
            return False
        if error.errno in _NO_LOCKS:
            return None
        raise
    return True


def _release(descriptor: int, file: Path) -> None:
    if descriptor not in _held:
        return
    _held.discard(descriptor)
    if sys.platform == "win32":
        os.close(descriptor)  # an open file cannot be removed there
        with contextlib.suppress(OSError):
            file.unlink()
        return
    # Removed while it is still held: nobody else's lock can be removed.
    with contextlib.suppress(OSError):
        if _is_file(descriptor, file):
            file.unlink()
    os.close(descriptor)


def _end_locks_of_parent() -> None:
    # A descriptor that a forked child inherits keeps the lock as long as the child lives: workers outlive a parent that
    # is killed by some seconds. Closed there, it is the parent's alone.
    for descriptor in _held:
        with contextlib.suppress(OSError):
            os.close(descriptor)
    _held.clear()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_end_locks_of_parent)


def _is_file(descriptor: int, file: Path) -> bool:
    """Whether the descriptor is of the file that is there now."""
    try:
        return os.path.samestat(os.fstat(descriptor), file.stat(follow_symlinks=False))
    except FileNotFoundError:
        return False


def _write_holder(descriptor: int) -> None:
    os.ftruncate(descriptor, 0)
    os.lseek(descriptor, 0, os.SEEK_SET)
    os.write(descriptor, json.dumps(_self()).encode())


def _self() -> dict[str, Any]:
    return {"pid": os.getpid(), "host": platform.node(), "started": time.strftime("%Y-%m-%dT%H:%M:%S%z")}


def _holder(file: Path, *, patient: bool = False) -> dict[str, Any] | None:
    """What the file says; None if nothing that can be used. A holder may be just about to write it."""
    for attempt in range(20 if patient else 1):
        time.sleep(0.05 * (attempt > 0))
        try:
            value = parse_json(read_text(file, limit=_LARGEST), str(file))
            if not isinstance(value, dict):
                return None
            whole_number(value.get("pid"), "pid", 1, 1 << 31)
            for name in ("host", "started"):
                string(value.get(name), name, 256)
            return value
        except VitsplitError:
            continue
    return None


def _check_without_locks(descriptor: int, file: Path) -> None:
    holder = _holder(file)
    if holder is None:
        if os.fstat(descriptor).st_size:
            raise RunError(f"{file}: somebody holds this folder, and who cannot be read. {_remove(file)}")
        return
    elsewhere = holder["host"] != platform.node()
    # This process may have the number of one that was killed: in a container every first process has the same.
    here = os.fstat(descriptor)
    own = any(os.path.samestat(os.fstat(each), here) for each in _held)
    if elsewhere or own or (holder["pid"] != os.getpid() and _runs(holder["pid"])):
        raise RunError(f"{_taken(file, holder)} {_remove(file)}")


def _check_still_own(file: Path) -> None:
    """Of two processes that wrote at once, the one whose words stay holds the folder."""
    time.sleep(0.2)
    holder = _holder(file, patient=True)
    if holder is None or (holder["pid"], holder["host"]) != (os.getpid(), platform.node()):
        raise RunError(_taken(file, holder))


def _runs(pid: int) -> bool:
    if sys.platform == "win32":
        return True  # os.kill would end it there
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except OSError:
        return True  # somebody else's process
    return True


def _taken(file: Path, holder: dict[str, Any] | None) -> str:
    who = "another process"
    if holder is not None:
        who = f"process {holder['pid']} on {shown(holder['host'])[1:-1]} since {shown(holder['started'])[1:-1]}"
    return f"{file.parent} is in use by {who}. Wait until that ends, or give another folder with --out."


def _remove(file: Path) -> str:
    return f"This file system has no locks: if that process has ended, remove {file}."


def _unwritable(file: Path, error: OSError) -> str:
    return f"{file.parent} cannot be written to: {error}. Give another folder with --out, or make this one writable."
