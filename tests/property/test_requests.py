"""Whatever a client sends: a job with the client's own bytes, or a refusal with a reason, soon; and the next client is served."""

import json
import re
import socket
import time

import pytest
from hypothesis import given
from hypothesis import strategies as st

from supervisor.errors import RequestError
from supervisor.job import JobRequest
from supervisor.protocol.requests import job_request, openai_request

SOON_S = 5.0
"""Of the processor's time: the machine may be busy with others."""

TEXTS = st.text(max_size=20)
NUMBERS = st.integers() | st.floats(allow_nan=False, allow_infinity=False)
JSON = st.recursive(
    st.none() | st.booleans() | NUMBERS | TEXTS,
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(TEXTS, inner, max_size=4),
    max_leaves=12,
)
SPACES = st.text(" \t\n\r", max_size=3)
WRITTEN = st.builds(
    lambda value, ascii_only, indent: json.dumps(value, ensure_ascii=ascii_only, indent=indent),
    JSON,
    st.booleans(),
    st.none() | st.integers(0, 2),
)
"""JSON as clients write it."""

KEYS = ("input", "id", "webhook", "policy", "s3Config", "executionTimeout", "ttl", "lowPriority", "stream", "x")
POLICY = st.dictionaries(st.sampled_from(("executionTimeout", "ttl", "lowPriority", "x")), JSON, max_size=3)
FIELDS = st.fixed_dictionaries(
    {},
    optional={
        "input": JSON,
        "id": TEXTS | st.just("my-job") | JSON,
        "webhook": st.just("https://receiver.test/x") | TEXTS | JSON,
        "policy": POLICY | JSON,
        "s3Config": st.dictionaries(TEXTS, TEXTS, max_size=2) | JSON,
        "other": JSON,
    },
)
TOKENS = st.lists(
    st.sampled_from(
        (
            *[f'"{key}":' for key in KEYS],
            *(
                "{",
                "}",
                "[",
                "]",
                ",",
                ":",
                '"',
                "\\",
                "\\u",
                "\\ud800",
                "\\udc00",
                "null",
                "true",
                "-",
                "1e999",
                "1E",
                "0",
            ),
            *(
                "-0",
                "01",
                "9" * 400,
                " ",
                "\t",
                "NaN",
                "Infinity",
                '""',
                '"a"',
                "{}",
                "\ufeff",
                "\x00",
                "\x7f",
                "é",
                "/*",
            ),
        )
    ),
    max_size=20,
).map("".join)
BYTES = st.one_of(
    st.binary(max_size=200),
    TOKENS.map(str.encode),
    TOKENS.map(lambda text: f'{{"input":{text}}}'.encode()),
    FIELDS.map(lambda value: json.dumps(value).encode()),
    st.tuples(FIELDS.map(lambda value: json.dumps(value).encode()), st.integers(0, 300), st.binary(max_size=3)).map(
        lambda cut: cut[0][: cut[1]] + cut[2] + cut[0][cut[1] + 1 :]
    ),
)


def strictly(data):
    """What JSON says ``data`` is: without NaN and Infinity, which Python's own reader takes."""

    def refuse(word):
        raise ValueError(word)

    return json.loads(data, parse_constant=refuse)


def check(request):
    assert isinstance(request, JobRequest)
    strictly(request.input)
    assert re.fullmatch(r"[A-Za-z0-9_][A-Za-z0-9._~:@+=-]{0,127}", request.id)
    for part in (request.extras, request.s3_config):
        if part is not None:
            assert isinstance(strictly(part), dict)
    for limit in (request.timeout_ms, request.ttl_ms):
        assert limit is None or 0 < limit < 2**53


def test_any_bytes_are_a_job_or_a_refusal(examples):
    @examples(80)
    @given(BYTES, st.none() | st.binary(max_size=300))
    def run(body, key):
        began = time.thread_time()
        try:
            check(job_request(body, key))
        except RequestError as error:
            assert error.status == 400  # noqa: PT017 - both ways out are right
            assert 0 < len(str(error)) < 500  # noqa: PT017
            str(error).encode()
        assert time.thread_time() - began < SOON_S

    run()


def test_any_bytes_for_openai_are_a_job_or_a_refusal(examples):
    @examples(50)
    @given(BYTES, st.text(max_size=20))
    def run(body, route):
        try:
            request, stream = openai_request(route, body)
        except RequestError as error:
            assert error.status == 400  # noqa: PT017 - both ways out are right
        else:
            check(request)
            assert isinstance(stream, bool)
            assert set(strictly(request.input)) == {"openai_route", "openai_input"}

    run()


def test_any_json_value_is_carried_as_it_was_written(examples):
    @examples(80)
    @given(WRITTEN, SPACES, SPACES, st.booleans())
    def run(value, before, after, last):
        rest = f'"x":[1],"input":{before}{value}{after}' if last else f'"input":{before}{value}{after},"x":{{}}'
        request = job_request(f"{{{rest}}}".encode())
        assert request.input == value.encode()
        assert request.generated

    run()


@pytest.mark.parametrize(
    "text", ["[" * 200_000, '{"a":' * 200_000, '"' + "\\ud800" * 50_000, "9" * 300_000, "\ufeff" * 50_000]
)
def test_what_is_long_and_wrong_is_refused_soon(text):
    began = time.thread_time()
    for body in (text, f'{{"input":{text}', f'{{"input":1,"policy":{{"ttl":{text}}}}}', f'{{"input":1,"id":{text}}}'):
        with pytest.raises(RequestError):
            job_request(body.encode())
    assert time.thread_time() - began < SOON_S


# --- the raw connection ----------------------------------------------------------------------------------------------------

LINES = st.sampled_from(
    (
        *(
            "GET / HTTP/1.1",
            "POST /run HTTP/1.1",
            "POST /v2/echo/run HTTP/1.1",
            "GET /health HTTP/1.0",
            "GET /status/%ff%00 HTTP/1.1",
        ),
        *(
            "HEAD /livez HTTP/1.1",
            "CONNECT x:1 HTTP/1.1",
            "OPTIONS * HTTP/1.1",
            "PRI * HTTP/2.0",
            "GET  / HTTP/1.1",
            "get / http/1.1",
        ),
        *(
            "GET /\x01 HTTP/1.1",
            "POST /stream/a?wait=-1&after=1e9 HTTP/1.1",
            "GET /requests?limit=9999999999999999999 HTTP/1.1",
        ),
        *(
            "GET //../../etc/passwd HTTP/1.1",
            "GET http://[::1/x HTTP/1.1",
            "POST /cancel/" + "a" * 300 + " HTTP/1.1",
            "\x16\x03\x01",
            "",
        ),
    )
)
HEADERS = st.lists(
    st.sampled_from(
        (
            *(
                "Host: localhost",
                "Host: evil.test",
                "Host: ",
                "Host: [::1",
                "Origin: null",
                "Connection: close",
                "Connection: upgrade, keep-alive",
            ),
            *(
                "Upgrade: websocket",
                "Upgrade: h2c",
                "Expect: 100-continue",
                "Expect: nonsense",
                "Content-Length: 11",
                "Content-Length: -1",
            ),
            *(
                "Content-Length: 99999999999999999999",
                "Content-Length: 1",
                "Transfer-Encoding: chunked",
                "Transfer-Encoding: gzip, chunked",
            ),
            *(
                "Content-Encoding: gzip",
                "Authorization: Bearer \xff",
                "Idempotency-Key:",
                "Last-Event-ID: -5",
                "Accept: text/event-stream",
            ),
            *(": nothing", "no colon", " folded", "X-\x00: 1", "X: " + "y" * 5000),
        )
    ),
    max_size=5,
)
CONTENTS = st.one_of(
    st.just('{"input":1}'), st.just('b\r\n{"input":1}\r\n0\r\n\r\n'), TOKENS, st.just("zz\r\n"), st.just("")
)
REQUESTS = st.one_of(
    st.binary(min_size=1, max_size=100),
    st.builds(
        lambda line, headers, content: "\r\n".join((line, *headers, "", content)).encode("latin-1", "replace"),
        LINES,
        HEADERS,
        CONTENTS,
    ),
)


def answers(site, stream):
    """What the server says to a client that sends this and then no more."""
    with site.raw() as sock:
        try:
            for data in stream:
                sock.sendall(data)
            sock.shutdown(socket.SHUT_WR)
            return site.read_to_end(sock)
        except TimeoutError:
            raise
        except OSError:
            return b""  # it was sent away before all was said


def test_whatever_comes_over_a_connection_the_next_client_is_served(examples, make_site):
    site = make_site(auto=True)

    @examples(40)
    @given(st.lists(REQUESTS, min_size=1, max_size=3))
    def run(stream):
        for status in re.findall(rb"^HTTP/1\.1 (\d+)", answers(site, stream), re.MULTILINE):
            assert status[:1] in b"1234", "an error of the server"
        assert site.ask("GET", "/livez").status == 200

    run()
    assert not site.logged
