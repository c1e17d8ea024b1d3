"""Screenshots of the studio page for the docs, from a server that runs.

    make serve
    python -m scripts.release.studio_pictures [--url http://127.0.0.1:8000] [--output docs/figures]

The server that make serve starts must be running; the second command is for another terminal.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from playwright.sync_api import Page, expect, sync_playwright

from scripts.browser import find

DONE_MS = 60_000


def generated(page: Page) -> None:
    """Three pictures of a class, stage by stage."""
    page.get_by_label("Class", exact=True).select_option("Bag")
    page.get_by_label("Images").fill("3")
    page.get_by_role("button", name="Generate").click()
    expect(page.get_by_role("status")).to_contain_text("Done", timeout=DONE_MS)


def compared(page: Page) -> None:
    """A drawn structure in four classes."""
    page.get_by_label("Drawn").check()
    page.get_by_role("button", name="Clear drawing").click()
    page.get_by_label("Brush").fill("6")
    box = page.get_by_role("img", name="Drawing of the first structure map").bounding_box()
    assert box is not None
    for share in (0.4, 0.5, 0.6):
        page.mouse.move(box["x"] + share * box["width"], box["y"] + 4)
        page.mouse.down()
        page.mouse.move(box["x"] + share * box["width"], box["y"] + box["height"] - 4, steps=10)
        page.mouse.up()
    page.get_by_text("Compare classes").click()
    page.get_by_label("Classes to compare").select_option(["Trouser", "Coat", "Ankle boot", "Bag"])
    page.get_by_role("button", name="Compare", exact=True).click()
    expect(page.get_by_role("status")).to_have_text("Done: 4 pictures.", timeout=DONE_MS)


def main() -> None:
    """Write studio.png, studio_compared.png (dark) and studio_phone.png."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--url", default="http://127.0.0.1:8000")
    parser.add_argument("--output", type=Path, default=Path("docs/figures"))
    arguments = parser.parse_args()
    browser_path = find()
    if browser_path is None:
        sys.exit("error: no Chromium: python scripts/browser.py installs one")
    wide = {"viewport": {"width": 1280, "height": 860}}
    phone = {"viewport": {"width": 360, "height": 740}, "device_scale_factor": 2, "has_touch": True, "is_mobile": True}
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=browser_path, args=["--no-sandbox", "--disable-gpu"])
        for name, options, act in (
            ("studio", wide, generated),
            ("studio_compared", wide | {"color_scheme": "dark"}, compared),
            ("studio_phone", phone, generated),
        ):
            page = browser.new_context(**options).new_page()
            page.goto(arguments.url)
            expect(page.get_by_role("button", name="Generate")).to_be_enabled(timeout=DONE_MS)
            act(page)
            page.evaluate("scrollTo(0, 0)")
            path = arguments.output / f"{name}.png"
            page.screenshot(path=path)
            print(path)
        browser.close()


if __name__ == "__main__":
    main()
