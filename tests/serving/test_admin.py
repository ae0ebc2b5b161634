"""Bundles that are added and removed while the server runs, and folders that must not be opened."""

from __future__ import annotations

import io
import os
import shutil
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from functools import partial
from types import SimpleNamespace

import numpy as np
import psutil
import pytest
import torch
from bundles import write_depth_bundle, write_segmentation_bundle
from safetensors.torch import load_file, save_file
from served import expected, photo, serving
from starlette.testclient import TestClient

from vitsplit.errors import BundleError, ConfigError
from vitsplit.inference.sources import find_source
from vitsplit.serving.admin import Administration, check_administration, read_token
from vitsplit.serving.app import make_app
from vitsplit.serving.limits import Limits
from vitsplit.serving.service import Service
from vitsplit.serving.shared_changes import SharedChanges

TOKEN = "0123456789abcdef-secret"
HEADERS = {"Authorization": f"Bearer {TOKEN}"}


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    folder = tmp_path_factory.mktemp("root") / "of the bundles"
    write_depth_bundle(folder / "team" / "far", seed=5)
    write_segmentation_bundle(folder / "rooms", seed=6)
    write_segmentation_bundle(folder / "other-backbone", backbone="vit_small_patch16_224", seed=6)
    nan = folder / "nan"
    shutil.copytree(folder / "rooms", nan)
    tensors = load_file(nan / "head.safetensors")
    next(tensor for tensor in tensors.values() if tensor.is_floating_point()).view(-1)[0] = torch.nan
    save_file(tensors, nan / "head.safetensors")
    shutil.copytree(folder / "rooms", folder / "damaged")
    (folder / "damaged" / "head.json").write_text("{")
    outside = write_segmentation_bundle(tmp_path_factory.mktemp("outside") / "secret", seed=7)
    (folder / "link").symlink_to(outside)
    (folder / "links").mkdir()
    for name in ("head.json", "head.safetensors"):
        (folder / "links" / name).symlink_to(outside / name)
    (folder / "best-link").mkdir()
    (folder / "best-link" / "best").symlink_to(outside)
    return folder


@pytest.fixture
def client(runs, root):
    source = find_source({"rooms": runs["rooms"]})
    service = Service(source.load(), source.ids())

    def administration(asking):
        return Administration(service, root, TOKEN, asking)

    with TestClient(make_app(service, administration)) as client:
        yield SimpleNamespace(
            put=partial(put, client),
            put_raw=client.put,
            post=client.post,
            delete=client.delete,
            get=client.get,
            service=service,
        )


def put(client, name, path, headers=HEADERS):
    return client.put(f"/v1/bundles/{name}", json={"path": path}, headers=headers)


def test_a_bundle_is_added_and_removed(client, runs, root):
    response = client.put("far", "team/far")
    assert response.status_code == 201 and response.json()["task"] == "depth"
    found = np.load(io.BytesIO(client.post("/v1/predict?format=npz", content=photo()).content))
    wanted = expected({"rooms": runs["rooms"], "far": root / "team" / "far"}, photo())
    np.testing.assert_array_equal(found["far.depth"], wanted["far"].depth)
    np.testing.assert_array_equal(found["rooms.mask"], wanted["rooms"].mask)
    assert client.put("far", "rooms").status_code == 409
    assert client.delete("/v1/bundles/rooms", headers=HEADERS).status_code == 204
    assert set(client.get("/v1/bundles").json()["bundles"]) == {"far"}
    assert client.post("/v1/predict?bundles=rooms", content=photo()).status_code == 404
    assert client.put("rooms", "rooms").status_code == 201
    again = np.load(io.BytesIO(client.post("/v1/predict?bundles=rooms&format=npz", content=photo()).content))
    wanted = expected({"rooms": root / "rooms"}, photo())
    np.testing.assert_array_equal(again["rooms.mask"], wanted["rooms"].mask)


PATHS = ["", ".", "absent", "../root/rooms", "/etc", "rooms/../../x", "link", "links", "best-link", "damaged", "nan",
         "other-backbone", "rooms\\x", "a" * 2000, "rooms/head.json"]  # fmt: skip


@pytest.mark.parametrize("path", PATHS)
def test_other_folders_are_refused(client, root, path):
    response = client.put("new", path)
    assert response.status_code == 400, response.text
    assert str(root) not in response.text and "/tmp" not in response.text
    assert set(client.get("/v1/bundles").json()["bundles"]) == {"rooms"}


@pytest.mark.parametrize("name", ["a" * 65, ".hidden", "a%20b", "a,b", "a%0a"])
def test_names_are_limited(client, name):
    assert client.put(name, "rooms").status_code == 400


@pytest.mark.parametrize("headers", [{}, {"Authorization": "Bearer wrong"}, {"Authorization": TOKEN},
                                     {"Authorization": "Bearer "}, {"Authorization": f"Basic {TOKEN}"}])  # fmt: skip
def test_the_token_is_needed(client, headers):
    assert client.put("far", "team/far", headers).status_code == 401
    assert client.delete("/v1/bundles/rooms", headers=headers).status_code == 401


def test_changes_are_off_by_default(runs):
    with serving({"rooms": runs["rooms"]}) as client:
        assert put(client, "far", "team/far").status_code == 403
        assert client.delete("/v1/bundles/rooms", headers=HEADERS).status_code == 403


@pytest.mark.parametrize("body", [b"", b"[]", b'{"path": 3}', b'{"path": "rooms", "weights": "x"}'])
def test_wrong_bodies(client, body):
    assert client.put_raw("/v1/bundles/new", content=body, headers=HEADERS).status_code == 400


@contextmanager
def worker(runs, root, shared, pid, seconds=60.0):
    """One of several workers; the numbers of their processes are those of processes that run."""
    source = find_source({"rooms": runs["rooms"]})
    service = Service(source.load(), source.ids(), Limits(request_seconds=seconds))
    make = partial(Administration, service, root, TOKEN, shared=SharedChanges(shared, pid))
    with TestClient(make_app(service, make)) as client:
        client.service = service
        yield client


def names(client):
    return set(client.get("/v1/bundles").json()["bundles"])


def test_workers_make_the_changes_of_each_other(runs, root, tmp_path):
    """The response to a change comes when all have made it, and a worker that starts later makes it, too."""
    wanted = expected({"far": root / "team" / "far"}, photo())["far"].depth
    with worker(runs, root, tmp_path, os.getpid()) as one:
        with worker(runs, root, tmp_path, os.getppid()) as other:
            assert put(one, "far", "team/far").status_code == 201
            found = np.load(io.BytesIO(other.post("/v1/predict?bundles=far&format=npz", content=photo()).content))
            np.testing.assert_array_equal(found["far.depth"], wanted)
            assert put(other, "far", "rooms").status_code == 409
            assert other.delete("/v1/bundles/rooms", headers=HEADERS).status_code == 204
            assert names(one) == names(other) == {"far"}
            with ThreadPoolExecutor() as pool:  # of two with one name, one is first in all workers
                both = [pool.submit(put, client, "twice", "rooms") for client in (one, other)]
                assert sorted(each.result().status_code for each in both) == [201, 409]
            assert names(one) == names(other) == {"far", "twice"}
        assert one.delete("/v1/bundles/twice", headers=HEADERS).status_code == 204, "the other one has left"
        with worker(runs, root, tmp_path, os.getppid()) as later:
            assert names(later) == {"far"}


@pytest.mark.parametrize("error", [BundleError("no memory is left."), RuntimeError("no memory is left.")])
def test_a_change_that_a_worker_cannot_make_is_undone(runs, root, tmp_path, monkeypatch, error):
    with worker(runs, root, tmp_path, os.getpid()) as one, worker(runs, root, tmp_path, os.getppid()) as other:

        def full(*arguments):
            calls.append(arguments)
            raise error

        calls = []
        monkeypatch.setattr(other.service.predictor, "open", full)
        assert put(one, "far", "team/far").status_code == 503
        time.sleep(0.2)
        assert len(calls) == 1, "it is not tried again"
        assert names(one) == names(other) == {"rooms"}
        monkeypatch.undo()
        assert put(other, "far", "team/far").status_code == 201 and names(one) == {"rooms", "far"}


def test_a_worker_that_does_not_respond_or_has_ended(runs, root, tmp_path):
    """A change is not made without one that hangs, and one that has ended is not waited for."""
    with worker(runs, root, tmp_path, os.getpid(), seconds=1.0) as one:
        hanging = tmp_path / f"worker-{os.getppid()}.json"
        hanging.write_text('{"count": 0, "failure": ""}')
        response = put(one, "far", "team/far")
        assert response.status_code == 503 and names(one) == {"rooms"}
        hanging.unlink()
        assert not list(tmp_path.glob(f"worker-{os.getppid()}.json"))
        ended = subprocess.Popen([sys.executable, "-c", ""])
        ended.wait()
        (tmp_path / f"worker-{ended.pid}.json").write_text('{"count": 0, "failure": ""}')
        assert put(one, "far", "team/far").status_code == 201


def test_a_removed_bundle_answers_the_requests_that_were_accepted(client, runs, monkeypatch):
    go = threading.Event()
    original = client.service.predictor.predict_batch

    def predict_batch(*arguments):
        assert go.wait(20)
        return original(*arguments)

    monkeypatch.setattr(client.service.predictor, "predict_batch", predict_batch)
    results = {}

    def ask(index):
        results[index] = client.post("/v1/predict?bundles=rooms&format=npz", content=photo(seed=index))

    def remove():
        results["removed"] = client.delete("/v1/bundles/rooms", headers=HEADERS).status_code

    threads = [threading.Thread(target=ask, args=(index,)) for index in range(4)]
    for thread in threads:
        thread.start()
    while client.service.slots.used < 4:
        time.sleep(0.01)
    threads.append(threading.Thread(target=remove))
    threads[-1].start()
    while "rooms" in client.service.heads:
        time.sleep(0.01)
    assert client.post("/v1/predict?bundles=rooms", content=photo()).status_code == 404
    go.set()
    for thread in threads:
        thread.join()
    assert results.pop("removed") == 204 and "rooms" not in client.service.predictor
    for index, response in results.items():
        wanted = expected({"rooms": runs["rooms"]}, photo(seed=index))["rooms"].mask
        np.testing.assert_array_equal(np.load(io.BytesIO(response.content))["rooms.mask"], wanted)


def test_soak(client, runs, root):
    """Requests without pause while a bundle comes and goes: every response is right, and no descriptor is left.

    For 8 seconds, or VITSPLIT_SOAK_SECONDS.
    """
    seconds = float(os.environ.get("VITSPLIT_SOAK_SECONDS", "8"))
    wanted = {
        seed: expected({"rooms": runs["rooms"], "far": root / "team" / "far"}, photo(seed=seed)) for seed in range(3)
    }
    wrong, statuses, ends = [], [], time.monotonic() + seconds

    def ask(seed):
        while time.monotonic() < ends:
            response = client.post("/v1/predict?format=npz", content=photo(seed=seed))
            statuses.append(response.status_code)
            arrays = np.load(io.BytesIO(response.content))
            if "rooms.mask" not in arrays:
                wrong.append("no arrays")
            for name, array in arrays.items():
                head, _, field = name.partition(".")
                if not np.array_equal(array, getattr(wanted[seed][head], field)):
                    wrong.append(name)

    def change():
        assert client.put("far", "team/far").status_code == 201
        assert client.delete("/v1/bundles/far", headers=HEADERS).status_code == 204

    change()
    descriptors = psutil.Process().num_fds()
    threads = [threading.Thread(target=ask, args=(seed,)) for seed in range(3)]
    for thread in threads:
        thread.start()
    changes = 0
    while time.monotonic() < ends:
        change()
        changes += 1
    for thread in threads:
        thread.join()
    assert not wrong and set(statuses) == {200} and changes > seconds / 4
    assert psutil.Process().num_fds() <= descriptors


def test_flags(tmp_path):
    token = tmp_path / "token"
    token.write_text(f"{TOKEN}\n")
    assert read_token(token) == TOKEN
    for text in ("", "short", "0123456789abcdef\x00", "ä" * 20):
        token.write_text(text)
        with pytest.raises(ConfigError, match="admin-token-file"):
            read_token(token)
    with pytest.raises(ConfigError, match="admin-token-file"):
        read_token(tmp_path / "absent")
    check_administration(None, None)
    check_administration(token, tmp_path)
    for arguments in ((token, None), (None, tmp_path), (token, token)):
        with pytest.raises(ConfigError):
            check_administration(*arguments)
