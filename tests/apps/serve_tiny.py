"""A real server process over a tiny local model: `python -m tests.apps.serve_tiny FOLDER SOCKET [OPTIONS]`."""

import argparse
import itertools
import socket

import torch
import uvicorn
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedModel, PreTrainedTokenizerBase

from farflung.apps.http.app import build_app
from farflung.apps.http.engine import Engine, EngineLimits
from farflung.apps.http.resuming import StreamLimits
from farflung.model.drafts import PromptLookup
from farflung.model.generator import ModelGenerator, Speculation, stop_tokens_of


def engine_of(name: str, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> Engine:
    """An engine that guesses ahead and writes two answers at a time.

    To its clock a forward takes the same time always: whether guesses pay must not depend on who else uses the machine.
    """
    clock = itertools.count()
    return Engine(
        name,
        ModelGenerator(model, speculation=Speculation(PromptLookup(), lambda: float(next(clock)))),
        tokenizer,
        stop_tokens=stop_tokens_of(model),
        limits=EngineLimits(num_running_max=2, num_waiting_max=1),
        hidden_states=lambda ids_NT: model.base_model(input_ids=ids_NT).last_hidden_state,
    )


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("folder")
    parser.add_argument("socket", type=int, help="Number of a file that listens already.")
    parser.add_argument("--tools", help="The folder of a model that calls tools.")
    parser.add_argument("--key", action="append", default=[])
    parser.add_argument("--resume-seconds", type=float, default=30.0)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    model = AutoModelForCausalLM.from_pretrained(arguments.folder)
    tokenizer = AutoTokenizer.from_pretrained(arguments.folder)
    plain = AutoTokenizer.from_pretrained(arguments.folder)
    plain.chat_template = None
    engines = {"tiny": engine_of("tiny", model, tokenizer), "tiny-base": engine_of("tiny-base", model, plain)}
    if arguments.tools:
        model = AutoModelForCausalLM.from_pretrained(arguments.tools)
        engines["tools"] = engine_of("tools", model, AutoTokenizer.from_pretrained(arguments.tools))
    limits = StreamLimits(resume_seconds=arguments.resume_seconds)
    app = build_app(engines, api_keys=arguments.key, body_bytes_max=100_000, stream_limits=limits)
    server = uvicorn.Server(uvicorn.Config(app, log_level="warning"))
    server.run(sockets=[socket.socket(fileno=arguments.socket)])


if __name__ == "__main__":
    main()
