"""Inputs in folders, lists, tar and Parquet files, and their division."""

from __future__ import annotations

import io
import random
import tarfile
from pathlib import Path

import numpy as np
import pytest
from cluster_inputs import write_parquet, write_photos, write_tar
from PIL import Image

from vitsplit.errors import ConfigError, DataError

pa = pytest.importorskip("pyarrow")
import pyarrow.parquet as pq  # noqa: E402

from vitsplit.cluster.items import Item, find_items  # noqa: E402
from vitsplit.cluster.options import RayOptions, plan_actors  # noqa: E402


@pytest.fixture
def photos(tmp_path: Path) -> list[Path]:
    return write_photos(tmp_path / "photos", 5)


def pixels(item: Item) -> np.ndarray:
    return item.read().permute(1, 2, 0).numpy()


def test_every_form_gives_the_same_images(photos: list[Path], tmp_path: Path) -> None:
    names = [photo.name for photo in photos]
    (tmp_path / "list.txt").write_text("".join(f"photos/{name}\n" for name in names) + "\n", encoding="utf-8")
    write_tar(tmp_path / "shard.tar", photos)
    write_parquet(tmp_path / "bytes.parquet", photos)
    write_parquet(tmp_path / "named.parquet", photos, id=[f"id {name}" for name in names])
    pq.write_table(pa.table({"path": [f"photos/{name}" for name in names]}), tmp_path / "paths.parquet")
    expected = {
        "photos": names,
        "list.txt": [f"photos/{name}" for name in names],
        "shard.tar": [f"shard.tar/train/{name}" for name in names],
        "bytes.parquet": [f"bytes.parquet#{row // 2}/{row % 2}" for row in range(5)],
        "named.parquet": [f"id {name}" for name in names],
        "paths.parquet": [f"photos/{name}" for name in names],
    }
    for source, ids in expected.items():
        items = find_items([str(tmp_path / source)], tmp_path / "out")
        assert [item.id for item in items] == ids
        for item, photo in zip(items, photos, strict=True):
            assert np.array_equal(pixels(item), np.asarray(Image.open(photo)))
    both = find_items([str(tmp_path / "photos"), str(tmp_path / "shard.tar")], tmp_path / "out")
    assert len(both) == 10


def test_invalid_inputs(photos: list[Path], tmp_path: Path) -> None:
    (tmp_path / "empty.txt").write_text("\n", encoding="utf-8")
    (tmp_path / "bad.parquet").write_bytes(b"nonsense")
    (tmp_path / "bad.tar").write_bytes(b"nonsense" * 200)
    pq.write_table(pa.table({"label": [1, 2]}), tmp_path / "labels.parquet")
    (tmp_path / "clip.mp4").write_bytes(b"")
    write_parquet(tmp_path / "twice.parquet", photos[:2], id=["a", "a"])
    for name in ("empty.txt", "bad.parquet", "bad.tar", "labels.parquet", "clip.mp4", "twice.parquet", "missing.tar"):
        with pytest.raises(DataError, match=name):
            find_items([str(tmp_path / name)], tmp_path / "out")
    pq.write_table(pa.table({"image": pa.array([None], pa.binary())}), tmp_path / "null.parquet")
    (item,) = find_items([str(tmp_path / "null.parquet")], tmp_path / "out")
    with pytest.raises(DataError, match="null"):
        item.read()


def test_invalid_ids_are_refused_with_their_file(photos: list[Path], tmp_path: Path) -> None:
    (tmp_path / "list.txt").write_text("photos/a\x07.png\n", encoding="utf-8")
    with tarfile.open(tmp_path / "shard.tar", "w", errors="surrogateescape") as tar:
        tar.add(photos[0], "train/\udcff.png")
    for name, ids in (("newline", ["a\nb", "c"]), ("null", ["a", None])):
        write_parquet(tmp_path / f"{name}.parquet", photos[:2], id=ids)
    for name in ("list.txt", "shard.tar", "newline.parquet", "null.parquet"):
        source = "photos/a" if name == "list.txt" else name
        with pytest.raises(DataError, match=source):
            find_items([str(tmp_path / name)], tmp_path / "out")


def test_columns_of_images(photos: list[Path], tmp_path: Path) -> None:
    """A struct may have a path instead of bytes, relative to the file; other types are refused at once."""
    structs = [{"bytes": None, "path": f"photos/{photos[0].name}"}]
    pq.write_table(pa.table({"image": structs}), tmp_path / "paths.parquet")
    (item,) = find_items([str(tmp_path / "paths.parquet")], tmp_path / "out")
    assert np.array_equal(pixels(item), np.asarray(Image.open(photos[0])))
    for values in ([1, 2], [[1.0]], [True]):
        pq.write_table(pa.table({"image": values}), tmp_path / "other.parquet")
        with pytest.raises(DataError, match=r"other\.parquet"):
            find_items([str(tmp_path / "other.parquet")], tmp_path / "out")


def test_damaged_tar_files(photos: list[Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (item, *_) = find_items([str(write_tar(tmp_path / "shard.tar", photos))], tmp_path / "out")
    with pytest.raises(DataError, match="limit"):
        item._replace(second=1 << 60).read()

    class Broken(io.BytesIO):
        def read(self, size: int | None = -1) -> bytes:
            raise OSError("Input/output error")

    monkeypatch.setattr("vitsplit.cluster.items.open_regular", lambda path: Broken())
    with pytest.raises(DataError, match=r"shard\.tar"):
        item.read()


def test_planned_actors_fit_and_leave_a_cpu() -> None:
    chosen = random.Random(0)
    planned = 0
    for _ in range(300):
        nodes = [
            {"CPU": float(chosen.randint(1, 9)), "GPU": float(chosen.choice([0, 0, 1, 4]))}
            for _ in range(chosen.randint(1, 4))
        ]
        options = RayOptions(
            num_actors=chosen.choice([None, 1, 2, 5]), gpus_per_actor=chosen.choice([None, 0.0, 0.5, 1.0])
        )
        try:
            plan = plan_actors(nodes, options, num_files=100, gpu=True)
        except ConfigError:
            total_gpus = sum(node["GPU"] for node in nodes)
            gpus = options.gpus_per_actor if options.gpus_per_actor is not None else float(total_gpus > 0)
            # Actors with one CPU, and one more CPU, do not fit either.
            cpus, count = int(sum(node["CPU"] for node in nodes)), options.num_actors or 1
            most = sum(min(node["CPU"], node["GPU"] // gpus if gpus else node["CPU"]) for node in nodes)
            assert count > most or count + 1 > cpus
            continue
        planned += 1
        free = [dict(node) for node in nodes]
        for _ in range(plan.count):  # placed one after the other, as a scheduler does
            node = next(each for each in free if each["CPU"] >= plan.cpus and each["GPU"] >= plan.gpus - 1e-9)
            node["CPU"] -= plan.cpus
            node["GPU"] -= plan.gpus
        assert sum(node["CPU"] for node in free) >= 1
    assert planned > 150


def test_default_plans() -> None:
    laptop, server = [{"CPU": 9.0}], [{"CPU": 16.0, "GPU": 2.0}] * 2
    assert vars(plan_actors(laptop, RayOptions(), num_files=50, gpu=True)) == {"count": 4, "cpus": 2, "gpus": 0.0}
    assert vars(plan_actors(laptop, RayOptions(num_actors=2), num_files=50, gpu=True))["cpus"] == 4
    assert vars(plan_actors(server, RayOptions(), num_files=50, gpu=True)) == {"count": 4, "cpus": 7, "gpus": 1.0}
    assert vars(plan_actors(server, RayOptions(), num_files=50, gpu=False))["gpus"] == 0
    assert vars(plan_actors(server, RayOptions(gpus_per_actor=0.5), num_files=3, gpu=True))["count"] == 3
    with pytest.raises(ConfigError, match="num-actors"):
        plan_actors([{"CPU": 2.0}], RayOptions(num_actors=2), num_files=50, gpu=True)
