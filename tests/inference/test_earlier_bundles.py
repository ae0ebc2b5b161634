"""Bundles of earlier versions, which lack some tensors of current models."""

import pytest
import torch
from bundles import write_bundle, write_segmentation_bundle
from safetensors.torch import load_file, save_file
from vqa_bundles import write_language_model, write_vqa_bundle

import vitsplit
from vitsplit.bundle import read_card
from vitsplit.engine.override import override
from vitsplit.errors import BundleError

IMAGE = torch.randint(0, 256, (1, 3, 48, 64), dtype=torch.uint8, generator=torch.Generator().manual_seed(3))


def rewrite(bundle, change):
    file = bundle / "head.safetensors"
    save_file({name: new for name, old in load_file(file).items() if (new := change(name, old)) is not None}, file)


def test_adapters_without_layer_scales(tmp_path):
    plain = read_card(write_segmentation_bundle(tmp_path / "plain"))
    config = override(plain.config, {"method": "vit-adapter"})
    bundle = write_bundle(tmp_path / "adapter", config, dict(plain.description))
    now = vitsplit.load(bundle).forward(IMAGE)[0]  # with scales of one, as they begin
    rewrite(bundle, lambda name, tensor: None if name.endswith((".ls1.gamma", ".ls2.gamma")) else tensor)
    assert len(load_file(bundle / "head.safetensors")) < len(vitsplit.load(bundle).model.trainable_state())
    assert torch.equal(vitsplit.load(bundle).forward(IMAGE)[0], now)


def test_the_release_connector_without_biases(tmp_path):
    language = write_language_model(tmp_path / "tiny")
    bundle = write_vqa_bundle(tmp_path / "bundle", language, task={"connector": "vitsplit-release"})
    is_bias = lambda name: name in ("head.prior.mix.bias", "head.fusion.mix.bias")
    rewrite(bundle, lambda name, tensor: torch.zeros_like(tensor) if is_bias(name) else tensor)
    zeroed = vitsplit.load(bundle, language_weights=language)
    rewrite(bundle, lambda name, tensor: None if is_bias(name) else tensor)
    earlier = vitsplit.load(bundle, language_weights=language)
    assert sum(map(is_bias, earlier.model.trainable_state())) == 2
    questions = ["what is this?", "how many?"]
    picture = IMAGE[0].permute(1, 2, 0).numpy()
    assert earlier.ask(picture, questions) == zeroed.ask(picture, questions)


def test_other_missing_tensors_are_rejected(tmp_path):
    bundle = write_segmentation_bundle(tmp_path / "plain")
    lost = sorted(set(load_file(bundle / "head.safetensors")))[0]
    rewrite(bundle, lambda name, tensor: None if name == lost else tensor)
    with pytest.raises(BundleError, match=r"head\.safetensors"):
        vitsplit.load(bundle)
