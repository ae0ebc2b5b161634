import pytest
import torch
from tiny import TinyTask, tiny_head

from vitsplit.backbone import meta_backbone
from vitsplit.engine.optim import build_optimizer as build_for_heads
from vitsplit.engine.optim import current_lr, load_moments, moments, set_lr
from vitsplit.errors import ConfigError
from vitsplit.methods.split.config import SplitConfig
from vitsplit.methods.split.head import SplitHead
from vitsplit.model import Head
from vitsplit.train_config import OptimConfig


def build_optimizer(head, config):
    return build_for_heads({"tiny": head}, {"tiny": config})


def names_of(model, group):
    by_id = {id(parameter): name for name, parameter in model.named_parameters()}
    return {by_id[id(parameter)] for parameter in group["params"]}


def test_the_task_head_has_its_own_rate_and_frozen_parameters_are_excluded():
    model = tiny_head(TinyTask())
    optimizer = build_optimizer(model, OptimConfig(lr=1e-3, task_head_lr_scale=0.1))
    set_lr(optimizer, 0.5, "tiny")
    groups = {group["name"]: group for group in optimizer.param_groups}
    assert names_of(model, groups["task_head"]) == {"head.task_head.weight", "head.task_head.bias"}
    assert names_of(model, groups["base"]) == {
        "head.conv.weight",
        "head.conv.bias",
        "head.norm.weight",
        "head.norm.bias",
        "decoder.weight",
        "decoder.bias",
    }
    assert current_lr(optimizer) == pytest.approx({("tiny", "lr"): 5e-4, ("tiny", "lr_task_head"): 5e-5})
    assert {group["weight_decay"] for group in optimizer.param_groups} == {1e-2}


def test_norms_and_biases_can_be_excluded_from_decay():
    model = tiny_head(TinyTask())
    optimizer = build_optimizer(model, OptimConfig(decay_norms=False, weight_decay=0.3))
    decayed = set().union(*(names_of(model, group) for group in optimizer.param_groups if group["weight_decay"]))
    spared = set().union(*(names_of(model, group) for group in optimizer.param_groups if not group["weight_decay"]))
    assert decayed == {"head.task_head.weight", "head.conv.weight", "decoder.weight"}
    assert len(spared) == 5
    assert {group["weight_decay"] for group in optimizer.param_groups} == {0.3, 0.0}


def test_a_model_without_trainable_parameters_is_rejected():
    model = tiny_head(TinyTask()).requires_grad_(False)
    with pytest.raises(ConfigError, match="No trainable parameters"):
        build_optimizer(model, OptimConfig())


@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
def test_moments_are_restored_exactly(layout):
    """Three steps with a save and load in between, against three steps of torch's optimizer."""

    def model_and_optimizer():
        model = tiny_head(TinyTask()).to(memory_format=layout)
        return model, build_optimizer(model, OptimConfig())

    def steps(model, optimizer, count, first):
        for index in range(count):
            for number, parameter in enumerate(model.parameters()):
                noise = torch.randn(
                    parameter.shape, generator=torch.Generator().manual_seed(first + index + 100 * number)
                )
                parameter.grad = torch.empty_like(parameter).copy_(noise) if parameter.requires_grad else None
            optimizer.step()

    uninterrupted, optimizer = model_and_optimizer()
    steps(uninterrupted, optimizer, 3, 0)
    first, first_optimizer = model_and_optimizer()
    steps(first, first_optimizer, 2, 0)
    second, second_optimizer = model_and_optimizer()
    second.load_trainable_state(first.trainable_state())
    saved = {name: tensor.contiguous() for name, tensor in moments(first, first_optimizer).items()}
    assert "head.conv.weight/exp_avg" in saved and not any("frozen" in name for name in saved)
    load_moments(second, second_optimizer, saved)
    steps(second, second_optimizer, 1, 2)
    for name, tensor in uninterrupted.state_dict().items():
        assert tensor.equal(second.state_dict()[name]), name


def test_a_head_without_a_task_head_has_one_rate():
    model = tiny_head(TinyTask())
    model.head.pretrained_parameters = dict
    optimizer = build_optimizer(model, OptimConfig(lr=1e-3))
    assert len(optimizer.param_groups) == 1
    assert current_lr(optimizer) == {("tiny", "lr"): 1e-3}


@pytest.mark.parametrize(
    ("num_tuned_layers", "rate", "first", "last"),
    [(11, 0.76, 0.76**12, 0.76**2), (3, 0.6, 0.6**4, 0.6**2)],
)
def test_layer_decay_equals_the_release(num_tuned_layers, rate, first, last):
    """The last copy of S learns at rate^2, the first at rate^12; everything else at the full rate."""
    split = SplitConfig(num_tuned_layers=num_tuned_layers)
    with torch.device("meta"):
        model = Head(SplitHead(meta_backbone("dinov2-small"), split), torch.nn.Conv2d(384, 5, 1))
    config = OptimConfig(lr=1e-4, task_head_lr_scale=1.0, layer_decay=rate, weight_decay=0.05, decay_norms=False)
    optimizer = build_optimizer(model, config)
    set_lr(optimizer, 0.5, "tiny")
    rates, decays = {}, {}
    for group in optimizer.param_groups:
        for name in names_of(model, group):
            rates[name], decays[name] = group["lr"] / 0.5e-4, group["weight_decay"]
    blocks = [{rates[name] for name in rates if f"task_head.blocks.{i}." in name} for i in range(num_tuned_layers)]
    assert all(len(block) == 1 for block in blocks)
    assert [block.pop() for block in blocks] == pytest.approx(
        [rate ** (num_tuned_layers + 1 - i) for i in range(num_tuned_layers)]
    )
    assert rates["head.task_head.blocks.0.attn.qkv.weight"] == pytest.approx(first)
    assert rates[f"head.task_head.blocks.{num_tuned_layers - 1}.mlp.fc2.bias"] == pytest.approx(last)
    others = [rates[name] for name in rates if "task_head" not in name]
    assert others and others == pytest.approx([1.0] * len(others))
    by_name = dict(model.named_parameters())
    assert all((decays[name] > 0) == (by_name[name].ndim > 1) for name in decays)
    assert rates.keys() == {name for name, parameter in by_name.items() if parameter.requires_grad}
    # Two groups per copied block, and two for the rest.
    assert len(optimizer.param_groups) == 2 * num_tuned_layers + 2
    assert current_lr(optimizer) == pytest.approx({("tiny", "lr"): 0.5e-4, ("tiny", "lr_task_head"): 0.5e-4 * last})


def test_layer_decay_multiplies_the_rate_of_the_task_head():
    with torch.device("meta"):
        model = Head(SplitHead(meta_backbone("dinov2-small"), SplitConfig()), torch.nn.Conv2d(384, 5, 1))
    optimizer = build_optimizer(model, OptimConfig(lr=1.0, task_head_lr_scale=0.5, layer_decay=0.1))
    assert sorted(group["peak_lr"] for group in optimizer.param_groups) == pytest.approx([5e-5, 5e-4, 5e-3, 1.0])
