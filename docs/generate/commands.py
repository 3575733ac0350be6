"""The reference of commands, from the command line itself."""

from collections.abc import Iterator
from typing import Any

import typer

from farflung.apps import cli

HEAD = "# Commands\n\nGenerated from the command line: what `farflung COMMAND --help` says.\n"


def commands_page() -> str:
    """One section for each command, in Markdown."""
    program = typer.main.get_command(cli.app)
    sections = [section for path, command in _leaves(program, ["farflung"]) for section in _section(path, command)]
    return "\n".join([HEAD, *sections]) + "\n"


def _leaves(command: Any, path: list[str]) -> Iterator[tuple[list[str], Any]]:
    inner = getattr(command, "commands", None)
    if inner is None:
        yield path, command
        return
    for name, one in inner.items():
        yield from _leaves(one, [*path, name])


def _section(path: list[str], command: Any) -> Iterator[str]:
    yield f"## {' '.join(path)}\n"
    yield " ".join((command.help or "").split()) + "\n"
    arguments = [one for one in command.params if one.param_type_name == "argument"]
    words = [(one.metavar or one.name).strip("{}[]").replace("...", "").upper() for one in arguments]
    shown = [word if one.required else f"[{word}]" for one, word in zip(arguments, words, strict=True)]
    yield f"```text\n{' '.join([*path, *shown, '[OPTIONS]'])}\n```\n"
    yield "| | | default |\n|---|---|---|"
    for one, word in zip(arguments, words, strict=True):
        yield _row(word, one.help, "needed" if one.required else "")
    for option in command.params:
        if option.param_type_name == "option":
            names = ", ".join([*option.opts, *option.secondary_opts])
            default = "needed" if option.required else _default(option)
            yield _row(names, f"{option.help or ''}{_variable(option)}", default)
    yield ""


def _default(option: Any) -> str:
    value = option.default
    return "" if value is None or isinstance(value, bool) or callable(value) or value in ("", ()) else f"`{value}`"


def _variable(option: Any) -> str:
    return f" Or set `{option.envvar}`." if option.envvar else ""


def _row(name: str, text: str | None, default: str) -> str:
    return f"| `{name}` | {_cell(text or '')} | {_cell(default)} |"


def _cell(text: str) -> str:
    return " ".join(text.split()).replace("|", "\\|")
