"""`supervise top` on a terminal: what it paints, what its keys do, how it ends, and that the terminal is given back."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Callable
from typing import Any

import msgspec
import pytest

from supervisor.protocol import views as s

Top = Callable[..., Any]


def given_back(terminal: Any) -> bool:
    return not terminal.alternate and terminal.cursor and terminal.attributes() == terminal.before


def test_it_shows_the_supervisor_and_follows_it(top: Top, supervisor: Any) -> None:
    terminal = top()
    terminal.until_shows("5 in queue")
    assert terminal.alternate
    assert not terminal.cursor
    supervisor.show(jobs=s.JobCounts(in_queue=77))
    terminal.until_shows("77 in queue")


@pytest.mark.parametrize(
    "leave",
    [
        pytest.param(lambda terminal: terminal.press("q"), id="q"),
        pytest.param(lambda terminal: terminal.press("\x03"), id="Ctrl-C"),
        pytest.param(lambda terminal: terminal.process.send_signal(signal.SIGTERM), id="SIGTERM"),
        pytest.param(lambda terminal: terminal.process.send_signal(signal.SIGHUP), id="SIGHUP"),
    ],
)
def test_it_gives_the_terminal_back(top: Top, leave: Callable[[Any], None]) -> None:
    terminal = top()
    terminal.until_shows("in queue")
    assert terminal.attributes() != terminal.before
    leave(terminal)
    assert terminal.ends() == 0
    assert given_back(terminal)


def test_an_exception_gives_the_terminal_back(terminal: Top, supervisor: Any) -> None:
    broken = (
        "import supervisor.dashboard.live as live, supervisor.cli.app as app\n"
        "live.pressed = lambda *_: 1 / 0\n"
        "sys.exit(app.main(['top', *sys.argv[1:]]))"
    )
    screen = terminal(broken, "--url", supervisor.url)
    screen.until_shows("in queue")
    screen.press("x")
    assert screen.ends() == 1
    assert "ZeroDivisionError" in screen.text
    assert given_back(screen)


def test_arrows_select_and_r_refreshes(top: Top, supervisor: Any) -> None:
    terminal = top()
    terminal.until_shows("gpu1")
    terminal.press("r")
    terminal.until_shows("select a slot with")
    terminal.press("\x1b[B\x1b[B")
    terminal.until_shows("▸ gpu1")
    terminal.press("\x1bOA")
    terminal.until_shows("▸ gpu0")
    terminal.press("r")
    assert supervisor.refreshed.get(timeout=30) == "/workers/gpu0/refresh"
    terminal.until_shows("refresh of gpu0 asked for")


def test_log_help_and_pause(top: Top, supervisor: Any) -> None:
    terminal = top()
    terminal.until_shows("in queue")
    terminal.press("l")
    terminal.until(lambda screen: "less log" in screen.text and "in queue" not in screen.text)
    terminal.press("l?")
    terminal.until_shows("this help")
    terminal.press("xp")
    terminal.until_shows("paused")
    supervisor.show(jobs=s.JobCounts(in_queue=77))
    terminal.press("\x1b[B")
    terminal.until_shows("▸ gpu0")
    assert "5 in queue" in terminal.text
    terminal.press("p")
    terminal.until_shows("77 in queue")


def test_a_new_size_is_a_new_picture(top: Top) -> None:
    terminal = top()
    terminal.until(lambda screen: len(screen.rows) == 24)
    terminal.resize(130, 35)
    terminal.until(lambda screen: len(screen.rows) == 35 and all(len(line) == 130 for line in screen.rows.values()))


def test_a_silent_supervisor_holds_up_no_keys(top: Top, supervisor: Any) -> None:
    terminal = top()
    terminal.until_shows("in queue")
    supervisor.answering.clear()
    terminal.press("?")
    terminal.until_shows("this help")
    terminal.press("?")
    terminal.until_shows("not answering since")
    assert "5 in queue" in terminal.text
    supervisor.answering.set()
    terminal.until(lambda screen: "not answering" not in screen.text)
    terminal.press("q")
    assert terminal.ends() == 0


@pytest.mark.parametrize(("draining", "code", "words"), [(True, 0, "has ended"), (False, 1, "is gone")])
def test_it_ends_when_the_supervisor_does(top: Top, supervisor: Any, draining: bool, code: int, words: str) -> None:
    supervisor.show(draining=draining)
    terminal = top()
    terminal.until_shows("draining" if draining else "in queue")
    supervisor.close()
    assert terminal.ends() == code
    assert words in terminal.text
    assert given_back(terminal)


def test_ctrl_z_stops_it_with_the_terminal_given_back(top: Top) -> None:
    terminal = top()
    terminal.until_shows("in queue")
    terminal.press("\x1a")
    os.waitid(os.P_PID, terminal.process.pid, os.WSTOPPED)
    terminal.until(given_back)
    terminal.process.send_signal(signal.SIGCONT)
    terminal.until(lambda screen: screen.alternate and "in queue" in screen.text)
    terminal.press("q")
    assert terminal.ends() == 0


PARENT = """
import signal, subprocess
asked = []
def ask(*_):
    asked.append(1)
    print(f"<asked {len(asked)}>", flush=True)
signal.signal(signal.SIGINT, ask)
screen = subprocess.Popen([sys.executable, "-c", 'import sys; ' + sys.argv[1], *sys.argv[2:]])
while screen.poll() is None:
    signal.sigtimedwait([signal.SIGCHLD], 0.05)
print(f"<screen ended with {screen.returncode}>")
"""


def embedded(terminal: Top, supervisor: Any) -> Any:
    from_conftest = "from supervisor.cli.app import main; sys.exit(main(['top', *sys.argv[1:]]))"
    return terminal(PARENT, from_conftest, "--embedded", "--url", supervisor.url)


def test_the_embedded_screen_leaves_the_end_to_its_supervisor(terminal: Top, supervisor: Any) -> None:
    screen = embedded(terminal, supervisor)
    screen.until_shows("q stop")
    screen.press("q")
    screen.until(lambda terminal: b"<asked 1>" in terminal.raw)
    supervisor.show(draining=True)
    screen.until_shows("draining … Ctrl-C again to stop at once")
    screen.press("\x03")  # SIGINT for both of them; the screen stays
    screen.until(lambda terminal: b"<asked 2>" in terminal.raw)
    supervisor.show(notice="two jobs are left")
    screen.until_shows("two jobs are left")
    supervisor.close()
    assert screen.ends() == 0
    assert "<screen ended with 0>" in screen.text
    assert given_back(screen)


def run_top(*arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    program = "import sys; from supervisor.cli.app import main; sys.exit(main(['top', *sys.argv[1:]]))"
    return subprocess.run(
        [sys.executable, "-c", program, *arguments],
        capture_output=True,
        text=True,
        timeout=50,
        env={**os.environ, **environment},
    )


def test_without_a_terminal_it_prints_one_plain_picture(supervisor: Any) -> None:
    done = run_top("--url", supervisor.url)
    assert (done.returncode, done.stderr) == (0, "")
    assert "\x1b" not in done.stdout
    assert {len(line) for line in done.stdout.splitlines()} == {100}
    assert "5 in queue" in done.stdout


def test_one_picture_of_a_chosen_size(supervisor: Any) -> None:
    done = run_top("--once", "--width", "72", "--height", "30", SUPERVISE_URL=supervisor.url)
    lines = done.stdout.splitlines()
    assert len(lines) == 30
    assert {len(line) for line in lines} == {72}


def test_no_color_is_honoured(top: Top) -> None:
    plain = top(NO_COLOR="1")
    plain.until_shows("in queue")
    coloured = top()
    coloured.until_shows("in queue")
    assert b"\x1b[36m" in coloured.raw
    assert not any(b"\x1b[%dm" % number in plain.raw for number in range(30, 38))


def test_a_terminal_that_cannot_move_its_cursor_gets_one_picture(top: Top) -> None:
    terminal = top(TERM="dumb")
    assert terminal.ends() == 0
    assert b"?1049h" not in terminal.raw
    assert "in queue" in terminal.text


@pytest.mark.parametrize(
    ("url", "code", "words"),
    [
        (
            "unix:///nowhere/at/all.sock",
            1,
            "no supervisor answers at unix:///nowhere/at/all.sock; start one with: supervise",
        ),
        ("ftp://example.org", 2, "is no URL of a supervisor"),
    ],
)
def test_no_supervisor_is_said_in_one_line(url: str, code: int, words: str) -> None:
    done = run_top("--url", url)
    assert done.returncode == code
    assert words in done.stderr
    assert len(done.stderr.splitlines()) == 1


def test_a_key_that_is_missing_is_said(supervisor: Any) -> None:
    supervisor.refusal = (401, "missing or invalid API key")
    done = run_top("--url", supervisor.url)
    assert done.returncode == 1
    assert "--api-key or SUPERVISE_API_KEY" in done.stderr


def test_slots_of_the_newest_snapshot_are_what_keys_act_on(top: Top, supervisor: Any) -> None:
    only = supervisor.shown.workers[:1]
    supervisor.show(workers=(msgspec.structs.replace(only[0], slot="gpu0+1"),))
    terminal = top()
    terminal.until_shows("gpu0+1")
    terminal.press("r")  # the only slot there is
    assert supervisor.refreshed.get(timeout=30) == "/workers/gpu0%2B1/refresh"
