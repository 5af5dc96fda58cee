from __future__ import annotations

import re

import pytest

from supervisor.errors import RequestError
from supervisor.protocol.requests import job_request

REFUSED = [
    (b"", "the body is empty"),
    (b" \n ", "the body is empty"),
    (b"{", "unexpected end at byte 1 (line 1, column 2)"),
    (b'{"input": [1, 2', "unexpected end at byte 15"),
    (b'{\n  "input": x}', "invalid character at byte 13 (line 2, column 12)"),
    (b'{"input": 1} {"input": 2}', "trailing characters at byte"),
    (b'{"input": NaN}', "invalid character at byte 10"),
    (b'{"input": 01}', "invalid number"),
    (b'{"input": "\x01"}', "invalid character"),
    (b'{"input": [1,]}', "trailing comma"),
    (b'{"input": "\\ud800"}', "half a character"),
    (b'{"input": "x\\udc00 y"}', "surrogate"),
    (b'{"input": "\\ud800 and more"}', "not JSON"),
    (b'\xef\xbb\xbf{"input": 1}', "byte 0"),
    (b'{"input": "\xff"}', "the body is not UTF-8: invalid start byte at byte 11 (line 1, column 12)"),
    (b'{"unknown": "\xed\xa0\x80", "input": 1}', "not UTF-8"),
    (b"[1]", "must be a JSON object"),
    (b"null", "must be a JSON object"),
    (b'"input"', "must be a JSON object"),
    (b"{}", "input: missing"),
    (b'{"Input": 1}', "input: missing"),
    (b'{"input":' + b"[" * 200_000, "nested too deeply"),
    (b'{"input": 1, "id": ""}', "id: expected 1 to 128"),
    (b'{"input": 1, "id": 7}', "id: expected a string"),
    (b'{"input": 1, "id": %b}' % (b"9" * 400), "id: expected a string"),
    (b'{"input": 1, "id": "a/b"}', "id: expected 1 to 128"),
    (b'{"input": 1, "id": ".."}', "id: expected 1 to 128"),
    (b'{"input": 1, "id": "a\\n"}', "id: expected 1 to 128"),
    (b'{"input": 1, "id": "%b"}' % (b"x" * 129), "id: expected 1 to 128"),
    (b'{"input": 1, "webhook": 1}', "webhook: expected a string"),
    (b'{"input": 1, "webhook": ""}', "webhook: expected an http or https URL"),
    (b'{"input": 1, "webhook": "ftp://host/"}', "webhook: expected an http or https URL"),
    (b'{"input": 1, "webhook": "http://"}', "webhook: expected an http or https URL"),
    (b'{"input": 1, "webhook": "http://h:99999/"}', "webhook: expected an http or https URL"),
    (b'{"input": 1, "webhook": "http://h/\\r\\nX: y"}', "webhook: expected an http or https URL"),
    (b'{"input": 1, "s3Config": "secret"}', "s3Config: expected an object"),
    (b'{"input": 1, "policy": []}', "policy: expected an object"),
    (b'{"input": 1, "policy": {"ttl": 0}}', "policy.ttl: expected a positive number"),
    (b'{"input": 1, "policy": {"ttl": -5}}', "policy.ttl: expected a positive number"),
    (b'{"input": 1, "policy": {"ttl": 1.5}}', "policy.ttl: expected milliseconds as an integer"),
    (b'{"input": 1, "policy": {"ttl": true}}', "policy.ttl: expected milliseconds as an integer"),
    (b'{"input": 1, "policy": {"ttl": 9007199254740993}}', "policy.ttl"),
    (b'{"input": 1, "policy": {"executionTimeout": "5"}}', "policy.executionTimeout: expected milliseconds"),
    (b'{"input": 1, "policy": {"lowPriority": 1}}', "policy.lowPriority: expected true or false"),
]


@pytest.mark.parametrize(("body", "said"), REFUSED)
def test_refused(body: bytes, said: str) -> None:
    with pytest.raises(RequestError) as caught:
        job_request(body)
    assert caught.value.status == 400
    assert said in str(caught.value)
    assert "secret" not in str(caught.value)


@pytest.mark.parametrize(
    "value",
    [b"null", b"0", b'""', b"[]", b'{"a" : [1, 2.50e3]}', b"1e999", '"žluťoučký"'.encode(), b'"\\ud83d\\ude00"'],
)
def test_input_is_carried_as_it_was_written(value: bytes) -> None:
    assert job_request(b'{"input": %b , "unknown": {"x": 1}}' % value).input == value


def test_random_ids_differ_and_say_so() -> None:
    one, two = (job_request(b'{"input": 1}') for _ in range(2))
    assert one.id != two.id
    assert re.fullmatch("[0-9a-f]{32}", one.id)
    assert one.generated


def test_a_key_always_names_the_same_job() -> None:
    one, two, other = (job_request(b'{"input": 1}', key) for key in (b"k", b"k", b"K"))
    assert one.id == two.id != other.id
    assert not one.generated


def test_the_id_goes_before_the_key() -> None:
    assert job_request(b'{"input": 1, "id": "mine-1"}', b"k").id == "mine-1"
    assert not job_request(b'{"input": 1, "id": "mine-1"}').generated


def test_an_empty_key_is_refused() -> None:
    with pytest.raises(RequestError, match="Idempotency-Key"):
        job_request(b'{"input": 1}', b"")


def test_options_are_kept_as_they_were_written() -> None:
    request = job_request(
        b'{"policy": {"ttl": 10, "lowPriority": true, "x": [1 ]}, "input": 1,'
        b' "s3Config": {"accessId": "a" }, "webhook": "https://h/p?q=\\u00e9"}'
    )
    assert request.extras == b'{"webhook":"https://h/p?q=\\u00e9","policy":{"ttl": 10, "lowPriority": true, "x": [1 ]}}'
    assert request.s3_config == b'{"accessId": "a" }'
    assert request.low_priority


LIMITS = [
    (b"{}", None, None),
    (b'{"ttl": null, "executionTimeout": null}', None, None),
    (b'{"executionTimeout": 1}', 1, None),
    (b'{"ttl": 9007199254740991}', None, 2**53 - 1),
    (b'{"ttl": 86400000, "executionTimeout": 600000, "lowPriority": false}', 600_000, 86_400_000),
]


@pytest.mark.parametrize(("policy", "timeout_ms", "ttl_ms"), LIMITS)
def test_time_limits(policy: bytes, timeout_ms: int | None, ttl_ms: int | None) -> None:
    request = job_request(b'{"input": 1, "policy": %b}' % policy)
    assert (request.timeout_ms, request.ttl_ms, request.low_priority) == (timeout_ms, ttl_ms, False)


def test_null_options_count_as_absent() -> None:
    request = job_request(b'{"input": 1, "id": null, "webhook": null, "policy": null, "s3Config": null}')
    assert (request.extras, request.s3_config, request.low_priority, request.generated) == (None, None, False, True)
    assert not job_request(b'{"input": 1, "policy": {"ttl": null, "lowPriority": null}}').low_priority
