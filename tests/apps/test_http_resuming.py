"""Streams whose connection broke: a client that comes back has, in the end, the words of an undisturbed one."""

import asyncio
import json
import re
from collections.abc import AsyncGenerator
from contextlib import closing
from typing import Any, cast

import httpx
import openai
import pytest
from openai import OpenAI
from starlette.requests import Request
from starlette.responses import StreamingResponse

from farflung.apps.http.errors import ApiError
from farflung.apps.http.resuming import StreamLimits, Streams
from farflung.apps.http.stream_names import Place, StreamName, digest
from farflung.apps.http.streams import Json
from tests.apps.processes import wait_until

pytestmark = pytest.mark.loopback

BODY: Any = {"model": "tiny", "prompt": "def ", "max_tokens": 120, "logit_bias": {"0": -100}, "stream": True}
"""Drawn at temperature 1."""
CHAT: Any = {
    "model": "tiny",
    "messages": [{"role": "user", "content": "def "}],
    "n": 2,
    "max_tokens": 40,
    "stream": True,
    "logprobs": True,
    "stream_options": {"include_usage": True},
}

KEY: Any = {"Authorization": "Bearer first-key"}

Event = tuple[str, str]
"""Id and data."""


def read(
    url: str, body: dict[str, Any] | None, *, num_events: int | None = None, path: str = "completions", **headers: str
) -> list[Event]:
    """The first events of an answer, after which the connection is broken; all, by default."""
    events: list[Event] = []
    names = {name.replace("_", "-"): value for name, value in headers.items()}
    method = "GET" if body is None else "POST"
    with httpx.stream(method, f"{url}/v1/{path}", json=body, headers=names, timeout=240) as answer:
        assert answer.status_code == 200, answer.read()
        id_ = ""
        for line in answer.iter_lines():
            if line.startswith("id: "):
                id_ = line.removeprefix("id: ")
            elif line.startswith("data: "):
                events.append((id_, line.removeprefix("data: ")))
                if len(events) == num_events:
                    break
    return events


def text(events: list[Event]) -> str:
    assert events[-1][1] == "[DONE]"
    return "".join(json.loads(data)["choices"][0]["text"] for _, data in events[:-1])


def numbers(events: list[Event]) -> list[int]:
    return [int(id_.rpartition("-")[2]) for id_, _ in events]


def metric(url: str, name: str) -> int:
    """Of the tiny model."""
    text = httpx.get(f"{url}/metrics", timeout=120).text
    found = re.search(rf'^{name}{{model="tiny"}} (\S+)$', text, re.M)
    return int(float(found[1])) if found else 0


def num_running(url: str) -> int:
    return metric(url, "farflung_sessions")


def num_written(url: str) -> int:
    return metric(url, "farflung_generated_tokens_total")


def test_a_broken_stream_goes_on_where_it_was(api_url: str) -> None:
    undisturbed = read(api_url, BODY | {"seed": 5})
    already = num_written(api_url)
    before = read(api_url, BODY | {"seed": 5}, num_events=20)
    last = before[-1][0]
    whole = already + BODY["max_tokens"]
    wait_until(lambda: num_written(api_url) == whole, seconds=120, what="it goes on without a listener")
    after = read(api_url, None, path=f"streams/{last.rpartition('-')[0]}", Last_Event_ID=last)
    assert numbers(before + after) == list(range(1, len(undisturbed) + 1))
    assert text(before + after) == text(undisturbed)
    again = read(api_url, None, path=f"streams/{last.rpartition('-')[0]}")
    assert again == before + after, "all of it may be read again"


def test_the_same_request_with_the_last_id_goes_on_too(api_url: str) -> None:
    before = read(api_url, CHAT, num_events=7, path="chat/completions")  # with a seed that nobody chose
    with OpenAI(base_url=f"{api_url}/v1", api_key="none", max_retries=0, timeout=240) as client:
        rest = list(client.chat.completions.create(**CHAT, extra_headers={"Last-Event-ID": before[-1][0]}))
    whole = read(api_url, None, path=f"streams/{before[-1][0].rpartition('-')[0]}")
    told = [json.loads(data) for _, data in whole[7:-1]]
    assert [chunk.model_dump(exclude_unset=True) for chunk in rest] == told
    assert rest[-1].usage is not None and rest[-1].usage.completion_tokens > 0


def test_an_answer_at_rest_is_written_anew_up_to_where_the_client_was(keyed_url: str) -> None:
    body = BODY | {"max_tokens": 600}
    before = read(keyed_url, body, num_events=30, **KEY)
    wait_until(lambda: num_running(keyed_url) == 0, seconds=120, what="nobody listens, so it rests")
    name = before[-1][0].rpartition("-")[0]
    after = read(keyed_url, None, path=f"streams/{name}", Last_Event_ID=before[-1][0], **KEY)
    seed = int(name[24:40], 16)
    assert text(before + after) == text(read(keyed_url, body | {"seed": seed}, **KEY))


def test_another_process_goes_on_for_one_that_was_lost(api_url: str, keyed_url: str) -> None:
    before = read(api_url, BODY, num_events=30)
    after = read(keyed_url, BODY, Last_Event_ID=before[-1][0], **KEY)
    assert numbers(before + after) == list(range(1, len(before + after) + 1))
    with closing(OpenAI(base_url=f"{keyed_url}/v1", api_key="first-key", max_retries=0, timeout=240)) as client:
        rest = client.completions.create(**BODY, extra_headers={"Last-Event-ID": before[-1][0]})
        assert "".join(chunk.choices[0].text for chunk in rest) == text(after)
    with pytest.raises(AssertionError, match=r"is of another request, or the model has other weights by now"):
        read(keyed_url, BODY | {"prompt": "def"}, Last_Event_ID=before[-1][0], **KEY)
    with closing(OpenAI(base_url=f"{api_url}/v1", api_key="none", max_retries=0, timeout=240)) as client:
        seed = int(before[-1][0][24:40], 16)
        assert text(before + after) == "".join(
            chunk.choices[0].text for chunk in client.completions.create(**BODY, seed=seed)
        )


def test_streams_that_are_not_there_are_told_so(api_url: str, keyed_url: str) -> None:
    def refused(url: str, status: int, sentence: str, path: str = "streams/0", **headers: str) -> None:
        names = {name.replace("_", "-"): value for name, value in headers.items()}
        answer = httpx.get(f"{url}/v1/{path}", headers=names, timeout=120)
        assert answer.status_code == status
        assert sentence in answer.json()["error"]["message"]

    refused(api_url, 404, "There is no such stream here, or not any more: send the request itself again")
    refused(api_url, 400, "must be the id of the last event that you have", Last_Event_ID="5")
    refused(keyed_url, 401, "The API key is missing or wrong")
    with httpx.stream("POST", f"{keyed_url}/v1/completions", json=BODY, headers=KEY, timeout=240) as answer:
        path = f"streams/{answer.headers['x-farflung-stream']}"
        refused(keyed_url, 404, "There is no such stream of this API key here", path, Authorization="Bearer second-key")


def test_answers_without_a_listener_make_room_for_others(api_url: str) -> None:
    long = BODY | {"max_tokens": 19_000}
    left = [read(api_url, long, num_events=2) for _ in range(2)]
    wait_until(lambda: num_running(api_url) == 2, seconds=120, what="both go on")
    answers = [httpx.post(f"{api_url}/v1/completions", json=BODY | {"max_tokens": 2}, timeout=240) for _ in range(2)]
    assert [answer.status_code for answer in answers] == [200, 200]
    assert num_running(api_url) < 2
    paths = [f"streams/{events[-1][0].rpartition('-')[0]}" for events in left]
    assert len(read(api_url, None, num_events=9, path=paths[0], Last_Event_ID=left[0][-1][0])) == 9
    for status in (200, 404):
        ends = [httpx.delete(f"{api_url}/v1/{path}", timeout=120) for path in paths]
        assert [answer.status_code for answer in ends] == [status, status]
    wait_until(lambda: num_running(api_url) == 0, seconds=60, what="streams that are ended free the engine at once")
    with (
        pytest.raises(openai.NotFoundError),
        OpenAI(base_url=f"{api_url}/v1", api_key="-", max_retries=0) as client,
    ):
        client.completions.create(**BODY | {"n": 2}, extra_headers={"Last-Event-ID": left[0][-1][0]})


class Answers:
    """Answers of ten numbers, of which any number may be under way."""

    def __init__(self, limits: StreamLimits) -> None:
        self.streams = Streams(limits)
        self.num_under_way = 0
        self.request = Request({"type": "http", "method": "POST", "headers": []}, self.receive)

    async def receive(self) -> Any:
        await asyncio.Event().wait()

    async def no_headers(self) -> dict[str, str]:
        return {}

    async def write(self) -> AsyncGenerator[Json]:
        self.num_under_way += 1
        try:
            for number in range(1, 11):
                yield {"number": number}
                await asyncio.sleep(0)
        finally:
            self.num_under_way -= 1

    async def ask(self, place: Place, num_events: int) -> list[str]:
        """Read so many events, and hang up."""
        response = await self.streams.answer(self.request, place, "m", self.write, self.no_headers)
        assert isinstance(response, StreamingResponse)
        body = cast(AsyncGenerator[bytes], response.body_iterator)
        events = [(await anext(body)).decode() for _ in range(num_events)]
        await body.aclose()
        return events


def new_place() -> Place:
    return Place(StreamName.new(1, digest("request")), 0)


async def test_without_resuming_a_hang_up_ends_the_answer_at_once() -> None:
    answers = Answers(StreamLimits(resume_seconds=0))
    place = new_place()
    assert await answers.ask(place, 2) == ['data: {"number":1}\n\n', 'data: {"number":2}\n\n']
    await asyncio.sleep(0)
    assert answers.num_under_way == 0
    assert (await answers.ask(place, 1))[0] == 'data: {"number":1}\n\n', "nothing was kept"


async def test_what_nobody_takes_up_is_forgotten() -> None:
    answers = Answers(StreamLimits(resume_seconds=0.01, kept_seconds=0.02))
    place = new_place()
    await answers.ask(place, 2)
    async with asyncio.timeout(60):
        while str(place.name) in answers.streams._streams:  # noqa: ASYNC110 - nothing tells it
            await asyncio.sleep(0.01)
    assert answers.num_under_way == 0
    with pytest.raises(ApiError, match="There is no such stream here, or not any more"):
        await answers.streams.resume(answers.request, str(place.name))


async def test_streams_longest_without_a_listener_are_forgotten_first() -> None:
    answers = Answers(StreamLimits(num_streams_max=2))
    places = [new_place() for _ in range(3)]
    for place in places:
        await answers.ask(place, 11)
    known = [str(place.name) in answers.streams._streams for place in places]
    assert known == [False, True, True]
    answers.streams.close()


async def test_kept_events_have_a_limit_and_what_is_too_old_is_written_anew() -> None:
    answers = Answers(StreamLimits(num_bytes_max=500))
    place = new_place()
    events = await answers.ask(place, 11)
    assert events[-1].endswith("data: [DONE]\n\n")
    assert await answers.ask(Place(place.name, 9), 2) == events[9:]
    for _ in range(2):
        await answers.ask(new_place(), 11)
    assert sum(stream.num_bytes for stream in answers.streams._streams.values()) < 3000
    assert await answers.ask(place, 11) == events
    answers.streams.close()


@pytest.mark.parametrize("seconds", [-1.0, float("nan"), 1e9])
def test_impossible_times_are_refused(seconds: float) -> None:
    with pytest.raises(ValueError, match="--resume-seconds must be between 0 and"):
        StreamLimits(resume_seconds=seconds)
