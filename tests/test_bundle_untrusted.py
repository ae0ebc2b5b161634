"""Untrusted bundles: checked completely before anything is built; paths and downloads in them are not followed."""

from __future__ import annotations

import json
import os
import shutil
import struct
import tracemalloc
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from bundles import write_depth_bundle, write_detection_bundle
from safetensors.torch import load_file, save_file
from vqa_bundles import write_language_model, write_vqa_bundle

import vitsplit
from vitsplit.backbone import hub
from vitsplit.bundle import check_header, read_card
from vitsplit.cli.main import main
from vitsplit.errors import BundleError, ConfigError, WeightsError
from vitsplit.inference import loading

Change = Callable[[dict[str, Any]], object]


@pytest.fixture(scope="module")
def bundles(run: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """One bundle of every task, as written by `save_bundle`."""
    root = tmp_path_factory.mktemp("bundles")
    language = write_language_model(root / "tiny")
    return {
        "segmentation": run / "best",
        "depth": write_depth_bundle(root / "depth"),
        "detection": write_detection_bundle(root / "detection"),
        "vqa": write_vqa_bundle(root / "vqa", language),
    }


@pytest.fixture
def closed(monkeypatch: pytest.MonkeyPatch) -> None:
    """Makes opening a backbone fail."""
    monkeypatch.setattr(loading, "open_backbone", lambda *_, **__: pytest.fail("a backbone was opened"))


def put(*path: Any, to: Any) -> Change:
    """Sets one value of a card."""

    def change(card: dict[str, Any]) -> None:
        for name in path[:-1]:
            card = card[name]
        card[path[-1]] = to

    return change


def drop(*path: Any) -> Change:
    """Removes one value of a card."""

    def change(card: dict[str, Any]) -> None:
        for name in path[:-1]:
            card = card[name]
        del card[path[-1]]

    return change


def changed(bundle: Path, to: Path, *changes: Change) -> Path:
    """A copy of a bundle with another card."""
    shutil.copytree(bundle, to)
    card = json.loads((to / "head.json").read_text())
    for change in changes:
        change(card)
    (to / "head.json").write_text(json.dumps(card))
    return to


ANY_TASK: list[tuple[str, Change, str]] = [
    *[(f"no {key}", drop(key), key) for key in ("format", "task", "backbone", "prior_layers", "metrics", "config")],
    *[(f"format {value!r}", put("format", to=value), "format") for value in ("1", True, 1.0, 0, -1, None, [1])],
    *[(f"task {value!r}", put("task", to=value), "task") for value in ("", "sorting", 3, None, ["depth"], {})],
    *[(f"{key} list", put(key, to=[]), key) for key in ("backbone", "description", "metrics", "config")],
    ("unknown key", put("execute", to="rm -rf"), "execute"),
    ("unknown setting", put("config", "loop", "stepz", to=1), "stepz"),
    ("unknown backbone key", put("backbone", "url", to="http://example.org"), "url"),
    ("unknown description", put("description", "x", to=1), "'x'"),
    *[
        (f"{name} {value!r}", put("config", *place, name, to=value), name.replace("_", "-"))
        for place, name, value in [
            (("loop",), "steps", 10**30), (("loop",), "workers", 10**6), (("loop",), "seed", -1),
            (("loop",), "batch_size", 0), (("optim",), "lr", -1.0), (("optim",), "lr", 1e300),
            (("method",), "num_tuned_layers", 10**9), (("method",), "gate_temperature", 0),
            (("method",), "num_prior_layers", 10**9), (("backbone",), "patch_size", 10**6),
            (("backbone",), "backbone", "x" * 10**5), (("backbone",), "backbone", "dinov2\x1b[2J"),
            (("task",), "crop_size", [10**6, 10**6]), (("task",), "crop_size", [8192, 8192]),
        ]
    ],
    *[
        (f"type of {name}: {value!r}", put("config", *place, name, to=value), name)
        for place, name, value in [
            (("loop",), "steps", True), (("loop",), "steps", 1.5), (("loop",), "steps", "3"), (("loop",), "ema", "x"),
            (("loop",), "compile", 1), (("loop",), "track", "wandb"), (("optim",), "betas", [0.9]),
            (("optim",), "lr", 10**400), (("method",), "selection", "best"), (("task",), "crop_size", [48, None]),
        ]
    ],
    *[
        (f"hash {value!r}", put("backbone", "weights_hash", to=value), "weights_hash")
        for value in ("", "0" * 63, "0" * 65, "G" * 64, "A" * 64, 0, None, "../" * 20)
    ],
    *[(f"name {value!r}", put("backbone", "name", to=value), "name") for value in ("", 3, None, "a\nb", "x" * 2000)],
    *[
        (f"layers {value!r}", put("prior_layers", to=value), "prior_layers")
        for value in ([-1], [1.0], [True], ["2"], [10**9], [5, 2], [2, 2], 3, None, list(range(2000)), [0])
    ],
    *[
        (f"metrics {value!r}"[:60], put("metrics", "miou", to=value), "metrics")
        for value in (10**400, [[[[[[[[[[1]]]]]]]]]], "x" * 5000, {"": 1}, {"a\x1b[31m": 1})
    ],
]  # fmt: skip
OF_TASK: list[tuple[str, str, Change, str]] = [
    *[
        ("segmentation", f"classes {value!r}"[:60], put("description", "classes", to=value), "classes")
        for value in ([], "wall", [1, 2], ["a", "a"], [""], ["a\x00"], ["x" * 5000] * 7, [None] * 7,
                      [f"c{k}" for k in range(30_000)])
    ],
    *[
        ("detection", f"colours {value!r}", put("description", "colours", to=value), "description")
        for value in ([], [[0, 0, 0]], [[0, 0], [0, 0, 0]], [[0, 0, 256], [0, 0, 0]], [[0, 0, -1], [0, 0, 0]],
                      [[0, 0, 1.0], [0, 0, 0]], ["#112233", "#112233"], None)
    ],
    *[
        ("detection", f"ids {value!r}", put("description", "category_ids", to=value), "category_ids")
        for value in ([1], [1, 1], [1, True], [1, 1.7], [1, "2"], [1, 2**40], [-1, 2], "12", None)
    ],
    *[("detection", f"masks {value!r}", put("description", "masks", to=value), "masks") for value in (1, "on", None)],
    ("segmentation", "scales", put("config", "task", "test_scales", to=[1e6]), "test-scales"),
    ("segmentation", "many scales", put("config", "task", "test_scales", to=[1.0] * 10**4), "test-scales"),
    ("segmentation", "no scale", put("config", "task", "test_scales", to=[]), "test-scales"),
    ("segmentation", "large image", put("config", "task", "image_scale", to=[8192, 8192]), "image-scale"),
    ("segmentation", "weights", put("config", "task", "class_weights", to={"wall": -1}), "class-weights"),
    ("detection", "width", put("config", "task", "pyramid_width", to=10**7), "pyramid-width"),
    ("detection", "anchors", put("config", "task", "anchor_sizes", to=[8]), "anchor-sizes"),
    ("detection", "detections", put("config", "task", "max_detections", to=10**9), "max-detections"),
    ("depth", "unit", put("description", "unit", to="feet"), "unit"),
    ("depth", "least", put("description", "min_depth", to=True), "min_depth"),
    ("depth", "range", put("config", "task", "max_depth", to=1e-9), "max-depth"),
    ("depth", "other range", put("description", "max_depth", to=5), "max_depth"),
    ("vqa", "no model", drop("description", "language_model"), "language_model"),
    ("vqa", "model", put("description", "language_model", to="vicuna"), "language_model"),
    ("vqa", "hash", put("description", "language_model", "weights_hash", to="0"), "weights_hash"),
    ("vqa", "grid", put("config", "task", "visual_grid", to=[10**5, 10**5]), "visual-grid"),
    ("vqa", "tokens", put("config", "task", "max_new_tokens", to=10**9), "max-new-tokens"),
    ("vqa", "crop", put("config", "task", "crop_size", to=[10**5, 10**5]), "crop-size"),
]  # fmt: skip


@pytest.mark.usefixtures("closed")
@pytest.mark.parametrize("task", ["segmentation", "depth", "detection", "vqa"])
def test_cards_of_every_task_are_checked_completely(bundles: dict[str, Path], tmp_path: Path, task: str) -> None:
    read_card(bundles[task])
    for index, (what, change, expected) in enumerate(ANY_TASK):
        bundle = changed(bundles[task], tmp_path / str(index), change)
        with pytest.raises(BundleError) as error:
            vitsplit.load(bundle, language_weights=bundles["vqa"].parent / "tiny" if task == "vqa" else None)
        assert "head.json" in str(error.value) and expected in str(error.value), what
        assert len(str(error.value)) < 3000, "a message, not a file"


@pytest.mark.usefixtures("closed")
@pytest.mark.parametrize(("task", "change", "expected"), [(task, *rest) for task, _, *rest in OF_TASK],
                         ids=[f"{task} {what}" for task, what, *_ in OF_TASK])  # fmt: skip
def test_task_descriptions_are_checked(
    bundles: dict[str, Path], tmp_path: Path, task: str, change: Change, expected: str
) -> None:
    bundle = changed(bundles[task], tmp_path / "bundle", change)
    with pytest.raises(BundleError) as error:
        read_card(bundle)
    assert "head.json" in str(error.value) and expected in str(error.value)


@pytest.mark.parametrize(
    "text",
    ["", "[]", "null", "{" * 10**5, '{"format": 1, "format": 1}', '{"format": NaN}', '{"format": ' + "9" * 6000 + "}",
     '{"task": "\\ud800"}', "\ufeff{", "[" * 3000 + "]" * 3000],
)  # fmt: skip
def test_a_card_with_invalid_json_is_rejected(bundles: dict[str, Path], tmp_path: Path, text: str) -> None:
    bundle = changed(bundles["depth"], tmp_path / "bundle")
    (bundle / "head.json").write_text(text, encoding="utf-8")
    with pytest.raises(BundleError, match=r"head\.json"):
        read_card(bundle)


def test_an_oversized_card_is_not_read(bundles: dict[str, Path], tmp_path: Path) -> None:
    bundle = changed(bundles["depth"], tmp_path / "bundle")
    os.truncate(bundle / "head.json", 300 << 20)  # sparse
    tracemalloc.start()
    with pytest.raises(BundleError, match=r"head\.json: larger than"):
        read_card(bundle)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 10 << 20


# ---- tensors


def with_tensors(bundle: Path, to: Path, change: Callable[[dict[str, torch.Tensor]], object]) -> Path:
    """A copy of a bundle with other tensors."""
    shutil.copytree(bundle, to)
    state = load_file(bundle / "head.safetensors")
    change(state)
    save_file(state, to / "head.safetensors")
    return to


def of(name: str, make: Callable[[torch.Tensor], torch.Tensor]) -> Callable[[dict[str, torch.Tensor]], object]:
    return lambda state: state.update({name: make(state[name])})


BIAS, VARIANCE, COUNT = (
    "decoder.classify.bias",
    "decoder.last_norm.running_var",
    "decoder.last_norm.num_batches_tracked",
)


@pytest.mark.usefixtures("closed")
@pytest.mark.parametrize(
    ("change", "expected"),
    [
        (of(BIAS, lambda bias: bias.to(torch.complex64)), BIAS),
        (of(BIAS, lambda bias: bias.to(torch.int32)), BIAS),
        (of(BIAS, lambda bias: bias.bool()), BIAS),
        (of(BIAS, lambda bias: bias.double()), BIAS),
        (of(COUNT, lambda count: count.float()), COUNT),
        (of(BIAS, lambda bias: bias[:-1].clone()), BIAS),
        (of(BIAS, lambda bias: bias[None].clone()), BIAS),
        (lambda state: state.pop(BIAS), BIAS),
        (lambda state: state.update(extra=torch.zeros(3)), "extra"),
        (lambda state: state.update({f"x{k}": torch.zeros(1) for k in range(5000)}), "x0"),
        (lambda state: state.clear(), "missing"),
    ],
)
def test_mismatched_tensors_are_named_before_opening_the_backbone(
    bundles: dict[str, Path], tmp_path: Path, change: Callable[[dict[str, torch.Tensor]], object], expected: str
) -> None:
    bundle = with_tensors(bundles["segmentation"], tmp_path / "bundle", change)
    with pytest.raises(BundleError) as error:
        vitsplit.load(bundle)
    assert "head.safetensors" in str(error.value) and expected in str(error.value)
    assert len(str(error.value)) < 1500


@pytest.mark.parametrize(
    ("name", "value"),
    [(BIAS, float("nan")), (BIAS, float("inf")), (VARIANCE, -1.0), (VARIANCE, float("nan")), (COUNT, -1)],
)
def test_non_finite_tensors_are_rejected(bundles: dict[str, Path], tmp_path: Path, name: str, value: float) -> None:
    def spoil(state: dict[str, torch.Tensor]) -> None:
        state[name].flatten()[-1:] = value

    bundle = with_tensors(bundles["segmentation"], tmp_path / "bundle", spoil)
    with pytest.raises(BundleError, match=rf"head\.safetensors: {name}"):
        vitsplit.load(bundle)


@pytest.mark.usefixtures("closed")
@pytest.mark.parametrize(
    "how", ["header of 2 GB", "no bytes", "trailing bytes", "fifo", "folder", "other json", "hole"]
)
def test_invalid_tensor_files_are_rejected(bundles: dict[str, Path], tmp_path: Path, how: str) -> None:
    bundle = changed(bundles["segmentation"], tmp_path / "bundle")
    file = bundle / "head.safetensors"
    content = file.read_bytes()
    file.unlink()
    if how == "header of 2 GB":
        file.write_bytes(struct.pack("<Q", 2 << 30) + content[8:])
    elif how == "no bytes":
        file.touch()
    elif how == "trailing bytes":
        file.write_bytes(content + b"x")
    elif how == "fifo":
        os.mkfifo(file)
    elif how == "folder":
        file.mkdir()
    elif how == "other json":
        file.write_bytes(struct.pack("<Q", 4) + b"[{}]")
    else:
        header = json.dumps({BIAS: {"dtype": "F32", "shape": [1 << 40], "data_offsets": [0, 4 << 40]}}).encode()
        file.write_bytes(struct.pack("<Q", len(header)) + header)
    with pytest.raises(BundleError, match=r"head\.safetensors"):
        vitsplit.load(bundle)


@pytest.mark.usefixtures("closed")
def test_mismatched_shapes_allocate_no_memory(bundles: dict[str, Path], tmp_path: Path) -> None:
    """A pyramid of 4096 channels would take 1.2 GB."""
    bundle = changed(bundles["detection"], tmp_path / "bundle", put("config", "task", "pyramid_width", to=4096))
    before = peak_bytes()
    with pytest.raises(BundleError, match="does not fit its card"):
        vitsplit.load(bundle)
    assert peak_bytes() - before < 200 << 20


def peak_bytes() -> int:
    import resource

    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def test_valid_bundles_of_all_tasks_are_accepted(bundles: dict[str, Path]) -> None:
    language = bundles["vqa"].parent / "tiny"
    for task, bundle in bundles.items():
        loaded = vitsplit.load(bundle, language_weights=language if task == "vqa" else None)
        check_header(bundle, loaded.model)
        stored = load_file(bundle / "head.safetensors")
        state = loaded.model.state_dict()
        assert stored and all(torch.equal(state[name].float(), tensor.float()) for name, tensor in stored.items())


# ---- paths in a card are not followed


def test_paths_in_a_card_are_not_followed(bundles: dict[str, Path], tmp_path: Path) -> None:
    place = tmp_path / "elsewhere"
    bundle = changed(
        bundles["vqa"],
        tmp_path / "bundle",
        put("config", "backbone", "weights", to=str(place)),
        put("config", "backbone", "random_weights", to=False),
        put("config", "loop", "cache_folder", to=str(place)),
        *[put("config", "task", name, to=str(place)) for name in ("start_from", "language_weights", "image_folder")],
        put("config", "task", "train_file", to="../../secret.jsonl"),
        put("config", "task", "val_file", to="deep/val.jsonl"),
    )
    card = read_card(bundle)
    assert str(place) not in json.dumps(vitsplit.bundle.flat_to_dict(card.config)) and "secret" not in str(card.config)
    assert card.config.task.val_file == "deep/val.jsonl", "a name inside of the data"
    assert card.paths == {
        **{f"--{name}": str(place) for name in ("weights", "cache-folder", "start-from", "language-weights")},
        "--image-folder": str(place),
        "--train-file": "../../secret.jsonl",
    }


def test_saved_cards_have_no_folders_of_the_machine(tmp_path: Path) -> None:
    language = write_language_model(tmp_path / "annika" / "tiny")
    settings = {
        "language_model": str(language),
        "language_weights": str(language),
        "start_from": str(tmp_path / "first"),
    }
    bundle = write_vqa_bundle(tmp_path / "vqa", language, task=settings)
    assert (
        "annika" not in (bundle / "head.json").read_text() and str(tmp_path) not in (bundle / "head.json").read_text()
    )
    card = read_card(bundle)
    assert card.paths == {"--language-weights": "tiny", "--start-from": "first"}
    assert card.config.task.language_model == card.description["language_model"]["name"] == "tiny"
    assert list(vitsplit.load(bundle, language_weights=language)) == ["vqa"]


def test_weights_in_a_card_must_be_given_explicitly(bundles: dict[str, Path], tmp_path: Path) -> None:
    file = tmp_path / "mine.safetensors"
    backbone = vitsplit.load(bundles["segmentation"]).backbone
    save_file(backbone.model.state_dict(), file)
    bundle = changed(
        bundles["segmentation"],
        tmp_path / "bundle",
        put("config", "backbone", "weights", to=str(file)),
        put("config", "backbone", "random_weights", to=False),
    )
    with pytest.raises(WeightsError, match="--weights PATH") as error:
        vitsplit.load(bundle)
    assert str(file) in str(error.value)
    assert vitsplit.load(bundle, weights=file).backbone.info.weights_hash == backbone.info.weights_hash


@pytest.mark.parametrize("name", ["vit_tiny_patch16_224", "vit_tiny_patch16_224.augreg_in21k"])
def test_a_card_triggers_no_download(
    bundles: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    monkeypatch.setattr(hub, "fetch", lambda repository: pytest.fail(f"{repository} was fetched"))
    monkeypatch.setattr(hub, "cached_file", lambda repository: None)
    bundle = changed(
        bundles["segmentation"],
        tmp_path / "bundle",
        put("config", "backbone", "random_weights", to=False),
        put("config", "backbone", "backbone", to=name),
    )
    with pytest.raises(WeightsError, match="--weights PATH") as error:
        vitsplit.load(bundle)
    assert name in str(error.value)


@pytest.mark.parametrize("name", ["stranger/model", "/etc", "../model", "models/mine"])
def test_a_card_triggers_no_language_model_download(
    bundles: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    monkeypatch.setattr(
        "vitsplit.tasks.vqa.task.find_language_model", lambda config: pytest.fail(f"{config} was looked for")
    )
    bundle = changed(
        bundles["vqa"],
        tmp_path / "bundle",
        put("config", "task", "language_weights", to=None),
        put("config", "task", "language_model", to=name),
    )
    with pytest.raises(WeightsError, match="--language-model NAME") as error:
        vitsplit.load(bundle)
    assert name in str(error.value) and "--language-weights PATH" in str(error.value)


def test_a_language_model_given_by_the_user_is_loaded(
    bundles: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = []

    def find(config: Any) -> Any:
        asked.append((config.language_model, config.language_weights))
        raise WeightsError("not here")

    monkeypatch.setattr("vitsplit.tasks.vqa.task.find_language_model", find)
    with pytest.raises(WeightsError, match="not here"):
        vitsplit.load(bundles["vqa"], language_model="friend/model")
    assert asked == [("friend/model", None)]
    with pytest.raises(ConfigError, match="--language-model"):
        vitsplit.load(bundles["depth"], language_model="friend/model")


def test_a_hash_mismatch_is_rejected_before_building_the_head(
    bundles: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    bundle = changed(bundles["segmentation"], tmp_path / "bundle", put("backbone", "weights_hash", to="0" * 64))
    monkeypatch.setattr(loading, "open_head", lambda *_: pytest.fail("a head was built"))
    monkeypatch.setattr("vitsplit.inference.predictor.open_head", lambda *_: pytest.fail("a head was built"))
    with pytest.raises(BundleError, match="0" * 16):
        vitsplit.load(bundle)


def test_the_command_line_prints_one_message(
    bundles: dict[str, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    bundle = changed(bundles["segmentation"], tmp_path / "bundle", put("config", "loop", "steps", to=10**30))
    for words in (["info", str(bundle)], ["evaluate", str(bundle), "--data", "."], ["predict", str(bundle), "a.jpg"]):
        assert main(words) == 2
        output = capsys.readouterr().err
        assert (
            output.startswith("error: ") and "head.json" in output and "--steps" in output and "Traceback" not in output
        )
