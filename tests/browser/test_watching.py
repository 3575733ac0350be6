"""What the tests of pages watch for: planted mistakes are seen."""

from typing import Any

import pytest

from tests.browser.conftest import watch
from tests.loopback.fleet import wait_until

pytestmark = pytest.mark.loopback

MISTAKES = """() => {
    console.error("planted");
    setTimeout(() => { throw new Error("thrown"); });
    fetch("http://127.0.0.2:9/elsewhere").catch(() => 0);
}"""


def test_errors_of_a_page_and_whom_it_asks_are_seen(browser: Any) -> None:
    wrong: list[str] = []
    page = browser.new_page()
    watch(page, wrong)
    page.evaluate(MISTAKES)
    planted = {"error: planted", "raised: thrown", "asks http://127.0.0.2:9/elsewhere"}
    wait_until(lambda: page.evaluate("true") and planted <= set(wrong), "they are seen")
    page.close()
