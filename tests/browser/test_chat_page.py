"""The page *Chat* in a browser: an answer goes on when a server is killed, stops when told to, and is asked anew."""

from collections.abc import Callable
from typing import Any

import pytest

from tests.browser.conftest import PHONE_WIDTH, is_too_wide

pytestmark = pytest.mark.loopback

NUM_CHARACTERS = "([...document.querySelectorAll('.answer .said')].at(-1)?.innerText.length ?? 0)"
"""Of the newest answer."""
ROUTE = "document.querySelector('.answer .mono').innerText"
"""Of the only answer."""


def ask(page: Any, question: str, num_tokens: int) -> None:
    """Send a question to the tiny model."""
    page.get_by_label("tokens at most").fill(str(num_tokens))
    page.get_by_placeholder("Ask something").fill(question)
    page.get_by_role("button", name="send").click()
    page.get_by_text(question, exact=True).wait_for()


def num_characters(page: Any) -> int:
    """Of the newest answer."""
    return page.evaluate(NUM_CHARACTERS)


def wait_longer(page: Any, num: int) -> None:
    """Wait until the newest answer has more characters than that."""
    page.wait_for_function(f"{NUM_CHARACTERS} > {num}")


def test_an_answer_goes_on_when_a_server_is_killed(
    fleet: Any, address: str, look: Callable[..., Any], photograph: Callable[..., None]
) -> None:
    fleet.complete()
    page = look(f"{address}/chat")
    ask(page, "Which of them?", 3000)
    wait_longer(page, 40)
    page.wait_for_function(f"{ROUTE}.includes('→')")
    route = page.evaluate(ROUTE)
    killed = next(server for server in fleet.servers if f"{server.peer[:8]} (2:4)" in route)
    killed.kill()
    page.get_by_text(f"{killed.peer[:8]} (2:4) is gone;").wait_for()
    wait_longer(page, num_characters(page) + 40)
    page.wait_for_function(f"{ROUTE}.includes('tokens/s') && !{ROUTE}.includes('{killed.peer[:8]}')")
    photograph(page, "chat")
    page.get_by_role("button", name="stop").click()
    page.get_by_text("stopped").wait_for()
    page.get_by_role("button", name="answer again").click()
    page.get_by_text("stopped").wait_for(state="hidden")
    wait_longer(page, 40)
    page.get_by_role("button", name="stop").click()
    page.get_by_text("stopped").wait_for()


def test_a_conversation_outlives_a_look_at_another_tab_on_a_phone(
    fleet: Any, address: str, look: Callable[..., Any]
) -> None:
    fleet.complete()
    page = look(f"{address}/chat", width=PHONE_WIDTH)
    ask(page, "And you?", 20)
    page.get_by_text("20 tokens").wait_for()
    page.get_by_role("tab", name="Swarm").click()
    page.locator("[data-peer]").first.wait_for()
    assert page.url == f"{address}/swarm"
    page.get_by_role("tab", name="Chat").click()
    page.get_by_text("And you?", exact=True).wait_for()
    assert not is_too_wide(page)
