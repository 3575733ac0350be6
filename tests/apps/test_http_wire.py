"""The API on raw sockets and plain HTTP: malformed bodies, limits, keys, hang-ups, metrics, and a full server."""

import http.client
import json
import re
import shutil
import socket
import subprocess
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from urllib.parse import urlsplit

import httpx
import pytest

from tests.apps.processes import wait_until

pytestmark = pytest.mark.loopback

LONG: dict[str, object] = {"model": "tiny", "prompt": "def ", "max_tokens": 19_000, "logit_bias": {"0": -100}}
"""Takes many seconds unless it is given up; the end mark is forbidden."""


def metric(url: str, name: str) -> float:
    text = httpx.get(f"{url}/metrics", timeout=120).text
    found = re.search(rf"^{re.escape(name)} (\S+)$", text, re.MULTILINE)
    return float(found[1]) if found else 0.0


def num_running(url: str) -> float:
    return metric(url, 'farflung_sessions{model="tiny"}')


@contextmanager
def open_request(url: str, body: dict[str, object], key: str = "none") -> Iterator[socket.socket]:
    """A connection on which a request has been sent and nothing been read."""
    where = urlsplit(url)
    assert where.hostname is not None and where.port is not None
    data = json.dumps(body).encode()
    head = (
        f"POST /v1/completions HTTP/1.1\r\nHost: {where.netloc}\r\nContent-Type: application/json\r\n"
        f"Authorization: Bearer {key}\r\nContent-Length: {len(data)}\r\n\r\n"
    )
    with socket.create_connection((where.hostname, where.port), timeout=120) as connection:
        connection.sendall(head.encode() + data)
        yield connection


@pytest.mark.parametrize(
    ("body", "sentence"),
    [
        (b'{"model": "tiny", ', "The body is not JSON"),
        (b"\xff\xfe\x00", "body"),
        (b"[1, 2]", "The body must be a JSON object"),
        (b'{"model": "tiny"}', "prompt: Field required"),
        (b'{"model": "tiny", "prompt": {"a": 1}}', "prompt"),
        (b"[" * 50_000, "body"),
    ],
)
def test_malformed_bodies_are_told_in_openais_shape(api_url: str, body: bytes, sentence: str) -> None:
    answer = httpx.post(
        f"{api_url}/v1/completions", content=body, headers={"Content-Type": "application/json"}, timeout=120
    )
    assert answer.status_code == 400
    error = answer.json()["error"]
    assert sentence in error["message"]
    assert error["type"] == "invalid_request_error"
    assert set(error) == {"message", "type", "param", "code"}


def test_unknown_paths_and_methods_have_the_same_shape(api_url: str) -> None:
    assert httpx.get(f"{api_url}/v2/nothing", timeout=120).json()["error"]["message"] == "There is no GET /v2/nothing."
    assert httpx.get(f"{api_url}/v1/completions", timeout=120).status_code == 405


@pytest.mark.parametrize("is_declared", [True, False])
def test_a_body_over_the_limit_is_refused_before_it_is_parsed(api_url: str, is_declared: bool) -> None:
    data = json.dumps({"model": "tiny", "prompt": "x" * 200_000}).encode()
    content = data if is_declared else iter([data[:90_000], data[90_000:]])  # an iterator is sent in chunks
    answer = httpx.post(f"{api_url}/v1/completions", content=content, timeout=120)
    assert answer.status_code == 413
    assert answer.json()["error"]["message"] == "The body is over the limit of 100000 bytes."


def test_garbage_on_the_socket_harms_nobody(api_url: str) -> None:
    where = urlsplit(api_url)
    assert where.hostname is not None and where.port is not None
    with socket.create_connection((where.hostname, where.port), timeout=120) as connection:
        connection.sendall(b"\x16\x03\x01\x02\x00 garbage \r\n\r\n")
        assert connection.recv(1000).startswith(b"HTTP/1.1 400")
    assert httpx.get(f"{api_url}/health", timeout=120).json()["status"] == "ok"


@pytest.mark.parametrize("stream", [True, False])
def test_a_client_that_hangs_up_ends_its_answer(api_url: str, keyed_url: str, stream: bool) -> None:
    url = keyed_url if stream else api_url
    with open_request(url, LONG | {"stream": stream}, "first-key") as connection:
        if stream:
            assert connection.recv(100).startswith(b"HTTP/1.1 200")
        wait_until(lambda: num_running(url) == 1, seconds=60, what="the answer is being written")
    wait_until(lambda: num_running(url) == 0, seconds=60, what="the answer is given up")


def test_a_full_server_says_so_and_when_to_come_back(api_url: str) -> None:
    # Two answers may be written at once and one request may wait: a fourth is told to come back.
    with open_request(api_url, LONG), open_request(api_url, LONG):
        wait_until(lambda: num_running(api_url) == 2, seconds=60, what="both answers are being written")
        with open_request(api_url, LONG):
            wait_until(
                lambda: metric(api_url, 'farflung_waiting{model="tiny"}') == 1, seconds=60, what="one request waits"
            )
            answer = httpx.post(f"{api_url}/v1/completions", json=LONG, timeout=120)
            assert answer.status_code == 429
            assert int(answer.headers["Retry-After"]) >= 1
            assert "2 answers are being written and 1 requests wait" in answer.json()["error"]["message"]
            assert answer.json()["error"]["type"] == "rate_limit_error"
    waiting = 'farflung_waiting{model="tiny"}'
    wait_until(lambda: num_running(api_url) == metric(api_url, waiting) == 0, seconds=60, what="all are given up")
    assert httpx.post(f"{api_url}/v1/completions", json=LONG | {"max_tokens": 2}, timeout=120).status_code == 200


def test_answers_at_the_same_time_do_not_mix(api_url: str) -> None:
    bodies = [{"model": "tiny", "prompt": text, "max_tokens": 30, "temperature": 0} for text in ("def a", "class B")]

    def ask(body: dict[str, object]) -> str:
        answer = httpx.post(f"{api_url}/v1/completions", json=body, timeout=240)
        return answer.json()["choices"][0]["text"]

    alone = [ask(body) for body in bodies]
    assert alone[0] != alone[1]
    with ThreadPoolExecutor(2) as pool:
        assert list(pool.map(ask, bodies)) == alone


def test_the_server_answers_others_while_a_model_computes(api_url: str) -> None:
    with open_request(api_url, LONG):
        wait_until(lambda: num_running(api_url) == 1, seconds=60, what="the answer is being written")
        for _ in range(5):
            assert httpx.get(f"{api_url}/health", timeout=120).status_code == 200
        assert num_running(api_url) == 1, "they were answered before the answer's end"
    wait_until(lambda: num_running(api_url) == 0, seconds=60, what="the answer is given up")


def test_metrics_count_what_happened(api_url: str) -> None:
    names = (
        'farflung_requests_total{path="/v1/completions",status="200"}',
        'farflung_generated_tokens_total{model="tiny"}',
        'farflung_prompt_tokens_total{model="tiny"}',
        'farflung_time_to_first_token_seconds_count{model="tiny"}',
        'farflung_time_per_token_seconds_count{model="tiny"}',
    )
    before = [metric(api_url, name) for name in names]
    body = {"model": "tiny", "prompt": [70, 71, 72], "max_tokens": 6, "n": 2, "logit_bias": {"0": -100}}
    assert httpx.post(f"{api_url}/v1/completions", json=body, timeout=120).status_code == 200
    after = [metric(api_url, name) for name in names]
    assert [late - early for early, late in zip(before, after, strict=True)] == [1, 12, 3, 1, 5]


def test_keys_guard_the_answers_and_nothing_else(keyed_url: str) -> None:
    def status(path: str, headers: dict[str, str]) -> int:
        return httpx.get(f"{keyed_url}{path}", headers=headers, timeout=120).status_code

    for headers in ({}, {"Authorization": "Bearer wrong"}, {"Authorization": "Basic first-key"}):
        answer = httpx.get(f"{keyed_url}/v1/models", headers=headers, timeout=120)
        assert answer.status_code == 401
        assert answer.json()["error"]["code"] == "invalid_api_key"
    for key in ("first-key", "second-key"):
        assert status("/v1/models", {"Authorization": f"Bearer {key}"}) == 200
    assert status("/health", {}) == status("/metrics", {}) == 200
    assert metric(keyed_url, 'farflung_requests_total{path="/v1/models",status="200"}') == 2


@pytest.mark.skipif(shutil.which("curl") is None, reason="curl is not installed")
def test_curl_streams(api_url: str) -> None:
    body = json.dumps(
        {"model": "tiny", "messages": [{"role": "user", "content": "def"}], "max_tokens": 5, "stream": True}
    )
    done = subprocess.run(
        ["curl", "-sN", f"{api_url}/v1/chat/completions", "-H", "Content-Type: application/json", "-d", body],
        capture_output=True,
        text=True,
        timeout=240,
        check=True,
    )
    events = [line.removeprefix("data: ") for line in done.stdout.splitlines() if line.startswith("data: ")]
    assert events[-1] == "[DONE]"
    assert all(json.loads(event)["object"] == "chat.completion.chunk" for event in events[:-1])


def test_a_connection_is_used_again_after_a_stream(api_url: str) -> None:
    where = urlsplit(api_url)
    connection = http.client.HTTPConnection(where.netloc, timeout=120)
    try:
        for stream in (True, False):
            body = json.dumps({"model": "tiny", "prompt": "def", "max_tokens": 3, "stream": stream})
            connection.request("POST", "/v1/completions", body, {"Content-Type": "application/json"})
            answer = connection.getresponse()
            assert answer.status == 200
            answer.read()
    finally:
        connection.close()
