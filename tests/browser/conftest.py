"""A swarm of real processes, a dashboard of it, and Debian's Chromium to look at it; skipped where there is none."""

import json
import os
import re
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from farflung.apps.fork_server import ForkServer
from tests.apps.tiny import save_tiny_model
from tests.loopback.fleet import Fleet, wait_until

CHROMIUM = ("chromium", "chromium-browser", "google-chrome")
PATIENCE_MILLISECONDS = 90_000
SITES = {"0:2": "tokyo", "2:4": "paris"}
"""Where the servers of each half say that they are."""
PHONE_WIDTH, DESK_WIDTH = 390, 1200


@pytest.fixture(scope="session")
def chromium() -> str:
    """The program; without it, or what else a page needs, its tests are skipped."""
    pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
    pytest.importorskip("nicegui", reason="the dashboard's extra is not installed")
    found = next((path for name in CHROMIUM if (path := shutil.which(name))), None)
    if found is None:
        pytest.skip("there is no Chromium here: apt-get install chromium")
    return found


@pytest.fixture(scope="module")
def browser(chromium: str) -> Iterator[Any]:
    """Chromium without a window. Playwright runs an event loop in this thread as long as it is there, which no other
    test could bear: so it goes with each module."""
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=chromium, args=["--no-sandbox"])
        yield browser
        browser.close()


@pytest.fixture(scope="session")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small model of four blocks, with a tokenizer, which never ends an answer by itself."""
    folder = save_tiny_model(tmp_path_factory.mktemp("models") / "tiny", context_length_max=4096)
    for name in ("config.json", "generation_config.json"):
        settings = json.loads((folder / name).read_text())
        (folder / name).write_text(json.dumps({**settings, "eos_token_id": None}))
    return folder


@pytest.fixture(scope="session")
def fleet(chromium: str, model: Path, forge: ForkServer, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Fleet]:
    """A founder and two servers for each half of the model."""
    other = save_tiny_model(tmp_path_factory.mktemp("others") / "other", num_blocks=1)
    fleet = Fleet(tmp_path_factory.mktemp("fleet"), model, other, forge, sites=SITES)
    try:
        fleet.found()
        yield fleet
    finally:
        fleet.close()


def start_dashboard(fleet: Fleet, *options: str, home: Path | None = None) -> str:
    """A dashboard's process; its address."""
    program = fleet.start("dashboard", *options, "--port", "0", home=home)
    wait_until(lambda: "dashboard at" in program.text or not program.is_alive, "the dashboard is there")
    found = re.search(r"http://\S+", program.text)
    assert found is not None, program.text
    return found[0].rstrip("/")


@pytest.fixture(scope="session")
def address(fleet: Fleet, model: Path) -> str:
    """Of the dashboard that most tests look at."""
    return start_dashboard(fleet, str(model), "--join", fleet.ticket())


def watch(page: Any, wrong: list[str]) -> None:
    """Write down errors of a page, and whom it asks but this machine."""

    def heard(message: Any) -> None:
        if message.type in ("error", "warning"):
            wrong.append(f"{message.type}: {message.text}")

    def asked(request: Any) -> None:
        if not re.match(r"(http|ws)://127\.0\.0\.1:|data:|blob:", request.url):
            wrong.append(f"asks {request.url}")

    page.on("console", heard)
    page.on("pageerror", lambda error: wrong.append(f"raised: {error}"))
    page.on("request", asked)


@pytest.fixture
def look(browser: Any) -> Iterator[Callable[..., Any]]:
    """Opens pages; at the end none of them may have had errors, or have asked anybody but this machine."""
    contexts: list[Any] = []
    wrong: list[str] = []

    def open_page(url: str, *, width: int = DESK_WIDTH, scheme: str = "light") -> Any:
        contexts.append(browser.new_context(viewport={"width": width, "height": 850}, color_scheme=scheme))
        page = contexts[-1].new_page()
        page.set_default_timeout(PATIENCE_MILLISECONDS)
        watch(page, wrong)
        page.goto(url)
        return page

    yield open_page
    for context in contexts:
        context.close()
    assert wrong == []


@pytest.fixture
def photograph() -> Callable[..., None]:
    """Takes a picture of a page for the documentation, if FARFLUNG_PICTURES names a folder for them; `once`: what the
    page is to show on it."""

    def take(page: Any, name: str, *hidden: Any, once: str = "true") -> None:
        folder = os.environ.get("FARFLUNG_PICTURES")
        if folder:
            page.wait_for_function(once)
            path = Path(folder) / f"{name}.png"
            page.screenshot(path=path, animations="disabled", mask=list(hidden), mask_color="#ffffff")

    return take


def is_too_wide(page: Any) -> bool:
    """Whether one would have to scroll sideways."""
    return page.evaluate("document.documentElement.scrollWidth > window.innerWidth")
