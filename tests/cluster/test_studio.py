"""The studio page in a real browser, against real Ray Serve."""

import base64
import io
import re

import httpx
import numpy as np
import pytest
from PIL import Image
from playwright.sync_api import expect, sync_playwright

from scripts.browser import find

SECONDS = 20_000  # ms that a picture may take on a busy machine


@pytest.fixture(scope="module")
def browser():
    path = find()
    assert path, "no Chromium: python scripts/browser.py installs one"
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=path, args=["--no-sandbox", "--disable-gpu"])
        yield browser
        browser.close()


@pytest.fixture
def visit(browser, address):
    """visit(hash, **context): the page, its class list filled. Any error in its console fails the test."""
    contexts, errors = [], []

    def run(link="", **options):
        context = browser.new_context(**({"viewport": {"width": 1400, "height": 1000}} | options))
        contexts.append(context)
        page = context.new_page()
        page.set_default_timeout(SECONDS)
        page.on("pageerror", lambda error: errors.append(str(error)))
        page.on("console", lambda message: errors.append(message.text) if message.type == "error" else None)
        page.goto(f"{address}/{link}")
        expect(page.get_by_role("button", name="Generate")).to_be_enabled()
        return page

    run.errors = errors
    yield run
    for context in contexts:
        context.close()
    assert [error for error in errors if "Failed to load resource" not in error] == []


def generate(page, done="Done: 1 picture."):
    page.get_by_role("button", name="Generate").click()
    expect(page.get_by_role("status")).to_have_text(done, timeout=SECONDS)


def sources(page):
    """The finished pictures of the stages section, as PNG bytes."""
    found = page.locator("#stages .final img")
    return [base64.b64decode(found.nth(j).get_attribute("src").split(",")[1]) for j in range(found.count())]


def test_a_class_is_chosen_and_all_stages_arrive_as_map_and_preview(visit, address):
    page = visit()
    page.get_by_label("Class", exact=True).select_option("Bag")
    page.get_by_label("Seed", exact=True).fill("3")
    page.get_by_label("Images").fill("2")
    generate(page, "Done: 2 pictures.")
    for seed in (3, 4):
        strip = page.get_by_role("figure").filter(has_text=f"Bag, seed {seed}")
        for stage in range(5):
            expect(strip.get_by_role("img", name=f"structure map of stage {stage}")).to_be_visible()
            expect(strip.get_by_role("img", name=f"Bag after stage {stage}")).to_be_visible()
    body = {"prompt": "Bag", "seed": 3, "n": 2}
    served = httpx.post(f"{address}/v1/images/generations", json=body).json()["data"]
    assert sources(page) == [base64.b64decode(item["b64_json"]) for item in served]
    gallery = page.get_by_role("region", name="Gallery")
    with page.expect_download() as download:
        gallery.get_by_role("link", name="Download: Bag, seed 3").click()
    assert download.value.suggested_filename == "bag-seed3.png"
    gallery.get_by_role("button", name="Remove: Bag, seed 3").click()
    expect(gallery.get_by_role("listitem")).to_have_count(1)


def test_a_link_opens_the_very_same_picture(visit):
    page = visit()
    page.get_by_label("Class", exact=True).select_option("Coat")
    page.get_by_label("Seed", exact=True).fill("12")
    page.get_by_text("Sampling settings").click()
    page.get_by_label("Content guidance").fill("2")
    page.get_by_label("Drawn").check()
    page.get_by_role("button", name="Invert drawing").click()
    generate(page)
    link = page.url[page.url.index("#") :]
    assert "class=Coat" in link and "seed=12" in link and "content_guidance=2" in link and "drawing=" in link
    other = visit(link)
    expect(other.get_by_role("status")).to_have_text("Done: 1 picture.")
    assert sources(other) == sources(page)
    expect(other.get_by_label("Class", exact=True)).to_have_value("Coat")
    expect(other.get_by_label("Drawn")).to_be_checked()


def test_a_structure_is_drawn_with_the_pointer_and_with_keys(visit):
    page = visit()
    page.get_by_label("Drawn").check()
    page.get_by_role("button", name="Clear drawing").click()
    canvas = page.get_by_role("img", name="Drawing of the first structure map")
    box = canvas.bounding_box()
    page.get_by_label("Brush").fill("6")
    for row in (0.1, 0.25, 0.4):
        page.mouse.move(box["x"] + 2, box["y"] + row * box["height"])
        page.mouse.down()
        page.mouse.move(box["x"] + box["width"] - 2, box["y"] + row * box["height"], steps=5)
        page.mouse.up()
    generate(page)
    structure = page.evaluate("""() => {
        const map = document.querySelector('#stages canvas[aria-label="structure map of stage 1"]');
        return [...map.getContext('2d').getImageData(0, 0, 4, 4).data].filter((_, i) => i % 4 === 0);
    }""")
    rows = np.array(structure).reshape(4, 4)
    assert (rows[:2] == rows[0, 0]).all() and (rows[2:] == rows[3, 3]).all() and rows[0, 0] != rows[3, 3]
    before = page.url
    canvas.focus()
    for key in ("ArrowDown", "ArrowDown", "ArrowDown", " "):
        page.keyboard.press(key)
    expect(page).not_to_have_url(before)  # the drawing is in the address


def test_a_dropped_image_gives_its_structure_and_content_up_to_a_stage(visit, tmp_path):
    page = visit()
    page.get_by_label("Class", exact=True).select_option("Bag")
    generate(page)
    (png,) = sources(page)
    page.get_by_label("From an image").check()
    transfer = page.evaluate_handle(
        """(text) => {
            const bytes = Uint8Array.from(atob(text), (letter) => letter.charCodeAt(0));
            const transfer = new DataTransfer();
            transfer.items.add(new File([bytes], 'bag.png', { type: 'image/png' }));
            return transfer;
        }""",
        base64.b64encode(png).decode(),
    )
    page.dispatch_event("#drop", "drop", {"dataTransfer": transfer})
    expect(page.get_by_role("status")).to_contain_text("The reference image is read")
    expect(page.get_by_role("img", name="the reference as the model sees it")).to_be_visible()
    page.get_by_label("Keep structure up to stage").fill("3")
    page.get_by_label("Keep content of the first stages").fill("4")
    assert page.get_by_label("Keep content of the first stages").get_attribute("max") == "4"
    page.get_by_label("Class", exact=True).select_option("Coat")
    generate(page)
    link = page.url[page.url.index("#") :]
    assert "stage=3" in link and "content=" in link
    other = visit(link)  # without the upload
    expect(other.get_by_role("status")).to_have_text("Done: 1 picture.")
    assert sources(other) == sources(page)
    page.get_by_label("Generated").check()
    generate(page)
    bag, like_it, free = (
        np.asarray(Image.open(io.BytesIO(picture))).astype(float)
        for picture in (png, sources(other)[0], sources(page)[0])
    )
    assert np.abs(bag - like_it).mean() < 0.5 * np.abs(bag - free).mean()  # four of five stages are the bag's


def test_classes_are_compared_in_one_structure(visit):
    page = visit()
    page.get_by_text("Compare classes").click()
    page.get_by_label("Classes to compare").select_option(["Trouser", "Coat", "Bag"])
    page.get_by_role("button", name="Compare", exact=True).click()
    expect(page.get_by_role("status")).to_have_text("Done: 3 pictures.", timeout=SECONDS)
    maps = page.evaluate("""() => [...document.querySelectorAll('#stages canvas')].map((map) => map.toDataURL())""")
    assert maps[:5] == maps[5:10] == maps[10:] and len(set(sources(page))) == 3


def test_a_picture_of_the_gallery_gives_its_structure_and_its_settings(visit):
    page = visit()
    page.get_by_label("Class", exact=True).select_option("Bag")
    page.get_by_label("Seed", exact=True).fill("7")
    generate(page)
    first = sources(page)
    page.get_by_role("button", name="Use structure: Bag, seed 7").click()
    page.get_by_label("Keep content of the first stages").fill("5")
    page.get_by_label("Seed", exact=True).fill("1")
    generate(page)
    pixels = [np.asarray(Image.open(io.BytesIO(png))) for png in (first[0], sources(page)[0])]
    assert np.array_equal(*pixels)  # all stages are kept
    page.get_by_role("button", name="Open: Bag, seed 7").click()
    expect(page.get_by_label("Seed", exact=True)).to_have_value("7")
    expect(page.get_by_label("Generated")).to_be_checked()
    generate(page)
    assert sources(page) == first


def test_keys_draw_choose_a_seed_and_show_themselves(visit):
    page = visit()
    page.get_by_role("heading", name="nvg studio").click()
    page.keyboard.press("?")
    expect(page.get_by_role("dialog", name="Keys")).to_be_visible()
    page.keyboard.press("Escape")
    seed = page.get_by_label("Seed", exact=True).input_value()
    page.keyboard.press("r")
    assert page.get_by_label("Seed", exact=True).input_value() != seed
    page.keyboard.press("g")
    expect(page.get_by_role("status")).to_have_text("Done: 1 picture.", timeout=SECONDS)
    page.get_by_label("Seed", exact=True).fill("3")
    page.keyboard.press("r")  # while typing it is a letter
    assert page.get_by_label("Seed", exact=True).input_value() == "3"
    page.keyboard.press("Control+Enter")
    expect(page.get_by_role("figure")).to_contain_text("seed 3")


def test_stop_ends_a_long_request(visit):
    page = visit()
    page.get_by_text("Sampling settings").click()
    page.get_by_label("Flow steps").fill("100")
    page.get_by_label("Images").fill("8")
    page.get_by_role("button", name="Generate").click()
    expect(page.get_by_role("img", name=re.compile("after stage 0")).first).to_be_visible()
    page.get_by_role("button", name="Stop").click()
    expect(page.get_by_role("status")).to_have_text("Stopped.")
    assert page.locator("#stages .final").count() == 0
    expect(page.get_by_role("button", name="Stop")).to_be_disabled()


def test_errors_are_told_in_words(visit, address):
    page = visit()
    alert = page.get_by_role("alert")
    page.get_by_label("From an image").check()
    page.get_by_role("button", name="Generate").click()
    expect(alert).to_have_text("Choose a reference image first.")
    wrong = {"name": "notes.txt", "mimeType": "text/plain", "buffer": b"words"}
    page.get_by_label("Reference image").set_input_files(wrong)
    expect(alert).to_contain_text("notes.txt is not an image")
    broken = {"name": "broken.png", "mimeType": "image/png", "buffer": b"words"}
    page.get_by_label("Reference image").set_input_files(broken)
    expect(alert).to_have_text("image is no picture of a known format")
    page.get_by_label("Drawn").check()
    page.get_by_role("button", name="Clear drawing").click()
    page.get_by_role("button", name="Generate").click()
    expect(alert).to_contain_text("is empty on the 4 x 4 grid: draw a shape")
    page.get_by_label("Generated").check()
    busy = {"error": {"message": "busy", "type": "rate_limit_error", "param": None, "code": "queue_full"}}
    later = {"status": 429, "json": busy, "headers": {"Retry-After": "7"}}
    page.route("**/v1/images/generations", lambda route: route.fulfill(**later))
    page.get_by_role("button", name="Generate").click()
    expect(alert).to_have_text("The server is busy: try again in 7 s.")
    page.unroute("**/v1/images/generations")
    page.route("**/v1/images/generations", lambda route: route.abort())
    page.get_by_role("button", name="Generate").click()
    expect(alert).to_have_text("The server cannot be reached. Is it running?")
    page.unroute("**/v1/images/generations")
    generate(page)
    expect(page.locator("#error")).to_be_empty()


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_it_fits_a_phone_and_takes_a_finger(visit, scheme):
    phone = {"viewport": {"width": 360, "height": 740}, "has_touch": True, "is_mobile": True, "color_scheme": scheme}
    page = visit(**phone)
    page.get_by_label("Drawn").check()
    page.get_by_role("button", name="Clear drawing").tap()
    box = page.get_by_role("img", name="Drawing of the first structure map").bounding_box()
    page.touchscreen.tap(box["x"] + box["width"] / 2, box["y"] + box["height"] / 2)
    expect(page).to_have_url(re.compile("drawing=0*[1-9a-f]"))
    page.get_by_label("Generated").check()
    generate(page)
    assert page.evaluate("document.documentElement.scrollWidth") <= 360
    back = page.evaluate("getComputedStyle(document.body).backgroundColor")
    assert (sum(int(value) for value in re.findall(r"\d+", back)[:3]) > 384) == (scheme == "light")


def test_every_control_has_a_name(visit):
    page = visit()
    for summary in ("Compare classes", "Sampling settings"):
        page.get_by_text(summary).click()
    for mode in ("Drawn", "From an image"):
        page.get_by_label(mode).check()
        names = page.evaluate("""() => [...document.querySelectorAll('input, select, button, a, canvas')]
            .filter((element) => element.checkVisibility())
            .map((element) => element.ariaLabel || element.labels?.[0]?.innerText || element.innerText)""")
        assert len(names) > 20 and all(name and name.strip() for name in names), names


def test_a_server_with_keys_makes_the_page_ask_for_one(deploy, monkeypatch, browser):
    """The last test of this file: the application asks for keys from here on."""
    monkeypatch.setenv("NVG_API_KEYS", "secret")
    address = deploy()
    page = browser.new_page()
    page.goto(address)
    expect(page.get_by_role("alert")).to_contain_text("asks for an API key")
    page.get_by_label("API key").fill("secret")
    page.keyboard.press("Tab")
    expect(page.get_by_role("button", name="Generate")).to_be_enabled()
    generate(page)
    assert "secret" not in page.url
    page.close()
