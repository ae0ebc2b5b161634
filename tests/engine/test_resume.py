"""A run that is killed and resumed gives the same result as an uninterrupted one, bit for bit."""

import json
import multiprocessing
import os
import signal
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from tiny import TinyTask, tiny_run

from vitsplit import precision
from vitsplit.engine import checkpoint as checkpoint_module
from vitsplit.engine.run_folder import RunFolder
from vitsplit.errors import RunError
from vitsplit.saved_config import upgraded_name

SETTINGS = {
    "steps": 13,
    "accumulate": 2,
    "ema": 0.9,
    "eval_every": 4,
    "checkpoint_every": 3,
    "log_every": 2,
    "head": {"dropout": 0.3, "batch_norm": True},
}


def die():
    os.kill(os.getpid(), signal.SIGKILL)


class KilledAtFetch(TinyTask):
    def __init__(self, micro_batch):
        super().__init__()
        self.left = micro_batch

    def collate(self, samples):
        self.left -= 1
        return super().collate(samples) if self.left else die()


class KilledInEvaluation(TinyTask):
    def metric(self):
        return die()


def kill_at_call(owner, name, number):
    """Kills the process after the n-th call of a function."""
    original, left = getattr(owner, name), [number]

    def call(*args, **options):
        result = original(*args, **options)
        left[0] -= 1
        return result if left[0] else die()

    setattr(owner, name, call)


def kill_at_access(folder, number):
    """Kills the process before the n-th access to a file in a folder; returns the number of accesses."""
    inside, seen = str(folder), [0]

    def hook(event, arguments):
        if event in ("open", "os.mkdir", "os.rename", "os.remove") and str(arguments[0]).startswith(inside):
            seen[0] += 1
            if seen[0] == number:
                die()

    sys.addaudithook(hook)
    return seen


def count_accesses(out, queue):
    seen = kill_at_access(out, 0)
    torch.set_num_threads(1)
    before_config = []
    with pytest.MonkeyPatch.context() as patch:
        original = RunFolder.write_config
        patch.setattr(RunFolder, "write_config", lambda *given: (original(*given), before_config.append(seen[0])))
        tiny_run(out, **SETTINGS)
    queue.put((before_config[0], seen[0]))


def run_in_process(out, how, resume):
    torch.set_num_threads(1)
    kind, number = how
    task = TinyTask()
    if kind == "fetch":
        task = KilledAtFetch(number)
    elif kind == "evaluation":
        task = KilledInEvaluation()
    elif kind == "tensors":  # a checkpoint has three files of tensors; bundles are not written by this function
        kill_at_call(checkpoint_module, "save_file", number)
    elif kind == "access":
        kill_at_access(out, number)
    elif kind == "rename":
        kill_at_call(Path, "rename", number)
    tiny_run(out, task=task, resume=resume, **SETTINGS)


def killed(out, how, resume=False):
    process = multiprocessing.get_context("fork").Process(target=run_in_process, args=(out, how, resume))
    process.start()
    process.join()
    assert process.exitcode == -signal.SIGKILL, "the run was not killed where it should have been"


def without_clock(rows):
    clocks = {"seconds", "images_per_second", "peak_memory_gb"}
    return [{key: value for key, value in row.items() if key not in clocks} for row in rows]


def assert_same_end(run, uninterrupted):
    for name, tensor in uninterrupted.weights.items():
        assert tensor.equal(run.weights[name]), name
    final = "step-00000013"
    for file in ("weights", "optimizer", "ema"):
        expected = load_file(uninterrupted.folder.checkpoints / final / f"{file}.safetensors")
        found = load_file(run.folder.checkpoints / final / f"{file}.safetensors")
        assert expected.keys() == found.keys()
        assert all(tensor.equal(found[name]) for name, tensor in expected.items()), file
    for bundle in ("best", "last"):
        expected = load_file(uninterrupted.folder.path / bundle / "head.safetensors")
        found = load_file(run.folder.path / bundle / "head.safetensors")
        assert all(tensor.equal(found[name]) for name, tensor in expected.items()), bundle
    for kind in ("loss", "eval"):
        assert without_clock(run.rows(kind)) == without_clock(uninterrupted.rows(kind))


@pytest.fixture(scope="module")
def uninterrupted(tmp_path_factory):
    torch.set_num_threads(1)
    return tiny_run(tmp_path_factory.mktemp("uninterrupted") / "run", **SETTINGS)


@pytest.mark.parametrize(
    ("how", "goes_on_from"),
    [
        (("fetch", 1), 0),  # in the first step
        (("fetch", 6), 0),  # in the third, before its second micro-batch
        (("fetch", 17), 6),
        (("fetch", 26), 12),  # in the last step
        (("evaluation", 0), 3),
        (("tensors", 1), None),  # in the middle of the first checkpoint, of step 0
        (("tensors", 8), 3),  # in the middle of the third, of step 6
        (("rename", 2), 3),
        (("rename", 5), 6),
        (("rename", 6), 6),  # where the old `last` is away and the new one not yet there
    ],
    ids=str,
)
def test_a_killed_and_resumed_run_equals_an_uninterrupted_one(tmp_path, uninterrupted, how, goes_on_from):
    killed(tmp_path / "run", how)
    resumed = tiny_run(tmp_path / "run", resume=True, **SETTINGS)
    assert (f"resuming from step {goes_on_from} " in resumed.printed) == (goes_on_from is not None)
    assert_same_end(resumed, uninterrupted)
    leftovers = [path.name for path in (tmp_path / "run").rglob(".*")]
    assert leftovers == []


def test_a_kill_before_any_file_access_can_be_resumed(tmp_path, uninterrupted):
    """Every access until config.json is written, then every twentieth."""
    context = multiprocessing.get_context("fork")
    queue = context.Queue()
    counting = context.Process(target=count_accesses, args=(tmp_path / "counted", queue))
    counting.start()
    before_config, accesses = queue.get(timeout=60)
    counting.join()
    assert 5 <= before_config < accesses / 5
    for number in (*range(1, before_config + 1), *range(before_config + 7, accesses, 20)):
        out = tmp_path / f"run{number}"
        killed(out, ("access", number))
        resumed = tiny_run(out, resume=out.exists(), **SETTINGS)
        assert_same_end(resumed, uninterrupted)
        assert [path.name for path in out.rglob(".*")] == [], number


def test_repeated_kills_can_be_resumed(tmp_path, uninterrupted):
    killed(tmp_path / "run", ("fetch", 9))
    killed(tmp_path / "run", ("fetch", 5), resume=True)
    killed(tmp_path / "run", ("tensors", 5), resume=True)
    killed(tmp_path / "run", ("evaluation", 0), resume=True)
    assert_same_end(tiny_run(tmp_path / "run", resume=True, **SETTINGS), uninterrupted)


def test_a_kill_by_another_process_can_be_resumed(tmp_path, uninterrupted):
    """A real signal from another process, at an arbitrary time."""
    for attempt in range(3):
        out = tmp_path / f"run{attempt}"
        process = multiprocessing.get_context("fork").Process(target=run_in_process, args=(out, ("", 0), False))
        process.start()
        metrics = out / "metrics.jsonl"
        while process.is_alive() and not (metrics.exists() and len(metrics.read_text().splitlines()) > 2 * attempt):
            process.join(0.002)
        process.kill()
        process.join()
        assert_same_end(tiny_run(out, resume=True, **SETTINGS), uninterrupted)


def test_a_finished_run_is_unchanged(tmp_path):
    first = tiny_run(tmp_path / "run", **SETTINGS)
    task = TinyTask()
    again = tiny_run(tmp_path / "run", resume=True, task=task, **SETTINGS)
    assert task.seen == []
    assert again.result.state.finished and again.result.best_metrics == first.result.best_metrics
    assert len(again.rows("loss")) == len(first.rows("loss"))


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ({"lr": 0.5}, "optim.lr: 0.01 in the run, 0.5 now"),
        ({"batch_size": 8}, "loop.batch_size: 4 in the run, 8 now"),
        ({"seed": 3}, "loop.seed: 0 in the run, 3 now"),
        ({"ema": None}, "loop.ema: 0.9 in the run, null now"),
        ({"betas": (0.9, 0.99)}, r"optim.betas: \[0.9, 0.999\] in the run, \[0.9, 0.99\] now"),
        ({"steps": 20}, "loop.steps: 13 in the run, 20 now.*--out"),
    ],
)
def test_settings_that_change_the_result_are_rejected(uninterrupted, change, named):
    with pytest.raises(RunError, match=named):
        tiny_run(uninterrupted.folder.path, resume=True, **(SETTINGS | change))


def test_settings_that_do_not_change_weights_can_differ(tmp_path, uninterrupted):
    killed(tmp_path / "run", ("fetch", 9))
    change = {"log_every": 1, "checkpoint_every": 2, "workers": 1, "track": ("tensorboard",)}
    resumed = tiny_run(tmp_path / "run", resume=True, **(SETTINGS | change))
    assert all(tensor.equal(resumed.weights[name]) for name, tensor in uninterrupted.weights.items())


def test_other_data_or_another_backbone_is_rejected(tmp_path, uninterrupted, monkeypatch):
    class Fewer(TinyTask):
        def train_data(self):
            data = super().train_data()
            data.count = 22
            return data

    with pytest.raises(RunError, match=r"23 images.* 22"):
        tiny_run(uninterrupted.folder.path, resume=True, task=Fewer(), **SETTINGS)
    state = uninterrupted.folder.checkpoints / "step-00000013" / "state.json"
    original = state.read_text()
    state.write_text(original.replace("hash-of-tiny", "other-hash"))
    with pytest.raises(RunError, match=r"other-hash.*hash-of-tiny"):
        tiny_run(uninterrupted.folder.path, resume=True, **SETTINGS)
    state.write_text(original)


class Described(TinyTask):
    def __init__(self, *classes):
        super().__init__()
        self.classes = classes

    def describe(self):
        return {"classes": self.classes, "sides": 4}


@pytest.mark.parametrize(
    ("classes", "named"),
    [
        (("dark", "gray", "bright"), r'\(classes\.1: "grey" in the run, "gray" now\)'),
        (("dark", "grey", "bright", "none"), r'\(classes\.3: null in the run, "none" now\)'),
        (("dark", "bright", "grey"), r'classes\.1: "grey" .* "bright" now; classes\.2: "bright" .* "grey" now\)'),
        (("dark", "grey"), r'\(classes\.2: "bright" in the run, null now\)'),
        (tuple("abcdefgh"), r"classes\.4: .*; and 3 more\)"),
    ],
)
def test_other_classes_are_rejected_without_blaming_the_checkpoint(uninterrupted, classes, named):
    with pytest.raises(RunError, match=named) as error:
        tiny_run(uninterrupted.folder.path, resume=True, task=Described(*classes), **SETTINGS)
    assert "Delete" not in str(error.value) and "classes.json" in str(error.value)


def test_errors_do_not_advise_to_delete_a_valid_checkpoint(tmp_path):
    """The message for an intact checkpoint of another model or version does not advise to delete it."""
    run = tiny_run(tmp_path / "run", steps=2)
    with pytest.raises(RunError, match=r"head\.norm\.running_mean") as error:
        tiny_run(tmp_path / "run", steps=2, resume=True, head={"batch_norm": True})
    state = run.folder.checkpoints / "step-00000002" / "state.json"
    state.write_text(state.read_text().replace('"samples"', '"number_of_samples"'))
    with pytest.raises(RunError, match=r"version of vitsplit.*number_of_samples") as also:
        tiny_run(tmp_path / "run", steps=2, resume=True)
    assert not any("elete" in str(each.value) for each in (error, also))


def test_the_precision_resolved_from_auto_is_kept(tmp_path, monkeypatch):
    monkeypatch.setattr(precision, "bf16_speedup", lambda: 2.0)
    first = tiny_run(tmp_path / "run", precision="auto", steps=4)
    assert first.folder.read_config()["loop"]["precision"] == "bf16"
    assert "precision: bf16 (auto)" in first.printed
    monkeypatch.setattr(precision, "bf16_speedup", lambda: 0.5)
    again = tiny_run(tmp_path / "run", resume=True, precision="auto", steps=4)
    assert "precision: bf16" in again.printed
    with pytest.raises(RunError, match=r"loop\.precision"):
        tiny_run(tmp_path / "run", resume=True, precision="fp32", steps=4)


def test_a_damaged_checkpoint_is_named_and_the_previous_one_is_valid(tmp_path, uninterrupted):
    killed(tmp_path / "run", ("fetch", 17))
    newest, _ = sorted((tmp_path / "run" / "checkpoints").iterdir(), reverse=True)
    weights = newest / "weights.safetensors"
    weights.write_bytes(weights.read_bytes()[:100])
    with pytest.raises(RunError, match=f"{newest.name} cannot be read.*[Dd]elete"):
        tiny_run(tmp_path / "run", resume=True, **SETTINGS)
    for file in newest.iterdir():
        file.unlink()
    newest.rmdir()
    assert_same_end(tiny_run(tmp_path / "run", resume=True, **SETTINGS), uninterrupted)


def test_every_row_is_valid_json(uninterrupted):
    for line in uninterrupted.folder.metrics_file.read_text().splitlines():
        assert "step" in json.loads(line)


def test_a_run_of_a_version_with_fewer_settings_resumes(tmp_path):
    settings = {"steps": 4, "eval_every": 4}
    config_file = tiny_run(tmp_path / "run", **settings).folder.config_file

    def forget(*names):
        config = json.loads(config_file.read_text())
        for group, name in names:
            (config if group in config else config["heads"]["tiny"])[group].pop(name)
        config_file.write_text(json.dumps(config))

    forget(("loop", "sharding"), ("loop", "max_seconds"), ("optim", "language_model_lr_scale"))
    tiny_run(tmp_path / "run", resume=True, **settings)
    forget(("loop", "accumulate"))
    with pytest.raises(RunError, match=r"loop\.accumulate: 1 in the run, 2 now"):
        tiny_run(tmp_path / "run", resume=True, accumulate=2, **settings)


def as_an_earlier_version_wrote_it(run):
    """A single head had no name in tensors, results and settings."""
    for file in run.glob("checkpoints/*/*.safetensors"):
        tensors = {name.removeprefix("heads.tiny."): tensor for name, tensor in load_file(file).items()}
        assert any(name.startswith("decoder.") for name in tensors)
        save_file(tensors, file)
    for file in run.glob("checkpoints/*/state.json"):
        state = json.loads(file.read_text())
        if state["standings"]:
            state["standings"] = {"": state["standings"]["tiny"]}
        (state["description"],) = state["description"].values()
        file.write_text(json.dumps(state))
    config = json.loads((run / "config.json").read_text())
    (head,) = config.pop("heads").values()
    del config["geometry"], head["task"]["kind"]
    (run / "config.json").write_text(json.dumps({**head, **config}))


def test_a_run_of_an_earlier_version_resumes_exactly(tmp_path):
    uninterrupted = tiny_run(tmp_path / "uninterrupted", **SETTINGS)
    killed(tmp_path / "run", ("fetch", 16))
    as_an_earlier_version_wrote_it(tmp_path / "run")
    assert_same_end(tiny_run(tmp_path / "run", resume=True, **SETTINGS), uninterrupted)


def test_former_tensor_names_of_several_heads_are_read():
    heads = ("rooms", "depth")
    assert upgraded_name("models.depth.decoder.weight/exp_avg", heads) == "heads.depth.decoder.weight/exp_avg"
    assert upgraded_name("heads.depth.decoder.weight", heads) == "heads.depth.decoder.weight"
