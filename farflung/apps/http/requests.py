"""From a client's request to a generator's."""

from farflung.apps.http.chat_schema import ChatRequest
from farflung.apps.http.engine import Engine
from farflung.apps.http.errors import ApiError
from farflung.apps.http.schema import AnswerRequest
from farflung.apps.http.tool_formats import ToolFormat
from farflung.model.generator import GenerationRequest
from farflung.model.writer import Form


def generation_request(
    asked: AnswerRequest,
    engine: Engine,
    prompt: tuple[int, ...],
    num_tokens_max: int,
    num_alternatives: int,
    *,
    scores_prompt: bool = False,
    form: Form | None = None,
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
        form=form,
    )


def chat_form(asked: ChatRequest, engine: Engine) -> Form | None:
    """What the answers of a chat have to look like; None: anything goes.

    Raises:
        ApiError: 400 for what answers cannot be kept to.
    """
    if asked.json_schema is not None:
        return engine.forms.of_schema(asked.json_schema)
    is_strict = any(tool.function.strict for tool in asked.offered_tools)
    if not (asked.must_call or is_strict):
        return None
    tools = [tool.for_template() for tool in asked.offered_tools]
    grammar = known_format(engine).grammar(tools, is_parallel=asked.parallel_tool_calls, is_free=not asked.must_call)
    return engine.forms.of_grammar(grammar, "tools")


def known_format(engine: Engine) -> ToolFormat:
    """How the model writes tool calls.

    Raises:
        ApiError: 400, nobody here knows.
    """
    if engine.tool_format is None:
        sentence = (
            f"How {engine.name} calls tools is not known here: describe them in a message, or take another model."
        )
        raise ApiError(400, sentence, param="tools")
    return engine.tool_format
