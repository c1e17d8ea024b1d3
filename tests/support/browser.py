"""A browser for the tests of the studio page, and visits to it."""

import contextlib

import pytest
from playwright.sync_api import expect, sync_playwright

from scripts.browser import find

PATIENCE = 60_000  # ms that a picture may take on a busy machine


class Browser:
    """A running Chromium. Visits with the same options share a context, which takes longer to start than a page; a
    page's sessionStorage is its own."""

    def __init__(self, chromium):
        self.chromium, self.contexts = chromium, {}

    def page(self, *, alone=False, **options):
        """A new page. alone: in a context of its own."""
        key = object() if alone else repr(sorted(options.items()))
        if key not in self.contexts:
            self.contexts[key] = self.chromium.new_context(**options)
        return self.contexts[key].new_page()


@contextlib.contextmanager
def started_browser():
    """A Browser, until the block ends: while it runs, no event loop can be started in its thread."""
    path = find()
    assert path, "no Chromium: python scripts/browser.py installs one"
    expect.set_options(timeout=PATIENCE)
    with sync_playwright() as playwright:
        chromium = playwright.chromium.launch(executable_path=path, args=["--no-sandbox", "--disable-gpu"])
        yield Browser(chromium)
        chromium.close()


@pytest.fixture(scope="module")
def browser():
    with started_browser() as browser:
        yield browser


@contextlib.contextmanager
def visits(browser, address):
    """visit(hash, **options of Browser.page): the page, its first picture drawn.

    An error in its console, or a request to anywhere else, fails at the end.
    """
    pages, errors, elsewhere = [], [], []

    def visit(link="", **options):
        page = browser.page(**({"viewport": {"width": 1400, "height": 1000}} | options))
        pages.append(page)
        page.set_default_timeout(PATIENCE)
        page.on("pageerror", lambda error: errors.append(str(error)))
        page.on("console", lambda message: errors.append(message.text) if message.type == "error" else None)
        ours = (address, "data:", "blob:")
        page.on("request", lambda request: request.url.startswith(ours) or elsewhere.append(request.url))
        page.goto(f"{address}/{link}")
        expect(page.get_by_role("status")).to_contain_text("Done")
        return page

    yield visit
    for page in pages:
        page.close()
    assert [error for error in errors if "Failed to load resource" not in error] == []
    assert elsewhere == []


def generate(page, done="Done: 1 picture."):
    """Press Generate and wait for the end."""
    page.get_by_role("button", name="Generate").click()
    expect(page.get_by_role("status")).to_have_text(done)
