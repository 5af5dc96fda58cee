"""The headers of a webhook, signed by the Standard Webhooks scheme; in the supervisor.

https://github.com/standard-webhooks/standard-webhooks, version 1.0.0: ``webhook-signature`` is ``v1,`` and the base64 of the
HMAC-SHA256 of ``{webhook-id}.{webhook-timestamp}.{body}``; the timestamp is that of the try, in seconds.
"""

from __future__ import annotations

import base64
import hashlib
import hmac

from supervisor import __version__


def headers(webhook_id: str, body: bytes, seconds: int, key: bytes | None) -> dict[str, str]:
    """Make the headers of a try at ``seconds`` since 1970, signed if there is a ``key``."""
    made = {
        "Connection": "close",
        "Content-Type": "application/json",
        "User-Agent": f"supervise/{__version__}",
        "webhook-id": webhook_id,
        "webhook-timestamp": str(seconds),
    }
    if key is not None:
        made["webhook-signature"] = sign(webhook_id, body, seconds, key)
    return made


def sign(webhook_id: str, body: bytes, seconds: int, key: bytes) -> str:
    """Return the value of ``webhook-signature``. ``webhook_id`` has no dot: else two messages could share a signature."""
    digest = hmac.new(key, f"{webhook_id}.{seconds}.".encode(), hashlib.sha256)
    digest.update(body)  # separately, to avoid a copy: it may be large
    return f"v1,{base64.b64encode(digest.digest()).decode()}"
