"""The studio page through Ray Serve and its proxy; tests/serving/test_studio.py has everything else of it."""

from playwright.sync_api import expect

from tests.support.browser import browser, generate, visits

__all__ = ["browser"]


def test_stages_arrive_through_the_proxy(browser, address):
    with visits(browser, address) as visit:
        page = visit()
        page.get_by_label("Seed", exact=True).fill("3")
        generate(page)
        strip = page.get_by_role("figure").filter(has_text="seed 3")
        for stage in range(5):
            expect(strip.get_by_role("img", name=f"structure map of stage {stage}")).to_be_visible()
        page.get_by_role("button", name="Structure of a picture: Boot").click()
        expect(page.get_by_role("status")).to_have_text("Done: 4 pictures.", timeout=60_000)
