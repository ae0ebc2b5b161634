import pytest
import torch

from vitsplit.backbone.backbone import Backbone
from vitsplit.methods.split.config import SplitConfig
from vitsplit.methods.split.gate import SparseGate
from vitsplit.methods.split.head import SplitHead

LAYERS, COLUMNS = 6, 3


def _gate(seed: int = 0) -> SparseGate:
    torch.manual_seed(seed)
    return SparseGate(LAYERS, COLUMNS)


def _maps(dtype=torch.float32):
    generator = torch.Generator().manual_seed(5)
    return {layer: torch.randn(2, 4, 3, 5, generator=generator).to(dtype) for layer in range(LAYERS)}


def _releases_formula(scores_LJ, maps):
    """Appendix B as in the release: all maps stacked, plain autograd."""
    soft_LJ = torch.softmax(scores_LJ / 0.5, dim=0)
    kept_LJ = torch.zeros(LAYERS, COLUMNS, dtype=torch.bool)
    for column in range(COLUMNS):
        for layer in sorted(range(LAYERS), key=lambda row: -float(soft_LJ[row, column].detach()))[:COLUMNS]:
            kept_LJ[layer, column] = True
    sparse_LJ = torch.where(kept_LJ, soft_LJ, 0.0)
    gates_LJ = sparse_LJ - scores_LJ.detach() + scores_LJ
    gates_LJ = gates_LJ / gates_LJ.sum(dim=0, keepdim=True)
    stack_LBDhw = torch.stack([maps[layer] for layer in range(LAYERS)])
    return gates_LJ, torch.einsum("lj,lbdhw->jbdhw", gates_LJ, stack_LBDhw)


@pytest.mark.parametrize("seed", range(4))
def test_gate_equals_the_dense_formula_with_gradients(seed):
    gate, maps = _gate(seed), _maps()
    scores_LJ = gate.scores_LJ.detach().clone().requires_grad_()
    expected_LJ, expected = _releases_formula(scores_LJ, maps)
    mixed = torch.stack(gate.train()(maps))
    torch.testing.assert_close(gate.weights(), expected_LJ)
    torch.testing.assert_close(mixed, expected)
    seed_values = torch.randn(mixed.shape)
    (mixed * seed_values).sum().backward()
    (expected * seed_values).sum().backward()
    torch.testing.assert_close(gate.scores_LJ.grad, scores_LJ.grad, rtol=1e-4, atol=1e-5)
    assert (gate.scores_LJ.grad != 0).all(), "the straight-through estimator reaches the scores of dropped layers too"


def test_columns_keep_the_top_k_layers_and_sum_to_one():
    gate = _gate()
    weights_LJ = gate.weights().detach()
    assert (weights_LJ >= 0).all()
    assert ((weights_LJ > 0).sum(dim=0) == COLUMNS).all()
    torch.testing.assert_close(weights_LJ.sum(dim=0), torch.ones(COLUMNS))
    for column in range(COLUMNS):
        kept = set(weights_LJ[:, column].nonzero().flatten().tolist())
        by_score = gate.scores_LJ[:, column].argsort(descending=True).tolist()
        assert kept == set(by_score[:COLUMNS])


def test_scores_are_initialized_uniformly():
    torch.manual_seed(0)
    scores = SparseGate(200, 50).scores_LJ.detach()
    assert float(scores.min()) >= 0 and float(scores.max()) <= 1
    assert abs(float(scores.mean()) - 0.5) < 0.01 and abs(float(scores.std()) - 12**-0.5) < 0.01


def test_keeping_every_layer_equals_softmax():
    torch.manual_seed(0)
    gate = SparseGate(3, 3, temperature=0.25)
    torch.testing.assert_close(gate.weights(), torch.softmax(gate.scores_LJ * 4, dim=0))


def test_eval_reads_only_selected_layers_with_the_same_output():
    gate, maps = _gate(), _maps()
    with torch.no_grad():
        gate.scores_LJ[[0, 4]] -= 10.0
    assert gate.used_layers() == (1, 2, 3, 5)
    trained = gate.train()(maps)
    used = gate.eval()({layer: maps[layer] for layer in gate.used_layers()})
    for a, b in zip(trained, used, strict=True):
        torch.testing.assert_close(a, b)
    some = {layer: maps[layer] for layer in (1, 2, 3)}
    with pytest.raises(RuntimeError):
        gate(some)
    with pytest.raises(KeyError):
        gate.train()(some)


@pytest.mark.parametrize("train", [True, False])
def test_compiles_as_one_graph_with_the_same_values(train):
    """No value is read on the host: that would break the graph."""
    gate, maps = _gate().train(train), _maps()
    if not train:
        maps = {layer: maps[layer] for layer in gate.used_layers()}
    compiled = torch.compile(gate, fullgraph=True, backend="aot_eager")
    eager, traced = torch.stack(gate(maps)), torch.stack(compiled(maps))
    torch.testing.assert_close(traced, eager)
    seed = torch.linspace(-1, 1, eager.numel()).view(eager.shape)
    grads = [torch.autograd.grad((mixed * seed).sum(), gate.scores_LJ)[0] for mixed in (eager, traced)]
    torch.testing.assert_close(grads[1], grads[0])


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_training_saves_each_map_once(dtype):
    gate, maps = _gate().train(), _maps(dtype)
    saved: list[torch.Tensor] = []
    with torch.autograd.graph.saved_tensors_hooks(lambda tensor: saved.append(tensor) or tensor, lambda tensor: tensor):
        mixed = gate(maps)
    large = [tensor for tensor in saved if tensor.numel() >= maps[0].numel()]
    own = {tensor.untyped_storage().data_ptr() for tensor in maps.values()}
    assert len(large) == LAYERS, "one tensor per layer, no layers x columns stack"
    assert {tensor.untyped_storage().data_ptr() for tensor in large} == own, "the maps themselves, no copies"
    assert all(out.dtype == dtype for out in mixed)
    sum(out.float().square().sum() for out in mixed).backward()
    assert gate.scores_LJ.grad is not None and gate.scores_LJ.grad.isfinite().all()


def test_bfloat16_maps_are_summed_in_float32():
    gate, maps = _gate(), _maps()
    halves = {layer: map_BDhw.bfloat16() for layer, map_BDhw in maps.items()}
    _, exact = _releases_formula(gate.scores_LJ, {layer: half.float() for layer, half in halves.items()})
    for mode in (gate.train(), gate.eval()):
        for column, out in enumerate(mode(halves)):
            assert torch.equal(out, exact[column].bfloat16())


def test_the_head_requests_all_layers_in_training_and_selected_layers_in_eval(plain_backbone: Backbone):
    head = SplitHead(plain_backbone, SplitConfig(num_tuned_layers=1, num_prior_layers=1, selection="gate"))
    assert head.request(train=True).maps == {0, 1, 2, 3}
    with torch.no_grad():
        head.gate.scores_LJ.copy_(torch.tensor([[0.1], [0.9], [0.2], [0.3]]))
    assert head.request(train=False).maps == {1}
    assert head.request(train=False).tokens == {3}


def test_gate_head_output_is_equal_in_training_and_eval(plain_backbone: Backbone, image_BCHW):
    torch.manual_seed(0)
    head = SplitHead(plain_backbone, SplitConfig(num_tuned_layers=1, num_prior_layers=2, selection="gate"))
    trained = head.train()(plain_backbone(image_BCHW, head.request(train=True)))
    head.eval()
    torch.testing.assert_close(head(plain_backbone(image_BCHW, head.request(train=False))), trained)
