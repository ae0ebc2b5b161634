"""The process that renders chat templates: a script that ``chat_template`` starts, which imports nothing of vitsplit.

It reads one JSON request a line and writes one JSON answer a line. It limits its own memory; whoever started it limits
its time, by ending it.
"""

from __future__ import annotations

import importlib.util
import json
import sys
from typing import Any

MEMORY = 1 << 30
"""Bytes that it may have."""


def main() -> None:
    """Answers requests until there are no more."""
    found = importlib.util.find_spec
    # Templates need none of it, and it takes seconds to import.
    importlib.util.find_spec = lambda name, package=None: None if name == "torch" else found(name, package)
    from transformers.utils.chat_template_utils import render_jinja_template

    limit_memory()
    answer({"ready": True})
    for line in sys.stdin:
        request = json.loads(line)
        try:
            answer({"texts": [render(render_jinja_template, request, chat) for chat in request["chats"]]})
        except MemoryError:
            answer({"error": f"it needs more than {MEMORY >> 20} MB"})
        except Exception as error:  # whatever a template can raise
            answer({"error": f"{type(error).__name__}: {str(error)[:300]}"})


def render(render_jinja_template: Any, request: dict[str, Any], chat: dict[str, Any]) -> str:
    """One conversation as the template writes it."""
    texts = render_jinja_template(
        conversations=[chat["messages"]],
        chat_template=request["template"],
        add_generation_prompt=chat["add_generation_prompt"],
        **request["variables"],
    )
    text = str((texts[0] if isinstance(texts, tuple) else texts)[0])
    if len(text) > request["longest"]:
        raise ValueError(f"it makes {len(text)} characters of the conversation")
    return text


def limit_memory() -> None:
    """Makes more than ``MEMORY`` a MemoryError, where the system can."""
    try:
        import resource
    except ImportError:  # Windows
        return
    resource.setrlimit(resource.RLIMIT_DATA, (MEMORY, MEMORY))


def answer(content: dict[str, Any]) -> None:
    """Writes a line."""
    sys.stdout.write(json.dumps(content) + "\n")
    sys.stdout.flush()


if __name__ == "__main__":
    main()
