"""Starts `farflung` processes quickly: everything is imported once, then every order forks one process.

An order is a line of JSON on standard input, {"arguments": [...], "home": folder, "log": file}; the answer is a line
with the process id. What runs in the fork is the command line's own `main`, or a script if the first argument names
one. The forge's end is not the end of its processes.
"""

import json
import os
import runpy
import signal
import sys
from pathlib import Path

IMPORTED = (
    "farflung.apps.cli",
    "farflung.apps.serve",
    "farflung.apps.terminal",
    "farflung.apps.status",
    "farflung.apps.library",
    "transformers.models.llama.modeling_llama",
)


def run(arguments: list[str], home: str, log: str) -> None:
    """Become `farflung ARGUMENTS` (or a script with its arguments); never returns."""
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    os.environ["FARFLUNG_HOME"] = home
    output = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
    os.dup2(output, 1)
    os.dup2(output, 2)
    sys.argv = ["farflung", *arguments]
    if arguments[0].endswith(".py"):
        sys.argv = arguments
        runpy.run_path(arguments[0], run_name="__main__")
        sys.exit()
    from farflung.apps.cli import main

    try:
        main()
    except SystemExit as end:
        Path(log + ".status").write_text(str(end.code))
        raise


def serve_orders() -> None:
    for name in IMPORTED:
        __import__(name)
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)  # its children need nobody to wait for them
    _answer("ready")
    for line in sys.stdin:
        order = json.loads(line)
        pid = os.fork()
        if pid == 0:
            run(order["arguments"], order["home"], order["log"])
        _answer(str(pid))


def _answer(text: str) -> None:
    sys.stdout.write(text + "\n")
    sys.stdout.flush()


if __name__ == "__main__":
    serve_orders()
