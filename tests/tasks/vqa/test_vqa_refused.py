"""Invalid settings and language models, and their errors."""

import importlib.util
import json

import pytest
import torch
from tiny_language import WIDTH, tiny_folder, tiny_tokenizer
from transformers import MistralConfig, MistralForCausalLM

from vitsplit.cli.main import main
from vitsplit.errors import ConfigError, WeightsError
from vitsplit.tasks.vqa.config import VqaConfig
from vitsplit.tasks.vqa.language import LanguageSource, find_language_model, open_language_model


@pytest.fixture(scope="module")
def sliding_window_model(tmp_path_factory):
    """A language model with a sliding window of 8 tokens."""
    folder = tmp_path_factory.mktemp("mistral")
    tokenizer = tiny_tokenizer()
    config = MistralConfig(
        vocab_size=len(tokenizer), hidden_size=WIDTH, intermediate_size=48, num_hidden_layers=1, num_attention_heads=2,
        num_key_value_heads=1, head_dim=16, sliding_window=8,
    )  # fmt: skip
    torch.manual_seed(0)
    MistralForCausalLM(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def opened(folder, **settings):
    config = VqaConfig(language_model=str(folder), language_width=WIDTH, **settings)
    return open_language_model(find_language_model(config), config, num_visual=3)


def test_a_short_sliding_window_is_rejected(sliding_window_model):
    with pytest.raises(ConfigError, match=r"8 tokens.*--no-share-image"):
        opened(sliding_window_model)
    assert opened(sliding_window_model, share_image=False).config.sliding_window == 8
    with pytest.raises(ConfigError, match=r"--max-length 9.*3 tokens.*--max-length 8\."):
        opened(sliding_window_model, max_length=9)
    assert opened(sliding_window_model, max_length=8).config.sliding_window == 8


def test_another_width_is_rejected(tmp_path):
    folder = tiny_folder(tmp_path / "tiny")
    config = VqaConfig(language_model=str(folder), language_width=WIDTH + 1)
    with pytest.raises(ConfigError, match=f"--language-width {WIDTH}"):
        open_language_model(find_language_model(config), config, num_visual=3)


def test_missing_sentencepiece_is_named(tmp_path, monkeypatch):
    folder = tiny_folder(tmp_path / "old")
    (folder / "tokenizer.json").unlink()
    (folder / "tokenizer.model").write_bytes(b"")
    found = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name == "sentencepiece" else found(name))
    with pytest.raises(ConfigError, match=r"pip install 'vitsplit\[vqa\]'"):
        find_language_model(VqaConfig(language_model=str(folder), language_width=WIDTH))


@pytest.mark.parametrize(
    ("settings", "package", "expected"),
    [
        ({"quantize": "4bit", "tune": "full"}, "bitsandbytes", "--tune lora"),
        ({"quantize": "4bit", "tune": "lora"}, None, r"pip install 'vitsplit\[4bit\]'"),
        ({"attention": "flash_attention_2", "share_image": False}, None, "needs the package flash-attn"),
        ({"attention": "flash_attention_2"}, "flash_attn", "--no-share-image"),
    ],
)
def test_missing_packages_and_settings_are_named(settings, package, expected, tmp_path, monkeypatch):
    """Of the two optional packages, only ``package`` is installed."""
    folder, found = tiny_folder(tmp_path / "tiny"), importlib.util.find_spec
    there = {name: object() if name == package else None for name in ("bitsandbytes", "flash_attn")}
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: there[name] if name in there else found(name))
    with pytest.raises(ConfigError, match=expected):
        opened(folder, **settings)


@pytest.mark.parametrize("missing", ["config.json", "model.safetensors", "model-00002-of-00002.safetensors"])
def test_an_incomplete_cached_language_model_is_downloaded_again(missing, tmp_path, monkeypatch):
    """The hub's client accepts any folder in its cache, but an interrupted download may be incomplete."""
    folder = tmp_path / "snapshot"
    folder.mkdir()
    files = {"config.json", "model.safetensors"}
    if missing.startswith("model-"):
        shards = {f"layer{n}": f"model-0000{n}-of-00002.safetensors" for n in (1, 2)}
        (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": shards}))
        files = {"config.json", *shards.values()}
    for name in files - {missing}:
        (folder / name).write_text("{}")
    asked = []

    def snapshot_download(name, *, local_files_only=False, **options):
        asked.append(local_files_only)
        if not local_files_only:
            raise OSError("no network")
        return str(folder)

    monkeypatch.setattr("huggingface_hub.snapshot_download", snapshot_download)
    config = VqaConfig(language_model="some/model", language_width=WIDTH)
    with pytest.raises(WeightsError, match="nor in the hub cache"):
        find_language_model(config)
    assert asked == [True, False]
    (folder / missing).write_text("{}")
    with pytest.raises(WeightsError, match="tokenizer"):
        find_language_model(config)
    assert asked[2:] == [True], "a whole one is taken as it is"


def test_missing_weights_have_no_hash(tmp_path):
    with pytest.raises(WeightsError, match="no weights found"):
        _ = LanguageSource("tiny", tmp_path, None).weights_hash


@pytest.mark.parametrize(
    ("settings", "expected"),
    [
        ({"visual_grid": (0, 8)}, "--visual-grid.* 0 8"),
        ({"max_new_tokens": 0}, "--max-new-tokens must be .* from 1 .* not 0"),
        ({"val_every": 1}, "--val-every must be .* from 2 .* not 1"),
        ({"system_prompt": "An <image> is shown."}, "--system-prompt .*<image>"),
    ],
)
def test_invalid_settings_are_rejected(settings, expected):
    with pytest.raises(ConfigError, match=expected):
        VqaConfig(**settings)


@pytest.mark.parametrize(
    ("connector", "layers", "copied"),
    [("vitsplit", [23], 1), ("vitsplit-release", [22], 1), ("mlp2x", [22], 0), ("linear", [22], 0)],
)
def test_info_lists_the_layers_of_a_connector(connector, layers, copied, capsys):
    assert main(["info", "llava15-7b-align", "--connector", connector, "--json"]) == 0
    facts = json.loads(capsys.readouterr().out)
    assert (facts["prior_layers"], facts["num_tuned_layers"]) == (layers, copied)
