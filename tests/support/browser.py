"""A browser for the tests of the studio page, and visits to it."""

import contextlib

import pytest
from playwright.sync_api import expect, sync_playwright

from scripts.browser import find

PATIENCE = 60_000  # ms that a picture may take on a busy machine


@pytest.fixture(scope="module")
def browser():
    """A Chromium. Ends with its module: while it runs, no event loop can be started in its thread."""
    path = find()
    assert path, "no Chromium: python scripts/browser.py installs one"
    expect.set_options(timeout=PATIENCE)
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=path, args=["--no-sandbox", "--disable-gpu"])
        yield browser
        browser.close()


@contextlib.contextmanager
def visits(browser, address):
    """visit(hash, **context): the page, its first picture drawn.

    An error in its console, or a request to anywhere else, fails at the end.
    """
    contexts, errors, elsewhere = [], [], []

    def visit(link="", **options):
        context = browser.new_context(**({"viewport": {"width": 1400, "height": 1000}} | options))
        contexts.append(context)
        page = context.new_page()
        page.set_default_timeout(PATIENCE)
        page.on("pageerror", lambda error: errors.append(str(error)))
        page.on("console", lambda message: errors.append(message.text) if message.type == "error" else None)
        ours = (address, "data:", "blob:")
        page.on("request", lambda request: request.url.startswith(ours) or elsewhere.append(request.url))
        page.goto(f"{address}/{link}")
        expect(page.get_by_role("status")).to_contain_text("Done")
        return page

    yield visit
    for context in contexts:
        context.close()
    assert [error for error in errors if "Failed to load resource" not in error] == []
    assert elsewhere == []


def generate(page, done="Done: 1 picture."):
    """Press Generate and wait for the end."""
    page.get_by_role("button", name="Generate").click()
    expect(page.get_by_role("status")).to_have_text(done)
