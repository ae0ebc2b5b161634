"""Questions over HTTP. Oracle: ``Predictor.ask``, and counts of passes."""

from __future__ import annotations

import ast
import io
import json
import threading
import urllib.request

import pytest
from PIL import Image
from served import listening, photo, serving
from vqa_bundles import write_language_model, write_vqa_bundle

import vitsplit
from vitsplit.serving.ask import WAITING
from vitsplit.serving.limits import Limits
from vitsplit.serving.slots import Slots

QUESTIONS = ["What?", "How many chairs are there in this room?", "Is it a lamp?"]


@pytest.fixture(scope="module")
def language(tmp_path_factory):
    return write_language_model(tmp_path_factory.mktemp("language") / "tiny")


@pytest.fixture(scope="module")
def asked(language, runs, tmp_path_factory):
    return {"asked": write_vqa_bundle(tmp_path_factory.mktemp("asked"), language, seed=3), "rooms": runs["rooms"]}


@pytest.fixture
def client(asked, language):
    with serving(asked, Limits(cached_images=2), language_weights=language) as client:
        yield client


@pytest.fixture(scope="module")
def model(asked, language):
    return vitsplit.load({"asked": asked["asked"]}, language_weights=language)


def events(response):
    """Names and data of the events."""
    found = []
    for block in response.text.split("\n\n")[:-1]:
        lines = dict(line.split(": ", 1) for line in block.split("\n"))
        found.append((lines.get("event", ""), json.loads(lines["data"])))
    return found


def truth(model, content, question):
    return model.ask(Image.open(io.BytesIO(content)), question)


def test_the_license_of_a_tuned_language_model_is_stated(asked, language, tmp_path):
    tuned = write_vqa_bundle(tmp_path / "tuned", language, task={"stage": "instruct", "tune": "full"})
    with serving({**asked, "tuned": tuned}, language_weights=language) as client:
        found = client.get("/v1/bundles").json()["bundles"]
    assert {name: each["license"] for name, each in found.items()} == {
        "asked": "apache-2.0",
        "rooms": "apache-2.0",
        "tuned": "apache-2.0 and license of tiny",
    }


def test_answers_are_streamed(client, model):
    for seed, question in enumerate(QUESTIONS):
        response = client.post("/v1/ask", params={"question": question}, content=photo(seed=seed))
        assert response.headers["content-type"].startswith("text/event-stream")
        (first, image), *pieces, (last, done) = events(response)
        assert (first, last, image["size"], image["reused"]) == ("image", "done", [48, 64], False)
        assert all(name == "" for name, _ in pieces)
        assert "".join(piece["text"] for _, piece in pieces).strip() == done["answer"]
        assert done["answer"] == truth(model, photo(seed=seed), question)


def test_visual_tokens_are_reused(client, model):
    passes = client.service.predictor.passes
    first = events(client.post("/v1/ask", params={"question": QUESTIONS[0]}, content=photo()))
    digest = first[0][1]["sha256"]
    before = sum(passes.values())
    for question in QUESTIONS:
        found = events(client.post("/v1/ask", json={"image_sha256": digest, "question": question}))
        assert found[0][1]["reused"] and found[-1][1]["answer"] == truth(model, photo(), question)
        again = events(client.post("/v1/ask", params={"question": question}, content=photo()))
        assert again[0][1]["reused"] and again[-1][1]["answer"] == found[-1][1]["answer"]
    assert sum(passes.values()) == before
    for seed in (1, 2):  # two others, so that the first is no longer cached
        client.post("/v1/ask", params={"question": "What?"}, content=photo(seed=seed))
    response = client.post("/v1/ask", json={"image_sha256": digest, "question": "What?"})
    assert response.status_code == 404 and response.json()["error"]["code"] == "unknown_image"


def test_questions_at_the_same_time(client, model):
    found = {}

    def ask(seed):
        response = client.post("/v1/ask", params={"question": QUESTIONS[seed]}, content=photo(seed=seed))
        found[seed] = events(response)[-1][1]["answer"]

    threads = [threading.Thread(target=ask, args=(seed,)) for seed in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert found == {seed: truth(model, photo(seed=seed), QUESTIONS[seed]) for seed in range(3)}


@pytest.mark.parametrize(
    ("query", "status", "code"),
    [
        ("", 400, "invalid_question"),
        ("question=%20", 400, "invalid_question"),
        (f"question={'a' * 5000}", 400, "invalid_question"),
        ("question=a&bundle=rooms", 400, "invalid_parameter"),
        ("question=a&bundle=absent", 404, "unknown_bundle"),
        ("question=a&max_new_tokens=0", 400, "invalid_parameter"),
        ("question=a&max_new_tokens=x", 400, "invalid_parameter"),
        ("question=a&other=1", 400, "invalid_parameter"),
    ],
)
def test_wrong_questions(client, query, status, code):
    response = client.post(f"/v1/ask?{query}", content=photo())
    assert (response.status_code, response.json()["error"]["code"]) == (status, code)


@pytest.mark.parametrize(
    "body", [{}, [], {"question": "a"}, {"question": 3, "image_sha256": "0"}, {"question": "a", "image_sha256": [1]},
             {"question": "a", "image_sha256": "0", "path": "/etc/passwd"}]
)  # fmt: skip
def test_wrong_json(client, body):
    assert client.post("/v1/ask", json=body).status_code == 400


def test_a_question_that_is_too_long_for_the_window(client):
    found = events(client.post("/v1/ask", params={"question": "word " * 700}, content=photo()))
    assert found[-1][0] == "error" and found[-1][1]["error"]["code"] == "invalid_question"


def test_an_unexpected_error_ends_the_stream(client, monkeypatch, caplog):
    monkeypatch.setattr(
        "vitsplit.serving.ask._answer", lambda answerer, question, most, put, stopped: put(KeyError("x"))
    )
    found = events(client.post("/v1/ask", params={"question": "What?"}, content=photo()))
    assert [name for name, _ in found] == ["image", "error"] and found[-1][1]["error"]["code"] == "internal"
    assert "KeyError" in caplog.text


def test_too_many_questions_are_refused_before_the_pass(client, monkeypatch):
    monkeypatch.setattr("vitsplit.serving.ask.Slots.one", refuse_questions(Slots.one))
    response = client.post("/v1/ask", params={"question": "What?"}, content=photo())
    assert response.status_code == 503 and not client.service.predictor.passes


def refuse_questions(original):
    def one(slots, what, client):
        if what == "questions":
            slots.used = slots.limit
        return original(slots, what, client)

    return one


def test_questions_are_no_longer_counted_when_they_end(client):
    for _ in range(WAITING + 1):
        assert client.post("/v1/ask", params={"question": "What?"}, content=photo()).status_code == 200


def test_the_example_runs(asked, language, model, tmp_path, monkeypatch, capsys):
    (tmp_path / "photo.jpg").write_bytes(photo(kind="JPEG"))
    monkeypatch.chdir(tmp_path)
    with listening(asked, language_weights=language) as address:
        document = json.load(urllib.request.urlopen(f"http://{address}/openapi.json"))
        (sample,) = document["paths"]["/v1/ask"]["post"]["x-codeSamples"]
        exec(sample["source"], {"URL": f"http://{address}"})
    last = ast.literal_eval(capsys.readouterr().out.splitlines()[-1])
    assert last["answer"] == truth(model, photo(kind="JPEG"), "What is on the desk?")


def test_json_is_limited(client):
    assert client.post("/v1/ask", json={"question": "a" * (1 << 16)}).status_code == 413


def test_the_length_of_an_answer(client, model):
    found = events(client.post("/v1/ask", params={"question": "What?", "max_new_tokens": 2}, content=photo()))
    assert found[-1][1]["answer"] == model.ask(Image.open(io.BytesIO(photo())), "What?", max_new_tokens=2)


def test_predictions_leave_out_bundles_that_need_a_question(client):
    assert set(client.post("/v1/predict", content=photo()).json()["predictions"]) == {"rooms"}
    response = client.post("/v1/predict?bundles=asked", content=photo())
    assert response.status_code == 400 and "/v1/ask" in response.json()["error"]["remedy"]
