"""Texts that lie elsewhere in the repository and are pages here too: the architecture, and what each system says."""

import re
from collections.abc import Mapping
from pathlib import Path

PAGES: Mapping[str, str] = {
    "ARCHITECTURE.md": "architecture.md",
    "farflung/systems/swarm/README.md": "systems/swarm.md",
    "farflung/systems/hierarchy/README.md": "systems/hierarchy.md",
    "farflung/systems/desync/README.md": "systems/desync.md",
    "farflung/systems/onebyte/README.md": "systems/onebyte.md",
    "farflung/systems/alignment/README.md": "systems/alignment.md",
}
LINK = re.compile(r"\[([^\]]+)\]\((?!https?:|#)[^)]+\)")


def included(root: Path) -> dict[str, str]:
    """Pages by their place; links to files of the repository become plain words, as no page is there."""
    return {page: LINK.sub(r"\1", (root / text).read_text(encoding="utf-8")) for text, page in PAGES.items()}
