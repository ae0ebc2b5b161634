"""Untrusted folders of language models: their code is not run, and invalid files give one error."""

import json
import os
import re

import pytest
from tiny_language import WIDTH, tiny_folder

from vitsplit.errors import ConfigError, WeightsError
from vitsplit.tasks.vqa.config import VqaConfig
from vitsplit.tasks.vqa.language import _has_fields, find_language_model, language_width, open_language_model


def opened(folder):
    config = VqaConfig(language_model=str(folder), language_width=WIDTH)
    return open_language_model(find_language_model(config), config, num_visual=1)


@pytest.mark.parametrize("what", ["model", "tokenizer", "both"])
def test_code_in_a_folder_is_not_run(tmp_path, what):
    folder = tiny_folder(tmp_path / "tiny")
    (folder / "evil.py").write_text(f"open({str(tmp_path / 'ran')!r}, 'w').close()\n")
    if what != "tokenizer":
        settings = json.loads((folder / "config.json").read_text()) | {
            "model_type": "evil",
            "auto_map": dict.fromkeys(("AutoConfig", "AutoModelForCausalLM", "AutoTokenizer"), "evil.Evil"),
        }
        (folder / "config.json").write_text(json.dumps(settings))
    if what != "model":
        settings = json.loads((folder / "tokenizer_config.json").read_text())
        settings |= {"tokenizer_class": "Evil", "auto_map": {"AutoTokenizer": ["evil.Evil", "evil.Evil"]}}
        (folder / "tokenizer_config.json").write_text(json.dumps(settings))
    try:
        opened(folder)
    except (WeightsError, ConfigError) as error:
        assert str(folder) in str(error) and "trust_remote_code" not in str(error)
    else:
        assert what == "tokenizer"  # its tokenizer.json is sufficient
    assert not (tmp_path / "ran").exists()


BROKEN = {
    "config.json": [b"", b"[", b"[" * 100_000, b'{"model_type": "llama", "hidden_size": "x"}', b"\xff"],
    "tokenizer.json": [b"", b"{}", b"[" * 100_000, b"\xff"],
    "tokenizer_config.json": [b"[1]", b"{", b"[" * 100_000],
    "model.safetensors": [b"", b"\xff" * 99, b"\x09\0\0\0\0\0\0\0{}       "],
}


@pytest.mark.parametrize(("name", "content"), [(name, each) for name, all_of in BROKEN.items() for each in all_of])
def test_an_invalid_folder_is_named_in_one_error(tmp_path, name, content):
    folder = tiny_folder(tmp_path / "tiny")
    (folder / name).write_bytes(content)
    with pytest.raises((WeightsError, ConfigError), match=re.escape(str(folder))):
        opened(folder)


def test_pipes_and_oversized_files_are_rejected(tmp_path, monkeypatch):
    folder = tiny_folder(tmp_path / "tiny")
    monkeypatch.setattr("vitsplit.tasks.vqa.language.LARGEST_FILE", (folder / "tokenizer.json").stat().st_size - 1)
    with pytest.raises(WeightsError, match=r"tokenizer\.json: .*regular file"):
        opened(folder)
    monkeypatch.undo()
    (folder / "config.json").unlink()
    os.mkfifo(folder / "config.json")
    with pytest.raises(WeightsError, match=r"config\.json"):
        opened(folder)
    with pytest.raises(WeightsError, match=r"config\.json"):
        language_width(folder)


def test_the_weight_index_cannot_leave_its_folder(tmp_path):
    folder = tiny_folder(tmp_path / "tiny")
    (folder / "model.safetensors").rename(tmp_path / "outside.safetensors")
    index = folder / "model.safetensors.index.json"
    for content in (
        '{"weight_map": {"a": "../outside.safetensors"}}',
        '{"weight_map": [1]}',
        "[]",
        "{",
        '{"weight_map": {"a": 1}}',
    ):
        index.write_text(content)
        with pytest.raises(WeightsError, match=r"model\.safetensors\.index\.json"):
            _has_fields(folder)
    index.write_text('{"weight_map": {"a": "part.safetensors"}}')
    assert not _has_fields(folder)
    (folder / "part.safetensors").write_bytes(b"")
    assert _has_fields(folder)
