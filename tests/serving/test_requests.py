"""Requests that are wrong, hostile or too late. Every response must be an error of the documented form."""

from __future__ import annotations

import io
import struct
import threading
import time
import zlib
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
from PIL import Image
from served import expected, photo, serving
from starlette.testclient import TestClient

from vitsplit.inference.sources import find_source
from vitsplit.serving.app import make_app
from vitsplit.serving.connections import Config
from vitsplit.serving.errors import HttpError
from vitsplit.serving.images import decode
from vitsplit.serving.limits import Limits
from vitsplit.serving.server import accepted_hosts
from vitsplit.serving.service import Service

DOCUMENTED = {
    400: {"invalid_parameter", "invalid_image", "invalid_json", "invalid_bundle", "invalid_question"},
    404: {"not_found", "unknown_bundle", "unknown_image"},
    405: {"method_not_allowed"},
    413: {"too_large"},
    415: {"unsupported_type"},
    503: {"busy", "timeout"},
}


def refusal(response):
    """Status and code of an error, whose form is checked."""
    error = response.json()["error"]
    assert error["code"] in DOCUMENTED[response.status_code]
    assert set(error) <= {"code", "message", "remedy"} and error["message"]
    assert "/tmp" not in response.text and "Traceback" not in response.text and "0x" not in response.text
    assert response.headers["x-content-type-options"] == "nosniff"
    return response.status_code, error["code"]


def png_header(width, height):
    """A PNG of a size without pixels: a few bytes that claim any number of them."""

    def chunk(kind, content):
        return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))

    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(b"")) + chunk(b"IEND", b"")


def file_of(kind, size=(64, 48), **options):
    file = io.BytesIO()
    Image.new("RGB", size, "red").save(file, format=kind, **options)
    return file.getvalue()


BODIES = {
    "empty": (b"", 400),
    "text": (b"hello", 415),
    "svg": (b'<svg xmlns="http://www.w3.org/2000/svg"><image href="/etc/passwd"/></svg>', 415),
    "eps": (b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n", 415),
    "gif": (file_of("GIF"), 415),
    "bmp": (file_of("BMP"), 415),
    "ppm": (b"P6 2 2 255 " + bytes(12), 415),
    "pdf": (file_of("PDF"), 415),
    "form": (b'--x\r\nContent-Disposition: form-data; name="file"\r\n\r\n\xff\xd8\r\n--x--', 415),
    "truncated": (photo(300, 300, kind="JPEG")[:-2000], 400),
    "truncated PNG": (photo()[:200], 400),
    "bomb": (png_header(100_000, 100_000), 413),
    "just too many pixels": (png_header(4001, 4000), 413),
    "no pixels": (png_header(0, 0), 415),
    "missing pixels": (png_header(2000, 2000), 400),
    "noise": (np.random.default_rng(0).bytes(1000), 415),
}


@pytest.mark.parametrize("name", BODIES)
def test_bodies_that_are_no_image(client, name):
    content, status = BODIES[name]
    assert refusal(client.post("/v1/predict", content=content))[0] == status


def test_scans_of_a_progressive_jpeg_are_limited(client):
    image = photo(64, 64, kind="JPEG")
    progressive = io.BytesIO()
    Image.open(io.BytesIO(image)).save(progressive, format="JPEG", progressive=True)
    content = progressive.getvalue()
    assert client.post("/v1/predict?bundles=far", content=content).status_code == 200
    last = content.rindex(b"\xff\xda")
    assert refusal(client.post("/v1/predict", content=content[:-2] + content[last:-2] * 64 + b"\xff\xd9"))[0] == 400


def test_pixels_of_all_scans_are_limited():
    progressive = io.BytesIO()
    Image.open(io.BytesIO(photo(64, 64, kind="JPEG"))).save(progressive, format="JPEG", progressive=True)
    content = progressive.getvalue()
    last = content.rindex(b"\xff\xda")
    more = content[:-2] + content[last:-2] * 15 + b"\xff\xd9"
    small = Limits(max_megapixels=0.005)
    assert decode(content, small).shape == decode(more, Limits()).shape == (64, 64, 3)
    with pytest.raises(HttpError):
        decode(more, small)


@pytest.mark.parametrize("size", [(1, 1), (1, 3000), (3000, 1), (2, 2)])
def test_unusual_sizes_are_predicted_or_refused(client, size):
    response = client.post("/v1/predict?bundles=rooms", content=file_of("PNG", size))
    assert response.status_code == 200 or refusal(response)[0] == 400


QUERIES = {
    "bundles=absent": 404, "bundles=": 404, "bundles=rooms,,far": 404, "bundles=../../etc/passwd": 404,
    "format=xml": 400, "format=": 400, "masks=polygon": 400, "bundle=rooms": 400, "format=png": 400,
    "format=coco&bundles=far": 400, "format=json&format=npz": 400, "image_id=": 400, "bundles=rooms%00": 404,
}  # fmt: skip


@pytest.mark.parametrize("query", QUERIES)
def test_wrong_parameters(client, query):
    assert refusal(client.post(f"/v1/predict?{query}", content=photo()))[0] == QUERIES[query]


@pytest.mark.parametrize(
    ("method", "path", "status"),
    [
        ("GET", "/v1/predict", 405),
        ("POST", "/v1/bundles", 405),
        ("GET", "/absent", 404),
        ("GET", "/v2x", 404),
        ("GET", "/healthz/", 404),
        ("GET", "/page.css/../../../etc/passwd", 404),
        ("GET", "/%2e%2e/%2e%2e/etc/passwd", 404),
        ("GET", "/v1/bundles/rooms", 405),
        ("POST", "/v1/ask?question=What", 400),
    ],
)
def test_wrong_paths_and_methods(client, method, path, status):
    assert refusal(client.request(method, path))[0] == status


def test_compressed_bodies_are_not_read(client):
    response = client.post("/v1/predict", content=photo(), headers={"content-encoding": "gzip"})
    assert refusal(response) == (415, "unsupported_type")


def test_the_size_of_a_body_is_limited(runs):
    with serving({"rooms": runs["rooms"]}, Limits(max_body_mb=0.01)) as client:
        assert refusal(client.post("/v1/predict", content=bytes(20_000))) == (413, "too_large")
        # The length is not announced, and the body has no end within the limit of what is read.
        chunks = (bytes(1000) for _ in range(100_000))
        assert refusal(client.post("/v1/predict", content=chunks)) == (413, "too_large")
        assert client.post("/v1/predict", content=photo(20, 20)).status_code == 200


def test_unexpected_errors_say_nothing(runs, monkeypatch, caplog):
    with serving({"rooms": runs["rooms"]}) as client:
        monkeypatch.setattr(client.service.predictor, "predict_batch", lambda *_: [][0])
        response = client.post("/v1/predict", content=photo())
        assert response.status_code == 500 and response.json()["error"]["code"] == "internal"
        assert "IndexError" not in response.text and "IndexError" in caplog.text


@pytest.fixture
def slow(runs, monkeypatch):
    """A server whose model waits for an event before every batch."""
    with serving(runs, Limits(queue=3, request_seconds=5)) as client:
        client.go = threading.Event()
        client.computed = []
        original = client.service.predictor.predict_batch

        def predict_batch(image_BCHW, heads):
            client.computed.append((tuple(image_BCHW.shape), heads))
            assert client.go.wait(20)
            return original(image_BCHW, heads)

        monkeypatch.setattr(client.service.predictor, "predict_batch", predict_batch)
        yield client
        client.go.set()


def wait_until(condition):
    deadline = time.monotonic() + 10
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.01)


def test_a_full_queue_refuses(slow):
    with ThreadPoolExecutor(4) as pool:
        waiting = [pool.submit(slow.post, "/v1/predict?bundles=rooms", content=photo()) for _ in range(3)]
        wait_until(lambda: slow.service.slots.used == 3)
        response = slow.post("/v1/predict?bundles=rooms", content=photo())
        assert refusal(response) == (503, "busy") and int(response.headers["retry-after"]) > 0
        slow.go.set()
        assert [each.result().status_code for each in waiting] == [200] * 3
    assert slow.service.slots.used == 0


@pytest.mark.parametrize(
    ("proxies", "status"),
    [((), 503), (("10.0.0.0/8",), 200), (("10.0.0.1",), 503)],
    ids=["no proxy is trusted", "this one is", "another one is"],
)
def test_one_address_does_not_take_the_whole_queue(runs, monkeypatch, proxies, status):
    """Three of four places at most; the last is for others, who are told apart behind a proxy that is trusted."""
    source = find_source({"rooms": runs["rooms"]})
    service, go = Service(source.load(), source.ids(), Limits(queue=4)), threading.Event()
    predict_batch = service.predictor.predict_batch
    monkeypatch.setattr(service.predictor, "predict_batch", lambda *given: go.wait(20) and predict_batch(*given))
    config = Config(make_app(service), service, proxies)
    config.load()
    with TestClient(config.loaded_app, client=("10.0.0.9", 1)) as proxy, ThreadPoolExecutor(4) as pool:

        def post(address):
            return proxy.post("/v1/predict", content=photo(), headers={"X-Forwarded-For": f"6.6.6.6, {address}"})

        first = [pool.submit(post, "192.0.2.1") for _ in range(3)]
        wait_until(lambda: service.slots.used == 3)
        assert refusal(post("192.0.2.1")) == (503, "busy")
        other = pool.submit(post, "192.0.2.2")
        wait_until(lambda: service.slots.used == 4 or other.done())
        go.set()
        assert [each.result().status_code for each in [*first, other]] == [200, 200, 200, status]
        assert post("192.0.2.1").status_code == 200


def test_the_time_of_a_request_is_limited(slow):
    object.__setattr__(slow.service.limits, "request_seconds", 0.2)
    with ThreadPoolExecutor(2) as pool:
        first, second = (pool.submit(slow.post, "/v1/predict?bundles=rooms", content=photo(seed=s)) for s in (1, 2))
        assert refusal(first.result()) == refusal(second.result()) == (503, "timeout")
    object.__setattr__(slow.service.limits, "request_seconds", 60.0)
    slow.go.set()
    assert slow.post("/v1/predict?bundles=rooms", content=photo()).status_code == 200
    assert len(slow.computed) == 2  # one of the two was dropped before it was computed


async def send_and_disconnect(app):
    """Sends a request and disconnects; returns what was sent to the client."""
    messages = [{"type": "http.request", "body": photo(seed=1), "more_body": False}]
    sent = []

    async def receive():
        return messages.pop() if messages else {"type": "http.disconnect"}

    async def send(message):
        sent.append(message)

    scope = {"type": "http", "method": "POST", "path": "/v1/predict", "query_string": b"bundles=rooms", "headers": []}
    await app(scope, receive, send)
    return sent


def test_a_request_whose_client_has_disconnected_is_not_computed(slow):
    with ThreadPoolExecutor(1) as pool:
        first = pool.submit(slow.post, "/v1/predict?bundles=rooms", content=photo())
        wait_until(lambda: slow.computed)
        assert slow.portal.call(send_and_disconnect, slow.app) == []
        assert len(slow.service.model._waiting) == 0
        slow.go.set()
        assert first.result().status_code == 200
    assert len(slow.computed) == 1 and slow.service.slots.used == 0


def test_nothing_is_begun_for_a_client_that_has_disconnected(slow, monkeypatch):
    begun = []
    original = slow.service._pool.submit
    monkeypatch.setattr(slow.service._pool, "submit", lambda work: begun.append(work) or original(work))
    assert slow.portal.call(send_and_disconnect, slow.app) == []
    assert not begun and not slow.computed


def test_decoding_is_within_the_time_of_a_request(slow, monkeypatch):
    monkeypatch.setattr("vitsplit.serving.service.decode", lambda *_: slow.go.wait(20))
    object.__setattr__(slow.service.limits, "request_seconds", 0.2)
    assert refusal(slow.post("/v1/predict?bundles=rooms", content=photo())) == (503, "timeout")


def test_bodies_that_are_read_at_the_same_time_are_limited(slow):
    slow.service._bodies.used = slow.service._bodies.limit
    assert refusal(slow.post("/v1/predict", content=photo())) == (503, "busy")


def test_a_batch_that_cannot_be_counted(runs, monkeypatch):
    with serving({"rooms": runs["rooms"]}) as client:
        monkeypatch.setattr(client.service.model, "_on_batch", lambda batch: [][0])
        for seed in range(2):
            assert client.post("/v1/predict", content=photo(seed=seed)).status_code == 200
        assert client.get("/readyz").status_code == 200
        client.service.model.close()
        assert client.get("/readyz").status_code == client.get("/v2/health/ready").status_code == 503


@pytest.mark.parametrize(
    ("host", "status"),
    [("localhost:8000", 200), ("127.0.0.1", 200), ("[::1]:80", 200), ("LOCALHOST", 200), ("proxy.example", 200),
     ("evil.example", 403), ("localhost.evil.example:8000", 403), ("127.0.0.1.evil.example", 403), ("", 403)],
)  # fmt: skip
def test_names_of_the_host(runs, host, status):
    hosts = accepted_hosts("127.0.0.1", ["proxy.example"])
    source = find_source({"rooms": runs["rooms"]})
    with TestClient(make_app(Service(source.load(), source.ids()), hosts=hosts)) as client:
        assert client.get("/healthz", headers={"Host": host}).status_code == status


def test_the_host_is_checked_on_the_machine_itself_only():
    assert accepted_hosts("0.0.0.0", []) is None and accepted_hosts("::", []) is None
    assert "a.example" in accepted_hosts("0.0.0.0", ["A.example"])
    assert accepted_hosts("::1", []) == accepted_hosts("localhost", []) == {"localhost", "127.0.0.1", "[::1]"}


def test_requests_of_other_web_sites(client):
    for site, status in (("cross-site", 403), ("same-origin", 200), ("none", 200)):
        response = client.post("/v1/predict?bundles=far", content=photo(), headers={"Sec-Fetch-Site": site})
        assert response.status_code == status
    assert client.get("/healthz", headers={"Sec-Fetch-Site": "cross-site"}).status_code == 200


def test_batches_are_of_one_size_and_the_same_heads(runs):
    """Whatever waits is grouped, and every response is that of its image."""
    with serving(runs) as client:
        service = client.service
        service.model._batch_size = 3
        go, sizes = threading.Event(), []
        original = service.predictor.predict_batch

        def predict_batch(image_BCHW, heads):
            go.wait(20)
            sizes.append((len(image_BCHW), image_BCHW.shape[-1], heads))
            return original(image_BCHW, heads)

        service.predictor.predict_batch = predict_batch
        asked = [(seed, width, heads) for seed in range(4) for width in (40, 64) for heads in ("rooms", "rooms,far")]
        with ThreadPoolExecutor(1 + len(asked)) as pool:
            first = pool.submit(client.post, "/v1/predict?format=npz&bundles=far", content=photo(30, 30))
            wait_until(lambda: service.slots.used == 1)
            time.sleep(0.2)
            found = [
                pool.submit(client.post, f"/v1/predict?format=npz&bundles={heads}", content=photo(48, width, seed))
                for seed, width, heads in asked
            ]
            wait_until(lambda: len(service.model._waiting) == len(asked))
            go.set()
            assert first.result().status_code == 200
            results = [each.result() for each in found]
        assert max(count for count, _, _ in sizes) == 3 and len(sizes) < 1 + len(asked)
        for (seed, width, heads), response in zip(asked, results, strict=True):
            arrays = np.load(io.BytesIO(response.content))
            wanted = expected({name: runs[name] for name in heads.split(",")}, photo(48, width, seed))
            np.testing.assert_array_equal(arrays["rooms.mask"], wanted["rooms"].mask)


def test_random_requests_are_answered(client):
    """Damaged images and parameters: never status 500."""
    rng = np.random.default_rng(0)
    for _ in range(60):
        content = bytearray(photo(30, 40, int(rng.integers(3)), ["PNG", "JPEG", "WEBP", "TIFF"][rng.integers(4)]))
        for _ in range(rng.integers(1, 6)):
            content[rng.integers(len(content))] = rng.integers(256)
        response = client.post("/v1/predict?bundles=rooms", content=bytes(content[: rng.integers(1, len(content) + 1)]))
        assert response.status_code == 200 or refusal(response)[0] in (400, 413, 415)
