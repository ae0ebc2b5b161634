"""Imported LLaVA heads compute the release's visual tokens, and keep its language model."""

from __future__ import annotations

import copy

import pytest
import torch
from release_models import HEADS, LAYERS, WIDTH, build_tiny, randomized
from safetensors.torch import save_file
from tiny_backbones import image
from tiny_language import WIDTH as LANGUAGE_WIDTH
from tiny_language import tiny_folder, tiny_model
from torch import nn
from transformers import CLIPVisionConfig, CLIPVisionModel

import vitsplit
from vitsplit.bundle import read_card, read_weights
from vitsplit.errors import ConfigError, WeightsError

MEAN, STD = (0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)
TOWER = "model.vision_tower.vision_tower."


class Projector(nn.Module):
    """The release's projector: a trained copy of the second-to-last block, and convolutions for prior and fusion."""

    def __init__(self, tower):
        super().__init__()
        self.tuned_head = nn.ModuleList([copy.deepcopy(tower.layers[-2])])
        self.frozen_conv = convolutions(WIDTH, WIDTH)
        self.fusion_conv = convolutions(2 * WIDTH, LANGUAGE_WIDTH)

    def forward(self, hidden):
        (block,) = self.tuned_head
        tuned = block(hidden[-3][:, 1:], None)
        tuned = tuned[0] if isinstance(tuned, tuple) else tuned
        prior = self.frozen_conv(as_map(hidden[-2][:, 1:]))
        return self.fusion_conv(torch.cat([prior, as_map(tuned)], 1)).flatten(2).mT


def convolutions(channels, width):
    return nn.Sequential(nn.Conv2d(channels, width, 1), nn.GELU(), nn.Conv2d(width, width, 3, padding=1), nn.GELU())


def as_map(x_BND):
    return x_BND.mT.unflatten(2, (24, 24))


class Tower:
    """transformers' CLIP with the weights of timm's."""

    def __init__(self, timm_model):
        sizes = {"hidden_size": WIDTH, "intermediate_size": 4 * WIDTH, "num_hidden_layers": LAYERS}
        settings = CLIPVisionConfig(**sizes, num_attention_heads=HEADS, image_size=336, patch_size=14)
        assert settings.hidden_act == "quick_gelu"
        self.model = CLIPVisionModel(settings).eval()
        names = self.model.state_dict().keys()
        prefix = "" if any(name.startswith("vision_model.") for name in names) else "vision_model."
        self.state = released_names(timm_model)
        self.model.load_state_dict({name.removeprefix(prefix): value for name, value in self.state.items()})
        encoder = self.model.encoder if prefix else self.model.vision_model.encoder
        self.layers = encoder.layers

    def hidden(self, image_BCHW):
        pixels = (image_BCHW / 255 - torch.tensor(MEAN).view(3, 1, 1)) / torch.tensor(STD).view(3, 1, 1)
        return self.model(pixels, output_hidden_states=True).hidden_states


def released_names(timm_model):
    found = {}
    for name, value in timm_model.state_dict().items():
        if name in ("cls_token", "pos_embed", "patch_embed.proj.weight"):
            theirs = {"cls_token": "class_embedding", "pos_embed": "position_embedding.weight"}
            value = value.squeeze(0).squeeze(0) if name == "cls_token" else value[0] if name == "pos_embed" else value
            found[f"vision_model.embeddings.{theirs.get(name, 'patch_embedding.weight')}"] = value
        elif name.startswith("norm"):
            theirs = "pre_layrnorm" if name.startswith("norm_pre.") else "post_layernorm"
            found[f"vision_model.{theirs}.{name.split('.')[-1]}"] = value
        else:
            _, index, *rest = name.split(".")
            rest, place = ".".join(rest), f"vision_model.encoder.layers.{index}"
            if rest.startswith("attn.qkv"):
                for part, each in zip("qkv", value.chunk(3), strict=True):
                    found[f"{place}.self_attn.{part}_proj.{rest.split('.')[-1]}"] = each
            else:
                rest = rest.replace("norm", "layer_norm").replace("attn.proj", "self_attn.out_proj")
                found[f"{place}.{rest}"] = value
    return found


@pytest.fixture
def release(tiny, tmp_path):
    """A tower, a projector, and the options of an import."""
    clip = randomized(build_tiny("clip-large-336"))
    torch.save(clip.state_dict(), tmp_path / "clip.pth")
    tower = Tower(clip)
    projector = randomized(Projector(tower), seed=5)
    language = tiny_folder(tmp_path / "language", tied=False)
    options = {"weights": tmp_path / "clip.pth", "language_model": "tiny", "language_weights": language}
    return tower, projector, options


def projector_state(projector):
    return {f"model.mm_projector.{name}": value for name, value in projector.state_dict().items()}


def loaded(bundle, options):
    return vitsplit.load(
        bundle, weights=options["weights"], language_weights=options["language_weights"], device="cpu", precision="fp32"
    )


def assert_same_tokens(predictor, tower, projector):
    image_BCHW = image(336, 336, batch=1)
    with torch.no_grad():
        want_BNW = projector(tower.hidden(image_BCHW))
        have_BNW = predictor["vqa"].forward(image_BCHW)[0].tokens_INW
    assert have_BNW.shape == (1, 576, LANGUAGE_WIDTH)
    assert (have_BNW - want_BNW).abs().max() < 1e-5 * want_BNW.abs().max().clamp(min=1)
    assert want_BNW.std() > 0.1


def test_visual_tokens_of_the_first_stage(release, tmp_path):
    tower, projector, options = release
    torch.save(projector_state(projector), tmp_path / "mm_projector.bin")
    bundle = vitsplit.import_checkpoint(tmp_path / "mm_projector.bin", out=tmp_path / "bundle", **options)
    assert_same_tokens(loaded(bundle, options), tower, projector)
    config = read_card(bundle).config
    assert (config.task.stage, config.task.connector) == ("align", "vitsplit-release")
    assert all(name.startswith("head.") for name in read_weights(bundle))


@pytest.mark.parametrize("suffix", ["safetensors", "bin"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_folder_of_the_second_stage(suffix, dtype, release, tmp_path):
    tower, projector, options = release
    projector = projector.to(dtype).float()
    language = {name: value.to(dtype).clone() for name, value in tiny_model(seed=7).state_dict().items()}
    head = {name: value.to(dtype) for name, value in projector_state(projector).items()}
    folder = tmp_path / "llava"
    folder.mkdir()
    shards = (head | {TOWER + name: value.to(dtype).clone() for name, value in tower.state.items()}, language)
    for index, shard in enumerate(shards, 1):
        if suffix == "bin":
            torch.save(shard, folder / f"pytorch_model-0000{index}-of-00002.bin")
        else:
            save_file(
                {name: value.contiguous() for name, value in shard.items()}, folder / f"model-{index}.safetensors"
            )
    bundle = vitsplit.import_checkpoint(folder, out=tmp_path / "bundle", **options)
    predictor = loaded(bundle, options)
    assert_same_tokens(predictor, tower, projector)
    tuned = predictor["vqa"].model.decoder.language_model.state_dict()
    assert all(torch.equal(tuned[name], value.float()) for name, value in language.items()), "bit for bit"
    assert read_card(bundle).config.task.stage == "instruct"


def test_tensors_in_two_files_of_a_folder_are_refused(release, tmp_path):
    _, projector, options = release
    state = {name: value.contiguous() for name, value in projector_state(projector).items()}
    folder = tmp_path / "llava"
    folder.mkdir()
    name = "model.mm_projector.frozen_conv.0.bias"
    save_file(state, folder / "model-00001-of-00002.safetensors")
    save_file({name: state[name] + 1}, folder / "model.safetensors")
    with pytest.raises(WeightsError, match=r"model\.safetensors.*model\.mm_projector\.frozen_conv\.0\.bias"):
        vitsplit.import_checkpoint(folder, out=tmp_path / "bundle", **options)


def test_another_tower_and_other_tensors_are_refused(release, tmp_path):
    tower, projector, options = release
    state = projector_state(projector) | {TOWER + name: value for name, value in tower.state.items()}
    name = f"{TOWER}vision_model.encoder.layers.0.mlp.fc1.bias"
    rounded = state[name].bfloat16()
    next_up = torch.nextafter(rounded, torch.full_like(rounded, torch.inf))
    for other in (state[name] + 1e-6, next_up, rounded.float(), rounded.to(torch.float8_e4m3fn), state[name].int()):
        torch.save(state | {name: other}, tmp_path / "mm_projector.bin")
        with pytest.raises(WeightsError, match=r": blocks\.0\.mlp\.fc1\.bias differ"):
            vitsplit.import_checkpoint(tmp_path / "mm_projector.bin", out=tmp_path / "bundle", **options)
    lost = "model.mm_projector.tuned_head.0.self_attn.k_proj.bias"
    state = {name: value for name, value in state.items() if name != lost} | {"model.mm_projector.proj": torch.ones(2)}
    torch.save(state, tmp_path / "mm_projector.bin")
    with pytest.raises(WeightsError, match=r"missing: head\.block\.attn\.qkv\.bias; left over: .*q_proj.*mm_projector"):
        vitsplit.import_checkpoint(tmp_path / "mm_projector.bin", out=tmp_path / "bundle", **options)


def test_settings_that_do_not_fit(release, tmp_path):
    _, projector, options = release
    file = tmp_path / "mm_projector.bin"
    torch.save(projector_state(projector), file)
    with pytest.raises(ConfigError, match=f"width {LANGUAGE_WIDTH}.*--language-model"):
        vitsplit.import_checkpoint(file, out=tmp_path / "bundle", **(options | {"language_model": None}))
    with pytest.raises(ConfigError, match="--prior-layers does not apply"):
        vitsplit.import_checkpoint(file, out=tmp_path / "bundle", prior_layers=(22,), **options)
    (tmp_path / "lora").mkdir()
    with pytest.raises(WeightsError, match="merge LoRA"):
        vitsplit.import_checkpoint(tmp_path / "lora", out=tmp_path / "bundle", **options)
