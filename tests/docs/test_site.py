"""The documentation is built without a mistake and asks nobody; its generated pages say what is there."""

import os
import re
import subprocess
import sys
import threading
from collections.abc import Generator
from contextlib import contextmanager
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from shutil import which

import pytest

from bench.newcomer import COMMANDS_MAX, PAGE, sections
from docs.generate.commands import commands_page
from docs.generate.numbers import newest, numbers_page, rows_of
from tests.docs.reader import ROOT

ASKED = re.compile(
    r"<(?:script|img|iframe|source)[^>]*\ssrc=\"?(https?:[^\" >]+)|<link[^>]*\shref=\"?(https?:[^\" >]+)"
)
RESULTS = """| date | benchmark | machine | commit | claim | target | measured | holds |
|---|---|---|---|---|---|---|---|
| 2026-01-02 | swarm_decode | 2 cores | abc | one server over local generate | 0.9 | 0.8 | no |
| 2026-01-02 | halos_learning --text x | 2 cores | abc | sooner than DiLoCo | 7x | 7.4x | yes |
| 2026-01-01 | swarm_decode --quick | 2 cores | abb | one server over local generate | 0.9 | 0.95 | yes |
"""


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of the built documentation."""
    pytest.importorskip("mkdocs", reason="the documentation's extra is not installed")
    pytest.importorskip("mkdocstrings", reason="the documentation's extra is not installed")
    folder = tmp_path_factory.mktemp("built") / "site"
    built = subprocess.run(
        [sys.executable, "-m", "mkdocs", "build", "--strict", "--site-dir", str(folder)],
        cwd=ROOT,
        env={**os.environ, "NO_MKDOCS_2_WARNING": "1"},
        capture_output=True,
        text=True,
        check=False,
        timeout=300,
    )
    assert built.returncode == 0, built.stderr
    return folder


def test_the_site_is_built_without_a_mistake_and_asks_nobody(site: Path) -> None:
    pages = list(site.rglob("*.html"))
    assert len(pages) > 15
    asked = {found[0] for page in pages for found in ASKED.finditer(page.read_text(encoding="utf-8"))}
    assert asked == set()
    reference = (site / "reference" / "python" / "index.html").read_text(encoding="utf-8")
    assert "LowCommunication" in reference and "from_pretrained" in reference


@contextmanager
def served(folder: Path) -> Generator[str]:
    """The address at which a folder's pages are read."""
    handler = partial(SimpleHTTPRequestHandler, directory=str(folder))
    with ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        try:
            yield f"http://127.0.0.1:{server.server_port}"
        finally:
            server.shutdown()
            thread.join()


@pytest.mark.slow
def test_pages_can_be_searched_and_ask_nobody_else(site: Path) -> None:
    playwright = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
    program = next((path for name in ("chromium", "chromium-browser", "google-chrome") if (path := which(name))), None)
    if program is None:
        pytest.skip("there is no Chromium here: apt-get install chromium")
    asked: list[str] = []
    with served(site) as address, playwright.sync_playwright() as opened:
        browser = opened.chromium.launch(executable_path=program, args=["--no-sandbox"])
        page = browser.new_page(viewport={"width": 1200, "height": 850})
        page.set_default_timeout(90_000)
        page.on("request", lambda request: asked.append(request.url))
        page.goto(f"{address}/tutorials/serve/")
        page.locator(".md-search__input").click()
        page.locator(".md-search__input").press_sequentially("staleness")
        page.locator(".md-search-result__link").first.wait_for()
        browser.close()
    assert [url for url in asked if not url.startswith((address, "data:", "blob:"))] == []


def test_numbers_are_the_newest_of_each_claim_and_begin_with_what_does_not_hold() -> None:
    rows = newest(rows_of(RESULTS))
    assert [(row.name, row.measured) for row in rows] == [("swarm_decode", "0.8"), ("halos_learning", "7.4x")]
    page = numbers_page(RESULTS)
    assert "Of 2 claims 1 hold, **1 do not**" in page
    missed, peers, serving = (page.index(f"## {name}") for name in ("What does not", "Against other", "Serving"))
    assert missed < page.index("| 0.8 | no |") < peers < page.index("| 7.4x | yes |") < serving


def test_every_row_of_the_results_is_read() -> None:
    results = (ROOT / "bench" / "RESULTS.md").read_text(encoding="utf-8")
    assert len(rows_of(results)) > 150
    with pytest.raises(ValueError, match="7 columns and not 8"):
        rows_of("| 2026-01-02 | swarm_decode | 2 cores | abc | claim | 0.9 | 0.8 |\n")


def test_the_reference_has_every_command() -> None:
    page = commands_page()
    for command in ("serve", "join", "journal verify", "config schema"):
        assert f"\n## farflung {command}\n" in page
    assert "| `--blocks` | Serve blocks A to B-1, written A:B. |" in page
    assert "Or set `FARFLUNG_TICKET`." in page


def test_the_way_of_a_newcomer_is_counted() -> None:
    page = PAGE.read_text(encoding="utf-8")
    shown = [len(section.commands) for section in sections(page)]
    assert shown == [int(said) for said in re.findall(r"^## .*\((\d+) commands?\)$", page, re.MULTILINE)]
    assert sum(shown) == COMMANDS_MAX == 14
    assert page.count("Fourteen commands, counted; a second machine joins with two.") == 1
