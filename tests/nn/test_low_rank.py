import copy

import torch
from peft import LoraConfig, inject_adapter_in_model
from torch import nn

from vitsplit.nn.low_rank import LowRankLinear


def test_output_and_gradients_equal_pefts():
    torch.manual_seed(0)
    layer = nn.Linear(12, 20)
    own = LowRankLinear(copy.deepcopy(layer), rank=4, alpha=6.0)
    theirs = inject_adapter_in_model(LoraConfig(r=4, lora_alpha=6, target_modules=["0"]), nn.Sequential(layer))
    adapters = {"lora_A": own.lora_A.weight, "lora_B": own.lora_B.weight}
    nn.init.normal_(own.lora_B.weight)
    for name, weight in adapters.items():
        theirs.get_parameter(f"0.{name}.default.weight").data = weight.detach().clone()
    x = torch.randn(2, 5, 12)
    torch.testing.assert_close(own(x), theirs(x))
    for model in (own, theirs):
        model(x).square().sum().backward()
    for name, weight in adapters.items():
        torch.testing.assert_close(weight.grad, theirs.get_parameter(f"0.{name}.default.weight").grad)
    assert own.base_layer.weight.grad is None


def test_the_initial_layer_is_the_given_one():
    layer = nn.Linear(12, 20)
    x = torch.randn(3, 12)
    assert torch.equal(LowRankLinear(layer, rank=4, alpha=4.0)(x), layer(x))


def test_merged_layer_is_the_sum_of_weight_and_update():
    layer = nn.Linear(6, 9)
    adapted = LowRankLinear(layer, rank=3, alpha=12.0, dropout=0.5).eval()
    nn.init.normal_(adapted.lora_B.weight)
    expected = layer.weight + 4.0 * adapted.lora_B.weight @ adapted.lora_A.weight
    merged, before = adapted.merged(), layer.weight.clone()
    torch.testing.assert_close(merged.weight, expected)
    assert merged.bias is layer.bias and torch.equal(layer.weight, before)
    x = torch.randn(5, 6)
    torch.testing.assert_close(merged(x), adapted(x))
    assert LowRankLinear(nn.Linear(6, 9, bias=False), rank=3, alpha=1.0).merged().bias is None
