"""The image of the server: built where a container tool is installed, otherwise its steps are executed in a venv.

The other files of docker/ must fit it.
"""

from __future__ import annotations

import json
import os
import re
import shlex
import shutil
import signal
import socket
import subprocess
import sys
import sysconfig
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from bundles import write_segmentation_bundle

from vitsplit.serving.limits import Limits

ROOT = Path(__file__).parents[2]
DOCKERFILE = ROOT / "docker" / "Dockerfile"


def container_tool() -> str | None:
    """A program that can build images here; a client without its daemon cannot."""
    for name in ("docker", "podman"):
        if shutil.which(name) and subprocess.run([name, "info"], capture_output=True).returncode == 0:
            return name
    return None


TOOL = container_tool()


def instructions() -> list[tuple[str, str]]:
    """The instructions of the Dockerfile in order, with continued lines joined."""
    text = re.sub(r"\\\n\s*", " ", DOCKERFILE.read_text(encoding="utf-8"))
    lines = [line for line in text.splitlines() if line and not line.startswith("#")]
    return [(name, rest) for name, _, rest in (line.partition(" ") for line in lines)]


def instruction(name: str) -> str:
    (found,) = [rest for each, rest in instructions() if each == name]
    return found


@pytest.fixture(scope="module")
def installed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The ``bin`` folder of a venv after COPY and RUN of the Dockerfile.

    Its dependencies are those of the tests' environment, if they have the versions that the Dockerfile asks for.
    """
    folder = tmp_path_factory.mktemp("image")
    venv = folder / "venv"
    subprocess.run([sys.executable, "-m", "uv", "venv", "--quiet", "--seed", venv], check=True)
    packages = Path(sysconfig.get_path("purelib", vars={"base": str(venv), "platbase": str(venv)}))
    lines = [line for line in sys.path if line.endswith("site-packages")]
    (packages / "dependencies.pth").write_text("\n".join(lines), encoding="utf-8")
    context = folder / "context"
    context.mkdir()
    for name, rest in instructions():
        if name == "COPY":
            *sources, target = rest.split()
            for source in sources:
                if (ROOT / source).is_dir():
                    shutil.copytree(ROOT / source, context / target, ignore=shutil.ignore_patterns("__pycache__"))
                else:
                    shutil.copy(ROOT / source, context / target)
        if name == "RUN" and rest.startswith("pip "):
            environment = os.environ | {"PATH": f"{venv / 'bin'}:{os.environ['PATH']}"}
            done = subprocess.run(rest, shell=True, cwd=context, env=environment, capture_output=True, text=True)
            if "No matching distribution" in done.stderr or "Failed to establish" in done.stderr:
                pytest.skip("no package registry can be reached")
            assert done.returncode == 0, done.stderr
    return venv / "bin"


@pytest.fixture
def port() -> Iterator[int]:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        number = free.getsockname()[1]
    yield number


@pytest.mark.skipif(TOOL is not None, reason="the image is built instead")
def test_steps_of_the_image_serve_a_bundle(installed: Path, port: int, tmp_path: Path) -> None:
    rooms = write_segmentation_bundle(tmp_path / "rooms")
    command = [*json.loads(instruction("ENTRYPOINT")), str(rooms), "--port", str(port), "--device", "cpu"]
    command[0] = str(installed / command[0])
    check = [each.replace("8000", str(port)) for each in json.loads(instruction("HEALTHCHECK").partition("CMD ")[2])]
    check[0] = str(installed / check[0])
    home = tmp_path / "home"
    home.mkdir(mode=0o500)  # as in a container with a read-only root
    environment = {"PATH": str(installed), "HOME": str(home), "VITSPLIT_CACHE": str(tmp_path / "cache")}
    with subprocess.Popen(command, cwd=home, env=environment) as server:
        try:
            deadline = time.monotonic() + 120
            while subprocess.run(check, env=environment, stderr=subprocess.DEVNULL).returncode:
                assert server.poll() is None and time.monotonic() < deadline
                time.sleep(0.5)
            assert not any(home.iterdir())
            server.send_signal(signal.SIGTERM)
            assert server.wait(60) == 0
        finally:
            server.kill()


@pytest.mark.skipif(TOOL is None, reason="no container tool is installed")
def test_image_is_built() -> None:
    assert TOOL is not None
    subprocess.run([TOOL, "build", "--file", DOCKERFILE, "--tag", "vitsplit-test", ROOT], check=True)


def test_image_does_not_run_as_root_and_is_pinned() -> None:
    names = [name for name, _ in instructions()]
    assert instruction("USER") != "root" and names.index("USER") < names.index("ENTRYPOINT")
    (install,) = [rest for name, rest in instructions() if name == "RUN" and rest.startswith("pip ")]
    words = shlex.split(install)
    assert words[words.index("--constraint") + 1] in instruction_files()


def instruction_files() -> list[str]:
    return [name for kind, rest in instructions() if kind == "COPY" for name in rest.split()[:-1]]


@pytest.fixture(scope="module")
def services() -> dict[str, Any]:
    services: dict[str, Any] = yaml.safe_load((ROOT / "docker" / "compose.yaml").read_text(encoding="utf-8"))[
        "services"
    ]
    return services


def test_ports_and_targets(services: dict[str, Any]) -> None:
    exposed = instruction("EXPOSE")
    for name, port in (("vitsplit", exposed), ("prometheus", "9090")):
        assert services[name]["ports"] == [f"127.0.0.1:{port}:{port}"]
    (job,) = yaml.safe_load((ROOT / "docker" / "prometheus.yml").read_text(encoding="utf-8"))["scrape_configs"]
    assert job.get("metrics_path", "/metrics") == "/metrics"
    assert job["static_configs"] == [{"targets": [f"vitsplit:{exposed}"]}]
    assert f":{exposed}/readyz" in instruction("HEALTHCHECK")


def test_paths(services: dict[str, Any]) -> None:
    build = services["vitsplit"]["build"]
    assert (ROOT / "docker" / build["context"] / build["dockerfile"]).resolve() == DOCKERFILE
    assert set(build["args"]) == {rest.partition("=")[0] for name, rest in instructions() if name == "ARG"}
    assert f"cache:{instruction('VOLUME')}" in services["vitsplit"]["volumes"]
    volumes = [volume.split(":")[0] for service in services.values() for volume in service["volumes"]]
    assert all((ROOT / "docker" / volume).is_file() for volume in volumes if volume.startswith("./"))
    assert all((ROOT / name).exists() for name in instruction_files())


def test_the_server_has_the_time_to_stop(services: dict[str, Any]) -> None:
    server, limits = services["vitsplit"], Limits()
    assert server["init"]
    assert int(server["stop_grace_period"].removesuffix("s")) > limits.request_seconds + limits.body_seconds + 5
