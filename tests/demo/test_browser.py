"""The demo in a real headless Chromium: what a person does and sees."""

import re

import numpy as np
import pytest
from browser import missing, patience, running_browser, running_demo, wait_until
from PIL import Image
from tiny_demo import alternatives, huge_png, marked, pictures, png, write_checkpoint

from hf_igpt.plots import MISSING


pytestmark = pytest.mark.skipif(missing() is not None, reason=str(missing()))

SIDE = 24
LAYERS = 8


@pytest.fixture(scope="module")
def demo(tmp_path_factory):
    folder = tmp_path_factory.mktemp("demo")
    # Of a size that takes more than a second to draw: a tiny one is done before anybody can watch or stop it.
    write_checkpoint(
        folder / "causal", "causal", SIDE, hidden_size=240, intermediate_size=960, num_hidden_layers=LAYERS
    )
    write_checkpoint(folder / "masked", "masked", 8)
    with running_demo(folder, "--model", "causal/model", "masked/model") as demo:
        yield demo
        assert demo.is_alive(), demo.log.read_text()


@pytest.fixture(scope="module")
def browser():
    with running_browser() as browser:
        yield browser


@pytest.fixture
def page(demo, browser):
    """A fresh user's page, which must run without an error and ask nobody else for anything."""
    context = browser.new_context(viewport={"width": 1280, "height": 900})
    context.set_default_timeout(patience(20))
    page = context.new_page()
    errors, elsewhere = [], []
    page.on("pageerror", lambda error: errors.append(str(error)))
    page.on("request", lambda request: None if is_local(request.url, demo.url) else elsewhere.append(request.url))
    page.goto(demo.url)
    page.wait_for_selector("#drawn", state="attached")
    page.wait_for_selector("#view img")
    yield page
    context.close()
    assert errors == [] and elsewhere == []


def is_local(url: str, home: str) -> bool:
    return url.startswith((home, "data:", "blob:"))


def html_of(page, name: str) -> str:
    return page.locator(f"#{name}").inner_html()


def wait_for_text(page, name: str, text: str) -> None:
    page.wait_for_function(
        "([name, text]) => new RegExp(text).test(document.getElementById(name).innerText)", arg=[name, text]
    )


def upload(page, name: str, content: bytes) -> None:
    page.get_by_role("tab", name="Upload").click()
    field = page.get_by_test_id("Upload an image-upload-button")
    field.set_input_files(
        {"name": name, "mimeType": "text/plain" if name.endswith("txt") else "image/png", "buffer": content}
    )


def set_number(page, label: str, value: int) -> None:
    field = page.get_by_label(re.compile(f"number input for {label}", re.IGNORECASE)).first
    field.fill(str(value))
    field.press("Enter")


def draw(page) -> None:
    page.get_by_role("button", name="Draw", exact=True).click()


def test_upload_generate_and_watch(page):
    """Pictures change while they are drawn, the kept rows are the upload's, and the same seed repeats them."""
    upload(page, "mine.png", png(marked(3)))
    wait_for_text(page, "image-status", "Chosen: your file")
    wait_until(lambda: len(pictures(html_of(page, "surprise"))) == 1)
    set_number(page, "Number of images", 2)
    draw(page)
    seen = []

    def finished() -> bool:
        shown = html_of(page, "drawn")
        if pictures(shown) and shown not in seen:
            seen.append(shown)
        return "Done: 2 images" in page.locator("#progress").inner_text()

    wait_until(finished, 60)
    assert len(seen) >= 3
    first, last = pictures(seen[0])[0], pictures(html_of(page, "drawn"))[0]
    assert (first == MISSING).all(axis=2).sum() > 0 and not (last == MISSING).all(axis=2).any()
    color = np.asarray(marked(3))[0, 0]
    assert (last[: SIDE // 2] == color).all() and (last[SIDE // 2 :] != color).any()
    before = html_of(page, "drawn")
    draw(page)
    wait_until(lambda: html_of(page, "drawn") != before, 60)
    wait_for_text(page, "progress", "Done: 2 images")
    assert html_of(page, "drawn") == before
    assert all(alternatives(html_of(page, name)) for name in ("view", "surprise", "drawn", "examples"))


def test_stop(page):
    page.get_by_role("button", name="No image: draw whole ones").click()
    wait_for_text(page, "image-status", "No image")
    set_number(page, "Number of images", 16)
    draw(page)
    wait_until(lambda: len(pictures(html_of(page, "drawn"))) == 16, 60)
    page.get_by_role("button", name="Stop", exact=True).click()
    wait_for_text(page, "progress", "Stopped")
    # The button answers at once; the part that was being drawn may come after it.
    page.wait_for_timeout(1000)
    shown = html_of(page, "drawn")
    assert (pictures(shown)[0] == MISSING).all(axis=2).any()
    page.wait_for_timeout(1000)
    assert html_of(page, "drawn") == shown
    # The model is free: the next request is drawn.
    set_number(page, "Number of images", 1)
    draw(page)
    wait_for_text(page, "progress", "Done: 1 image")


def test_paint_and_inpaint(page):
    page.get_by_label("Checkpoint").click()
    page.get_by_role("option", name="masked/model").click()
    wait_until(lambda: "Masked model" in page.content())
    page.get_by_label("all but what I paint").check()
    page.wait_for_selector("#hole canvas")
    draw(page)
    wait_for_text(page, "progress", "Nothing is painted")
    canvas = page.locator("#hole canvas").first
    canvas.scroll_into_view_if_needed()
    page.wait_for_timeout(500)
    box = canvas.bounding_box()
    x, y = box["x"] + box["width"] / 2, box["y"] + box["height"] / 2
    page.mouse.move(x - 20, y)
    page.mouse.down()
    page.mouse.move(x + 20, y, steps=5)
    page.mouse.up()
    page.wait_for_timeout(500)
    set_number(page, "Number of images", 3)
    draw(page)
    wait_for_text(page, "progress", "Done: 3 images")
    given = pictures(html_of(page, "view"))[1]
    drawn = pictures(html_of(page, "drawn"))
    changed = np.any([(picture != given).any(axis=2) for picture in drawn], axis=0)
    assert 0 < changed.sum() < 40
    rows, columns = np.nonzero(changed)
    assert rows.min() >= 1 and rows.max() <= 6 and columns.min() >= 1 and columns.max() <= 6


def test_draw_an_image(page):
    page.get_by_role("tab", name="Draw yourself").click()
    page.get_by_role("button", name="Use the drawing").click()
    wait_for_text(page, "image-status", "The canvas is empty")
    box = page.locator("#ink canvas").first.bounding_box()
    x, y = box["x"] + box["width"] / 2, box["y"] + box["height"] / 2
    page.mouse.move(x, y - 60)
    page.mouse.down()
    page.mouse.move(x, y + 60, steps=5)
    page.mouse.up()
    page.wait_for_timeout(500)
    page.get_by_role("button", name="Use the drawing").click()
    wait_for_text(page, "image-status", "Chosen: your drawing")
    mine = pictures(html_of(page, "view"))[0]
    assert 0.02 < (mine.min(axis=2) > 200).mean() < 0.5


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("notes.txt", b"this is no image"),
        ("truncated.png", png(Image.effect_noise((200, 200), 50))[:3000]),
        ("huge.png", huge_png()),
    ],
    ids=["text", "truncated", "huge"],
)
def test_files_that_are_no_good_image(page, name, content):
    """A message beside the field, and the app goes on."""
    before = html_of(page, "view")
    upload(page, name, content)
    wait_for_text(page, "image-status", "This file can't be used")
    assert page.locator("#image-status [role=alert]").count() == 1
    assert html_of(page, "view") == before
    upload(page, "good.png", png(marked(5)))
    wait_for_text(page, "image-status", "Chosen: your file")
    assert html_of(page, "view") != before


def test_by_keyboard_on_a_phone(demo, browser):
    """Everything is within the width of a phone, and drawing needs no pointer."""
    context = browser.new_context(viewport={"width": 390, "height": 844})
    context.set_default_timeout(patience(20))
    page = context.new_page()
    page.goto(demo.url)
    page.wait_for_selector("#view img")
    assert page.evaluate("document.documentElement.scrollWidth") <= 390
    page.locator("#examples button").nth(2).focus()
    page.keyboard.press("Enter")
    wait_for_text(page, "image-status", "test image 3")
    page.get_by_label("all but the middle").focus()
    page.keyboard.press("Space")
    page.get_by_role("button", name="Draw", exact=True).focus()
    page.keyboard.press("Enter")
    wait_for_text(page, "progress", "Done: 4 images")
    assert page.evaluate("document.documentElement.scrollWidth") <= 390
    context.close()


def test_palette_and_features(page):
    page.get_by_role("tab", name="Palette").click()
    wait_until(lambda: len(pictures(html_of(page, "palette"))) == 7)
    assert any("2 colours fitted to the image" in text for text in alternatives(html_of(page, "palette")))
    page.get_by_role("tab", name="Features").click()
    wait_until(lambda: len(pictures(html_of(page, "neighbours"))) == 9, 40)
    assert "layer 1 70.0 %" in alternatives(html_of(page, "probe"))[0]
    # A class is called like a script; it must be read, not run.
    assert "<script>alert(1)" in page.locator("#neighbours").inner_text()
    assert page.locator("#neighbours script").count() == 0
    before = html_of(page, "neighbours")
    set_number(page, "Layer of the features", 0)
    wait_until(lambda: html_of(page, "neighbours") != before)


def test_whoever_waits_sees_the_place(page, demo):
    """Behind others' requests the page says how long the queue is."""
    from gradio_client import Client

    set_number(page, "Number of images", 1)
    other = Client(demo.url, verbose=False)
    jobs = [other.submit(*request(4), api_name="/generate") for _ in range(4)]
    wait_until(lambda: any(job.status().rank for job in jobs))
    draw(page)
    page.wait_for_function("/queue: [0-9]+\\/[0-9]+/.test(document.getElementById('progress').innerText)")
    wait_for_text(page, "progress", "Done: 1 image")
    assert all("Done: 4 images" in job.result()[1] for job in jobs)


def request(count: int, rows: int = 0) -> tuple:
    """Arguments of /generate."""
    return ("causal/model", "upper rows", rows, None, count, 1.0, 0, 0, 1)
