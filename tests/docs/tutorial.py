"""Reads a tutorial as its reader would: files to write, commands to type, terminals to close, and what is to be seen.

A fence is

sh                          typed and waited for
sh title="Terminal 1"       typed into a terminal of its own, where it goes on
any other with a title      saved as a file of that name
text after one of sh        lines that are to be seen, in this order, among others; `...` stands for anything

and `<!-- kill Terminal 1 -->` or `<!-- interrupt Terminal 1 -->` is what the text asks for in words.
"""

import re
from collections.abc import Iterator
from dataclasses import dataclass

FENCE = re.compile(
    r"^```(?P<language>\w+)(?: title=\"(?P<title>[^\"]+)\")?\n(?P<text>.*?)^```$"
    r"|^<!-- (?P<verb>\w+) (?P<terminal>.+?) -->$",
    re.MULTILINE | re.DOTALL,
)
ENDS = ("kill", "interrupt")


@dataclass(frozen=True, slots=True)
class SaveFile:
    """A file that the page shows."""

    name: str
    text: str


@dataclass(frozen=True, slots=True)
class Type:
    """Commands, in a terminal that goes on if it has a name."""

    commands: str
    terminal: str = ""
    seen: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class End:
    """A terminal is closed (kill) or gets Ctrl-C (interrupt)."""

    verb: str
    terminal: str


Step = SaveFile | Type | End


def steps_of(page: str) -> list[Step]:
    """What a page asks of its reader, in order.

    Raises:
        ValueError: a fence or a comment that means nothing here.
    """
    steps: list[Step] = []
    for language, title, text, verb, terminal in _pieces(page):
        if verb:
            if verb not in ENDS:
                raise ValueError(f"a reader cannot {verb} {terminal!r}; what can be told: {', '.join(ENDS)}")
            steps.append(End(verb, terminal))
        elif language == "text":
            last = steps[-1] if steps else None
            if not isinstance(last, Type) or last.seen:
                raise ValueError(f"these lines follow no commands: {text!r}")
            steps[-1] = Type(last.commands, last.terminal, tuple(text.splitlines()))
        elif language == "sh":
            steps.append(Type(text, title))
        elif title:
            steps.append(SaveFile(title, text))
        else:
            raise ValueError(
                f"this fence of {language} has no title, so a reader does not know where it goes: {text!r}"
            )
    return steps


def _pieces(page: str) -> Iterator[tuple[str, str, str, str, str]]:
    for found in FENCE.finditer(page):
        pieces = found.groupdict(default="")
        yield pieces["language"], pieces["title"], pieces["text"], pieces["verb"], pieces["terminal"]


def unseen(expected: tuple[str, ...], output: str) -> str:
    """The first of the expected lines that is not in the output after those before it; empty: all are."""
    lines = iter([" ".join(line.split()) for line in output.splitlines()])
    for wanted in expected:
        pattern = re.compile(".*".join(re.escape(part) for part in " ".join(wanted.split()).split("...")))
        if not any(pattern.fullmatch(line) for line in lines):
            return wanted
    return ""
