"""The page of a plan: whole, alone, in two languages, and with nothing of the user's taken as HTML."""

from html.parser import HTMLParser
from typing import Any

import pytest

from farflung.apps.plan.page import page_of
from farflung.apps.plan.plan_file import plan_of
from farflung.apps.plan.planning import Planned, make_plan, verdict
from farflung.apps.plan.sizes import sizes_of

SITE = "<b>east & co"


class Reader(HTMLParser):
    """Tags that are open, and all text."""

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []
        self.seen: list[str] = []
        self.text = ""

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.seen.append(tag)
        assert not [name for name, _ in attrs if name in ("src", "href")], "the page needs nothing else"
        if tag not in ("meta", "rect"):
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        if tag != "rect":
            assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.text += data


@pytest.fixture(scope="module")
def planned() -> Planned:
    machine: dict[str, Any] = {"device": "L4", "price_per_hour": 1.0, "watts": 70.0}
    tables = {
        "goal": {"kind": "serve", "users": 2, "prompt_tokens": 8, "answer_tokens": 8},
        "model": {"parameters": 1.1e9, "layers": 8, "hidden_size": 2048},
        "sites": [{"name": SITE}, {"name": "west"}],
        "machines": [{"site": SITE, **machine}, {"site": "west", **machine}],
    }
    plan = plan_of(tables)
    return make_plan(plan, sizes_of(plan.model))


def test_a_method_within_a_sentence_is_said_in_its_language(planned: Planned) -> None:
    method = planned.outcomes[0].method
    assert method("en") != method("ja")
    assert method("en") in verdict(planned)("en") and method("ja") in verdict(planned)("ja")


@pytest.mark.parametrize(("language", "words"), [("en", "what limits it"), ("ja", "律速要因")])
def test_the_page_is_whole_and_alone(planned: Planned, language: str, words: str) -> None:
    reader = Reader()
    reader.feed(page_of(planned, language))
    assert reader.open == []
    assert words in reader.text and SITE in reader.text
    assert "b" not in reader.seen, "a site's name is text"
    assert reader.seen.count("svg") == 2 and reader.seen.count("rect") == 2 * len(planned.outcomes)
    assert "farflung serve" in reader.text
