"""Chat templates: rendered as by transformers, with limits on time and memory."""

import os
import subprocess
import sys
import time

import pytest
from tiny_language import tiny_tokenizer

from vitsplit.errors import ConfigError
from vitsplit.tasks.vqa import chat_template
from vitsplit.tasks.vqa.chat_template import LONGEST_TEMPLATE, ChatTemplate
from vitsplit.tasks.vqa.prompts import Prompter, Turn

MESSAGES = [
    {"role": "system", "content": "Be <b>brief</b>."},
    {"role": "user", "content": 'why, grün ☂ \u2028 "it"?\n'},
    {"role": "assistant", "content": "  because "},
]
LLAMA = (
    "{{- bos_token }}{%- set ns = namespace(n=0) %}{%- for message in messages %}{%- set ns.n = ns.n + 1 %}"
    "{{- '<|start|>' + message['role'] + '<|end|>\\n\\n' + message['content'] | trim + eos_token }}{%- endfor %}"
    "{%- if add_generation_prompt %}{{- ns.n ~ '<|start|>assistant' }}{%- endif %}"
)
TOJSON = (
    "{% for m in messages %}\n  {% if loop.first %}{% continue %}{% endif %}{{ m | tojson }}"
    "{% generation %}{{ m.content }}{% endgeneration %}\n{% endfor %}"
)


def of(source, **tokens):
    tokenizer = tiny_tokenizer(**tokens)
    tokenizer.chat_template = source
    return tokenizer


@pytest.mark.parametrize("source", [None, LLAMA, TOJSON])
@pytest.mark.parametrize("begun", [True, False])
def test_texts_equal_transformers(source, begun):
    tokenizer = of(source or tiny_tokenizer().chat_template, bos="<s>", eos="</s>")
    chats = [(MESSAGES[: count + 1], begun) for count in range(len(MESSAGES))]
    expected = [
        tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=begun)
        for messages, begun in chats
    ]
    assert ChatTemplate(tokenizer).render(chats) == expected
    assert ChatTemplate(tokenizer).render(chats) == expected


def test_a_named_default_template_is_used():
    tokenizer = of({"default": "one", "tool_use": "two"})
    assert ChatTemplate(tokenizer).render([(MESSAGES, True)]) == ["one"]
    with pytest.raises(ConfigError, match=r"no default.*--conversation v1"):
        ChatTemplate(of({"first": "one", "second": "two"}))


LOOPS = "{% for i in range(99999) %}{% for j in range(99999) %}{% endfor %}{% endfor %}"
ATTACKS = {
    "one loop": "{% for i in range(10**9) %}a{% endfor %}",
    "loops in loops": LOOPS,
    "later": "{% if messages|length > 1 %}" + LOOPS + "{% endif %}",
    "multiplied text": "{{ ('a' * 99999999999)|length }}",
    "while it is parsed": "{{ 'a' * 99999999999 }}",
    "doubled text": "{% set n = namespace(s='aaa') %}{% for i in range(60) %}{% set n.s = n.s ~ n.s %}{% endfor %}",
    "a power": "{{ 9 ** (9 ** 9) }}",
    "a width": "{{ 'a'|center(99999999999) }}",
    "much text": "{% for i in range(99999) %}" + "a" * 1000 + "{% endfor %}",
    "recursion": "{% macro f(x) %}{{ f(x) }}{% endmacro %}{{ f(1) }}",
    "deep": "(" * 5000 + "{{ " + "(" * 5000 + "1" + ")" * 5000 + " }}",
    "python": "{{ messages.__class__.__mro__[1].__subclasses__()[0] }}",
    "refused": "{{ raise_exception('roles must alternate') }}",
    "no template": "{% for m in messages %}",
}


@pytest.mark.parametrize("name", ATTACKS)
def test_templates_are_limited_in_time_and_memory(name, monkeypatch):
    monkeypatch.setattr(chat_template, "SECONDS", 2.0)
    template = ChatTemplate(of(ATTACKS[name]))
    ChatTemplate(of("x")).render([(MESSAGES, True)])  # the process has started
    began = time.perf_counter()
    with pytest.raises(ConfigError, match=r"chat template .*--conversation v1"):
        template.render([(MESSAGES, True)])
    assert time.perf_counter() - began < 6
    # The next call succeeds.
    assert ChatTemplate(of("{{ messages[1].role }}")).render([(MESSAGES, True)]) == ["user"]


def test_an_oversized_template_is_rejected():
    with pytest.raises(ConfigError, match=f"limit of {LONGEST_TEMPLATE}"):
        Prompter(of("a" * (LONGEST_TEMPLATE + 1)), "template")


def test_template_errors_are_reported():
    prompter = Prompter(of("{{ raise_exception('no questions, please') }}"), "template")
    with pytest.raises(ConfigError, match=r"no questions, please.*--conversation v1"):
        prompter.conversation_tokens([Turn("why?", "so")], has_image=False)


def test_forked_processes_use_their_own_renderer():
    """As in data workers, which must not use the renderer process of their parent."""
    template = ChatTemplate(of("{{ messages[0].content }}"))
    assert template.render([([{"role": "user", "content": "parent"}], True)]) == ["parent"]
    if not hasattr(os, "fork"):
        pytest.skip("no fork here")
    child = os.fork()
    if child == 0:
        found = template.render([([{"role": "user", "content": "child"}], True)])
        chat_template._renderer.close()
        os._exit(0 if found == ["child"] else 1)
    assert os.waitpid(child, 0)[1] == 0
    assert template.render([([{"role": "user", "content": "parent"}], True)]) == ["parent"]


def test_modules_in_the_working_folder_are_not_imported(tmp_path):
    for name in ("json", "transformers", "jinja2"):
        (tmp_path / f"{name}.py").write_text(f"open({str(tmp_path / 'ran')!r}, 'w').close()\n")
    code = (
        "from vitsplit.tasks.vqa.chat_template import ChatTemplate\n"
        "class Tokenizer:\n"
        "    special_tokens_map = {'eos_token': '.'}\n"
        "    def get_chat_template(self): return '{{ messages[0].content }}{{ eos_token }}'\n"
        "print(ChatTemplate(Tokenizer()).render([([{'role': 'user', 'content': 'hello'}], True)]))\n"
    )
    done = subprocess.run([sys.executable, "-P", "-c", code], cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.stdout == "['hello.']\n", done.stderr
    assert not (tmp_path / "ran").exists()
