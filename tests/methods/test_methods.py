"""Every method: trainable parameters, learning rates, and saving and loading."""

import copy
from dataclasses import replace

import pytest
import torch
from safetensors.torch import load_file

import vitsplit
from vitsplit.backbone import load_backbone, meta_backbone
from vitsplit.backbone.config import BackboneConfig
from vitsplit.bundle import save_bundle
from vitsplit.engine.optim import build_optimizer, parameter_groups
from vitsplit.methods import METHODS as TABLE
from vitsplit.methods import MethodConfig
from vitsplit.model import backbone_settings, build_head
from vitsplit.nn import upernet
from vitsplit.tasks import bare_task
from vitsplit.tasks.depth.config import DepthConfig
from vitsplit.tasks.segmentation.config import SegmentationConfig
from vitsplit.tasks.segmentation.data import SegmentationBatch
from vitsplit.train_config import OptimConfig, one_head

METHODS = tuple(TABLE.built_in)
VARIANTS = [*((method, "auto") for method in METHODS), ("vit-adapter", "linear"), ("vit-comer", "linear")]
BACKBONE = BackboneConfig(backbone="vit_tiny_patch16_224", random_weights=True)
DESCRIPTION = {"classes": ["a", "b", "c"], "colours": [[0, 0, 0], [9, 9, 9], [90, 9, 9]]}


def config_of(method, decoder="auto"):
    task = SegmentationConfig(crop_size=(32, 48), image_scale=(48, 32), test_mode="whole")
    return one_head(method=MethodConfig.by_name(method)(decoder=decoder), task=task, backbone=BACKBONE)


@pytest.fixture(autouse=True)
def small_upernet(monkeypatch):
    """Fewer channels: the decoder of the paper, which test_counts checks, has 30 million parameters."""
    monkeypatch.setattr(upernet, "CHANNELS", 32)
    monkeypatch.setattr(upernet, "AUXILIARY_CHANNELS", 32)


@pytest.fixture(scope="module")
def backbone():
    return load_backbone("vit_tiny_patch16_224", random_weights=True)


def images(batch=2, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(0, 256, (batch, 3, 32, 48), dtype=torch.uint8, generator=generator)


def backward(backbone, model, task):
    generator = torch.Generator().manual_seed(1)
    mask_BHW = torch.randint(0, 3, (2, 32, 48), generator=generator).to(torch.uint8)
    taps = backbone(images(), model.request(train=True))
    terms = task.loss_sums(model(taps), SegmentationBatch(images(), mask_BHW, ["a", "b"]), taps)
    sum(terms.values()).backward()


@pytest.mark.parametrize(("method", "decoder"), VARIANTS)
def test_a_step_changes_exactly_the_trainable_parameters(backbone, method, decoder):
    config = config_of(method, decoder)
    task = bare_task(config.task, DESCRIPTION)
    model = build_head(config, backbone, task)
    frozen = {name: tensor.clone() for name, tensor in backbone.state_dict().items()}
    still = {name: p.clone() for name, p in model.named_parameters() if not p.requires_grad}
    before = {name: p.detach().clone() for name, p in model.named_parameters() if p.requires_grad}
    optimizer = build_optimizer({"a": model}, {"a": OptimConfig(lr=1e-3)})
    backward(backbone, model, task)
    assert not [name for name, p in model.named_parameters() if p.requires_grad and p.grad is None]
    optimizer.step()
    parameters = dict(model.named_parameters())
    # AdamW changes all parameters except those with zero gradients, which follow a zero initialization.
    moved = {name for name in before if not torch.equal(before[name], parameters[name])}
    assert moved and "decoder.classify.weight" in moved
    assert all(torch.equal(frozen[name], tensor) for name, tensor in backbone.state_dict().items())
    assert all(torch.equal(still[name], parameters[name]) for name in still)


@pytest.mark.parametrize("method", METHODS)
def test_a_loaded_bundle_gives_equal_predictions(backbone, tmp_path, method):
    config = config_of(method)
    task = bare_task(config.task, DESCRIPTION)
    model = build_head(config, backbone, task)
    generator = torch.Generator().manual_seed(4)
    with torch.no_grad():  # as after training: other parameters and statistics
        for name, tensor in model.trainable_state().items():
            if tensor.is_floating_point():
                tensor.add_(torch.rand(tensor.shape, generator=generator) * (0.3 if "running" in name else 0.02))
    save_bundle(tmp_path / method, config=config, task=task, backbone=backbone, head=model, metrics={})
    stored = load_file(tmp_path / method / "head.safetensors")
    trained = {name for name, p in model.named_parameters() if p.requires_grad}
    assert trained <= stored.keys()
    assert all("running" in name or "num_batches" in name for name in stored.keys() - trained)
    with torch.no_grad():
        taps = backbone(images(), model.request(train=False))
        expected = model.eval()(taps)
    assert torch.equal(vitsplit.load(tmp_path / method, precision="fp32").forward(images())[0], expected)


def test_bundles_of_different_methods_share_a_backbone(backbone, tmp_path):
    alone = {}
    for method in ("lora", "upernet", "vitsplit", "vpt", "vit-adapter"):
        config = config_of(method)
        task = bare_task(config.task, DESCRIPTION)
        model = build_head(config, backbone, task)
        save_bundle(tmp_path / method, config=config, task=task, backbone=backbone, head=model, metrics={})
        alone[method] = vitsplit.load(tmp_path / method, precision="bf16").predict(images()[0])["segmentation"].mask
    together = vitsplit.load({name: tmp_path / name for name in alone if name != "vpt"}, precision="bf16")
    together.add(tmp_path / "vpt", "vpt")
    answers = together.predict(images()[0])
    assert answers.keys() == alone.keys()
    assert all((answers[name].mask == alone[name]).all() for name in alone)
    assert together.describe_passes().startswith("1 pass at 32x48")


@pytest.mark.parametrize("method", ["frozen-head", "full-finetune", "lora", "vit-adapter"])
def test_methods_work_for_depth(backbone, method):
    config = config_of(method).change(task=DepthConfig())
    model = build_head(config, backbone, bare_task(config.task, {}))
    meters = model(backbone(images(), model.request(train=False)))
    assert meters.shape == (2, 1, 8, 12)
    meters.sum().backward()
    assert not [name for name, p in model.named_parameters() if p.requires_grad and p.grad is None]


def rates_of(model, **optim):
    by_id = {id(p): name for name, p in model.named_parameters()}
    groups = parameter_groups(model, OptimConfig(lr=1.0, **optim))
    return {by_id[id(p)]: group["peak_lr"] for group in groups for p in group["params"]}


@pytest.mark.parametrize("method", ["full-finetune", "upernet", "vit-adapter", "vit-comer"])
def test_layer_decay_lowers_the_rate_of_pretrained_weights(method):
    """With layer decay r: block i of n at r^(n + 1 - i), what is before them at r^(n + 2), what is new at 1."""
    config = config_of(method).change(backbone=BackboneConfig(backbone="vit_small_patch16_224"))
    with torch.device("meta"):
        model = build_head(config, meta_backbone("vit_small_patch16_224"), bare_task(config.task, DESCRIPTION))
    rates = rates_of(model, task_head_lr_scale=0.1)
    pretrained = {name for name in rates if "trunk.model." in name}
    assert {rates[name] for name in pretrained} == {0.1}
    assert {rates[name] for name in rates.keys() - pretrained} == {1.0}
    rates = rates_of(model, task_head_lr_scale=0.5, layer_decay=0.9)
    for name in pretrained:
        where, *rest = name.split("trunk.model.")[1].split(".")
        power = 13 - int(rest[0]) if where == "blocks" else {"norm": 0}.get(where, 14)
        assert rates[name] == pytest.approx(0.5 * 0.9**power), name
    assert {rates[name] for name in rates.keys() - pretrained} == {1.0}


@pytest.mark.parametrize("method", ["lora", "vpt", "adaptformer"])
def test_new_parameters_in_a_block_have_the_full_rate(backbone, method):
    config = config_of(method)
    model = build_head(config, backbone, bare_task(config.task, DESCRIPTION))
    assert set(rates_of(model, task_head_lr_scale=0.1, layer_decay=0.5).values()) == {1.0}


def test_only_adapters_change_the_default_patch_size():
    at_14 = BackboneConfig(backbone="dinov2-small")
    for method in METHODS:
        config = config_of(method).change(backbone=at_14)
        assert backbone_settings(config) == (
            replace(at_14, patch_size=16) if method in ("vit-adapter", "vit-comer") else at_14
        )
        given = replace(at_14, patch_size=12)
        assert backbone_settings(config.change(backbone=given)) == given


def test_initial_weights_depend_only_on_the_seed(backbone):
    config = config_of("lora")
    task = bare_task(config.task, DESCRIPTION)
    torch.manual_seed(1)
    first = build_head(config, backbone, task).trainable_state()
    torch.manual_seed(2)
    second = copy.deepcopy(build_head(config, backbone, task).trainable_state())
    assert all(torch.equal(first[name], second[name]) for name in first)
