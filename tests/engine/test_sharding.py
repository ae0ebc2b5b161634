"""A sharded run in two processes equals an unsharded one in one process; see worded.py for its language model."""

import dataclasses
import importlib.util
import json
from pathlib import Path

import pytest
import torch
from launching import SCRIPT, launch, launch_once, shared_folder
from pair_runs import CULPRIT, LANGUAGE_MODELS, command_config, settings_of, sharded_runs
from safetensors.torch import load_file
from tiny import tiny_config, tiny_model, tiny_run
from torch import nn
from worded import WordedTask

import vitsplit
from vitsplit.engine.sharding import check_sharding, empty, filled, prepare_parameters, split_off
from vitsplit.errors import ConfigError
from vitsplit.train_config import OptimConfig

LAST = "checkpoints/step-00000006"

needs_deepspeed = pytest.mark.skipif(
    importlib.util.find_spec("deepspeed") is None,
    reason="deepspeed is not installed: pip install 'vitsplit[deepspeed]'",
)
SHARDINGS = ["fsdp2", *(pytest.param(name, marks=needs_deepspeed) for name in ("zero2", "zero3"))]


@pytest.fixture(scope="module", params=SHARDINGS)
def sharded(request, scenes, tmp_path_factory) -> tuple[str, Path]:
    """The sharding backend, and a folder of runs in two processes."""
    if request.param == "fsdp2":
        return request.param, request.getfixturevalue("pairs") / "fsdp2"
    out = shared_folder(tmp_path_factory, request.param)
    launch_once(out, lambda: sharded_runs(request.param, out, scenes))
    return request.param, out


def rows(run: Path, kind: str = "loss") -> list[dict]:
    lines = (run / "metrics.jsonl").read_text().splitlines()
    return [row for line in lines if kind in (row := json.loads(line))]


@pytest.mark.slow
@pytest.mark.parametrize("name", LANGUAGE_MODELS)
def test_a_sharded_run_equals_an_unsharded_one(sharded, name, tmp_path):
    sharding, out = sharded
    one = tiny_run(tmp_path / "one", task=WordedTask(**LANGUAGE_MODELS[name]), **settings_of(sharding))
    together = out / name / "run"
    # Every tensor of a checkpoint and of a bundle: same names, full shapes and values.
    files = [f"{LAST}/weights", f"{LAST}/optimizer", "last/head", "best/head"]
    for file in files + [f"{LAST}/ema"] * (sharding == "fsdp2"):
        expected, found = (load_file(run / f"{file}.safetensors") for run in (one.folder.path, together))
        assert expected.keys() == found.keys()
        for key, tensor in expected.items():
            torch.testing.assert_close(found[key], tensor, rtol=0, atol=2e-6, msg=f"{file} {key}")
    for key in ("loss", "grad_norm", "lr"):
        assert [row[key] for row in rows(together)] == pytest.approx([row[key] for row in rows(one.folder.path)], 1e-5)
    assert min(row["grad_norm"] for row in rows(together)) > 0.25, "every step must be clipped, or nothing is shown"
    for rank in (0, 1):
        assert json.loads((out / name / f"score-{rank}.json").read_text()) == one.result.best_metrics
    pages = [json.loads((run / "pictures" / "index.html").read_text()) for run in (one.folder.path, together)]
    torch.testing.assert_close(*(torch.tensor(page["output"]) for page in pages), rtol=0, atol=1e-5)


def test_a_process_holds_only_its_shard(sharded):
    sharding, out = sharded
    whole = sum(parameter.numel() for parameter in tiny_model(WordedTask()).parameters())
    trained = sum(tensor.numel() for tensor in tiny_model(WordedTask()).trainable_state().values())
    for rank in (0, 1):
        held = json.loads((out / "tuned" / f"held-{rank}.json").read_text())
        assert trained * 0.4 < held["moments"] < trained * 0.6
        # ZeRO stage 2 does not shard parameters.
        assert held["parameters"] == whole if sharding == "zero2" else whole * 0.4 < held["parameters"] < whole * 0.6


@pytest.mark.parametrize("name", ["interrupted", "terminated"])
def test_a_stopped_sharded_run_resumes_exactly(sharded, name):
    _, out = sharded
    uninterrupted, resumed = out / "tuned" / "run", out / name / "run"
    goes_on_from = {"interrupted": 2, "terminated": 3}[name]  # at the eighth micro-batch no step 3 was written
    assert f"resuming from step {goes_on_from} " in (resumed / "log.txt").read_text()
    files = sorted(path.relative_to(uninterrupted) for path in uninterrupted.rglob("*.safetensors"))
    for file in files:
        if (resumed / file).parent.name == "step-00000004" and name == "terminated":
            continue  # its two last checkpoints are others
        expected, found = load_file(uninterrupted / file), load_file(resumed / file)
        assert expected.keys() == found.keys()
        assert all(tensor.equal(found[key]) for key, tensor in expected.items()), file
    for kind in ("loss", "eval"):
        clocks = {"seconds", "images_per_second", "peak_memory_gb"}
        first, second = (
            [{key: value for key, value in row.items() if key not in clocks} for row in rows(run, kind)]
            for run in (uninterrupted, resumed)
        )
        assert first == second


def test_a_signal_to_one_process_stops_both(sharded):
    _, out = sharded
    assert "stopped by SIGTERM after step 3 of 6" in (out / "terminated" / "run" / "log.txt").read_text()


def test_bf16_keeps_float32_master_weights(sharded, tmp_path):
    sharding, out = sharded
    one = tiny_run(tmp_path / "one", task=WordedTask(), precision="bf16", **settings_of(sharding))
    run = out / "bf16" / "run"
    assert [row["loss"] for row in rows(run)] == pytest.approx([row["loss"] for row in rows(one.folder.path)], rel=1e-2)
    for file in (f"{LAST}/weights", f"{LAST}/optimizer", "last/head"):
        assert {tensor.dtype for tensor in load_file(run / f"{file}.safetensors").values()} == {torch.float32}
    # Six steps change a weight by less than bf16 resolution, so bf16 master weights would not change.
    start = tiny_model(WordedTask()).trainable_state()
    moved = load_file(run / f"{LAST}/weights.safetensors")
    name = "heads.tiny.decoder.language_model.model.norm.weight"
    assert 0 < float((moved[name] - start[name]).abs().max()) < 2**-7


def test_a_non_finite_loss_stops_both_and_names_the_files(sharded):
    _, out = sharded
    messages = [(out / "bad" / f"error-{rank}.txt").read_text() for rank in (0, 1)]
    assert messages[0] == messages[1]
    assert "Step 2: the loss is nan (patches)" in messages[0] and CULPRIT in messages[0]
    assert (out / "bad" / "run" / "checkpoints" / "step-00000000").is_dir()


def test_the_command_with_fsdp2_gives_the_weights_of_one_process(sharded, scenes, tmp_path):
    sharding, out = sharded
    if sharding != "fsdp2":
        pytest.skip("one command is enough")
    two = out / "command" / "run"
    one = vitsplit.train(command_config(), data=scenes, out=tmp_path / "one")
    alone, together = (load_file(run / "last" / "head.safetensors") for run in (one.run, two))
    assert any("task_head.blocks.1" in name for name in alone)
    assert alone.keys() == together.keys()
    for name, tensor in alone.items():
        torch.testing.assert_close(together[name], tensor, rtol=0, atol=1e-5, msg=name)
    # The bundle can be used like any other.
    assert vitsplit.load(two).predict(next(iter(sorted((scenes / "images" / "val").iterdir())))) is not None


@pytest.mark.gpu
@pytest.mark.skipif(torch.cuda.device_count() < 2, reason="needs two CUDA GPUs")
@pytest.mark.parametrize("sharding", SHARDINGS)
def test_two_gpus_in_bf16(sharding, tmp_path):
    each = settings_of(sharding) | {"sharding": sharding, "precision": "bf16", "kind": "worded"}
    runs = {"gpu": [each], "terminated": [each | {"terminate_at": 6}, each | {"resume": True}]}
    launch(str(SCRIPT), str(tmp_path), json.dumps(runs), environment={"OMP_NUM_THREADS": "1"})
    one = tiny_run(tmp_path / "one", task=WordedTask(), precision="bf16", **settings_of(sharding))
    for name in runs:
        losses = [row["loss"] for row in rows(tmp_path / name / "run")]
        assert losses == pytest.approx([row["loss"] for row in rows(one.folder.path)], rel=2e-2)
        found = load_file(tmp_path / name / "run" / f"{LAST}/weights.safetensors")
        expected = load_file(one.folder.path / f"{LAST}/weights.safetensors")
        assert {key: tensor.shape for key, tensor in found.items()} == {
            key: tensor.shape for key, tensor in expected.items()
        }


@dataclasses.dataclass(frozen=True)
class TwoHeads:
    """Settings of a run with two heads, one with gradient clipping."""

    loop: object

    def optims(self):
        return {"segmentation": OptimConfig(), "depth": OptimConfig(clip_norm=1.0)}


@pytest.mark.parametrize(
    ("changes", "processes", "expected"),
    [
        ({"sharding": "fsdp2"}, 1, "torchrun"),
        ({"sharding": "fsdp2", "precision": "fp16"}, 2, "--precision fp16"),
        ({"sharding": "fsdp2", "compile": True}, 2, "--compile"),
        ({"sharding": "zero2", "ema": 0.9}, 2, "--ema"),
        ({"sharding": "zero3", "ema": 0.9}, 2, "--ema"),
    ],
)
def test_invalid_combinations_are_rejected(changes, processes, expected):
    with pytest.raises(ConfigError, match=rf"--sharding {changes['sharding']}.*{expected}"):
        check_sharding(tiny_config(**changes), processes)


def test_valid_combinations_are_accepted():
    check_sharding(tiny_config(sharding="fsdp2", ema=0.9, precision="bf16", accumulate=2, clip_norm=1.0), 2)
    check_sharding(tiny_config(precision="fp16", compile=True, ema=0.9), 1)
    check_sharding(TwoHeads(tiny_config(sharding="fsdp2").loop), 2)


def test_deepspeed_clips_all_heads_together_with_a_warning():
    with pytest.raises(ConfigError, match=r"--sharding zero3 .*--clip-norm"):
        check_sharding(TwoHeads(tiny_config(sharding="zero3").loop), 2)


def test_zero_without_deepspeed_names_the_extra(monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(ConfigError, match=r"pip install 'vitsplit\[deepspeed\]'"):
        check_sharding(tiny_config(sharding="zero2"), 2)


@pytest.mark.parametrize("variable", ["ACCELERATE_USE_FSDP", "ACCELERATE_USE_DEEPSPEED"])
def test_a_launch_with_its_own_deepspeed_config_is_rejected(monkeypatch, variable):
    monkeypatch.setenv(variable, "true")
    for sharding in ("none", "fsdp2"):
        with pytest.raises(ConfigError, match=variable):
            check_sharding(tiny_config(sharding=sharding), 2)


def test_a_single_process_is_rejected_before_the_run(tmp_path):
    with pytest.raises(ConfigError, match="--sharding fsdp2"):
        tiny_run(tmp_path / "run", sharding="fsdp2")
    assert not (tmp_path / "run" / "config.json").exists()


def test_quantized_and_scalar_parameters_are_rejected():
    for tensor in (torch.zeros(4, 4, dtype=torch.uint8), torch.zeros(())):
        model = nn.Module()
        model.odd = nn.Parameter(tensor, requires_grad=False)
        with pytest.raises(ConfigError, match="odd is"):
            prepare_parameters(model, torch.float32, torch.device("cpu"))


def test_emptying_a_model_keeps_the_tensors_of_its_copy():
    model = tiny_model(WordedTask(tied=True), batch_norm=True)
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    frozen = {name for name, parameter in model.named_parameters() if not parameter.requires_grad}
    other = split_off(model)
    empty(model)
    assert {parameter.device.type for parameter in model.parameters()} == {"meta"}
    assert all(tensor.equal(before[name]) for name, tensor in other.state_dict().items())
    with filled(model, {name: parameter.detach() for name, parameter in other.named_parameters()}):
        assert all(tensor.equal(before[name]) for name, tensor in model.state_dict().items())
        words = model.heads["tiny"].decoder.language_model
        assert words.lm_head.weight is words.model.embed_tokens.weight
        assert {name for name, parameter in model.named_parameters() if not parameter.requires_grad} == frozen
    assert {parameter.device.type for parameter in model.parameters()} == {"meta"}
    # Buffers, such as running statistics, are the same tensors in both.
    other.heads["tiny"].head.norm.running_mean.fill_(7.0)
    assert bool((model.heads["tiny"].head.norm.running_mean == 7.0).all())


def test_frozen_language_model_weights_are_rounded_and_trainable_ones_are_float32():
    model = tiny_model(WordedTask(frozen=True))
    model.heads["tiny"].head.conv.bfloat16()
    prepare_parameters(model, torch.bfloat16, torch.device("cpu"))
    for name, parameter in model.named_parameters():
        rounded = name.startswith("heads.tiny.decoder.language_model.")
        assert parameter.dtype == (torch.bfloat16 if rounded else torch.float32), name
