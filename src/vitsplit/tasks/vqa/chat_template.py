"""Chat templates: programs of the language model's makers, rendered in a process that can be ended.

transformers renders them in a sandbox of jinja2, which keeps them from files and from Python's objects, but not from
running for hours or from filling the memory (nested loops, texts that double). So a process of its own renders them,
with a limit on time and memory.
"""

from __future__ import annotations

import atexit
import contextlib
import json
import os
import subprocess
import sys
import threading
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from vitsplit.errors import ConfigError

LONGEST_TEMPLATE = 1 << 17
"""Characters of a template; the longest in use have a fifth of it."""
LONGEST_TEXT = 1 << 24
"""Characters of what a template writes."""
SECONDS = 5.0
"""For all that is rendered for one conversation."""
START_SECONDS = 120.0
"""For the process to start: it imports transformers."""
REMEDY = "Give --conversation v1, or another language model."

Messages = list[dict[str, str]]


class ChatTemplate:
    """The chat template of a tokenizer.

    Args:
        tokenizer: A tokenizer of transformers with a chat template.

    Raises:
        ConfigError: It has several templates and none of them is the default, or one that is too long.
    """

    def __init__(self, tokenizer: Any) -> None:
        try:
            self.source = str(tokenizer.get_chat_template())
        except ValueError as error:
            raise ConfigError(f"The language model's chat template cannot be used: {error} {REMEDY}") from error
        if len(self.source) > LONGEST_TEMPLATE:
            raise ConfigError(
                f"The language model's chat template has {len(self.source)} characters, and at most {LONGEST_TEMPLATE} "
                f"are possible. {REMEDY}"
            )
        self.variables = {name: _plain(value) for name, value in tokenizer.special_tokens_map.items()}

    def render(self, chats: Sequence[tuple[Messages, bool]]) -> list[str]:
        """What the template writes.

        Args:
            chats: Messages (``role`` and ``content``), and whether the beginning of an answer follows them.

        Raises:
            ConfigError: The template refuses the messages, is broken, or takes too long or too much memory.
        """
        request = {
            "template": self.source,
            "variables": self.variables,
            "longest": LONGEST_TEXT,
            "chats": [{"messages": messages, "add_generation_prompt": begun} for messages, begun in chats],
        }
        answer = _renderer.ask(request)
        if "error" in answer:
            raise ConfigError(f"The language model's chat template cannot be used: {answer['error']}. {REMEDY}")
        return list(answer["texts"])


def _plain(value: Any) -> Any:
    return [str(each) for each in value] if isinstance(value, list | tuple) else str(value)


class _Renderer:
    """The process, started when it is first needed, and again after a template was stopped; one for each of ours."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._process: subprocess.Popen[str] | None = None
        self._owner = 0

    def ask(self, request: dict[str, Any]) -> dict[str, Any]:
        """The process's answer, or an error in its place if it had to be ended."""
        if self._owner != os.getpid():  # the first time, or after a fork: that process is the parent's
            self._process, self._owner, self._lock = None, os.getpid(), threading.Lock()
        with self._lock:
            process = self._process or self._start()
            self._process = process
            answer = _exchange(process, json.dumps(request) + "\n", SECONDS)
            if answer is None:
                self.close()
                return {"error": f"it did not end within {SECONDS:.0f} s, or needed too much memory, and was stopped"}
            return answer

    def close(self) -> None:
        """Ends the process."""
        if self._process is not None and self._owner == os.getpid():
            self._process.kill()
            with contextlib.suppress(OSError):  # what was not written yet
                self._process.communicate()
        self._process = None

    def _start(self) -> subprocess.Popen[str]:
        process = subprocess.Popen(
            # -P: nothing in the working folder or beside the script is taken for a module.
            [sys.executable, "-P", str(Path(__file__).with_name("template_process.py"))],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
            encoding="utf-8",
            env={**os.environ, "OPENBLAS_NUM_THREADS": "1", "OMP_NUM_THREADS": "1"},
        )
        if _exchange(process, "", START_SECONDS) is None:
            process.kill()
            process.communicate()
            raise ConfigError(f"The process that renders chat templates does not start ({sys.executable}). {REMEDY}")
        return process


def _exchange(process: subprocess.Popen[str], line: str, seconds: float) -> dict[str, Any] | None:
    """Writes a line and reads one; None if the process ended, as it does when the time is over."""
    assert process.stdin is not None and process.stdout is not None
    timer = threading.Timer(seconds, process.kill)
    timer.start()
    try:
        process.stdin.write(line)
        process.stdin.flush()
        answer = json.loads(process.stdout.readline() or "null")
    except (OSError, ValueError):
        return None
    finally:
        timer.cancel()
    return answer if isinstance(answer, dict) else None


_renderer = _Renderer()
atexit.register(_renderer.close)
