import torch
from tiny import TinyTask, tiny_model

from vitsplit.engine.optim import WeightAverage


def test_the_average_follows_its_recurrence_and_weights_are_restored():
    model = tiny_model(TinyTask(), batch_norm=True)
    average = WeightAverage(model, decay=0.9)
    expected = {name: tensor.clone() for name, tensor in model.trainable_state().items()}
    for step in range(3):
        with torch.no_grad():
            for tensor in model.trainable_state().values():
                tensor.add_(step + 1)
        average.update()
        for name, tensor in model.trainable_state().items():
            moved = 0.9 * expected[name] + 0.1 * tensor if tensor.is_floating_point() else tensor.clone()
            expected[name] = moved
    own = {name: tensor.clone() for name, tensor in model.trainable_state().items()}
    with average.applied():
        for name, tensor in model.trainable_state().items():
            torch.testing.assert_close(tensor, expected[name])
        assert not model.trainable_state()["heads.tiny.decoder.weight"].equal(own["heads.tiny.decoder.weight"])
    assert all(tensor.equal(own[name]) for name, tensor in model.trainable_state().items())
    assert not any("frozen" in name for name in average.state)
