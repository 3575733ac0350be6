"""Pages that are made when the documentation is built; MkDocs calls `on_files`."""

from pathlib import Path
from typing import Any

from docs.generate.commands import commands_page
from docs.generate.numbers import numbers_page
from docs.generate.texts import included

ROOT = Path(__file__).resolve().parents[2]


def on_files(files: Any, config: Any) -> Any:
    """Add the generated pages."""
    from mkdocs.structure.files import File

    results = (ROOT / "bench" / "RESULTS.md").read_text(encoding="utf-8")
    pages = {"reference/commands.md": commands_page(), "numbers.md": numbers_page(results), **included(ROOT)}
    for place, text in pages.items():
        files.append(File.generated(config, place, content=text))
    return files
