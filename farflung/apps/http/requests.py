"""From a client's request to a generator's."""

import secrets

from farflung.apps.http.engine import Engine
from farflung.apps.http.schema import AnswerRequest
from farflung.model.generator import GenerationRequest


def generation_request(
    asked: AnswerRequest,
    engine: Engine,
    prompt: tuple[int, ...],
    num_tokens_max: int,
    num_alternatives: int,
    *,
    scores_prompt: bool = False,
) -> GenerationRequest:
    """What the generator is to do; without a seed in the request, one is drawn, so that answers differ."""
    return GenerationRequest(
        prompt=prompt,
        num_tokens_max=num_tokens_max,
        sampling=asked.sampling(engine.defaults),
        num_rows=asked.n,
        seed=secrets.randbits(31) if asked.seed is None else asked.seed & 0x7FFF_FFFF_FFFF_FFFF,
        stop_tokens=engine.stop_tokens,
        num_alternatives=num_alternatives,
        scores_prompt=scores_prompt,
    )
