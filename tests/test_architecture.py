"""The layers and the rules of style hold everywhere, and each check finds a planted breach."""

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from tests import architecture

ROOT = Path(__file__).resolve().parent.parent

# One check, with a file (path, text) that breaks its rule.
LONG_FUNCTION = '"""Says what it is."""\n\ndef long():\n' + "    pass\n" * 70
CHECKS: list[tuple[Callable[[Path], list[str]], str, str]] = [
    (architecture.long_files, "farflung/wire/long.py", "pass\n" * 301),
    (architecture.long_functions, "farflung/wire/long.py", LONG_FUNCTION),
    (architecture.modules_without_sentence, "farflung/wire/silent.py", "x = 1\n"),
    (architecture.modules_without_sentence, "farflung/wire/terse.py", '"""frames"""\n'),
    (architecture.folders_outside_layers, "farflung/tools/frame.py", ""),
    (architecture.folders_outside_layers, "farflung/frame.py", ""),
    (architecture.nameless_modules, "farflung/wire/utils.py", ""),
    (architecture.nameless_modules, "farflung/wire/helpers/frame.py", ""),
    (architecture.prints, "farflung/wire/loud.py", 'print("x")\n'),
    (architecture.world_beyond_stdlib, "farflung/world/heavy.py", "from msgspec import Struct\n"),
    (architecture.world_beyond_stdlib, "farflung/world/upward.py", "import farflung.wire.codec\n"),
    (architecture.imports_of_tests, "farflung/wire/tested.py", "from tests import conftest\n"),
    (architecture.dead_files, "farflung/wire/dead.py", '"""Is imported only by tests."""\n'),
]


def plant(root: Path, files: dict[str, str]) -> None:
    """Write a package with all layers, and `files` into it."""
    for package in ("", *architecture.LAYERS, "systems/swarm", "systems/hierarchy"):
        files.setdefault(f"farflung/{package}/__init__.py".replace("//", "/"), '"""A package."""\n')
    for path, text in files.items():
        (root / path).parent.mkdir(parents=True, exist_ok=True)
        (root / path).write_text(text)


@pytest.mark.parametrize("check", dict.fromkeys(check for check, _, _ in CHECKS))
def test_rule_holds(check: Callable[[Path], list[str]]) -> None:
    assert check(ROOT) == []


@pytest.mark.parametrize(("check", "path", "text"), CHECKS)
def test_planted_breach_is_found(check: Callable[[Path], list[str]], path: str, text: str, tmp_path: Path) -> None:
    plant(tmp_path, {})
    assert check(tmp_path) == []
    plant(tmp_path, {path: text})
    assert len(check(tmp_path)) == 1


def lint_imports(folder: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    """Check the package in `folder` against this project's import contracts."""
    program = Path(sys.executable).with_name("lint-imports")
    return subprocess.run(
        [program, "--no-logo", "--no-cache", "--config", ROOT / "pyproject.toml", *arguments],
        cwd=folder,
        env={**os.environ, "PYTHONPATH": str(folder)},
        capture_output=True,
        text=True,
        check=False,
    )


def test_files_of_tests_have_different_names() -> None:
    """Pytest takes two files of one name for the same module."""
    names = [path.name for path in (ROOT / "tests").rglob("test_*.py")]
    assert [name for name in names if names.count(name) > 1] == []


def test_import_contracts_hold() -> None:
    result = lint_imports(ROOT)
    assert result.returncode == 0, result.stdout + result.stderr


# The contract that breaks, by its id in pyproject.toml, and the files that break it.
BREACHES: list[tuple[str, dict[str, str]]] = [
    ("layers", {"farflung/wire/upward.py": "import farflung.mesh\n"}),
    ("layers", {"farflung/systems/swarm/real.py": "import farflung.runtime\n"}),
    ("layers", {"farflung/runtime/wired.py": "import farflung.apps\n"}),
    ("layers", {"farflung/model/learned.py": "import farflung.learn\n"}),
    ("layers", {"farflung/tools/__init__.py": "x = 1\n"}),
    ("systems", {"farflung/systems/swarm/nosy.py": "import farflung.systems.hierarchy\n"}),
    ("two-worlds", {"farflung/sim/learned.py": "import farflung.learn\n"}),
    ("doors", {"farflung/systems/swarm/clock.py": "from time import monotonic\n"}),
    ("world-stdlib", {"farflung/world/heavy.py": "import numpy\n"}),
    ("no-torch", {"farflung/mesh/a.py": "import farflung.wire.b\n", "farflung/wire/b.py": "import torch\n"}),
]


@pytest.mark.parametrize(("contract", "files"), BREACHES)
def test_planted_import_breaks_its_contract(contract: str, files: dict[str, str], tmp_path: Path) -> None:
    plant(tmp_path, {})
    assert lint_imports(tmp_path, "--contract", contract).returncode == 0
    plant(tmp_path, dict(files))
    result = lint_imports(tmp_path, "--contract", contract)
    assert result.returncode == 1 and "0 kept, 1 broken" in result.stdout, result.stdout + result.stderr


def loaded_modules(statement: str) -> set[str]:
    """Top-level packages in memory after `statement` in a fresh interpreter."""
    script = f"import sys\nsys.argv = ['farflung', '--help']\n{statement}\nprint(*sys.modules, file=sys.stderr)"
    result = subprocess.run([sys.executable, "-c", script], cwd=ROOT, capture_output=True, text=True, check=True)
    return {name.split(".")[0] for name in result.stderr.split()}


HEAVY = {"torch", "transformers", "numpy"}


@pytest.mark.parametrize("layer", ["world", "mesh"])
def test_layers_below_the_mathematics_load_no_torch(layer: str) -> None:
    modules = [architecture.module_name(path) for path, _, _ in architecture.parsed(ROOT, f"farflung/{layer}")]
    assert not loaded_modules("import " + ", ".join(modules)) & {"torch", "transformers"}


def test_package_loads_nothing_heavy() -> None:
    assert not loaded_modules("import farflung") & HEAVY


def test_loading_something_heavy_would_be_seen() -> None:
    assert loaded_modules("import numpy") & HEAVY == {"numpy"}


def test_help_loads_nothing_heavy() -> None:
    help_text = "from farflung.apps.cli import main\ntry: main()\nexcept SystemExit: pass"
    assert not loaded_modules(help_text) & HEAVY
