"""The studio page in a real browser, against the real application without Ray."""

import base64
import io
import re
import threading
import time

import httpx
import numpy as np
import pytest
from axe_playwright_python.sync_playwright import Axe
from PIL import Image
from playwright.sync_api import expect

from nvg.serving.engine import Served
from nvg.serving.guard import hash_key
from tests.support.application import on_a_port
from tests.support.browser import browser, generate, visits
from tests.support.generators import sampler_of

pytestmark = pytest.mark.slow

__all__ = ["browser"]

PHONE = {"viewport": {"width": 360, "height": 740}, "has_touch": True, "is_mobile": True}
PRESETS = [f"Drawing: {name}" for name in ("Pillar", "Belt", "Disc", "Diagonal", "Checkers")]
PRESETS += [f"Structure of a picture: {name}" for name in ("Trouser", "Heel", "Bag", "Boot")]
THINGS = [f"thing {number}" for number in range(1000)]
THINGS[134] = THINGS[517] = "crane"  # ImageNet has two classes of this name


@pytest.fixture(scope="module")
def address(model):
    with on_a_port(model) as address:
        yield address


@pytest.fixture(scope="module")
def address_of_1000():
    """A server of 1,000 classes. Its pictures are noise: the weights are random."""
    with on_a_port(Served("things", sampler_of("positions", THINGS), "random", int(time.time()))) as address:
        yield address


@pytest.fixture
def visit(browser, address):
    with visits(browser, address) as visit:
        yield visit


def sources(page):
    """The finished pictures of the stages section, as PNG bytes."""
    found = page.locator("#stages .final .now img")
    return [base64.b64decode(found.nth(j).get_attribute("src").split(",")[1]) for j in range(found.count())]


def maps(page, stage):
    """The structure maps of a stage, each picture's as a PNG."""
    return page.evaluate(
        """(stage) => [...document.querySelectorAll(`#stages .strip [aria-label="structure map of stage ${stage}"]`)]
            .map((map) => map.toDataURL())""",
        stage,
    )


def choose(page, name, field="Class"):
    """Choose a class by typing its name."""
    page.get_by_role("combobox", name=field, exact=field == "Class").fill(name)
    page.keyboard.press("Enter")


def drawing(page):
    """What is drawn, as the address says it."""
    return re.search(r"drawing=(\w+)", page.evaluate("location.hash")).group(1)  # page.url lags behind


# ---- what a visitor sees first ----


def test_it_opens_on_a_picture_with_its_stages_drawn(visit, address):
    page = visit()
    body = {"prompt": "T-shirt/top", "seed": 0}
    served = httpx.post(f"{address}/v1/images/generations", json=body, timeout=60).json()["data"]
    assert sources(page) == [base64.b64decode(item["b64_json"]) for item in served]
    for stage in range(5):
        expect(page.get_by_role("img", name=f"structure map of stage {stage}")).to_be_visible()
    assert "#" not in page.url  # nobody chose this picture


def test_one_click_draws_several_classes_in_one_structure(visit):
    page = visit()
    buttons = page.locator("#presets button")
    assert [buttons.nth(j).get_attribute("aria-label") for j in range(buttons.count())] == PRESETS
    for preset in PRESETS:
        with page.expect_request("**/v1/images/generations"):  # until then the status is that of the preset before
            page.get_by_role("button", name=preset).click()
        # Of the 4 x 4 positions, where halves are unequal:
        moved = {"Drawing: Disc": 4, "Drawing: Diagonal": 2}.get(preset)
        halves = f" The server moved {moved} of 16 positions to make equal halves." if moved else ""
        expect(page.get_by_role("status")).to_have_text(f"Done: 4 pictures.{halves}")
        assert len(set(sources(page))) == 4, preset
        given = 4 if preset.startswith("Structure") else 1
        for stage in range(given + 1):
            assert len(maps(page, stage)) == 4 and len(set(maps(page, stage))) == 1, preset
        expect(page.get_by_label("From an image" if given == 4 else "Drawn")).to_be_checked()


# ---- the timeline ----


def test_the_timeline_goes_through_the_stages_of_all_pictures(visit):
    page = visit()
    choose(page, "Bag", "Also draw")
    generate(page, "Done: 2 pictures.")
    slider = page.get_by_role("slider", name="Stage", exact=True)
    expect(slider).to_have_value("4")
    slider.focus()
    page.keyboard.press("Home")
    expect(slider).to_have_attribute("aria-valuetext", "Stage 0 of 4: 1 region")
    for name in ("T-shirt/top", "Bag"):
        expect(page.get_by_role("img", name=f"{name}: structure map, stage 0")).to_be_visible()
        expect(page.get_by_role("img", name=f"{name}: preview, stage 0")).to_be_visible()
    page.get_by_role("heading", name="nvg studio").click()
    for key in ("ArrowRight", "ArrowRight", "ArrowLeft"):
        page.keyboard.press(key)
    expect(page.get_by_text("Stage 1 of 4: 2 regions")).to_be_visible()
    page.locator("#stages .strip li").nth(3).click()
    expect(slider).to_have_value("3")


def test_the_timeline_plays_and_pauses(visit):
    page = visit(alone=True)  # a clock is a context's
    slider, button = page.get_by_role("slider", name="Stage", exact=True), page.locator("#play")
    page.clock.install()
    page.keyboard.press("p")
    expect(slider).to_have_value("0")  # from the end it begins anew
    expect(button).to_have_text("Pause")
    page.clock.run_for(1500)
    expect(slider).to_have_value("2")
    button.click()
    page.clock.run_for(5000)
    expect(slider).to_have_value("2")
    button.click()
    page.clock.run_for(5000)
    expect(slider).to_have_value("4")
    expect(button).to_have_text("Play")
    generate(page)
    expect(slider).to_have_value("4")


def test_a_regions_colour_keeps_its_parents_hue(visit):
    page = visit()
    colours = page.evaluate("""async () => {
        const { colour } = await import("/studio/structure.js");
        const stages = Array.from({ length: 11 }, (_, stage) => stage);
        return stages.map((stage) => Array.from({ length: 2 ** stage }, (_, label) => colour(label, stage)));
    }""")
    hues = [[float(re.fullmatch(r"oklch\(\S+ \S+ (\S+)\)", one).group(1)) for one in stage] for stage in colours]
    for stage in range(2, 11):
        assert len(set(colours[stage])) == 2**stage
        assert all(0.3 < float(one[6:11]) < 0.95 for one in colours[stage])  # neither black nor white
        for label, hue in enumerate(hues[stage]):
            half = label >> (stage - 1)
            parent, family, other = (
                abs((hue - ancestor + 180) % 360 - 180)
                for ancestor in (hues[stage - 1][label >> 1], hues[1][half], hues[1][1 - half])
            )
            assert parent <= 26 and family <= 50 and other >= 100


# ---- pictures and links ----


def test_a_class_is_chosen_and_all_stages_arrive_as_map_and_preview(visit, address):
    page = visit()
    choose(page, "Bag")
    page.get_by_label("Seed", exact=True).fill("3")
    page.get_by_label("Images").fill("2")
    generate(page, "Done: 2 pictures.")
    for seed in (3, 4):
        strip = page.get_by_role("figure").filter(has_text=f"Bag, seed {seed}")
        for stage in range(5):
            expect(strip.get_by_role("img", name=f"structure map of stage {stage}")).to_be_visible()
            expect(strip.get_by_role("img", name=f"Bag after stage {stage}")).to_be_visible()
    body = {"prompt": "Bag", "seed": 3, "n": 2}
    served = httpx.post(f"{address}/v1/images/generations", json=body, timeout=60).json()["data"]
    assert sources(page) == [base64.b64decode(item["b64_json"]) for item in served]
    gallery = page.get_by_role("region", name="Gallery")
    with page.expect_download() as download:
        gallery.get_by_role("link", name="Download: Bag, seed 3").click()
    assert download.value.suggested_filename == "bag-seed3.png"
    gallery.get_by_role("button", name="Remove: Bag, seed 3").click()
    expect(gallery.get_by_role("listitem")).to_have_count(2)  # seed 4, and the first picture


def test_a_link_opens_the_very_same_picture(visit):
    page = visit()
    choose(page, "Coat")
    page.get_by_label("Seed", exact=True).fill("12")
    page.get_by_text("Sampling settings").click()
    page.get_by_label("Content guidance").fill("2")
    page.get_by_label("Drawn").check()
    page.get_by_role("button", name="Invert drawing").click()
    generate(page)
    link = page.url[page.url.index("#") :]
    assert "class=Coat" in link and "seed=12" in link and "content_guidance=2" in link and "drawing=" in link
    other = visit(link)
    assert sources(other) == sources(page)
    expect(other.get_by_label("Class", exact=True)).to_have_value("Coat")
    expect(other.get_by_label("Drawn")).to_be_checked()


def test_a_link_to_several_classes_draws_them_in_one_structure(visit):
    page = visit()
    choose(page, "Trouser")
    for name in ("Coat", "Bag", "Dress"):
        choose(page, name, "Also draw")
    page.get_by_role("button", name="Remove Dress").click()
    generate(page, "Done: 3 pictures.")
    for stage in range(5):  # that of the first class, in all stages
        assert len(maps(page, stage)) == 3 and len(set(maps(page, stage))) == 1
    assert len(set(sources(page))) == 3
    other = visit(page.url[page.url.index("#") :])
    assert sources(other) == sources(page)
    assert other.locator("#also li").all_inner_texts() == ["Coat\n×", "Bag\n×"]


def test_several_images_of_several_classes_come_in_rows_of_one_seed(visit):
    page = visit()
    choose(page, "Bag", "Also draw")
    page.get_by_label("Images").fill("2")
    generate(page, "Done: 4 pictures.")
    titles = page.locator("#stages figcaption").all_inner_texts()
    assert titles == ["T-shirt/top, seed 0", "Bag, seed 0", "T-shirt/top, seed 1", "Bag, seed 1"]
    first, second, third, fourth = maps(page, 4)
    assert first == second and third == fourth and first != third


def test_a_link_for_another_model_says_what_does_not_fit(visit):
    page = visit()
    for link, message in (
        ("class=Hat", "The link is for a class that this model lacks: Hat."),
        ("class=Bag&drawing=ff", "The link's drawing is for a model of another grid."),
        ("class=Bag&weights=other", "The link was made with other weights: the picture may be another one."),
    ):
        page.evaluate("(link) => (location.hash = link)", link)
        expect(page.get_by_role("alert")).to_have_text(message)
    expect(page.get_by_role("figure")).to_contain_text("Bag, seed 0")


def test_a_picture_of_the_gallery_gives_its_structure_and_its_settings(visit):
    page = visit()
    choose(page, "Bag")
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


def test_stop_ends_a_long_request(visit, model, monkeypatch):
    page, stages, stopped = visit(), model.sampler.stages, threading.Event()

    def long(*classes, **settings):
        for step in stages(*classes, **settings):
            if step.stage == model.sampler.last_stage:
                assert stopped.wait(120)  # however busy the machine is, stop is pressed before the end
            yield step

    monkeypatch.setattr(model.sampler, "stages", long)
    try:
        page.get_by_label("Images").fill("8")
        page.get_by_role("button", name="Generate").click()
        expect(page.locator("#stages figure:visible")).to_have_count(8)
        page.get_by_role("button", name="Stop").click()
        expect(page.get_by_role("status")).to_have_text("Stopped.")
        expect(page.locator("#stages .final")).to_have_count(0)
        expect(page.get_by_role("button", name="Stop")).to_be_disabled()
    finally:
        stopped.set()


# ---- the drawing ----


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
        const map = document.querySelector('#stages .strip [aria-label="structure map of stage 1"]');
        return [...map.getContext('2d').getImageData(0, 0, 4, 4).data].filter((_, i) => i % 4 === 0);
    }""")
    rows = np.array(structure).reshape(4, 4)
    assert (rows[:2] == rows[0, 0]).all() and (rows[2:] == rows[3, 3]).all() and rows[0, 0] != rows[3, 3]
    before = page.url
    canvas.focus()
    for key in ("ArrowDown", "ArrowDown", "ArrowDown", " "):
        page.keyboard.press(key)
    expect(page).not_to_have_url(before)  # the drawing is in the address


def test_what_is_drawn_can_be_undone_and_done_again(visit):
    page = visit()
    page.get_by_label("Drawn").check()
    status = page.get_by_role("status")
    undo, redo = (page.get_by_role("button", name=name) for name in ("Undo", "Redo"))
    undo.click()
    expect(status).to_have_text("Nothing to undo.")
    page.get_by_role("button", name="Invert drawing").click()
    states = [drawing(page)]
    canvas = page.get_by_role("img", name="Drawing of the first structure map")
    canvas.scroll_into_view_if_needed()
    box = canvas.bounding_box()
    for share in (0.2, 0.8):  # a stroke is one step, however far it goes
        page.mouse.move(box["x"] + share * box["width"], box["y"] + 5)
        page.mouse.down()
        page.mouse.move(box["x"] + share * box["width"], box["y"] + box["height"] - 5, steps=5)
        page.mouse.up()
        states.append(drawing(page))
    page.get_by_role("button", name="Drawing: Belt").click()
    expect(status).to_have_text("Done: 4 pictures.")
    states.append(drawing(page))
    undo.click()
    expect(status).to_have_text("Undone.")
    assert drawing(page) == states[2]  # a preset takes nobody's drawing away
    page.keyboard.press("Control+z")
    assert drawing(page) == states[1]
    page.keyboard.press("Control+Shift+z")
    assert drawing(page) == states[2]
    page.keyboard.press("Control+y")
    assert drawing(page) == states[3]
    redo.click()
    expect(status).to_have_text("Nothing to redo.")
    page.get_by_label("Seed", exact=True).focus()
    page.keyboard.press("Control+z")  # the field's own
    assert drawing(page) == states[3]
    page.keyboard.press("Tab")
    for _ in range(2):
        page.keyboard.press("Control+z")
    page.get_by_role("button", name="Clear drawing").click()  # what was undone is gone
    redo.click()
    expect(status).to_have_text("Nothing to redo.")


def test_a_stroke_is_drawn_at_once_where_that_is_wanted(visit):
    page = visit()
    page.get_by_label("Drawn").check()
    with page.expect_response("**/v1/images/generations"):
        page.get_by_label("Generate after each stroke").check()
        page.get_by_role("button", name="Invert drawing").click()
    expect(page.get_by_role("status")).to_have_text("Done: 1 picture.")
    inverted = maps(page, 1)
    with page.expect_response("**/v1/images/generations"):
        page.get_by_role("img", name="Drawing of the first structure map").click(position={"x": 20, "y": 20})
    with page.expect_response("**/v1/images/generations"):
        page.keyboard.press("Control+z")
    expect(page.get_by_role("status")).to_have_text("Done: 1 picture.")
    assert maps(page, 1) == inverted


def test_a_dropped_image_gives_its_structure_and_content_up_to_a_stage(visit):
    page = visit()
    choose(page, "Bag")
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
    choose(page, "Coat")
    generate(page)
    link = page.url[page.url.index("#") :]
    assert "stage=3" in link and "content=" in link
    other = visit(link)  # without the upload
    assert sources(other) == sources(page)
    page.get_by_label("Generated").check()
    generate(page)
    bag, like_it, free = (
        np.asarray(Image.open(io.BytesIO(picture))).astype(float)
        for picture in (png, sources(other)[0], sources(page)[0])
    )
    assert np.abs(bag - like_it).mean() < 0.5 * np.abs(bag - free).mean()  # four of five stages are the bag's


# ---- many classes ----


def test_one_of_1000_classes_is_found_by_typing(browser, address_of_1000):
    with visits(browser, address_of_1000) as visit:
        page = visit()
        field, options = page.get_by_role("combobox", name="Class", exact=True), page.get_by_role("option")
        field.click()
        expect(options).to_have_count(1000)
        field.fill("THING 99")
        expect(page.get_by_role("status")).to_have_text("11 classes found.")
        expect(options).to_have_text(["thing 99", *(f"thing {number}" for number in range(990, 1000))])
        page.keyboard.press("ArrowDown")
        expect(page.get_by_role("option", selected=True)).to_have_text("thing 990")
        assert field.get_attribute("aria-activedescendant") == options.nth(1).get_attribute("id")
        page.keyboard.press("Enter")
        expect(options).to_have_count(0)
        generate(page)
        assert "class=thing+990" in page.url
        expect(page.get_by_role("figure")).to_contain_text("thing 990, seed 0")


def test_classes_of_one_name_are_told_apart(browser, address_of_1000):
    with visits(browser, address_of_1000) as visit:
        page = visit()
        field, options = page.get_by_role("combobox", name="Class", exact=True), page.get_by_role("option")
        field.fill("crane")
        expect(options).to_have_text(["crane (134)", "crane (517)"])
        with page.expect_request("**/v1/images/generations") as sent:
            options.nth(1).click()
            generate(page)
        assert sent.value.post_data_json["prompt"] == "517"
        other = visit(page.url[page.url.index("#") :])
        expect(other.get_by_role("figure")).to_contain_text("crane (517), seed 0")


def test_a_search_that_is_left_falls_back_to_the_class_before(visit):
    page = visit()
    field, options = page.get_by_role("combobox", name="Class", exact=True), page.get_by_role("option")
    for key in ("Escape", "Tab"):
        field.fill("no such")
        expect(page.get_by_role("status")).to_have_text("No class has this in its name.")
        page.keyboard.press("Enter")  # draws nothing else than what is asked for
        page.keyboard.press(key)
        expect(field).to_have_value("T-shirt/top")
    field.fill("sand")
    page.keyboard.press("Escape")
    expect(options).to_have_count(0)
    expect(field).to_have_value("T-shirt/top")
    field.fill("sandal")  # a whole name needs no Enter
    page.keyboard.press("Tab")
    expect(field).to_have_value("Sandal")


# ---- keys, errors, devices ----


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
    expect(page.get_by_role("status")).to_have_text("Done: 1 picture.")
    page.get_by_label("Seed", exact=True).fill("3")
    page.keyboard.press("r")  # while typing it is a letter
    assert page.get_by_label("Seed", exact=True).input_value() == "3"
    page.keyboard.press("Control+Enter")
    expect(page.get_by_role("figure")).to_contain_text("seed 3")


def test_errors_are_told_in_words(visit):
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


def test_it_fits_a_phone_and_takes_a_finger(visit):
    page = visit(**PHONE)
    picture = page.locator("#stages .now img").bounding_box()
    actions = page.locator("#actions").bounding_box()
    assert picture["y"] + picture["height"] < actions["y"]  # the first picture is seen without scrolling
    page.get_by_label("Drawn").check()
    page.get_by_role("button", name="Clear drawing").tap()
    canvas = page.get_by_role("img", name="Drawing of the first structure map")
    canvas.scroll_into_view_if_needed()
    box = canvas.bounding_box()
    page.touchscreen.tap(box["x"] + box["width"] / 2, box["y"] + box["height"] / 2)
    expect(page).to_have_url(re.compile("drawing=0*[1-9a-f]"))
    page.get_by_label("Generated").check()
    page.evaluate("scrollTo(0, document.querySelector('#gallery').offsetTop)")
    generate(page)
    expect(page.get_by_role("slider", name="Stage", exact=True)).to_be_in_viewport()  # the page goes to the pictures
    assert page.evaluate("document.documentElement.scrollWidth") <= 360
    for scheme in ("light", "dark"):
        page.emulate_media(color_scheme=scheme)
        back = page.evaluate("getComputedStyle(document.body).backgroundColor")
        assert (sum(int(value) for value in re.findall(r"\d+", back)[:3]) > 384) == (scheme == "light")


# ---- for everybody ----


def drawn(page):
    page.get_by_label("Drawn").check()
    page.get_by_text("Sampling settings").click()


def listed(page):
    choose(page, "Bag", "Also draw")
    page.get_by_role("combobox", name="Also draw").fill("s")


def kept(page):
    page.keyboard.press("Escape")  # the list
    page.get_by_role("button", name="Structure of a picture: Bag").click()
    expect(page.get_by_role("status")).to_have_text("Done: 4 pictures.")


def keys(page):
    page.get_by_role("button", name="Keys").click()


def refused(page):
    page.keyboard.press("Escape")  # the dialog
    page.route("**/v1/images/generations", lambda route: route.fulfill(status=401, json={}))
    page.get_by_role("button", name="Generate").click()
    expect(page.get_by_label("API key")).to_be_visible()


@pytest.mark.parametrize(("scheme", "device"), [("light", {}), ("dark", PHONE)], ids=["light desktop", "dark phone"])
def test_axe_finds_no_fault(visit, scheme, device):
    """Colours follow the scheme and places the device: two pages show every part in each."""
    page = visit(color_scheme=scheme, **device)
    for act in (drawn, listed, kept, keys, refused):
        act(page)
        report = Axe().run(page)
        assert report.violations_count == 0, f"{act.__name__}: {report.generate_report()}"
        assert {"color-contrast", "button-name"} <= {rule["id"] for rule in report.response["passes"]}  # it looked


def test_a_server_with_keys_makes_the_page_ask_for_one(browser, model):
    with on_a_port(model, keys=[hash_key("secret")]) as address:
        page = browser.page()
        page.goto(address)
        expect(page.get_by_role("alert")).to_contain_text("asks for an API key")
        page.get_by_label("API key").fill("secret")
        page.keyboard.press("Tab")
        expect(page.get_by_role("status")).to_have_text("Done: 1 picture.")
        assert "secret" not in page.url
        page.close()
