"""The `farflung` commands that a page shows, and what the command line would say of their words."""

import re
import shlex
from collections.abc import Iterator
from typing import Any

from typer._click.exceptions import UsageError

FENCE = re.compile(r"^```\w*[^\n]*\n(.*?)^```$", re.MULTILINE | re.DOTALL)
IN_A_SENTENCE = re.compile(r"`(farflung [^`]+)`")
PROGRAMS = (["farflung"], ["-m", "farflung"])
ENDS = {"|", ">", "&&", "||", ";", "&", ">>"}


def shown_commands(page: str) -> Iterator[tuple[list[str], bool]]:
    """The words after `farflung` of each command, and whether all that is needed must be there: not in a sentence."""
    for fence in FENCE.findall(page):
        for line in fence.replace("\\\n", " ").splitlines():
            if re.search(r"(?:^|\s|-m )farflung ", line) and not line.lstrip().startswith("#"):
                yield from ((words, True) for words in _commands(line))
    for sentence in IN_A_SENTENCE.findall(FENCE.sub("", page)):
        yield from ((words, False) for words in _commands(sentence.replace("\n", " ")))


def _commands(line: str) -> Iterator[list[str]]:
    try:
        lexer = shlex.shlex(line, posix=True, punctuation_chars=True)
        lexer.commenters, lexer.whitespace_split = "#", True
        words = list(lexer)
    except ValueError:  # a quotation that ends on a later line: no command of ours has one
        words = line.split()
    for place, word in enumerate(words):
        before = words[max(0, place - 1) : place]
        is_begun = not before or before[0] in ENDS or before == ["-m"] or re.match(r"\w+=", before[0])
        if word == "farflung" and is_begun:
            rest = words[place + 1 :]
            end = next((at for at, one in enumerate(rest) if one in ENDS), len(rest))
            yield rest[:end]


def mistake_of(program: Any, words: list[str], *, is_whole: bool) -> str:
    """What is wrong with these words as arguments of a command; empty: nothing. A sentence may name an option alone."""
    context = program.context_class(program, info_name="farflung")
    while hasattr(program, "commands"):
        known = program.make_parser(context)
        known.allow_interspersed_args = False
        try:
            _, words, _ = known.parse_args(args=list(words))
        except UsageError as error:
            return str(error)
        if not words or words[0] == "COMMAND":
            return ""
        if words[0] not in program.commands:
            return f"No such command {words[0]!r}"
        program, words = program.commands[words[0]], words[1:]
        context = program.context_class(program, info_name="farflung", parent=context)
    try:
        given, too_many, _ = program.make_parser(context).parse_args(args=list(words))
    except UsageError as error:
        return str(error) if is_whole or "requires an argument" not in str(error) else ""
    if too_many:
        return f"too many words: {too_many}"
    missing = [p.name for p in program.params if is_whole and p.required and given.get(p.name) is None]
    return f"missing: {missing}" if missing and "--help" not in words else ""
