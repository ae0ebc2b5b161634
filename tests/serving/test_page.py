"""The page in Chromium. Oracles: the arrays of ``predict`` at the pixel under the cursor, ``Predictor.ask``."""

from __future__ import annotations

import hashlib
import io
import json
import re
import shutil
import urllib.request

import numpy as np
import pytest
from bundles import write_segmentation_bundle
from PIL import Image
from served import expected, listening, photo
from vqa_bundles import write_language_model, write_vqa_bundle

import vitsplit
from vitsplit.serving.limits import Limits
from vitsplit.tasks.depth.colormap import apply_colormap, display_range

playwright = pytest.importorskip("playwright.sync_api", reason="needs playwright")
expect = playwright.expect
CHROMIUM = shutil.which("chromium")
pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="needs chromium")

HEIGHT, WIDTH = 48, 64
TIMES = "\N{MULTIPLICATION SIGN}"
FOCUSED = """() => { const node = document.activeElement;
  return node.ariaLabel || node.labels?.[0]?.innerText || node.innerText || node.tagName; }"""
POINTS = [(0, 0), (63, 47), (5, 40), (31, 23), (50, 8)]
"""Columns and rows."""


@pytest.fixture(scope="module")
def language(tmp_path_factory):
    return write_language_model(tmp_path_factory.mktemp("language") / "tiny")


@pytest.fixture(scope="module")
def every_task(runs, language, tmp_path_factory):
    return {**runs, "asked": write_vqa_bundle(tmp_path_factory.mktemp("asked"), language, seed=3)}


@pytest.fixture(scope="module")
def address(every_task, language):
    with listening(every_task, Limits(cached_images=1), language_weights=language) as address:
        yield address


@pytest.fixture(scope="module")
def truth(runs):
    return expected(runs, photo())


@pytest.fixture(scope="module")
def browser():
    with playwright.sync_playwright() as driver:
        arguments = ["--no-sandbox", "--use-fake-device-for-media-stream", "--use-fake-ui-for-media-stream"]
        browser = driver.chromium.launch(executable_path=CHROMIUM, args=arguments)
        yield browser
        browser.close()


@pytest.fixture
def page(browser, address):
    with browser.new_context(viewport={"width": 1440, "height": 900}, permissions=["camera"]) as context:
        page = context.new_page()
        page.set_default_timeout(20_000)
        complaints = []  # also of the content security policy
        page.on("console", lambda message: complaints.append(message.text) if message.type == "error" else None)
        page.on("pageerror", lambda error: complaints.append(str(error)))
        page.goto(f"http://{address}/")
        expect(page.locator("#offers li")).to_have_count(4)
        yield page
        # The browser itself reports answers with an error status.
        assert [each for each in complaints if "Failed to load resource" not in each] == []


def choose(page, content=None, name="photo.png", kind="image/png"):
    content = photo() if content is None else content
    page.locator("#file").set_input_files({"name": name, "mimeType": kind, "buffer": content})


def predicted(page):
    expect(page.get_by_role("status")).to_have_text(re.compile("are ready"), timeout=20_000)


def picture(page, head):
    return page.locator("figure").filter(has=page.get_by_role("heading", name=head, exact=True)).locator(".picture")


def reading(page, head):
    texts = page.get_by_role("heading", name=head, exact=True).locator("..").locator(".reading").all_inner_texts()
    return [text.strip() for text in texts]


def point(page, target, x, y, size=(HEIGHT, WIDTH)):
    target.scroll_into_view_if_needed()
    box = target.bounding_box()
    page.mouse.move(box["x"] + (x + 0.5) / size[1] * box["width"], box["y"] + (y + 0.5) / size[0] * box["height"])


def pixel(page, target, x, y):
    """Color on the canvas at the center of a pixel of the image."""
    script = """(node, [x, y]) => { const canvas = node.querySelector("canvas");
      return [...canvas.getContext("2d").getImageData(x * canvas.width, y * canvas.height, 1, 1).data].slice(0, 3); }"""
    return np.array(target.evaluate(script, [(x + 0.5) / WIDTH, (y + 0.5) / HEIGHT]))


def check_readings(page, truth, x, y):
    rooms, far, things = truth["rooms"], truth["far"], truth["things"]
    assert reading(page, "rooms") == [rooms.classes.names[rooms.mask[y, x]]]
    (depth,) = reading(page, "far")
    assert float(depth.removesuffix(" m")) == pytest.approx(far.depth[y, x], abs=0.0056)
    inside = [index for index, mask in enumerate(things.masks) if mask[y, x]]
    assert reading(page, "things") == [
        f"{things.classes.names[things.labels[index]]} {things.scores[index]:.2f}" for index in inside[:3]
    ]
    return len(inside)


def test_values_under_the_cursor(page, truth):
    with page.expect_response("**/v1/predict?*") as answer:
        choose(page)
    assert answer.value.json()["image"]["sha256"] == hashlib.sha256(photo()).hexdigest()  # the file as it is
    predicted(page)
    page.get_by_label("Score from").press("Home")  # objects of all scores
    objects = 0
    for x, y in POINTS:
        for head in ("far", "things"):  # the same pixel, wherever it is pointed at
            point(page, picture(page, head), x, y)
            objects += check_readings(page, truth, x, y)
        label = picture(page, "rooms").locator(".probe .reading")
        assert label.inner_text().strip() == truth["rooms"].classes.names[truth["rooms"].mask[y, x]]
    assert objects > 0
    page.get_by_text("Overlay").click()
    point(page, page.locator(".picture"), *POINTS[2])
    check_readings(page, truth, *POINTS[2])


def test_threshold_hides_objects(page, truth):
    choose(page)
    predicted(page)
    slider = page.get_by_label("Score from")
    slider.press("End")
    assert all(score < 1 for score in truth["things"].scores)
    point(page, picture(page, "things"), *POINTS[3])
    assert reading(page, "things") == []
    listed = page.locator("figure").filter(has=slider).locator(".list li:visible")
    expect(listed).to_have_count(0)
    slider.press("Home")
    expect(listed).to_have_count(len(truth["things"].scores))


def test_colors_of_pixels(page, truth):
    choose(page)
    predicted(page)
    page.get_by_label("Opacity").press("End")
    rooms, far = truth["rooms"], truth["far"]
    depth_HWC = np.asarray(apply_colormap(far.depth, far.depth > 0, display_range(far.depth))).astype(int)
    for x, y in POINTS[2:]:
        np.testing.assert_array_equal(pixel(page, picture(page, "rooms"), x, y), rooms.classes.colors[rooms.mask[y, x]])
        assert np.abs(pixel(page, picture(page, "far"), x, y) - depth_HWC[y, x]).max() <= 8
    page.get_by_label("Opacity").press("Home")
    image_HWC = rooms.image.astype(int)
    x, y = POINTS[3]
    near = image_HWC[y - 1 : y + 2, x - 1 : x + 2].reshape(-1, 3)  # the photo is smoothed
    found = pixel(page, picture(page, "rooms"), x, y)
    assert (found >= near.min(0) - 2).all() and (found <= near.max(0) + 2).all()


def test_a_class_alone(page, truth):
    choose(page)
    predicted(page)
    page.get_by_label("Opacity").press("End")
    rooms = truth["rooms"]
    x, y = POINTS[3]
    own = rooms.mask[y, x]
    other = next(index for index in np.unique(rooms.mask) if index != own)
    page.get_by_role("button", name=f"class {other}").click()
    assert tuple(pixel(page, picture(page, "rooms"), x, y)) != rooms.classes.colors[own]
    page.get_by_role("button", name=f"class {other}").click()
    assert tuple(pixel(page, picture(page, "rooms"), x, y)) == rooms.classes.colors[own]


def test_keyboard_reaches_everything_and_reads_pixels(page, truth):
    choose(page)
    predicted(page)
    page.locator("body").press("Tab")
    seen = []
    for _ in range(60):
        seen.append(page.evaluate(FOCUSED).strip())
        page.keyboard.press("Tab")
    for part in ["Choose photo", "Camera", "rooms", "far", "things", "Side by side", "Opacity", "The photo",
                 "Predictions of rooms", "Score from", "class", "Question", "Ask"]:  # fmt: skip
        assert any(each.startswith(part) for each in seen), part

    page.get_by_label("Score from").press("Home")
    picture(page, "rooms").focus()
    for key in ["ArrowRight", "ArrowDown", "Shift+ArrowLeft", "ArrowUp", "ArrowUp"]:
        page.keyboard.press(key)
    # The first press shows the center (32, 24); then one of 64 columns per press.
    x, y = 31, 23
    check_readings(page, truth, x, y)
    spoken = page.get_by_role("status")
    expect(spoken).to_contain_text(f"Column {x}, row {y}")
    expect(spoken).to_contain_text(f"rooms: {truth['rooms'].classes.names[truth['rooms'].mask[y, x]]}.")
    page.keyboard.press("Escape")
    assert reading(page, "rooms") == []


def test_only_heads_that_are_on_are_asked_for(page):
    asked = []
    page.on("request", lambda request: asked.append(request.url) if "predict" in request.url else None)
    choose(page)
    predicted(page)
    assert [re.findall("bundles=([^&]*)", url) for url in asked] == [["rooms%2Cfar%2Cthings"]]
    toggle = page.get_by_role("button", name="far")
    toggle.click()
    expect(page.get_by_role("heading", name="far", exact=True)).to_have_count(0)
    toggle.click()
    expect(page.get_by_role("heading", name="far", exact=True)).to_have_count(1)
    assert len(asked) == 1  # it is still known
    toggle.click()
    choose(page, photo(seed=1))
    expect(page.locator("#pass")).to_contain_text("for 2 heads")
    toggle.click()
    expect(page.locator("#pass")).to_contain_text("for 1 head")
    assert [re.findall("bundles=([^&]*)", url)[0] for url in asked[1:]] == ["rooms%2Cthings", "far"]


def test_what_ran_is_shown(page, address):
    choose(page)
    predicted(page)
    request = urllib.request.Request(f"http://{address}/v1/predict", photo(), method="POST")
    passes = json.load(urllib.request.urlopen(request))["pass"]
    shown = page.locator("#pass")
    for each in passes:
        expect(shown).to_contain_text(f"{each['size'][1]} {TIMES} {each['size'][0]} pixels")
        expect(shown).to_contain_text(f"{each['blocks']} of {each['of']} blocks needed")
    expect(shown.locator(".blocks .ran")).to_have_count(sum(each["blocks"] for each in passes))
    assert {"decode image", "wait", "model", "encode"} <= set(shown.locator("dt").all_inner_texts())


def test_questions_send_the_image_once(page, address, every_task, language):
    model = vitsplit.load({"asked": every_task["asked"]}, language_weights=language)
    image = Image.open(io.BytesIO(photo()))
    kinds = []
    page.on("request", lambda request: kinds.append(request.headers["content-type"]) if "/ask" in request.url else None)
    choose(page)
    predicted(page)
    for question in ["What?", "How many?"]:
        page.get_by_label("Question", exact=True).fill(question)
        page.get_by_role("button", name="Ask").click()
        expect(page.locator(".answer").last).to_have_text(model.ask(image, question) or "(no answer)")
    assert kinds == ["image/png", "application/json"]
    assert page.locator(".question").all_inner_texts() == ["What?", "How many?"]
    expect(page.locator("#answers article").last).to_contain_text("without a pass")

    other = urllib.request.Request(f"http://{address}/v1/ask?question=No", photo(seed=5), method="POST")
    urllib.request.urlopen(other).read()  # displaces the image, of which the server keeps one
    page.get_by_label("Question", exact=True).fill("Is it?")
    page.get_by_role("button", name="Ask").click()
    expect(page.locator(".answer").last).to_have_text(model.ask(image, "Is it?") or "(no answer)")
    assert kinds[2:] == ["application/json", "image/png"]


def test_errors_are_shown_with_their_remedy(page):
    alert = page.get_by_role("alert")
    choose(page, b"not a picture", "notes.png")
    expect(alert).to_contain_text("notes.png")
    expect(alert).to_contain_text("Choose a JPEG")

    error = {"error": {"code": "busy", "message": "the queue is full", "remedy": "Repeat the request."}}
    page.route("**/v1/predict?*", lambda route: route.fulfill(status=503, json=error), times=1)
    choose(page)
    expect(alert).to_contain_text("The queue is full. Repeat the request.")
    alert.get_by_role("button", name="Try again").click()
    predicted(page)
    expect(page.locator("#problem")).to_be_hidden()

    page.route("**/v1/ask?*", lambda route: route.abort())
    page.get_by_label("Question", exact=True).fill("What?")
    page.get_by_role("button", name="Ask").click()
    expect(alert).to_contain_text("The server cannot be reached")
    expect(page.get_by_label("Question", exact=True)).to_have_value("What?")  # to ask it again


def test_a_removed_bundle_is_no_longer_offered(page):
    offered = page.evaluate("fetch('v1/bundles').then((response) => response.json())")
    del offered["bundles"]["far"]
    error = {"error": {"code": "unknown_bundle", "message": "there is no bundle 'far'", "remedy": "Bundles: rooms."}}
    page.route("**/v1/predict?*", lambda route: route.fulfill(status=404, json=error), times=1)
    page.route("**/v1/bundles", lambda route: route.fulfill(json=offered))
    choose(page)
    page.get_by_role("alert").get_by_role("button", name="Try again").click()
    predicted(page)
    expect(page.locator("#toggles button")).to_have_text(["rooms", "things"])
    expect(page.get_by_role("heading", name="rooms", exact=True)).to_have_count(1)


def test_questions_can_be_stopped(page):
    choose(page)
    predicted(page)
    page.route("**/v1/ask?*", lambda route: None)  # never answered
    page.get_by_label("Question", exact=True).fill("What?")
    page.get_by_role("button", name="Ask").click()
    page.get_by_role("button", name="Stop").click()
    expect(page.locator("#answers article")).to_contain_text("Stopped.")
    expect(page.get_by_role("button", name="Ask")).to_be_visible()


@pytest.mark.parametrize("way", ["drop", "paste"])
def test_drop_and_paste(page, way):
    page.evaluate(
        """([bytes, way]) => {
          const data = new DataTransfer();
          data.items.add(new File([new Uint8Array(bytes)], "p.png", { type: "image/png" }));
          const event = way === "drop" ? new DragEvent("drop", { dataTransfer: data, bubbles: true, cancelable: true })
            : new ClipboardEvent("paste", { clipboardData: data, bubbles: true });
          document.body.dispatchEvent(event);
        }""",
        [list(photo()), way],
    )
    predicted(page)
    expect(page.locator("figure").first).to_contain_text(f"64 {TIMES} 48 pixels")


def test_camera(page):
    page.get_by_role("button", name="Use the camera").click()
    with page.expect_response("**/v1/predict?*") as answer:
        page.get_by_role("button", name="Capture").click()
    height, width = answer.value.json()["image"]["size"]
    assert height > 100 and width > 100
    predicted(page)
    expect(page.locator("figure").first).to_contain_text(f"{width} {TIMES} {height} pixels")
    expect(page.get_by_role("dialog")).to_be_hidden()


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_narrow_screens(page, scheme):
    page.set_viewport_size({"width": 375, "height": 812})
    page.emulate_media(color_scheme=scheme)
    choose(page)
    predicted(page)
    for view in ("Side by side", "Overlay"):
        page.get_by_text(view).click()
        assert page.evaluate("document.documentElement.scrollWidth") == 375
        outside = page.locator("button:visible, input:visible, .picture").evaluate_all(
            "(nodes) => nodes.filter((node) => { const box = node.getBoundingClientRect();"
            " return box.left < 0 || box.right > 375; }).map((node) => node.outerHTML)"
        )
        assert outside == []


def test_limits_and_many_classes(browser, tmp_path):
    runs = {"many": write_segmentation_bundle(tmp_path / "many", num_classes=20, seed=4)}
    with listening(runs, Limits(max_megapixels=0.002)) as address, browser.new_page() as page:
        page.goto(f"http://{address}/")
        with page.expect_response("**/v1/predict?*") as answer:
            choose(page)
        height, width = answer.value.json()["image"]["size"]
        assert 1800 < width * height <= 2000 and width / height == pytest.approx(4 / 3, abs=0.05)
        predicted(page)
        expect(page.locator(".note")).to_contain_text(f"Scaled down from 64 {TIMES} 48")

        content = photo(40, 48)
        choose(page, content)
        expect(page.locator("figure").first).to_contain_text(f"48 {TIMES} 40 pixels")
        expect(page.locator("#pass")).to_be_visible(timeout=20_000)
        many = expected(runs, content)["many"]
        assert many.mask.max() >= 16  # of so many classes, PNG has a byte per pixel
        for x, y in [(0, 0), (47, 39), (20, 11)]:
            point(page, picture(page, "many"), x, y, (40, 48))
            assert reading(page, "many") == [many.classes.names[many.mask[y, x]]]
