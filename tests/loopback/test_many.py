"""Many users of real servers at the same time, with adapters, shared beginnings and some that leave early: each gets
the words of a machine of its own."""

import random
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
import torch

from farflung.model.peft_files import save_adapter
from farflung.model.source import ModelSource
from tests.loopback.fleet import Fleet, wait_until
from tests.loras import lora, under_peft

pytestmark = pytest.mark.loopback

NUM_USERS = 32
SHARED_TOKENS = 80


def prompts_of(vocabulary_size: int) -> list[torch.Tensor]:
    """From a few to a hundred tokens; two of three begin with the same text."""
    stream, generator = random.Random(5), torch.Generator().manual_seed(5)
    shared = torch.randint(2, vocabulary_size, (1, SHARED_TOKENS), generator=generator)
    prompts: list[torch.Tensor] = []
    for number in range(NUM_USERS):
        own = torch.randint(2, vocabulary_size, (1, stream.randint(1, 30)), generator=generator)
        prompts.append(torch.cat([shared, own], dim=1) if number % 3 else own)
    return prompts


def test_many_users_at_once_get_the_words_of_one_machine(
    fleet: Fleet, model: Any, whole: Any, folder: Path, tmp_path: Path
) -> None:
    source = ModelSource.open(str(folder))
    adapters = [lora(source, seed, targets=["q_proj", "up_proj"]).requires_grad_(False) for seed in (1, 2)]
    for number, adapter in enumerate(adapters):
        save_adapter(adapter, tmp_path / str(number))
    wholes = [whole, *(under_peft(whole, tmp_path / str(number)) for number in range(2))]
    prompts = prompts_of(whole.config.vocab_size)
    num_new = [random.Random(number).randint(2, 12) for number in range(NUM_USERS)]

    def ask(number: int) -> list[int]:
        options = {"do_sample": False, "max_new_tokens": num_new[number], "min_new_tokens": num_new[number]}
        adapter = [None, *adapters][number % 3]
        if number % 5 and adapter is None:
            return model.generate(prompts[number], pad_token_id=0, **options)[0].tolist()
        num_tokens = 500 if number % 5 == 0 else 150  # some ask for much and leave
        with model.inference_session(num_tokens_max=num_tokens, lora=adapter):
            return model.generate(prompts[number], pad_token_id=0, **options)[0].tolist()

    with ThreadPoolExecutor(NUM_USERS) as users:
        said = list(users.map(ask, range(NUM_USERS)))
    for number, words in enumerate(said):
        options = {"do_sample": False, "max_new_tokens": num_new[number], "min_new_tokens": num_new[number]}
        expected = wholes[number % 3].generate(input_ids=prompts[number], pad_token_id=0, **options)
        assert words == expected[0].tolist(), number

    def is_free() -> bool:
        infos = model._blocks.view.servers().values()
        return all(info.num_sessions == 0 and info.cache_tokens_left == info.cache_tokens_max for info in infos)

    wait_until(is_free, "all sessions are freed")
