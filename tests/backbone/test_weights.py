"""Sources of weights, their order, and errors if weights are unavailable."""

import http.server
import logging
import os
import socket
import subprocess
import sys
import threading
import time

import pytest
import torch
from huggingface_hub import constants
from safetensors.torch import load_file, save_file

from vitsplit.backbone import hub, load_backbone
from vitsplit.errors import ConfigError, WeightsError

# The smallest model that timm has weights for: 5.5 M parameters.
NAME = "vit_tiny_patch16_224.augreg_in21k"
DROPPED = ("head.",)


@pytest.fixture(scope="module")
def tiny_file(tmp_path_factory):
    """Weights as a file, in timm's naming, unlike what random initialization gives."""
    backbone = load_backbone(NAME, random_weights=True)
    state = {name: value + 0.5 for name, value in backbone.model.state_dict().items()}
    file = tmp_path_factory.mktemp("weights") / "tiny.safetensors"
    save_file(state, file)
    return file


@pytest.fixture
def empty_hub(tmp_path, monkeypatch):
    """An empty hub cache and no hub: nothing listens on port 9 of this machine."""
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setattr(constants, "ENDPOINT", "http://127.0.0.1:9")
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    return tmp_path / "hub"


def put_into_cache(cache, file):
    folder = cache / f"models--timm--{NAME}"
    commit = "0" * 40
    (folder / "snapshots" / commit).mkdir(parents=True)
    (folder / "refs").mkdir()
    (folder / "refs" / "main").write_text(commit)
    os.link(file, folder / "snapshots" / commit / "model.safetensors")


def test_a_weights_file_has_priority(tiny_file, empty_hub, caplog):
    with caplog.at_level(logging.INFO, "vitsplit"):
        backbone = load_backbone(NAME, weights=tiny_file)
    want = load_file(tiny_file)
    assert torch.equal(backbone.model.pos_embed, want["pos_embed"])
    assert torch.equal(backbone.blocks[11].mlp.fc2.bias, want["blocks.11.mlp.fc2.bias"])
    # The source is saved in bundles, which are shared, so it must not name a local folder.
    assert backbone.info.source == f"the file {tiny_file.name}"
    assert backbone.info.timm_name == NAME
    assert len(backbone.info.weights_hash) == 64
    lines = [record.getMessage() for record in caplog.records]
    assert lines == [f"backbone {NAME}: weights from the file {tiny_file.name} ({tiny_file}), license apache-2.0"]
    assert load_backbone(NAME, weights=str(tiny_file.parent)).info.weights_hash == backbone.info.weights_hash


def test_the_hub_cache_is_read_offline(tiny_file, empty_hub, monkeypatch):
    put_into_cache(empty_hub, tiny_file)
    monkeypatch.setattr(hub, "reachable", lambda endpoint: pytest.fail("the network was asked"))
    backbone = load_backbone(NAME)
    assert backbone.info.weights_hash == load_backbone(NAME, weights=tiny_file).info.weights_hash
    assert backbone.info.source == f"timm/{NAME} on the hub"
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    assert load_backbone(NAME).info == backbone.info


def test_an_unreachable_hub_gives_one_error_with_remedies(empty_hub):
    started = time.perf_counter()
    with pytest.raises(WeightsError) as caught:
        load_backbone("dinov2-small")
    assert time.perf_counter() - started < 5
    message = str(caught.value)
    assert message.startswith("No weights available for 'dinov2-small': ")
    assert str(empty_hub) in message and "timm/vit_small_patch14_dinov2.lvd142m" in message
    assert "http://127.0.0.1:9 is unreachable" in message
    for way_out in ("--weights FILE", "HF_HOME", "dinov2-small-focus", "--random-weights"):
        assert way_out in message


def test_offline_mode_makes_no_request(empty_hub, monkeypatch):
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(hub, "reachable", lambda endpoint: pytest.fail("the network was asked"))
    with pytest.raises(WeightsError, match="HF_HUB_OFFLINE"):
        load_backbone(NAME)


def test_a_model_without_hub_weights(empty_hub):
    with pytest.raises(WeightsError, match=r"--weights FILE"):
        load_backbone("vit_huge_patch14_gap_224.in1k_ijepa")


def test_random_weights_are_seeded_apart_from_the_global_generator():
    torch.manual_seed(3)
    before = torch.get_rng_state()
    one = load_backbone(NAME, random_weights=True)
    assert torch.equal(torch.get_rng_state(), before)
    torch.manual_seed(4)
    two = load_backbone(NAME, random_weights=True)
    assert one.info.weights_hash == two.info.weights_hash
    assert one.info.source == "random weights"
    with pytest.raises(ConfigError, match="--random-weights"):
        load_backbone(NAME, random_weights=True, weights="file.pth")


def test_all_tensors_are_on_the_device(tiny_file):
    backbone = load_backbone(NAME, weights=tiny_file, device="meta")
    assert {value.device.type for value in (*backbone.parameters(), *backbone.buffers())} == {"meta"}
    assert backbone.info.weights_hash == load_backbone(NAME, weights=tiny_file).info.weights_hash


# ---- a local server in place of the hub


class Hub(http.server.BaseHTTPRequestHandler):
    """Responds like the hub: a file with its hash, a gated repository, or 404."""

    content = b""

    def log_message(self, *args):
        pass

    def do_HEAD(self):
        self.answer()

    def do_GET(self):
        if self.answer():
            self.wfile.write(self.content)

    def answer(self):
        ours = self.path == f"/timm/{NAME}/resolve/main/model.safetensors"
        if "dinov3" in self.path:
            self.send_response(401)
            self.send_header("X-Error-Code", "GatedRepo")
        elif self.path == "/" or ours:
            self.send_response(200)
        else:
            self.send_response(404)
            self.send_header("X-Error-Code", "EntryNotFound")
        if ours:
            self.send_header("ETag", '"abc"')
            self.send_header("X-Repo-Commit", "1" * 40)
        self.send_header("Content-Length", str(len(self.content) if ours else 0))
        self.end_headers()
        return ours


@pytest.fixture
def served(tiny_file):
    Hub.content = tiny_file.read_bytes()
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Hub)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()
    server.server_close()


def test_download_and_gated_repository(served, tiny_file, tmp_path):
    code = (
        "from vitsplit.backbone import load_backbone\n"
        f"print('HASH', load_backbone('{NAME}').info.weights_hash)\n"
        "try: load_backbone('dinov3-small')\n"
        "except Exception as error: print(type(error).__name__, error)\n"
    )
    settings = {"HF_ENDPOINT": served, "HF_HOME": str(tmp_path), "HF_HUB_OFFLINE": "0", "HF_HUB_DISABLE_XET": "1"}
    environment = {name: value for name, value in os.environ.items() if not name.lower().endswith("_proxy")}
    done = subprocess.run(
        [sys.executable, "-c", code], env=environment | settings, capture_output=True, text=True, check=True
    )
    assert f"HASH {load_backbone(NAME, weights=tiny_file).info.weights_hash}" in done.stdout
    repository = "timm/vit_small_patch16_dinov3.lvd1689m"
    assert f"WeightsError The weights of {repository} are gated" in done.stdout
    assert f"{served}/{repository}" in done.stdout
    assert "HF_TOKEN" in done.stdout
    assert "--weights" in done.stdout


def test_hub_is_reachable(served, monkeypatch):
    monkeypatch.setattr(hub, "PROBE_SECONDS", 0.3)
    ask = hub.reachable.__wrapped__
    assert ask(served)
    assert ask(f"{served}/no/such/page")  # any response counts
    assert not ask("http://127.0.0.1:9")
    with socket.create_server(("127.0.0.1", 0)) as silent:
        started = time.perf_counter()
        assert not ask(f"http://127.0.0.1:{silent.getsockname()[1]}")
        assert time.perf_counter() - started < 1.5
    # A proxy that refuses connections does not reach the hub; one that responds does.
    monkeypatch.setenv("http_proxy", "http://127.0.0.1:9")
    monkeypatch.delenv("no_proxy", raising=False)
    monkeypatch.delenv("NO_PROXY", raising=False)
    assert not ask("http://hub.example")
    monkeypatch.setenv("http_proxy", served)
    assert ask("http://hub.example")
