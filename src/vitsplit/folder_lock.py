"""Exclusive locks on output folders (runs, predictions, evaluations, studies): one process writes at a time.

A hidden file ``.lock`` in the folder is locked by the operating system (``flock``; on Windows a byte of it), which
releases the lock when the process ends in any way, even if it is killed. The file has the owner: ``{"pid", "host",
"started"}``. The package filelock is not used: it leaves its file behind, needs a second one for the owner, and only
recent versions release the lock of a killed process whose forked children are still running.

On a file system without locks the contents of the file decide: a process of this machine owns the folder as long as it
runs, and one of another machine until the file is removed.
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

from vitsplit.errors import FolderInUseError, RunError, VitsplitError
from vitsplit.files import parse_json, read_text, shown, string, whole_number

if sys.platform == "win32":
    import msvcrt
else:
    import fcntl

LOCK = ".lock"
_LARGEST = 4096
"""Maximum size of a lock file in bytes."""
_LOCKED_BYTE = 1 << 20
"""Offset of the byte that is locked on Windows: behind the contents, which must stay readable."""
_NO_LOCKS = frozenset({errno.ENOSYS, errno.ENOTSUP, errno.EOPNOTSUPP, errno.ENOLCK, errno.EINVAL})
"""Error codes of file systems without locks."""
_HELD = frozenset({errno.EAGAIN, errno.EWOULDBLOCK, errno.EACCES, errno.EDEADLK})
"""Error codes of a lock that another process holds."""

_held: set[int] = set()
"""File descriptors of the locks of this process."""


@contextmanager
def hold_folder(folder: Path, *, exist_ok: bool = True, name: str = LOCK) -> Iterator[Path]:
    """Locks a folder within the block, against other processes and other blocks of this process; yields the folder.

    The folder is created if it does not exist. Afterwards the lock file is removed, and the folder too if it was
    created here and is still empty.

    Args:
        folder: The folder.
        exist_ok: Whether it may exist already.
        name: Name of the lock file. Processes that lock different names may use the folder at the same time.

    Raises:
        FolderInUseError: Another process uses the folder; the message has process, machine and time.
        RunError: It cannot be created or written to.
        FileExistsError: It exists, and ``exist_ok`` is false.
    """
    created = _create(folder, exist_ok)
    file = folder / name
    owner = os.getpid()
    try:
        descriptor = _lock(file)
    except BaseException:
        _remove_if_empty(folder, created)
        raise
    _held.add(descriptor)
    try:
        yield folder
    finally:
        if os.getpid() == owner:  # forked children do not own the lock
            _release(descriptor, file)
            _remove_if_empty(folder, created)


@contextmanager
def hold_free_folder(path: Path) -> Iterator[Path]:
    """Creates and locks ``path``, or the first of ``path-2``, ``path-3``, ... that does not exist.

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


def _create(folder: Path, exist_ok: bool) -> bool:
    """Creates a folder; returns whether it did not exist."""
    try:
        folder.mkdir(parents=True)
        return True
    except FileExistsError as error:
        if not exist_ok:
            raise
        if not folder.is_dir():
            raise RunError(f"{folder} is a file, not a folder. Choose another folder with --out.") from error
        return False
    except (OSError, ValueError) as error:  # ValueError: a null character
        raise RunError(f"{folder} cannot be created: {error}. Choose another folder with --out.") from error


def _remove_if_empty(folder: Path, created: bool) -> None:
    if created:
        with contextlib.suppress(OSError):
            folder.rmdir()


def _lock(file: Path) -> int:
    """Locks the file, writes this process as its owner, and returns the file descriptor."""
    while True:
        descriptor = _open(file)
        try:
            locked = _lock_descriptor(descriptor)
            if locked is None:
                _check_without_locks(descriptor, file)
            elif not locked:
                raise FolderInUseError(_in_use(file, _read_owner(file, retry=True)))
            # The previous owner may have removed the file since it was opened here.
            if _is_same_file(descriptor, file):
                _write_owner(descriptor)
                if locked is None:
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
    # Do not follow links, and do not block on pipes.
    flags = os.O_RDWR | os.O_CREAT | getattr(os, "O_NOFOLLOW", 0) | getattr(os, "O_NONBLOCK", 0)
    try:
        descriptor = os.open(file, flags, 0o666)
    except OSError as error:
        raise RunError(_unwritable(file, error)) from error
    if not stat.S_ISREG(os.fstat(descriptor).st_mode):
        os.close(descriptor)
        raise RunError(f"{file}: not a regular file. Remove it, and repeat the command.")
    return descriptor


def _lock_descriptor(descriptor: int) -> bool | None:
    """Requests the lock; returns whether it was granted, or None if the file system has no locks."""
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
    # Removed while the lock is still held, so that another process's lock file cannot be removed.
    with contextlib.suppress(OSError):
        if _is_same_file(descriptor, file):
            file.unlink()
    os.close(descriptor)


def _close_inherited_locks() -> None:
    # A file descriptor inherited by a forked child would keep the lock as long as the child runs: data workers outlive
    # a killed parent by some seconds.
    for descriptor in _held:
        with contextlib.suppress(OSError):
            os.close(descriptor)
    _held.clear()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_close_inherited_locks)


def _is_same_file(descriptor: int, file: Path) -> bool:
    """Whether the descriptor refers to the file that exists now."""
    try:
        return os.path.samestat(os.fstat(descriptor), file.stat(follow_symlinks=False))
    except FileNotFoundError:
        return False


def _write_owner(descriptor: int) -> None:
    os.ftruncate(descriptor, 0)
    os.lseek(descriptor, 0, os.SEEK_SET)
    os.write(descriptor, json.dumps(_this_process()).encode())


def _this_process() -> dict[str, Any]:
    return {"pid": os.getpid(), "host": platform.node(), "started": time.strftime("%Y-%m-%dT%H:%M:%S%z")}


def _read_owner(file: Path, *, retry: bool = False) -> dict[str, Any] | None:
    """The owner in the file; None if invalid. ``retry``: wait, because the owner may be about to write it."""
    for attempt in range(20 if retry else 1):
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
    owner = _read_owner(file)
    if owner is None:
        if os.fstat(descriptor).st_size:
            raise RunError(f"{file}: the folder is in use, and the owner cannot be read. {_removal_advice(file)}")
        return
    other_host = owner["host"] != platform.node()
    # This process may have the pid of one that was killed: in containers the first process always has the same pid.
    here = os.fstat(descriptor)
    own = any(os.path.samestat(os.fstat(each), here) for each in _held)
    if other_host or own or (owner["pid"] != os.getpid() and is_running(owner["pid"])):
        raise FolderInUseError(f"{_in_use(file, owner)} {_removal_advice(file)}")


def _check_still_own(file: Path) -> None:
    """Of two processes that wrote at the same time, the last writer owns the folder."""
    time.sleep(0.2)
    owner = _read_owner(file, retry=True)
    if owner is None or (owner["pid"], owner["host"]) != (os.getpid(), platform.node()):
        raise FolderInUseError(_in_use(file, owner))


def is_running(pid: int) -> bool:
    """Whether there is a process of this number on this machine; on Windows, it is assumed."""
    if sys.platform == "win32":
        return True  # os.kill would terminate it
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except OSError:
        return True  # a process of another user
    return True


def _in_use(file: Path, owner: dict[str, Any] | None) -> str:
    who = "another process"
    if owner is not None:
        who = f"process {owner['pid']} on {shown(owner['host'])[1:-1]} since {shown(owner['started'])[1:-1]}"
    return f"{file.parent} is in use by {who}. Wait until it has ended, or choose another folder with --out."


def _removal_advice(file: Path) -> str:
    return f"This file system does not support locks: if that process has ended, remove {file}."


def _unwritable(file: Path, error: OSError) -> str:
    return f"{file.parent} cannot be written to: {error}. Choose another folder with --out, or make this one writable."
