"""Options that several commands share."""

from pathlib import Path
from typing import Annotated

import typer

Model = Annotated[str, typer.Argument(help="A folder in Hugging Face format, or a Hub id.")]
Join = Annotated[
    str | None, typer.Option("--join", envvar="FARFLUNG_TICKET", show_envvar=True, help="The ticket of the swarm.")
]
Home = Annotated[
    Path | None,
    typer.Option("--home", envvar="FARFLUNG_HOME", show_envvar=True, help="Folder for key, journals and caches."),
]
MaxTokens = Annotated[int, typer.Option("--max-tokens", help="Length of the answer, in tokens.")]
Temperature = Annotated[float | None, typer.Option("--temperature", help="0: always the most likely token.")]
TopK = Annotated[int | None, typer.Option("--top-k", help="Choose among the k most likely tokens; 0: all.")]
TopP = Annotated[float | None, typer.Option("--top-p", help="Choose among the tokens that make up this probability.")]
Seed = Annotated[int | None, typer.Option("--seed", help="The same seed gives the same answer.")]
Stop = Annotated[list[str] | None, typer.Option("--stop", help="End before this text; may be repeated.")]
Draft = Annotated[
    str,
    typer.Option(
        "--draft", help="Guess ahead: lookup (what followed the same words), a small MODEL of the same family, or off."
    ),
]
Adapter = Annotated[
    Path | None, typer.Option("--adapter", help="Folder of a LoRA adapter in peft's format, which the servers apply.")
]
