"""Settings and language models that cannot work, and what is said of them."""

import json

import pytest
import torch
from tiny_language import WIDTH, tiny_folder, tiny_tokenizer
from transformers import MistralConfig, MistralForCausalLM

from vitsplit.cli.main import main
from vitsplit.errors import ConfigError
from vitsplit.tasks.vqa.config import VqaConfig
from vitsplit.tasks.vqa.language import find_language_model, open_language_model
from vitsplit.tasks.vqa.task import check_settings


@pytest.fixture(scope="module")
def short_sighted(tmp_path_factory):
    """A language model that looks back 8 tokens."""
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
    return open_language_model(find_language_model(config), config)


def test_a_sliding_window_that_is_shorter_than_a_sequence(short_sighted):
    with pytest.raises(ConfigError, match=r"looks back 8 tokens at most.*--no-share-image"):
        opened(short_sighted)
    assert opened(short_sighted, share_image=False).config.sliding_window == 8
    assert opened(short_sighted, max_length=8).config.sliding_window == 8


def test_another_width(tmp_path):
    folder = tiny_folder(tmp_path / "tiny")
    config = VqaConfig(language_model=str(folder), language_width=WIDTH + 1)
    with pytest.raises(ConfigError, match=f"--language-width {WIDTH}"):
        open_language_model(find_language_model(config), config)


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"visual_grid": (0, 8)}, "--visual-grid 0 8"),
        ({"max_new_tokens": 0}, "--max-new-tokens must be at least 1, not 0"),
        ({"val_every": 1}, "nothing would be left to train on"),
        ({"system_prompt": "An <image> is shown."}, "--system-prompt holds <image>"),
    ],
)
def test_settings(settings, said):
    with pytest.raises(ConfigError, match=said):
        check_settings(VqaConfig(**settings))


@pytest.mark.parametrize(
    ("connector", "layers", "copied"),
    [("vitsplit", [23], 1), ("vitsplit-release", [22], 1), ("mlp2x", [22], 0), ("linear", [22], 0)],
)
def test_info_names_the_layers_that_a_connector_reads(connector, layers, copied, capsys):
    assert main(["info", "llava15-7b-align", "--connector", connector, "--json"]) == 0
    facts = json.loads(capsys.readouterr().out)
    assert (facts["prior_layers"], facts["num_tuned_layers"]) == (layers, copied)
