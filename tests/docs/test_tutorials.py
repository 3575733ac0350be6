"""Each tutorial does what it says when its commands are typed."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.docs.reader import ROOT, Reader
from tests.docs.tutorial import steps_of

PAGES = sorted((ROOT / "docs" / "tutorials").glob("*.md"))


@pytest.fixture
def reader(tmp_path: Path) -> Iterator[Reader]:
    reader = Reader(tmp_path)
    yield reader
    reader.close()


@pytest.mark.slow
@pytest.mark.loopback
@pytest.mark.timeout(1800)
@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_a_tutorial_does_what_it_says(reader: Reader, page: Path) -> None:
    for step in steps_of(page.read_text(encoding="utf-8")):
        reader.play(step)
