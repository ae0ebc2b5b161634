"""The process that renders chat templates: a script started by ``chat_template``, without imports from vitsplit.

It reads one JSON request per line and writes one JSON response per line. It limits its own memory; the parent limits
its time.
"""

from __future__ import annotations

import importlib.util
import json
import sys
from typing import Any

MEMORY = 1 << 30
"""Memory limit in bytes."""


def main() -> None:
    """Processes requests until the end of input."""
    found = importlib.util.find_spec
    # Not needed for templates, and slow to import.
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
        except Exception as error:  # a template can raise any exception
            answer({"error": f"{type(error).__name__}: {str(error)[:300]}"})


def render(render_jinja_template: Any, request: dict[str, Any], chat: dict[str, Any]) -> str:
    """Renders one conversation."""
    texts = render_jinja_template(
        conversations=[chat["messages"]],
        chat_template=request["template"],
        add_generation_prompt=chat["add_generation_prompt"],
        **request["variables"],
    )
    text = str((texts[0] if isinstance(texts, tuple) else texts)[0])
    if len(text) > request["longest"]:
        raise ValueError(f"the rendered conversation has {len(text)} characters")
    return text


def limit_memory() -> None:
    """Limits memory to ``MEMORY``, where supported."""
    try:
        import resource
    except ImportError:  # Windows
        return
    resource.setrlimit(resource.RLIMIT_DATA, (MEMORY, MEMORY))


def answer(content: dict[str, Any]) -> None:
    """Writes a response."""
    sys.stdout.write(json.dumps(content) + "\n")
    sys.stdout.flush()


if __name__ == "__main__":
    main()
