"""Deliveries from a real store to real receivers that answer, hang, break off or never end."""

from __future__ import annotations

import shutil
import socket
import ssl
import subprocess
import threading
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
import requests

from supervisor import __version__
from supervisor.errors import StoreError
from supervisor.store.store import Store
from supervisor.store.writes import DropWebhook, PutOffWebhook
from supervisor.webhooks import delivery, post

if TYPE_CHECKING:
    from conftest import Behaviour, Does, Office, Receiver

    MakeOffice = Callable[..., Office]
    MakeReceiver = Callable[..., Receiver]

DEADLINE = 20.0


def test_acknowledged(make_office: MakeOffice, make_receiver: MakeReceiver, does: Does) -> None:
    receiver = make_receiver(does.answer(200))
    office = make_office()
    body = b'{"id":"job-1","output":"' + b"x" * 300_000 + b'"}'
    office.deliver(f"{receiver.name}/hook/%C3%A9?a=b&c=d+e#part", body=body)
    (posted,) = receiver.posts
    assert (posted.target, posted.body) == ("/hook/%C3%A9?a=b&c=d+e", body)
    assert posted.headers["content-type"] == "application/json"
    assert posted.headers["user-agent"] == f"supervise/{__version__}"
    assert posted.headers["webhook-id"] == "msg_1"
    assert "webhook-signature" not in posted.headers
    assert "authorization" not in posted.headers
    assert (office.webhooks.delivered, office.webhooks.failed, office.webhooks.pending) == (1, 0, 0)
    assert (office.writes, office.warnings) == ([DropWebhook("msg_1")], [])


def test_tried_again_until_it_is_acknowledged(make_office: MakeOffice, make_receiver: MakeReceiver, does: Does) -> None:
    receiver = make_receiver(does.answer(500), does.answer(200))
    office = make_office(webhook_delay=0.1)
    office.deliver(receiver.name)
    first, second = receiver.posts
    assert second.at - first.at >= 0.1
    assert (first.headers["webhook-id"], first.body) == (second.headers["webhook-id"], second.body)
    assert [type(write) for write in office.writes] == [PutOffWebhook, DropWebhook]
    assert (office.webhooks.delivered, office.warnings) == (1, [])


@pytest.mark.parametrize(
    ("behave", "why"),
    [
        (lambda does: does.answer(500), "500"),
        (lambda does: does.answer(204, body=b""), "204"),
        (lambda does: does.answer(302, "Location: /elsewhere"), "302 (redirects are not followed)"),
        (lambda does: does.answer(301, "Location: http://[broken"), "301 (redirects are not followed)"),
        (lambda does: does.answer(429, "Retry-After: 3600"), "429"),
        (lambda does: does.flood(b"HTTP/1.1 302 X\r\nLocation: /\r\n\r\n"), "302 (redirects are not followed)"),
        (lambda does: does.send(b""), "it closed the connection without an answer"),
        (lambda does: does.send(b"220 mail.example ESMTP\r\n"), "its answer is not HTTP (BadStatusLine)"),
        (lambda does: does.send(b"HTTP/1.1 200 OK\r\n" + b"A" * 70_000), "its answer is not HTTP (LineTooLong)"),
        (lambda does: does.reset, "Connection reset by peer"),
    ],
)
def test_given_up(
    make_office: MakeOffice,
    make_receiver: MakeReceiver,
    does: Does,
    behave: Callable[[Does], Behaviour],
    why: str,
) -> None:
    receiver = make_receiver(behave(does))
    office = make_office()
    office.deliver(f"{receiver.name}/?token=t0ken")
    assert office.warnings == [f"webhook of job job-1 to {receiver.name} given up after 3 tries: {why}"]
    assert {(posted.target, posted.headers["webhook-id"]) for posted in receiver.posts} == {("/?token=t0ken", "msg_1")}
    assert len(receiver.posts) == 3
    assert (office.webhooks.delivered, office.webhooks.failed, office.webhooks.pending) == (0, 1, 0)


def unresolvable(*_: object, **__: object) -> list[Any]:
    raise socket.gaierror(socket.EAI_NONAME, "Name or service not known")


@pytest.mark.parametrize(
    ("url", "why"),
    [
        ("http://user:t0ken@gone.example/t0ken", "its name cannot be resolved: Name or service not known"),
        ("http://*.example/t0ken", "the URL cannot be used"),
    ],
)
def test_a_host_that_cannot_be_found(make_office: MakeOffice, url: str, why: str) -> None:
    office = make_office(resolve=unresolvable, webhook_retries=1)
    office.deliver(url)
    (warning,) = office.warnings
    assert warning.endswith(f" given up after 2 tries: {why}")
    assert "t0ken" not in warning


def test_a_host_that_no_name_can_be(make_office: MakeOffice) -> None:
    office = make_office(webhook_retries=0)
    office.deliver(f"http://{'a' * 64}.example/t0ken")
    assert office.warnings[0].endswith(".example given up after 1 try: the URL cannot be used")


def test_nobody_listens(make_office: MakeOffice) -> None:
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        office = make_office(webhook_retries=0)
        office.deliver(f"http://127.0.0.1:{unused.getsockname()[1]}/t0ken")
    assert office.warnings[0].endswith(" given up after 1 try: Connection refused")


# --- time ----------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "behave",
    [
        lambda does: does.hang,
        lambda does: does.drip(b""),
        lambda does: does.drip(b"HTTP/1.1 200 OK\r\nX: "),
        lambda does: does.flood(b"", b"HTTP/1.1 100 Continue\r\n\r\n" * 1000),
    ],
)
def test_a_try_has_a_time_that_nothing_stretches(
    make_office: MakeOffice, make_receiver: MakeReceiver, does: Does, behave: Callable[[Does], Behaviour]
) -> None:
    receiver = make_receiver(behave(does))
    office = make_office(webhook_timeout=0.15, webhook_retries=1)
    office.deliver(receiver.name)
    assert office.warnings[0].endswith(" after 2 tries: no answer within 0.15 s")
    office.close()  # its threads have ended: the receiver goes on


def test_a_receiver_that_does_not_read(make_office: MakeOffice) -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:  # accepted by the kernel, read by nobody
        office = make_office(webhook_timeout=0.15, webhook_retries=0)
        office.deliver(f"http://127.0.0.1:{server.getsockname()[1]}/", body=b"x" * 30_000_000)
    assert office.warnings[0].endswith(" after 1 try: no answer within 0.15 s")


def test_a_name_whose_look_up_hangs(make_office: MakeOffice, make_receiver: MakeReceiver, does: Does) -> None:
    receiver = make_receiver(does.answer(200))
    release = threading.Event()

    def resolve(*arguments: Any, **options: Any) -> Any:
        release.wait(DEADLINE)
        return socket.getaddrinfo(*arguments, **options)

    office = make_office(resolve=resolve, webhook_timeout=0.05, webhook_retries=1)
    office.deliver(receiver.name)
    assert office.warnings[0].endswith(" after 2 tries: no answer within 0.05 s")
    release.set()
    office.close()  # waits for the threads
    assert receiver.connections == 0, "a try whose time was over posted all the same"


@pytest.mark.parametrize("length", ["Content-Length: 99999999999", "Transfer-Encoding: chunked", "Connection: close"])
def test_an_answer_without_an_end_acknowledges_and_is_not_read(
    make_office: MakeOffice, make_receiver: MakeReceiver, does: Does, length: str
) -> None:
    receiver = make_receiver(does.flood(f"HTTP/1.1 200 OK\r\n{length}\r\n\r\n".encode() + b"10000\r\n"))
    office = make_office()
    office.deliver(receiver.name)
    assert (office.webhooks.delivered, len(receiver.posts)) == (1, 1)
    office.close()
    receiver.close()
    assert receiver.flooded < 30_000_000


def test_an_answer_that_drips_acknowledges(make_office: MakeOffice, make_receiver: MakeReceiver, does: Does) -> None:
    receiver = make_receiver(does.drip(b"HTTP/1.1 200 OK\r\nContent-Length: 1000000\r\n\r\n"))
    office = make_office(webhook_timeout=3)
    office.deliver(receiver.name)
    assert (office.webhooks.delivered, len(receiver.posts)) == (1, 1)


# --- one hurts no other --------------------------------------------------------------------------------------------------


def test_a_receiver_that_hangs_delays_no_other(
    make_office: MakeOffice, make_receiver: MakeReceiver, does: Does
) -> None:
    hangs, answers = make_receiver(does.hang), make_receiver(does.answer(200))
    office = make_office(webhook_timeout=60)
    office.webhooks.start()
    for number in range(50):
        office.add(hangs.name, f"hangs_{number}")
    for number in range(50):
        office.add(answers.name, f"answers_{number}")
    office.until(lambda: office.webhooks.delivered == 50)
    for _ in range(delivery.TRIES_PER_UNKNOWN):
        office.next(hangs)
    assert hangs.connections == delivery.TRIES_PER_UNKNOWN
    assert office.webhooks.pending == 50
    assert {posted.headers["webhook-id"] for posted in answers.posts} == {f"answers_{n}" for n in range(50)}


def test_nor_do_many_that_hang(
    make_office: MakeOffice, make_receiver: MakeReceiver, does: Does, monkeypatch: Any
) -> None:
    monkeypatch.setattr(delivery, "TRIES", 8)
    hang = [make_receiver(does.hang) for _ in range(3)]
    answers = make_receiver(does.answer(200))
    office = make_office(webhook_timeout=60)
    office.deliver(answers.name)  # it is known now
    for number in range(24):
        office.add(hang[number % 3].name, f"hangs_{number}")
    for number in range(10):
        office.add(answers.name, f"answers_{number}")
    office.until(lambda: office.webhooks.delivered == 11)
    assert sum(receiver.connections for receiver in hang) <= 4


def test_those_due_first_go_first(
    make_office: MakeOffice, make_receiver: MakeReceiver, does: Does, monkeypatch: Any
) -> None:
    monkeypatch.setattr(delivery, "TRIES_PER_UNKNOWN", 1)
    monkeypatch.setattr(delivery, "TRIES_PER_RECEIVER", 1)
    receiver = make_receiver(does.answer(200))
    office = make_office()
    for number in (3, 1, 2, 0):
        office.add(receiver.name, f"msg_{number}", due_ms=number)
    office.webhooks.start()
    office.until(lambda: office.webhooks.delivered == 4)
    assert [posted.headers["webhook-id"] for posted in receiver.posts] == [f"msg_{number}" for number in range(4)]


def test_bodies_are_read_when_there_is_room(
    make_office: MakeOffice, make_receiver: MakeReceiver, does: Does, monkeypatch: Any
) -> None:
    monkeypatch.setattr(delivery, "BODY_BYTES", 1000)
    go_on = threading.Event()
    fails, answers = make_receiver(lambda *_: go_on.wait(DEADLINE), does.answer(200)), make_receiver(does.answer(200))
    office = make_office()
    office.add(fails.name, "large", b"x" * 5000)
    office.add(answers.name, "small", due_ms=1)
    office.webhooks.start()
    office.next(fails)
    assert answers.connections == 0
    go_on.set()
    office.until(lambda: office.webhooks.delivered == 2)


def test_large_bodies_are_read_one_by_one(
    make_office: MakeOffice, make_receiver: MakeReceiver, does: Does, monkeypatch: Any
) -> None:
    monkeypatch.setattr(delivery, "READ_BYTES", 1000)
    receiver = make_receiver(does.answer(200))
    office = make_office()
    turns: list[str] = []
    read, begin_all = office.outbox.body, office.webhooks._begin_all
    monkeypatch.setattr(office.outbox, "body", lambda name: turns.append(name) or read(name))
    monkeypatch.setattr(office.webhooks, "_begin_all", lambda: turns.append("look") or begin_all())
    for number, size in enumerate((2000, 2000, 100, 100)):
        office.add(receiver.name, f"msg_{number}", b"x" * size, due_ms=number)
    office.webhooks.start()
    office.until(lambda: office.webhooks.delivered == 4)
    assert turns[:6] == ["look", "msg_0", "look", "msg_1", "look", "msg_2"]


def test_a_store_that_cannot_be_read_is_read_again(
    make_office: MakeOffice, make_receiver: MakeReceiver, does: Does, monkeypatch: Any
) -> None:
    monkeypatch.setattr(delivery, "READ_AGAIN_S", 0.01)
    office = make_office()
    read, failures = office.outbox.receivers, [StoreError("the disk is gone")]

    def receivers() -> list[tuple[str, int]]:
        if failures:
            raise failures.pop()
        return read()

    monkeypatch.setattr(office.outbox, "receivers", receivers)
    office.deliver(make_receiver(does.answer(200)).name)
    assert office.webhooks.delivered == 1
    assert office.warnings == ["webhooks wait, trying again: the disk is gone"]


def test_a_clock_that_was_set_back_delays_nothing(
    make_office: MakeOffice, make_receiver: MakeReceiver, does: Does
) -> None:
    office = make_office(webhook_delay=0.05)
    office.deliver(make_receiver(does.answer(200)).name, due_ms=2**45)
    assert office.webhooks.delivered == 1


# --- the end, and the next start -----------------------------------------------------------------------------------------


def test_what_is_under_way_at_the_end_is_posted_again(
    make_office: MakeOffice, make_receiver: MakeReceiver, does: Does, store: Store
) -> None:
    receiver = make_receiver(does.hang, does.answer(200))
    office = make_office(webhook_timeout=60)
    office.webhooks.start()
    office.add(receiver.name)
    first = office.next(receiver)
    office.close()
    assert [(hook.id, hook.tries) for hook in store.outbox.waiting(receiver.name, 9)] == [("msg_1", 0)]
    assert office.writes == []

    office = make_office()
    office.webhooks.start()
    office.until(lambda: office.webhooks.delivered)
    second = receiver.posts[1]
    assert (first.headers["webhook-id"], first.body) == (second.headers["webhook-id"], second.body)


def test_what_is_answered_soon_is_waited_for_at_the_end(
    make_office: MakeOffice, make_receiver: MakeReceiver, does: Does, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(delivery, "CLOSE_S", DEADLINE)
    go_on = threading.Event()

    def late(receiver: Receiver, sock: socket.socket) -> None:
        go_on.wait(DEADLINE)
        does.answer(200)(receiver, sock)

    receiver = make_receiver(late)
    office = make_office()
    office.webhooks.start()
    office.add(receiver.name)
    office.next(receiver)
    office.loop.call_soon(go_on.set)
    office.run(office.webhooks.close(office.at_once))
    assert (office.webhooks.delivered, office.webhooks.pending) == (1, 0)


def test_an_outbox_that_ends_with_the_program_is_emptied(
    make_office: MakeOffice, make_receiver: MakeReceiver, does: Does
) -> None:
    receiver = make_receiver(does.answer(500), does.answer(200))
    office = make_office()
    office.webhooks.start()
    office.add(receiver.name)
    office.run(office.webhooks.finish(DEADLINE, office.at_once))
    assert (office.webhooks.delivered, office.warnings) == (1, [])
    office.add(make_receiver(does.hang).name)
    office.run(office.webhooks.finish(0.05, office.at_once))
    assert office.warnings == ["1 webhook was not delivered"]


# --- what requests would do by itself ------------------------------------------------------------------------------------


def test_credentials_of_the_url_are_sent_and_never_shown(
    make_office: MakeOffice, make_receiver: MakeReceiver, does: Does
) -> None:
    receiver = make_receiver(does.answer(401, "Set-Cookie: a=b", "WWW-Authenticate: Basic"))
    office = make_office(webhook_retries=1)
    office.deliver(f"http://user:p%40ss@127.0.0.1:{receiver.port}/")
    assert {posted.headers["authorization"] for posted in receiver.posts} == {"Basic dXNlcjpwQHNz"}
    assert not any("cookie" in posted.headers for posted in receiver.posts)
    assert office.warnings == [f"webhook of job job-1 to {receiver.name} given up after 2 tries: 401"]


def test_the_libraries_write_no_url_to_any_log(
    make_office: MakeOffice, make_receiver: MakeReceiver, does: Does, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("DEBUG")
    receiver = make_receiver(does.send(b"HTTP/1.1 500 X\r\nnot a header\r\n\r\n"))
    make_office(webhook_retries=1).deliver(f"http://t0ken:t0ken@127.0.0.1:{receiver.port}/t0ken?t0ken")
    assert "t0ken" not in caplog.text
    requests.post(f"{receiver.name}/visible", timeout=DEADLINE)  # of others they do
    assert "/visible" in caplog.text


def test_a_fault_of_ours_costs_a_try_and_shows_no_url(
    make_office: MakeOffice, make_receiver: MakeReceiver, does: Does, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fails(*_: object) -> None:
        raise LookupError("t0ken")

    monkeypatch.setattr(post, "post", fails)
    office = make_office(webhook_retries=0)
    office.deliver("http://far.example/t0ken")
    assert office.warnings == [
        "webhook of job job-1 to http://far.example given up after 1 try: a fault of this program (LookupError)"
    ]


def test_netrc_is_not_read(make_office: MakeOffice, make_receiver: MakeReceiver, does: Does, tmp_path: Path) -> None:
    netrc = tmp_path / ".netrc"
    netrc.write_text("machine 127.0.0.1 login user password pass\ndefault login user password pass\n")
    netrc.chmod(0o600)
    receiver = make_receiver(does.answer(200))
    make_office().deliver(receiver.name)
    assert "authorization" not in receiver.posts[0].headers


def test_proxies_of_the_environment_are_used_but_not_for_this_machine(
    make_office: MakeOffice, make_receiver: MakeReceiver, does: Does, monkeypatch: pytest.MonkeyPatch
) -> None:
    proxy, receiver = make_receiver(does.answer(200)), make_receiver(does.answer(200))
    monkeypatch.setenv("http_proxy", proxy.name)
    office = make_office()
    office.deliver("http://user:pass@far.example/hook?x=1")
    office.add(receiver.name, "msg_2")
    office.until(lambda: office.webhooks.delivered == 2)
    assert [posted.target for posted in proxy.posts] == ["http://far.example/hook?x=1"]
    assert len(receiver.posts) == 1


def test_a_proxy_that_is_not_there(make_office: MakeOffice, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("http_proxy", "http://user:t0ken@127.0.0.1:1")
    office = make_office(webhook_retries=0)
    office.deliver("http://far.example/")
    assert (
        office.warnings[0]
        == "webhook of job job-1 to http://far.example given up after 1 try: its proxy: Connection refused"
    )


@pytest.fixture(scope="module")
def certificate(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A key, and a certificate for 127.0.0.1 that nobody has reason to trust."""
    if shutil.which("openssl") is None:
        pytest.skip("makes a certificate with the command openssl")
    path = tmp_path_factory.mktemp("tls") / "both.pem"
    words = "req -x509 -newkey ec -pkeyopt ec_paramgen_curve:P-256 -nodes -days 2 -subj /CN=test -addext"
    command = ["openssl", *words.split(), "subjectAltName=IP:127.0.0.1", "-keyout", path, "-out", f"{path}.crt"]
    subprocess.run(command, check=True, capture_output=True)
    path.write_text(path.read_text() + Path(f"{path}.crt").read_text())
    return path


def test_certificates_are_verified(
    make_office: MakeOffice, make_receiver: MakeReceiver, does: Does, certificate: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificate)
    receiver = make_receiver(does.answer(200), tls=context)
    office = make_office(webhook_retries=0)
    office.deliver(f"{receiver.name}/t0ken")
    assert "given up after 1 try: its certificate is not valid: self" in office.warnings[0]
    assert receiver.posts == []
    monkeypatch.setenv("REQUESTS_CA_BUNDLE", f"{certificate}.crt")  # as operators name their own authority
    office.add(receiver.name, "msg_2")
    office.until(lambda: office.webhooks.delivered)


def test_a_tls_receiver_that_hangs_is_cut_off(
    make_office: MakeOffice, make_receiver: MakeReceiver, does: Does, certificate: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificate)
    monkeypatch.setenv("REQUESTS_CA_BUNDLE", f"{certificate}.crt")
    for receiver in (make_receiver(does.hang, tls=context), make_receiver(does.drip(b"HTTP/1.1 "), tls=context)):
        office = make_office(webhook_retries=0, webhook_timeout=0.3)
        office.deliver(receiver.name)
        assert office.warnings[0].endswith(" after 1 try: no answer within 0.3 s")
        office.close()  # its thread has ended: the receiver still hangs
