"""Standard Webhooks: the known vector of the reference libraries, and a receiver's own check written from the specification."""

from __future__ import annotations

import base64
import hashlib
import hmac
from collections.abc import Callable
from typing import TYPE_CHECKING

import pytest

from supervisor import __version__
from supervisor.config.kinds import webhook_key
from supervisor.webhooks.signature import headers, sign

if TYPE_CHECKING:
    from conftest import Does, Office, Posted, Receiver

SECRET = "whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw"


def test_the_vector_of_the_reference_libraries() -> None:
    signature = sign("msg_p5jXN8AQM9LWM0D4loKWxJek", b'{"test": 2432232314}', 1614265330, webhook_key(SECRET))
    assert signature == "v1,g0hM9SsE+OTPJTGt/tmIKtSyZlE3uFJELVlNIOLJ1OE="


def test_without_a_secret_there_is_no_signature() -> None:
    assert headers("msg_1", b"{}", 1_700_000_000, None) == {
        "Connection": "close",
        "Content-Type": "application/json",
        "User-Agent": f"supervise/{__version__}",
        "webhook-id": "msg_1",
        "webhook-timestamp": "1700000000",
    }


def verified(posted: Posted, key: bytes) -> bool:
    """As a receiver does it."""
    told = posted.headers
    content = b".".join([told["webhook-id"].encode(), told["webhook-timestamp"].encode(), posted.body])
    version, _, signature = told["webhook-signature"].partition(",")
    expected = hmac.digest(key, content, hashlib.sha256)
    return version == "v1" and hmac.compare_digest(base64.b64decode(signature), expected)


@pytest.mark.parametrize(
    ("secret", "key"),
    [
        (SECRET, base64.b64decode("MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw")),
        ("whsec_c2VjcmV0", b"secret"),
        ("whsec_c2VjcmV0cw", b"secrets"),  # unpadded, as the reference libraries take it
        ("a plain text é", "a plain text é".encode()),
        ("c2VjcmV0", b"c2VjcmV0"),
    ],
)
def test_a_receiver_can_verify_it(
    make_office: Callable[..., Office], make_receiver: Callable[..., Receiver], does: Does, secret: str, key: bytes
) -> None:
    receiver = make_receiver(does.answer(500), does.answer(200))
    office = make_office(webhook_secret=secret)
    office.deliver(receiver.name, body='{"id":"é"}'.encode())
    assert [verified(posted, key) for posted in receiver.posts] == [True, True]
    assert not verified(receiver.posts[0], b"another")
    assert secret not in repr(office.settings)
