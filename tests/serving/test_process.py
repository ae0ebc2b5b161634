"""The command in a process of its own: signals, slow and idle clients, workers."""

from __future__ import annotations

import contextlib
import http.client
import io
import os
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
import urllib.error
import urllib.request

import numpy as np
import psutil
import pytest
from PIL import Image
from served import expected, listening, photo, serving
from tiny_export import write_export

import vitsplit
from vitsplit.cli.main import main
from vitsplit.serving import server
from vitsplit.serving.limits import Limits

LATEST = 8.0
"""Seconds within which a connection is closed whose limit is half a second, on a busy machine; the client has 15."""


COMMAND = ("-m", "vitsplit")
REPLACING = ("-c", "import sys; from vitsplit.serving import server; server.SHORTEST_LIFE = 0; "
                   "from vitsplit.cli.main import main; sys.exit(main())")  # fmt: skip
"""The command, whose workers are replaced however early they end."""


@contextlib.contextmanager
def process(*words, program=COMMAND):
    """The process of ``vitsplit serve``, and its port."""
    command = [sys.executable, "-u", *program, "serve", *map(str, words), "--port", "0", "--device", "cpu"]
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    started = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment)
    try:
        line = started.stdout.readline()
        assert "http://127.0.0.1:" in line, started.communicate()[1]
        yield started, int(line.rsplit(":", 1)[1])
    finally:
        if started.poll() is None:
            started.terminate()
            try:
                started.wait(60)
            except subprocess.TimeoutExpired:
                started.kill()
        started.communicate()


def predict(port, content, query="format=npz"):
    request = urllib.request.Request(f"http://127.0.0.1:{port}/v1/predict?{query}", data=content)
    with urllib.request.urlopen(request, timeout=60) as response:
        return dict(np.load(io.BytesIO(response.read())))


def closed_after(port, first, pieces=(), seconds=30.0):
    """Seconds until the server closes a connection that sends these bytes, and its response."""
    begun = time.monotonic()
    with socket.create_connection(("127.0.0.1", port)) as connection:
        connection.settimeout(seconds)
        connection.sendall(first)
        received = b""

        def send():
            with contextlib.suppress(OSError):
                for piece in pieces:
                    time.sleep(0.1)
                    connection.sendall(piece)

        sender = threading.Thread(target=send)
        sender.start()
        with contextlib.suppress(ConnectionError):
            while part := connection.recv(65536):
                received += part
        took = time.monotonic() - begun
    sender.join()
    return took, received


def test_slow_and_idle_clients_are_closed(runs):
    with process(runs["rooms"], "--header-seconds", "0.5", "--body-seconds", "0.5", "--max-connections", "20") as (
        _,
        port,
    ):
        trickle = [b"x"] * 150
        post = b"POST /v1/predict HTTP/1.1\r\nHost: localhost\r\nContent-Length: 1000\r\n\r\n"
        assert closed_after(port, b"") < (LATEST,)  # says nothing
        assert closed_after(port, b"GET / HTTP/1.1\r\nX: ", trickle) < (LATEST,)  # a header without end
        took, response = closed_after(port, post, trickle)  # a slow body
        assert took < LATEST and response.startswith(b"HTTP/1.1 408") and b"slow_body" in response
        took, response = closed_after(port, b"GET /healthz HTTP/1.1\r\nHost: localhost\r\n\r\n")  # open, and idle
        assert took < LATEST and response.startswith(b"HTTP/1.1 200")
        took, response = closed_after(
            port, b"GET /healthz HTTP/1.1\r\nHost: localhost\r\n\r\nGET /", trickle
        )  # a slow second header
        assert took < LATEST and response.count(b"HTTP/1.1") == 1
        took, response = closed_after(port, b"nonsense\r\n\r\n")
        assert took < LATEST and response.startswith(b"HTTP/1.1 400")
        took, response = closed_after(port, b"GET / HTTP/1.1\r\nX: " + bytes([97]) * 100_000)
        assert took < LATEST and (not response or response.startswith(b"HTTP/1.1 4"))
        # A path that the server refuses before it reads the body, which does not end.
        took, response = closed_after(port, post.replace(b"predict", b"absent"), trickle)
        assert took < LATEST and response.startswith(b"HTTP/1.1 404")
        # More connections than allowed: the others are refused, and places are free again afterwards.
        with contextlib.ExitStack() as stack:
            opened = [stack.enter_context(socket.create_connection(("127.0.0.1", port))) for _ in range(30)]
            for connection in opened:
                connection.settimeout(5)
            assert sum(connection.recv(12) == b"HTTP/1.1 503" for connection in opened[20:]) == 10
        time.sleep(0.2)
        assert urllib.request.urlopen(f"http://127.0.0.1:{port}/healthz").status == 200


def test_a_client_that_does_not_read_is_closed(runs):
    """Also if the rest of its response is less than the 64 KiB above which asyncio pauses by itself."""
    limits = Limits(max_connections=1, request_seconds=1)
    with (
        listening({"rooms": runs["rooms"]}, limits, send_buffer=4096) as address,
        socket.socket() as client,
    ):
        client.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        client.connect(("127.0.0.1", int(address.rpartition(":")[2])))
        client.sendall(b"GET /page.js HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n")
        statuses, ends = [], time.monotonic() + LATEST
        while statuses[-1:] != [200] and time.monotonic() < ends:
            try:
                statuses.append(urllib.request.urlopen(f"http://{address}/healthz").status)
            except urllib.error.HTTPError as error:
                statuses.append(error.code)
            time.sleep(0.05)
        assert statuses[0] == 503 and statuses[-1] == 200


def test_a_signal_loses_no_accepted_request(runs):
    with process(runs["rooms"], runs["far"]) as (server, port):
        images = [photo(seed=seed) for seed in range(3)]
        wanted = [expected([runs["rooms"], runs["far"]], image) for image in images]
        counts = {"right": 0, "refused": 0, "wrong": 0, "lost": 0}
        lock = threading.Lock()

        def ask(seed):
            connection = http.client.HTTPConnection("127.0.0.1", port, timeout=30)
            while True:
                try:
                    connection.connect()
                except OSError:
                    return  # no longer accepted
                try:
                    connection.request("POST", "/v1/predict?format=npz", body=images[seed])
                    response = connection.getresponse()
                    content = response.read()
                except OSError:
                    with lock:
                        counts["lost"] += 1
                    continue
                arrays = np.load(io.BytesIO(content)) if response.status == 200 else {}
                right = all(
                    np.array_equal(array, getattr(wanted[seed][name.partition(".")[0]], name.partition(".")[2]))
                    for name, array in arrays.items()
                )
                with lock:
                    counts["right" if right and arrays else "refused" if response.status == 503 else "wrong"] += 1
                connection.close()

        threads = [threading.Thread(target=ask, args=(seed,)) for seed in range(3)]
        for thread in threads:
            thread.start()
        while counts["right"] < 5:
            time.sleep(0.05)
        server.send_signal(signal.SIGTERM)
        for thread in threads:
            thread.join()
        assert server.wait(60) == 0
        assert counts["wrong"] == counts["lost"] == 0, counts


def worker_processes(server):
    children = psutil.Process(server.pid).children()
    return [each for each in children if "resource_tracker" not in " ".join(each.cmdline())]


def test_workers_share_a_port_and_one_that_is_stopped_leaves_it_open(runs, tmp_path):
    """A bundle that one of them adds is in the others, and in one that is started later."""
    (tmp_path / "token").write_text("0123456789abcdef-secret")
    shutil.copytree(runs["far"], tmp_path / "root" / "far")
    words = ["--workers", "2", "--bundle-root", tmp_path / "root", "--admin-token-file", tmp_path / "token"]
    with process(runs["rooms"], *words, program=REPLACING) as (server, port):
        wanted = expected([runs["rooms"]], photo())["segmentation"].mask
        for _ in range(4):
            np.testing.assert_array_equal(predict(port, photo())["segmentation.mask"], wanted)
        metrics = urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics").read().decode()
        count = next(line for line in metrics.splitlines() if line.startswith("vitsplit_batch_images_count"))
        assert float(count.split()[-1]) == 4
        workers = worker_processes(server)
        assert len(workers) == 2
        request = urllib.request.Request(
            f"http://127.0.0.1:{port}/v1/bundles/far",
            data=b'{"path": "far"}',
            headers={"Authorization": "Bearer 0123456789abcdef-secret"},
            method="PUT",
        )
        assert urllib.request.urlopen(request, timeout=60).status == 201
        added = expected({"far": runs["far"]}, photo())["far"].depth
        for _ in range(6):
            np.testing.assert_array_equal(predict(port, photo(), "bundles=far&format=npz")["far.depth"], added)
        workers[0].terminate()
        workers[0].wait(60)
        while len(worker_processes(server)) < 2:
            time.sleep(0.1)
        workers[1].terminate()  # so that the next response is of the new one
        workers[1].wait(60)
        np.testing.assert_array_equal(predict(port, photo(), "bundles=far&format=npz")["far.depth"], added)
        server.terminate()
        assert server.wait(60) == 0


def test_workers_end_with_their_parent(runs):
    with process(runs["rooms"], "--workers", "2") as (server, port):
        predict(port, photo())
        children = psutil.Process(server.pid).children(recursive=True)
        server.kill()
        server.wait()
        _, alive = psutil.wait_procs(children, timeout=60)
        assert not alive


@pytest.mark.parametrize(
    ("words", "text"),
    [
        (["--workers", "2", "--bundle-root", "."], "--admin-token-file"),
        (["--runtime", "openvino", "--precision", "bf16"], "--precision"),
        (["--port", "70000"], "--port"),
        (["--max-body-mb", "0"], "--max-body-mb"),
    ],
)
def test_wrong_flags(runs, words, text, capsys):
    assert main(["serve", str(runs["rooms"]), *words]) == 2
    assert text in capsys.readouterr().err


def test_handlers_of_signals_are_restored(runs):
    before = [signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)]
    options = server.ServeOptions([str(runs["rooms"])], loading={"device": "cpu"})
    assert server.serve(options, port=0, say=lambda line: os.kill(os.getpid(), signal.SIGTERM)) == 0
    assert [signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)] == before


def test_a_taken_port(runs, capsys):
    with socket.create_server(("127.0.0.1", 0)) as taken:
        assert main(["serve", str(runs["rooms"]), "--port", str(taken.getsockname()[1])]) == 2
    assert "--port" in capsys.readouterr().err


def test_an_exported_folder(tmp_path):
    folder = write_export(tmp_path / "exported")
    with serving([folder], runtime="onnx") as client:
        found = np.load(io.BytesIO(client.post("/v1/predict?format=npz", content=photo()).content))
        wanted = vitsplit.load(folder, runtime="onnx").predict(Image.open(io.BytesIO(photo())))
        np.testing.assert_array_equal(found["rooms.mask"], wanted["rooms"].mask)
        np.testing.assert_array_equal(found["depth.depth"], wanted["depth"].depth)
        assert client.get("/v1/bundles").json()["backbone"] == {"name": "none"}


def test_an_image_that_a_graph_does_not_take(tmp_path):
    """The error does not name the folder."""
    with serving([write_export(tmp_path / "fixed size", size=(40, 40))], runtime="onnx") as client:
        response = client.post("/v1/predict", content=photo())
    assert response.status_code == 400 and response.json()["error"]["code"] == "invalid_image"
    assert "40x40" in response.text and str(tmp_path) not in response.text


OFFLINE = """
import os, signal, sys, threading, urllib.request

def refuse(event, arguments):
    if event in ("socket.connect", "socket.sendto", "socket.getaddrinfo", "socket.gethostbyname"):
        address = arguments[0] if event.startswith("socket.get") else arguments[1][0]
        if address != "127.0.0.1":
            print("reached out to", address, flush=True)
            raise OSError("no network")

sys.addaudithook(refuse)
import vitsplit
from vitsplit.serving import server

def ask(line):
    def work():
        for path, data in (("/", None), ("/v1/predict", open(sys.argv[2], "rb").read()), ("/metrics", None)):
            urllib.request.urlopen("http" + line.rpartition("http")[2] + path, data).read()
        print("asked", flush=True)
        os.kill(os.getpid(), signal.SIGTERM)

    threading.Thread(target=work).start()

sys.exit(server.serve(server.ServeOptions([sys.argv[1]]), port=0, say=ask))
"""


def test_the_server_sends_nothing_by_itself(runs, tmp_path):
    """No connection but those of its client: dependencies have no telemetry."""
    image = tmp_path / "photo.png"
    image.write_bytes(photo())
    command = [sys.executable, "-c", OFFLINE, str(runs["rooms"]), str(image)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120)
    assert (done.returncode, done.stdout) == (0, "asked\n"), done.stderr
