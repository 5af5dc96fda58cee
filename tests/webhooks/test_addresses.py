"""What ``--webhook-deny-private`` takes for an address of the Internet, and that it judges the address that is connected to."""

from __future__ import annotations

import socket
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import pytest

from supervisor.webhooks import connection
from supervisor.webhooks.addresses import is_public
from supervisor.webhooks.connection import PrivateAddressError, WebhookConnection

if TYPE_CHECKING:
    from conftest import Does, Office, Receiver

PUBLIC = ["1.1.1.1", "93.184.216.34", "2606:4700:4700::1111", "::ffff:8.8.8.8", "64:ff9b::808:808", "2002:808:808::1"]
NOT_PUBLIC = """
    127.0.0.1 127.255.255.254 0.0.0.0 10.0.0.1 172.16.0.1 172.31.255.255 192.168.1.1 169.254.169.254 100.64.0.1 100.100.100.200
    192.0.0.192 168.63.129.16 192.0.2.1 198.18.0.1 198.51.100.1 203.0.113.1 224.0.0.1 240.0.0.1 255.255.255.255
    :: ::1 ::7f00:1 fe80::1 fe80::1%lo fc00::1 fd00:ec2::254 fec0::1 ff02::1 2001:db8::1
    ::ffff:127.0.0.1 ::ffff:169.254.169.254 64:ff9b::7f00:1 64:ff9b:1::1 2002:7f00:1::1 2002:a9fe:a9fe::1
"""


@pytest.mark.parametrize("address", PUBLIC)
def test_public(address: str) -> None:
    assert is_public(address)


@pytest.mark.parametrize("address", NOT_PUBLIC.split())
def test_not_public(address: str) -> None:
    assert not is_public(address)


@pytest.mark.parametrize(
    "host",
    ["127.0.0.1", "localhost", "127.1", "2130706433", "0x7f000001", "0177.0.0.1", "[::ffff:127.0.0.1]", "0.0.0.0"],
)
def test_this_machine_is_refused_however_it_is_written(
    make_office: Callable[..., Office], make_receiver: Callable[..., Receiver], does: Does, host: str
) -> None:
    receiver = make_receiver(does.answer(200))
    office = make_office(webhook_deny_private=True, webhook_retries=0)
    office.deliver(f"http://{host}:{receiver.port}/hook?token=t0ken")
    (warning,) = office.warnings
    assert warning.startswith(f"webhook of job job-1 to http://{host}:{receiver.port} given up after 1 try: ")
    assert warning.endswith(" is not a public address (--webhook-deny-private)")
    assert receiver.connections == 0


def found(*addresses: str) -> list[tuple[Any, ...]]:
    return [(socket.AF_INET, socket.SOCK_STREAM, 0, "", (address, 0)) for address in addresses]


def test_a_name_that_is_another_address_the_next_time(
    make_office: Callable[..., Office],
    make_receiver: Callable[..., Receiver],
    does: Does,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The look-up that is judged is the one whose address is connected to; every try is judged by its own."""
    receiver = make_receiver(does.answer(500))
    judged: list[str] = []
    monkeypatch.setattr(connection, "is_public", lambda address: judged.append(address) or address == "127.0.0.1")
    answers = [["127.0.0.1"], ["10.0.0.7", "169.254.169.254"]]

    def resolve(host: str, port: int, **_: object) -> list[tuple[Any, ...]]:
        assert (host, port) == ("rebinds.example", receiver.port)
        return [(*entry[:4], (entry[4][0], port)) for entry in found(*answers.pop(0))]

    office = make_office(resolve=resolve, webhook_deny_private=True, webhook_retries=1)
    office.deliver(f"http://rebinds.example:{receiver.port}/")
    assert judged == ["127.0.0.1", "10.0.0.7", "169.254.169.254"]
    assert (receiver.connections, answers) == (1, [])
    assert "10.0.0.7 is not a public address" in office.warnings[0]


def test_private_ones_among_the_addresses_are_passed_over(monkeypatch: pytest.MonkeyPatch) -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        monkeypatch.setattr(connection, "is_public", lambda address: address == "127.0.0.1")
        port = server.getsockname()[1]
        line = WebhookConnection(
            5, deny_private=True, resolve=lambda *_, **__: [(*entry[:4], (entry[4][0], port)) for entry in mixed]
        )
        mixed = found("10.255.255.1", "127.0.0.1")
        line.connect("mixed.example", port).close()
        line.close()


def test_proxies_are_not_used_then(
    make_office: Callable[..., Office],
    make_receiver: Callable[..., Receiver],
    does: Does,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    proxy = make_receiver(does.answer(200))
    monkeypatch.setenv("http_proxy", proxy.name)
    office = make_office(webhook_deny_private=True, webhook_retries=0, resolve=lambda *_, **__: found("10.0.0.7"))
    office.deliver("http://inside.example/")
    assert proxy.connections == 0
    assert "10.0.0.7 is not a public address" in office.warnings[0]


def test_a_line_that_was_cut_connects_no_more() -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        line = WebhookConnection(5, deny_private=False)
        line.cut()
        with pytest.raises(TimeoutError):
            line.connect("127.0.0.1", server.getsockname()[1])
        server.setblocking(False)
        with pytest.raises(BlockingIOError):
            server.accept()
    with pytest.raises(PrivateAddressError):
        WebhookConnection(5, deny_private=True).connect("127.0.0.1", 1)
