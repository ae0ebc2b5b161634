"""The work of an actor without Ray, and the command on a local Ray, whose processes are killed."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from bundles import write_segmentation_bundle
from cluster_inputs import write_photos, write_tar

import vitsplit
from vitsplit.cli.main import main
from vitsplit.inference.sources import find_source

pq = pytest.importorskip("pyarrow.parquet")
from vitsplit.cluster import ray_engine  # noqa: E402
from vitsplit.cluster.items import Item, find_items  # noqa: E402
from vitsplit.cluster.options import RayOptions  # noqa: E402
from vitsplit.cluster.parquet_folder import take_over  # noqa: E402
from vitsplit.cluster.predictor import Predictor  # noqa: E402
from vitsplit.cluster.ray_engine import BlockWriter, divide  # noqa: E402

MADE_BY = {"bundles": {"rooms": "ab" * 32}}


class Killed(BaseException):
    """Ends a block as the death of its process does."""


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_segmentation_bundle(tmp_path_factory.mktemp("bundles") / "rooms" / "best").parent


@pytest.fixture(scope="module")
def loaded(run: Path) -> Predictor:
    return Predictor(run, device="cpu")


def block(items: Sequence[Item]) -> dict[str, Any]:
    return {"block": [json.dumps(items)]}


def table(folder: Path) -> dict[str, dict[str, Any]]:
    rows = pq.read_table(folder).to_pylist()
    assert len({row["id"] for row in rows}) == len(rows)
    return {row["id"]: row for row in rows}


def test_blocks_are_all_inputs_once() -> None:
    for count in (1, 2, 7, 100, 5000):
        items = [Item(str(index), "x") for index in range(count)]
        for options in (RayOptions(), RayOptions(rows_per_file=3)):
            blocks = divide(items, options, [{"CPU": 2.0}, {"CPU": 2.0}])
            assert [item for each in blocks for item in each] == items
            assert max(map(len, blocks)) <= (options.rows_per_file or 256)


def test_an_actor_writes_a_block_once(run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    photos = write_photos(tmp_path / "photos", 3)
    (tmp_path / "photos" / "03.png").write_bytes(b"nonsense")
    items = find_items([str(tmp_path / "photos")], tmp_path / "out")
    with take_over(tmp_path / "out", MADE_BY) as (destination, _):
        writer = BlockWriter({"bundles": [run], "device": "cpu"}, destination, 1)
        first = writer(block(items))
        assert (first["rows"], first["errors"]) == ([4], [1]) and "03.png" in first["first"][0]
        monkeypatch.setattr(writer.predictor, "records", lambda *_: pytest.fail("predicted again"))
        assert writer(block(items)) == first
    found, model = table(tmp_path / "out"), vitsplit.load(run, device="cpu")
    for photo in photos:
        assert found[photo.name]["segmentation"]["png"] == model.predict(photo)["segmentation"].png()
    assert found["03.png"]["error"] and found["03.png"]["segmentation"] is None


@pytest.mark.parametrize("deadly", [{"01.png"}, {"00.png", "03.png"}, set()])
def test_images_that_kill_their_process_get_an_error(
    loaded: Predictor, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, deadly: set[str]
) -> None:
    """Such as by a lack of memory: Ray repeats the block, which must end at some time."""
    monkeypatch.setattr(ray_engine, "Predictor", lambda: loaded)
    write_photos(tmp_path / "photos", 4)
    items = find_items([str(tmp_path / "photos")], tmp_path / "out")
    read = Item.read

    def dies(item: Item) -> Any:
        if item.id in deadly:
            raise Killed
        return read(item)

    monkeypatch.setattr(Item, "read", dies)
    deaths = 0
    with take_over(tmp_path / "out", MADE_BY) as (destination, _):
        while True:
            writer = BlockWriter({}, destination, 1)
            try:
                writer(block(items))
                break
            except Killed:
                deaths += 1
                assert deaths < 10
    found = table(tmp_path / "out")
    assert {name for name, row in found.items() if row["error"]} == deadly and len(found) == 4
    assert all((row["segmentation"] is None) == (name in deadly) for name, row in found.items())


@pytest.mark.parametrize("deaths", [1, 2])
def test_deaths_while_the_model_loads_are_not_those_of_images(
    loaded: Predictor, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, deaths: int
) -> None:
    write_photos(tmp_path / "photos", 2)
    items = find_items([str(tmp_path / "photos")], tmp_path / "out")
    left = iter(range(deaths))

    def load() -> Predictor:
        if next(left, None) is not None:
            raise Killed
        return loaded

    monkeypatch.setattr(ray_engine, "Predictor", load)
    with take_over(tmp_path / "out", MADE_BY) as (destination, _):
        for _ in range(deaths):
            with pytest.raises(Killed):
                BlockWriter({}, destination, 1)(block(items))
        found = BlockWriter({}, destination, 1)(block(items))
        if deaths == 1:
            assert found["failed"] == [""]
            assert not any(row["error"] for row in table(tmp_path / "out").values())
        else:
            assert "--num-actors" in found["failed"][0] and found["rows"] == [0]
            assert not [*(tmp_path / "out").glob("part-*")]


def test_bundles_that_change_end_the_command(run: Path, loaded: Predictor, tmp_path: Path) -> None:
    write_photos(tmp_path / "photos", 1)
    items = find_items([str(tmp_path / "photos")], tmp_path / "out")
    bundle = write_segmentation_bundle(tmp_path / "rooms" / "best", seed=3)
    ids, settings = find_source([bundle]).ids(), {"bundles": [bundle], "device": "cpu"}
    with take_over(tmp_path / "out", MADE_BY) as (destination, _):
        write_segmentation_bundle(bundle, seed=4)
        found = BlockWriter(settings, destination, 1, ids)(block(items))
        assert str(bundle) in found["failed"][0] and found["rows"] == [0]
        assert not [*(tmp_path / "out").glob("part-*")]
        assert BlockWriter(settings, destination, 1, find_source([bundle]).ids())(block(items))["rows"] == [1]


def test_weights_of_actors_are_at_absolute_paths(run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Actors have another current folder."""
    write_photos(tmp_path / "photos", 1)
    (tmp_path / "weights.pth").touch()
    monkeypatch.chdir(tmp_path)
    given: list[Any] = []
    monkeypatch.setattr("vitsplit.cli.predict_ray.predict_with_ray", lambda *words, **_: given.append(words[3]) or 0)
    for weights, expected in (("weights.pth", str(tmp_path / "weights.pth")), ("random", "random")):
        words = ["--engine", "ray", "--out", "out", "--weights", weights, "--language-weights", weights]
        assert main(["predict", str(run), "photos", *words]) == 0
        assert (given[-1]["weights"], given[-1]["language_weights"]) == (expected, expected)


def test_exported_folders_need_no_gpu(run: Path, tmp_path: Path) -> None:
    (tmp_path / "card.json").touch()
    assert ray_engine._may_use_gpu({"bundles": [str(run)], "device": None})
    assert not ray_engine._may_use_gpu({"bundles": [str(run)], "device": "cpu"})
    assert not ray_engine._may_use_gpu({"bundles": [str(tmp_path)], "device": None})


def test_what_fails_for_every_block_is_told(run: Path, tmp_path: Path) -> None:
    """Such as a device that does not exist, or a folder that another command has taken over."""
    write_photos(tmp_path / "photos", 2)
    items = find_items([str(tmp_path / "photos")], tmp_path / "out")
    with take_over(tmp_path / "out", MADE_BY) as (destination, _):
        assert (
            "cuda:99" in BlockWriter({"bundles": [run], "device": "cuda:99"}, destination, 1)(block(items))["failed"][0]
        )
        writer = BlockWriter({"bundles": [run], "device": "cpu"}, destination, 1)
    failed = writer(block(items))
    assert failed["failed"][0] and failed["rows"] == [0]
    assert not [*(tmp_path / "out").glob("part-*")]


def test_options_are_checked_before_ray_is_started(run: Path, tmp_path: Path) -> None:
    write_photos(tmp_path / "photos", 2)
    base = ["predict", str(run), str(tmp_path / "photos")]
    out = ["--out", str(tmp_path / "out")]
    for words in (
        [*base, *out, "--num-actors", "2"],
        [*base, *out, "--dry-run"],
        [*base, "--engine", "ray"],
        [*base, *out, "--engine", "ray", "--shard", "1/2"],
        [*base, *out, "--engine", "ray", "--tile", "64", "64"],
        [*base, *out, "--engine", "ray", "--runtime", "onnx"],
        [*base, *out, "--engine", "ray", "--ask", "What is it?"],
        [*base, *out, "--engine", "ray", "--num-actors", "0"],
    ):
        assert main(words) == 2
    assert not (tmp_path / "out").exists()


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="finds the processes of Ray in /proc")
def test_kill_9_loses_and_doubles_nothing(run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """First an actor and then the driver are killed; the command is repeated until it ends by itself."""
    pytest.importorskip("ray")
    monkeypatch.syspath_prepend(str(Path(__file__).parents[2] / "benchmarks"))
    from ray_predict import descendants

    photos = write_photos(tmp_path / "photos", 16)
    tar = write_tar(tmp_path / "shard.tar", photos[:8])
    out = tmp_path / "out"
    command = [sys.executable, "-m", "vitsplit", "predict", run, tmp_path / "photos", tar, "--engine", "ray",
               "--out", out, "--num-actors", "1", "--rows-per-file", "2", "--device", "cpu"]  # fmt: skip
    process = subprocess.Popen(list(map(str, command)))
    killed = False
    while process.poll() is None:
        parts = len([*out.glob("part-*.parquet")])
        if parts >= 1 and not killed:
            actors = [pid for pid, name in descendants(process.pid).items() if "MapWorker" in name]
            killed = bool(actors)
            for pid in actors:
                os.kill(pid, signal.SIGKILL)
        if killed and parts >= 4:
            process.kill()
        time.sleep(0.02)
    assert killed and len([*out.glob("part-*.parquet")]) < 12
    assert main([*map(str, command[3:])]) == 0
    found = table(out)
    assert {*found} == {photo.name for photo in photos} | {f"shard.tar/train/{photo.name}" for photo in photos[:8]}
    assert not any(row["error"] for row in found.values())
    for photo in photos[:8]:
        assert found[photo.name]["segmentation"] == found[f"shard.tar/train/{photo.name}"]["segmentation"]
    assert not [*out.glob(".staging*")]


@pytest.mark.slow
def test_the_pipeline_of_the_documentation(run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    ray = pytest.importorskip("ray")
    photos = write_photos(tmp_path / "photos", 6)
    (tmp_path / "photos" / "bad.png").write_bytes(b"nonsense")
    (tmp_path / "runs").mkdir()
    (tmp_path / "runs" / "rooms").symlink_to(run)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("RAY_USAGE_STATS_ENABLED", "0")
    text = (Path(__file__).parents[2] / "docs" / "scale.md").read_text(encoding="utf-8")
    (example,) = (each for each in re.findall(r"```python\n(.*?)```", text, flags=re.DOTALL) if "map_batches" in each)
    ray.init(address="local", num_cpus=3, include_dashboard=False, object_store_memory=256 << 20)
    try:
        exec(example, {})
    finally:
        ray.shutdown()
    rows = {Path(row["path"]).name: row for row in pq.read_table("pipeline").to_pylist()}
    model = vitsplit.load(run, device="cpu")
    assert {*rows} == {photo.name for photo in photos} | {"bad.png"} and rows["bad.png"]["error"]
    for photo in photos:
        assert rows[photo.name]["segmentation"]["png"] == model.predict(photo)["segmentation"].png()
