"""Renders chat templates of language models in a separate process with limits.

Chat templates are untrusted jinja2 programs. transformers renders them in jinja2's sandbox, which prevents access to
files and Python objects, but does not limit time and memory (nested loops, growing strings). A separate process with
both limits renders them here.
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
"""Length limit in characters of a template; the longest in use have a fifth of it."""
LONGEST_TEXT = 1 << 24
"""Length limit in characters of the rendered text."""
SECONDS = 5.0
"""Timeout of rendering one conversation."""
START_SECONDS = 120.0
"""Timeout of starting the process, which imports transformers."""
REMEDY = "Use --conversation v1, or another language model."

Messages = list[dict[str, str]]


class ChatTemplate:
    """The chat template of a tokenizer.

    Args:
        tokenizer: A tokenizer of transformers with a chat template.

    Raises:
        ConfigError: There are several templates without a default, or the template is too long.
    """

    def __init__(self, tokenizer: Any) -> None:
        try:
            self.source = str(tokenizer.get_chat_template())
        except ValueError as error:
            raise ConfigError(f"The language model's chat template cannot be used: {error} {REMEDY}") from error
        if len(self.source) > LONGEST_TEMPLATE:
            raise ConfigError(
                f"The language model's chat template has {len(self.source)} characters, more than the limit of "
                f"{LONGEST_TEMPLATE}. {REMEDY}"
            )
        self.variables = {name: _plain(value) for name, value in tokenizer.special_tokens_map.items()}

    def render(self, chats: Sequence[tuple[Messages, bool]]) -> list[str]:
        """Renders conversations.

        Args:
            chats: Messages (``role`` and ``content``), and whether to add the generation prompt.

        Raises:
            ConfigError: The template rejects the messages, is invalid, or exceeds the limits of time or memory.
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
    """The rendering process: started on first use and after a timeout; one per process of the caller."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._process: subprocess.Popen[str] | None = None
        self._owner = 0

    def ask(self, request: dict[str, Any]) -> dict[str, Any]:
        """The response of the process, or an error if it was terminated."""
        if self._owner != os.getpid():  # first use, or after a fork: the process belongs to the parent
            self._process, self._owner, self._lock = None, os.getpid(), threading.Lock()
        with self._lock:
            process = self._process or self._start()
            self._process = process
            answer = _exchange(process, json.dumps(request) + "\n", SECONDS)
            if answer is None:
                self.close()
                return {"error": f"it exceeded {SECONDS:.0f} s or the memory limit"}
            return answer

    def close(self) -> None:
        """Terminates the process."""
        if self._process is not None and self._owner == os.getpid():
            self._process.kill()
            with contextlib.suppress(OSError):  # unwritten input
                self._process.communicate()
        self._process = None

    def _start(self) -> subprocess.Popen[str]:
        process = subprocess.Popen(
            # -P: no modules are imported from the working folder or the script's folder.
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
            raise ConfigError(f"The process that renders chat templates failed to start ({sys.executable}). {REMEDY}")
        return process


def _exchange(process: subprocess.Popen[str], line: str, seconds: float) -> dict[str, Any] | None:
    """Writes a line and reads one; None if the process terminated, also by the timeout."""
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
