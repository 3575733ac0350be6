"""The rules of the house as functions: each takes the root of a tree and returns one sentence per breach."""

import ast
import re
import sys
from collections.abc import Iterator
from pathlib import Path

FILE_LINES_MAX = 300
FUNCTION_LINES_MAX = 70
LAYERS = ("apps", "learn", "mesh", "model", "runtime", "sim", "systems", "wire", "world")
ENTRY_POINTS = ("farflung", "farflung.__main__", "farflung.apps.cli")
"""Modules that nothing needs to import: the package itself and the command of pyproject.toml."""
NAMELESS = re.compile(r"^(utils?|helpers?|managers?|misc)$")


def parsed(root: Path, *folders: str) -> Iterator[tuple[Path, str, ast.Module]]:
    """Path below `root`, text and syntax tree of every Python file in `folders`, in order of their names."""
    for folder in folders:
        for path in sorted((root / folder).rglob("*.py")):
            text = path.read_text(encoding="utf-8")
            yield path.relative_to(root), text, ast.parse(text)


def module_name(path: Path) -> str:
    """`farflung/wire/codec.py` -> `farflung.wire.codec`; a package is named by its folder."""
    parts = path.with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def imported_modules(tree: ast.Module) -> Iterator[str]:
    """The module of every import statement."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module is not None:
            yield node.module


def imported_members(tree: ast.Module) -> Iterator[str]:
    """What `from a import b` takes, as `a.b`: it may be a module too."""
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom):
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def long_files(root: Path) -> list[str]:
    """Files longer than one sitting."""
    lengths = [(path, len(text.splitlines())) for path, text, _ in parsed(root, "farflung", "bench", "tests")]
    return [f"{path} has {length} lines" for path, length in lengths if length > FILE_LINES_MAX]


def long_functions(root: Path) -> list[str]:
    """Functions longer than one screen."""
    breaches: list[str] = []
    for path, _, tree in parsed(root, "farflung", "bench", "tests"):
        for node in ast.walk(tree):
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
                assert node.end_lineno is not None
                length = node.end_lineno - node.lineno + 1
                if length > FUNCTION_LINES_MAX:
                    breaches.append(f"{path}: {node.name} has {length} lines")
    return breaches


def modules_without_sentence(root: Path) -> list[str]:
    """Modules that do not open with a sentence (on the first line, or wrapped onto the next) saying what they are."""
    breaches: list[str] = []
    for path, text, tree in parsed(root, "farflung", "bench", "tests"):
        opening = (ast.get_docstring(tree) or "").split("\n\n")[0]
        if text.strip() and not re.search(r"[.:!?](\s|$)", opening):
            breaches.append(f"{path} does not start with a sentence")
    return breaches


def folders_outside_layers(root: Path) -> list[str]:
    """Folders and modules of the package that belong to no layer."""
    breaches: list[str] = []
    for path in sorted((root / "farflung").iterdir()):
        is_layer = path.is_dir() and path.name in (*LAYERS, "__pycache__")
        if not is_layer and path.name not in ("__init__.py", "__main__.py", "py.typed"):
            breaches.append(f"farflung/{path.name} is in no layer")
    return breaches


def nameless_modules(root: Path) -> list[str]:
    """Files and folders whose name says nothing."""
    paths = [path for folder in ("farflung", "bench", "tests") for path in sorted((root / folder).rglob("*"))]
    return [f"{path.relative_to(root)} says nothing" for path in paths if NAMELESS.match(path.stem.lower())]


def prints(root: Path) -> list[str]:
    """Calls of print outside the doors for people."""
    breaches: list[str] = []
    for path, _, tree in parsed(root, "farflung"):
        if path.parts[1] == "apps":
            continue
        calls = (node for node in ast.walk(tree) if isinstance(node, ast.Call))
        lines = [call.lineno for call in calls if isinstance(call.func, ast.Name) and call.func.id == "print"]
        breaches += [f"{path}:{line} prints" for line in lines]
    return breaches


def world_beyond_stdlib(root: Path) -> list[str]:
    """Imports of `world` that are neither its own nor the standard library's."""
    breaches: list[str] = []
    for path, _, tree in parsed(root, "farflung/world"):
        for name in imported_modules(tree):
            is_own = name == "farflung.world" or name.startswith("farflung.world.")
            if not is_own and name.split(".")[0] not in sys.stdlib_module_names:
                breaches.append(f"{path} imports {name}")
    return breaches


def imports_of_tests(root: Path) -> list[str]:
    """Imports of the tests or benchmarks by the package."""
    breaches: list[str] = []
    for path, _, tree in parsed(root, "farflung"):
        breaches += [
            f"{path} imports {name}" for name in imported_modules(tree) if name.split(".")[0] in ("tests", "bench")
        ]
    return breaches


def dead_files(root: Path) -> list[str]:
    """Modules of the package that nothing but tests uses: not imported, not named in a string, no entry point."""
    used: set[str] = set(ENTRY_POINTS)
    for path, _, tree in parsed(root, "farflung", "bench"):
        own_name = module_name(path)
        strings = (
            node.value for node in ast.walk(tree) if isinstance(node, ast.Constant) and isinstance(node.value, str)
        )
        named = (text.partition(":")[0] for text in strings if text.startswith("farflung."))
        used.update(name for name in (*imported_modules(tree), *imported_members(tree), *named) if name != own_name)
    names = [module_name(path) for path, _, _ in parsed(root, "farflung") if path.name != "__init__.py"]
    return [f"{name} is used by nothing" for name in names if name not in used]
