"""`vitsplit serve` under load: speed against a bare loop, hostile clients, changes of bundles, and signals.

    python benchmarks/serve_load.py speed RUN_A RUN_B --images FOLDER
    python benchmarks/serve_load.py heads RUN_A RUN_B RUN_C --images FOLDER
    python benchmarks/serve_load.py hostile RUN_A RUN_B --images FOLDER --requests 1000
    python benchmarks/serve_load.py soak RUN_A RUN_B --images FOLDER --minutes 20
    python benchmarks/serve_load.py stop RUN_A RUN_B --images FOLDER

``speed``: closed-loop clients and a bare loop over the same files alternate; images per second, CPU time per image of
the server's process against the loop's, and that of the server's threads beside the model's, without decoding (with
OMP_NUM_THREADS=1: other threads of the model count as well). ``--query format=json`` includes run-length encodings and
the PNG of depth, which the loop does not make. ``heads``: one request for all heads of one server, against one to each
of several servers with one head; the bound is the ratio of multiply-adds. ``soak``: the last run comes and goes every
ten seconds; responses are compared bit for bit with ``predict``. ``stop``: SIGTERM; requests that were accepted and
got no response.
"""

from __future__ import annotations

import argparse
import contextlib
import http.client
import io
import json
import signal
import socket
import statistics
import struct
import subprocess
import sys
import tempfile
import threading
import time
import urllib.request
import zlib
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import psutil
import torch
from PIL import Image

import vitsplit
from vitsplit.analysis.sharing import SharedBundle, compare_sharing
from vitsplit.data.decoding import IMAGE_SUFFIXES, decode_bytes
from vitsplit.data.images import to_image_tensor
from vitsplit.inference.loading import read_bundles

TOKEN = "token-of-the-benchmark"
CHANGE_SECONDS = 10.0
ATTACKER = "127.0.0.2"
"""Another address than that of the other clients: the server gives every address the same share."""


class Server:
    """A server in a process of its own."""

    def __init__(self, runs: Sequence[str], *words: str) -> None:
        command = [sys.executable, "-u", "-m", "vitsplit", "serve", *runs, "--port", "0", "--device", "cpu", *words]
        self.process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
        assert self.process.stdout is not None
        self.port = int(self.process.stdout.readline().rsplit(":", 1)[1])
        self.state = psutil.Process(self.process.pid)

    def __enter__(self) -> Server:
        return self

    def __exit__(self, *_: object) -> None:
        self.process.terminate()
        self.process.wait(120)

    def cpu_seconds_by_thread(self) -> dict[int, float]:
        return {each.id: float(each.user_time + each.system_time) for each in self.state.threads()}

    def memory(self) -> int:
        return int(self.state.memory_info().rss)

    def first_bundle(self) -> str:
        with urllib.request.urlopen(f"http://127.0.0.1:{self.port}/v1/bundles") as response:
            return str(next(iter(json.load(response)["bundles"])))

    def request(self, connection: http.client.HTTPConnection, content: bytes, query: str) -> tuple[int, bytes]:
        connection.request("POST", f"/v1/predict?{query}", body=content)
        response = connection.getresponse()
        return response.status, response.read()


class Clients:
    """Closed-loop clients: each sends its next request when it has the response to the last one."""

    def __init__(self, server: Server, images: Sequence[bytes], query: str, count: int) -> None:
        self.server, self.images, self.query, self.count = server, images, query, count
        self.seconds: list[float] = []
        self.statuses: Counter[Any] = Counter()
        self._lock = threading.Lock()

    def run(
        self, *, requests: int | None = None, until: Callable[[], bool] = lambda: False, check: Any = None
    ) -> float:
        """Sends a number of requests, or requests until a condition; returns the seconds."""
        numbers = iter(range(requests if requests is not None else 10**9))
        begun = time.perf_counter()
        threads = [threading.Thread(target=self._client, args=(numbers, until, check)) for _ in range(self.count)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        return time.perf_counter() - begun

    def _client(self, numbers: Iterator[int], until: Callable[[], bool], check: Any) -> None:
        connection = http.client.HTTPConnection("127.0.0.1", self.server.port, timeout=120)
        while not until():
            with self._lock:
                number = next(numbers, None)
            if number is None:
                break
            index = number % len(self.images)
            begun = time.perf_counter()
            try:
                status, body = self.server.request(connection, self.images[index], self.query)
            except ConnectionRefusedError:
                break  # the server has stopped
            except (OSError, http.client.HTTPException) as error:
                status, body = f"lost: {type(error).__name__}", b""
                connection.close()
            seconds = time.perf_counter() - begun
            wrong = status == 200 and check is not None and not check(index, body)
            with self._lock:
                if status == 200:  # refusals are fast
                    self.seconds.append(seconds)
                self.statuses["wrong" if wrong else status] += 1
        connection.close()

    def percentile(self, share: float) -> float:
        return float(np.quantile(self.seconds, share)) if self.seconds else float("nan")


def bare_loop(model: Any, images: Sequence[bytes]) -> None:
    for content in images:
        model.predict(to_image_tensor(decode_bytes(content, "image")))


def speed(options: argparse.Namespace, images: Sequence[bytes]) -> dict[str, Any]:
    model = vitsplit.load(*options.runs, device="cpu")
    rates: dict[str, list[float]] = {"server": [], "loop": []}
    cpu: dict[str, list[float]] = {"server": [], "beside the model": [], "loop": [], "decoding": []}
    per_turn = max(1, options.requests // options.turns)
    with Server(options.runs) as server:
        for turn in range(options.turns + 1):
            part = [images[(turn * per_turn + index) % len(images)] for index in range(per_turn)]
            clients = Clients(server, part, options.query, options.clients)
            before = server.cpu_seconds_by_thread()
            seconds = clients.run(requests=per_turn)
            after = server.cpu_seconds_by_thread()
            served = sorted(after[thread] - before.get(thread, 0.0) for thread in after)
            assert clients.statuses == {200: per_turn}, clients.statuses
            begun, cpu_before = time.perf_counter(), time.process_time()
            bare_loop(model, part)
            alone, cpu_alone = time.perf_counter() - begun, time.process_time() - cpu_before
            cpu_before = time.process_time()
            for content in part:
                decode_bytes(content, "image")
            decoding = time.process_time() - cpu_before
            if turn:  # the first turn is the warm-up
                rates["server"].append(per_turn / seconds)
                rates["loop"].append(per_turn / alone)
                found = (sum(served), sum(served[:-1]), cpu_alone, decoding)  # the model's thread has most
                for name, each in zip(cpu, found, strict=True):
                    cpu[name].append(each / per_turn)
    median = {way: statistics.median(values) for way, values in rates.items()}
    return {
        "requests": per_turn * options.turns,
        "images_per_second": rates,
        "share_of_loop": median["server"] / median["loop"],
        "share_by_turn": [a / b for a, b in zip(rates["server"], rates["loop"], strict=True)],
        "cpu_ms": {way: [1000 * value for value in values] for way, values in cpu.items()},
        "overhead_cpu_ms": 1000 * (statistics.median(cpu["server"]) - statistics.median(cpu["loop"])),
        "overhead_beside_model_cpu_ms": 1000
        * (statistics.median(cpu["beside the model"]) - statistics.median(cpu["decoding"])),
    }


def heads(options: argparse.Namespace, images: Sequence[bytes]) -> dict[str, Any]:
    model = vitsplit.load(*options.runs, device="cpu")
    sharers = {name: SharedBundle(head.card.config, head.card.description) for name, head in model.items()}
    size = to_image_tensor(decode_bytes(images[0], "image")).shape[-2:]
    bound = compare_sharing(sharers, (size[0], size[1]))["time_bound"]
    per_turn, seconds = max(1, options.requests // options.turns), {"one": list[float](), "several": list[float]()}
    with contextlib.ExitStack() as stack:
        one = stack.enter_context(Server(options.runs))
        several = [stack.enter_context(Server([run])) for run in options.runs]
        for turn in range(options.turns + 1):
            times = {
                "one": Clients(one, images, options.query, options.clients).run(requests=per_turn),
                "several": sum(
                    Clients(each, images, options.query, options.clients).run(requests=per_turn) for each in several
                ),
            }
            for way in seconds if turn else ():
                seconds[way].append(times[way])
    gain = statistics.median(seconds["several"]) / statistics.median(seconds["one"])
    return {"seconds": seconds, "gain": gain, "bound": bound, "share_of_bound": gain / bound}


def hostile(options: argparse.Namespace, images: Sequence[bytes]) -> dict[str, Any]:
    with Server(options.runs) as server:
        Clients(server, images, options.query, options.clients).run(requests=4 * options.clients)
        calm = Clients(server, images, options.query, options.clients)
        calm.run(requests=options.requests // 4)
        before = server.memory(), server.state.num_fds()
        attacks = _attacks(images[0], server.first_bundle())
        responses: Counter[str] = Counter()
        numbers, lock = iter(range(options.requests)), threading.Lock()
        ended = threading.Event()

        def attack() -> None:
            while True:
                with lock:
                    number = next(numbers, None)
                if number is None:
                    return
                name = list(attacks)[number % len(attacks)]
                status = _send(server.port, attacks[name])
                with lock:
                    responses[f"{name}: {status}"] += 1

        def attack_all() -> None:
            threads = [threading.Thread(target=attack) for _ in range(options.attackers)]
            for thread in threads:
                thread.start()
            for thread in threads:
                thread.join()
            ended.set()

        attacking = threading.Thread(target=attack_all)
        attacking.start()
        under_attack = Clients(server, images, options.query, options.clients)
        under_attack.run(until=ended.is_set)
        attacking.join()
        time.sleep(6)  # connections that say nothing are closed after five seconds
        after = Clients(server, images, options.query, options.clients)
        after.run(requests=4 * options.clients)
        return {
            "alive": server.process.poll() is None,
            "responses": dict(sorted(responses.items())),
            "others": {str(status): count for status, count in under_attack.statuses.items()},
            "p99_seconds": {"calm": calm.percentile(0.99), "under attack": under_attack.percentile(0.99)},
            "memory_mb": [before[0] / 2**20, server.memory() / 2**20],
            "descriptors": [before[1], server.state.num_fds()],
        }


class Attack(NamedTuple):
    """Bytes that are sent first; bytes that are repeated, and the seconds between them.

    If ``unread`` is given, nothing is read, and the connection is closed after that many seconds.
    """

    first: bytes
    more: bytes = b""
    pause: float = 0
    unread: float | None = None


def _attacks(image: bytes, model: str) -> dict[str, Attack]:
    def post(content: bytes, path: str = "/v1/predict", length: int | None = None, headers: str = "") -> bytes:
        head = (
            f"POST {path} HTTP/1.1\r\nHost: localhost\r\n{headers}"
            f"Content-Length: {len(content) if length is None else length}\r\n\r\n"
        )
        return head.encode() + content

    def bomb(side: int) -> bytes:
        def chunk(kind: bytes, content: bytes) -> bytes:
            return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))

        header = chunk(b"IHDR", struct.pack(">IIBBBBB", side, side, 8, 2, 0, 0, 0))
        rows = min(side, 4000)
        pixels = zlib.compress(bytes(rows * (1 + 3 * rows)), 9)
        return b"\x89PNG\r\n\x1a\n" + header + chunk(b"IDAT", pixels) + chunk(b"IEND", b"")

    def scans(size: int, count: int) -> bytes:
        """A progressive JPEG whose last scan is repeated."""
        file = io.BytesIO()
        Image.new("RGB", (size, size), "red").save(file, format="JPEG", progressive=True)
        content = file.getvalue()
        last = content.rindex(b"\xff\xda")
        return content[:-2] + content[last:-2] * (count - 10) + b"\xff\xd9"

    def tensor(data: Any) -> bytes:
        given = {"name": "image", "datatype": "UINT8", "shape": [1, 1000, 1000, 3], "data": data}
        return post(json.dumps({"inputs": [given]}).encode(), f"/v2/models/{model}/infer")

    question = json.dumps({"image_sha256": "0", "question": "a" * (4 << 20)}).encode()
    return {
        "bomb": Attack(post(bomb(30_000))),
        "black image": Attack(post(bomb(3_900))),
        "scans of a large image": Attack(post(scans(3_900, 64))),
        "scans of a small image": Attack(post(scans(1_500, 60))),
        "truncated": Attack(post(image[: len(image) // 2])),
        "tensor of numbers": Attack(tensor([0] * 2_000_000)),
        "tensor with a text": Attack(tensor([0] * 1_000_000 + ["a" * 1_000_000])),
        "question": Attack(post(question, "/v1/ask", headers="Content-Type: application/json\r\n")),
        "slow body": Attack(post(image[:100], length=len(image)), b"x", 0.3),
        "slow header": Attack(b"GET / HTTP/1.1\r\nX: ", b"x", 0.3),
        "idle": Attack(b""),
        "wrong type": Attack(post(b"<svg/>")),
        "large body": Attack(post(b"x" * 65536, length=1 << 30), b"x" * 65536),
        "large header": Attack(b"GET / HTTP/1.1\r\nX: " + b"x" * 100_000),
        "path": Attack(post(image, "/v1/../../etc/passwd")),
        "parameter": Attack(post(image, "/v1/predict?bundles=../../etc/passwd")),
        "nonsense": Attack(bytes(range(256))),
        "disconnects": Attack(post(image), unread=0),
        "does not read": Attack(post(image, "/v1/predict?format=npz", headers="Connection: close\r\n"), unread=5),
    }


def _send(port: int, attack: Attack) -> str:
    """Sends an attack; returns the status, or ``closed``."""
    response = b""
    try:
        with socket.socket() as connection:
            if attack.unread is not None:
                connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
            connection.settimeout(30)
            connection.bind((ATTACKER, 0))
            connection.connect(("127.0.0.1", port))
            connection.sendall(attack.first)
            if attack.unread is not None:
                time.sleep(attack.unread)
                return "unread"
            more, pause = attack.more, attack.pause
            connection.settimeout(pause or 30)
            while not response:
                try:
                    if more:
                        connection.sendall(more)
                    response = connection.recv(12) if not more or pause else _received(connection)
                    if not response and (not more or pause):
                        return "closed"
                except TimeoutError:
                    continue
    except OSError:
        return "closed"
    return response[9:12].decode()


def _received(connection: socket.socket) -> bytes:
    connection.setblocking(False)
    try:
        return connection.recv(12)
    except BlockingIOError:
        return b""
    finally:
        connection.settimeout(30)


def soak(options: argparse.Namespace, images: Sequence[bytes]) -> dict[str, Any]:
    *fixed, changing = options.runs
    model = vitsplit.load({Path(run).name: run for run in options.runs}, device="cpu")
    wanted = [model.predict(to_image_tensor(decode_bytes(content, "image"))) for content in images]
    names = dict(zip(read_bundles(fixed), (Path(run).name for run in fixed), strict=True))

    def check(index: int, body: bytes) -> bool:
        arrays = dict(np.load(io.BytesIO(body)))
        expected = {
            f"{head}.{field}": array
            for head, prediction in wanted[index].items()
            for field, array in prediction.arrays().items()
        }
        renamed = {
            f"{names.get(key.split('.')[0], key.split('.')[0])}.{key.split('.')[1]}": arrays[key] for key in arrays
        }
        return bool(renamed) and all(np.array_equal(array, expected[key]) for key, array in renamed.items())

    with tempfile.TemporaryDirectory() as folder:
        token = Path(folder) / "token"
        token.write_text(TOKEN)
        root = Path(changing).resolve().parent
        with Server(fixed, "--bundle-root", str(root), "--admin-token-file", str(token)) as server:
            Clients(server, images, "format=npz", options.clients).run(requests=8 * options.clients)
            ends = time.monotonic() + 60 * options.minutes
            changes: Counter[int] = Counter()
            samples = []

            def change() -> None:
                path, added = f"/v1/bundles/{Path(changing).name}", False
                while time.monotonic() < ends:
                    connection = http.client.HTTPConnection("127.0.0.1", server.port, timeout=120)
                    headers = {"Authorization": f"Bearer {TOKEN}"}
                    body = json.dumps({"path": Path(changing).name})
                    connection.request(*(("DELETE", path, None) if added else ("PUT", path, body)), headers=headers)
                    changes[connection.getresponse().status] += 1
                    connection.close()
                    added = not added
                    samples.append((server.memory(), server.state.num_fds()))
                    time.sleep(min(CHANGE_SECONDS, max(0.0, ends - time.monotonic())))

            changing_thread = threading.Thread(target=change)
            changing_thread.start()
            clients = Clients(server, images, "format=npz", options.clients)
            clients.run(until=lambda: time.monotonic() > ends, check=check)
            changing_thread.join()
            tenth = max(1, len(samples) // 10)
            memory = [
                statistics.mean(m for m, _ in part) for part in (samples[tenth : 2 * tenth + 1], samples[-tenth:])
            ]
            return {
                "responses": {str(status): count for status, count in clients.statuses.items()},
                "changes": dict(changes),
                "memory_mb": [value / 2**20 for value in memory],
                "memory_growth": memory[1] / memory[0] - 1,
                "descriptors": [min(count for _, count in samples), samples[-1][1]],
            }


def stop(options: argparse.Namespace, images: Sequence[bytes]) -> dict[str, Any]:
    rounds = []
    for _ in range(options.turns):
        with Server(options.runs) as server:
            clients = Clients(server, images, options.query, options.clients)
            timer = threading.Timer(3, server.process.send_signal, [signal.SIGTERM])
            timer.start()
            clients.run(until=lambda: server.process.poll() is not None)
            status = server.process.wait(120)
            counts = {str(status): count for status, count in clients.statuses.items()}
            rounds.append({"exit_status": status, "responses": counts})
    return {"rounds": rounds}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=("speed", "heads", "hostile", "soak", "stop"))
    parser.add_argument("runs", nargs="+")
    parser.add_argument("--images", type=Path, required=True)
    parser.add_argument("--requests", type=int, default=500)
    parser.add_argument("--turns", type=int, default=5)
    parser.add_argument("--clients", type=int, default=8)
    parser.add_argument("--attackers", type=int, default=16)
    parser.add_argument("--minutes", type=float, default=2.0)
    parser.add_argument("--query", default="format=npz")
    options = parser.parse_args()
    files = sorted(path for path in options.images.iterdir() if path.suffix.lower() in IMAGE_SUFFIXES)[:64]
    measure = {"speed": speed, "heads": heads, "hostile": hostile, "soak": soak, "stop": stop}[options.what]
    result = measure(options, [file.read_bytes() for file in files])
    print(json.dumps({"threads": torch.get_num_threads(), "images": len(files), **result}, indent=1))


if __name__ == "__main__":
    main()
