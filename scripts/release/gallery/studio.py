"""Screenshots of the studio page, from a server that runs."""

from __future__ import annotations

import sys
from pathlib import Path

from playwright.sync_api import Page, expect, sync_playwright

from scripts.browser import find

DONE_MS = 60_000


def opened(page: Page) -> None:
    """The picture on which the page opens."""
    expect(page.get_by_role("status")).to_contain_text("Done", timeout=DONE_MS)


def drawn(page: Page) -> None:
    """A drawing in four classes."""
    opened(page)
    page.get_by_role("button", name="Drawing: Pillar").click()
    expect(page.get_by_role("status")).to_contain_text("Done: 4 pictures.", timeout=DONE_MS)


def referred(page: Page) -> None:
    """The structure of a picture in four classes."""
    opened(page)
    page.get_by_role("button", name="Structure of a picture: Heel").click()
    expect(page.get_by_role("status")).to_contain_text("Done: 4 pictures.", timeout=DONE_MS)


def take(url: str, folder: Path) -> None:
    """Write studio.png, studio_compared.png (dark) and studio_phone.png. Ends the program where no browser is found."""
    browser_path = find()
    if browser_path is None:
        sys.exit("error: no Chromium: python scripts/browser.py installs one")
    wide = {"viewport": {"width": 1280, "height": 900}}
    phone = {"viewport": {"width": 360, "height": 740}, "device_scale_factor": 2, "has_touch": True, "is_mobile": True}
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=browser_path, args=["--no-sandbox", "--disable-gpu"])
        for name, options, act in (
            ("studio", wide, drawn),
            ("studio_compared", wide | {"color_scheme": "dark"}, referred),
            ("studio_phone", phone, opened),
        ):
            page = browser.new_context(**options).new_page()
            page.goto(url)
            act(page)
            path = folder / f"{name}.png"
            page.screenshot(path=path)
            print(path)
        browser.close()
