"""From a client's request to a generator's."""

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
    """What the generator is to do."""
    assert asked.seed is not None, "it has been drawn"
    return GenerationRequest(
        prompt=prompt,
        num_tokens_max=num_tokens_max,
        sampling=asked.sampling(engine.defaults),
        num_rows=asked.n,
        seed=asked.seed,
        stop_tokens=engine.stop_tokens,
        num_alternatives=num_alternatives,
        scores_prompt=scores_prompt,
    )
