import pytest
import torch
from tiny import TinyTask, tiny_model

from vitsplit.errors import ConfigError
from vitsplit.training.config import OptimConfig
from vitsplit.training.optim import build_optimizer, current_lr, load_moments, moments, set_lr


def names_of(model, group):
    by_id = {id(parameter): name for name, parameter in model.named_parameters()}
    return {by_id[id(parameter)] for parameter in group["params"]}


def test_the_task_head_learns_at_its_own_rate_and_nothing_frozen_is_there():
    model = tiny_model(TinyTask())
    optimizer = build_optimizer(model, OptimConfig(lr=1e-3, task_head_lr_scale=0.1))
    set_lr(optimizer, 0.5)
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
    assert current_lr(optimizer) == pytest.approx({"lr": 5e-4, "lr_task_head": 5e-5})
    assert {group["weight_decay"] for group in optimizer.param_groups} == {1e-2}


def test_norms_and_biases_need_not_decay():
    model = tiny_model(TinyTask())
    optimizer = build_optimizer(model, OptimConfig(decay_norms=False, weight_decay=0.3))
    decayed = set().union(*(names_of(model, group) for group in optimizer.param_groups if group["weight_decay"]))
    spared = set().union(*(names_of(model, group) for group in optimizer.param_groups if not group["weight_decay"]))
    assert decayed == {"head.task_head.weight", "head.conv.weight", "decoder.weight"}
    assert len(spared) == 5
    assert {group["weight_decay"] for group in optimizer.param_groups} == {0.3, 0.0}


def test_nothing_to_train_is_refused():
    model = tiny_model(TinyTask()).requires_grad_(False)
    with pytest.raises(ConfigError, match="Nothing trains"):
        build_optimizer(model, OptimConfig())


@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
def test_moments_come_back_exactly(layout):
    """Three steps, a save and load in between, against three steps of torch's optimiser alone."""

    def model_and_optimizer():
        model = tiny_model(TinyTask()).to(memory_format=layout)
        return model, build_optimizer(model, OptimConfig())

    def steps(model, optimizer, count, first):
        for index in range(count):
            for number, parameter in enumerate(model.parameters()):
                noise = torch.randn(
                    parameter.shape, generator=torch.Generator().manual_seed(first + index + 100 * number)
                )
                parameter.grad = torch.empty_like(parameter).copy_(noise) if parameter.requires_grad else None
            optimizer.step()

    straight, optimizer = model_and_optimizer()
    steps(straight, optimizer, 3, 0)
    first, first_optimizer = model_and_optimizer()
    steps(first, first_optimizer, 2, 0)
    second, second_optimizer = model_and_optimizer()
    second.load_trainable_state(first.trainable_state())
    saved = {name: tensor.contiguous() for name, tensor in moments(first, first_optimizer).items()}
    assert "head.conv.weight/exp_avg" in saved and not any("frozen" in name for name in saved)
    load_moments(second, second_optimizer, saved)
    steps(second, second_optimizer, 1, 2)
    for name, tensor in straight.state_dict().items():
        assert tensor.equal(second.state_dict()[name]), name


def test_a_head_without_a_task_head_has_one_rate():
    model = tiny_model(TinyTask())
    model.head.param_groups = lambda: {"base": list(model.head.conv.parameters())}
    optimizer = build_optimizer(model, OptimConfig(lr=1e-3))
    assert len(optimizer.param_groups) == 1
    assert current_lr(optimizer) == {"lr": 1e-3}
