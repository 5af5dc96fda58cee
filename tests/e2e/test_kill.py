"""``kill -9`` of the supervisor, of the template and of a worker under load: what was accepted ends once, and nothing is left."""

from __future__ import annotations

import contextlib
import http.client
import itertools
import os
import signal
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

if TYPE_CHECKING:
    from conftest import Gate, Runs, Supervise

UNDER_LOAD = Path(__file__).parents[1] / "children/under_load.py"

CLIENTS = 3
ENOUGH = 250

STREAMS = """
def handler(job):
    yield "first"
    open(job["input"]["gate"]).read()
    yield "last"
"""


def alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return True


def template_of(supervise: Runs, run: Supervise) -> int:
    """The process that ``run`` forks its workers from."""
    for pid, command in supervise.processes().items():
        with contextlib.suppress(FileNotFoundError, ProcessLookupError):
            stat = Path(f"/proc/{pid}/stat").read_text()
            if "template/main.py" in command and int(stat[stat.rindex(")") + 2 :].split()[1]) == run.pid:
                return pid
    raise AssertionError("there is no template")


def start_load(run: Supervise, gates: list[Gate], queued: int = 4) -> list[str]:
    """A job at each gate, the first with a grandchild that nobody can signal; others behind them. Their ids, in that order."""
    jobs = []
    for number, gate in enumerate(gates):
        jobs.append(run.run({"n": number, "gate": gate.path, "grandchild": number == 0}))
        gate.reached()
    return jobs + [run.run({"n": len(gates) + number}) for number in range(queued)]


def outputs(run: Supervise, jobs: list[str]) -> list[Any]:
    statuses = [run.ended(job) for job in jobs]
    assert [status["status"] for status in statuses] == ["COMPLETED"] * len(jobs), statuses
    return [status["output"]["n"] for status in statuses]


def test_of_the_supervisor(supervise: Runs, make_gate: Callable[[], Gate]) -> None:
    options = (UNDER_LOAD, "--gpus", "none", "--workers", 2)
    stays, opens = make_gate(), make_gate()
    run = supervise(*options).ready("cpu0", "cpu1")
    jobs = start_load(run, [stays, opens])
    run.kill()
    supervise.all_gone()
    stays.close()
    opens.close()

    # The next start carries on: what ran runs again, what waited is not lost.
    run = supervise(*options).listening()
    assert [run.status(job)["retries"] for job in jobs] == [1, 1, 0, 0, 0, 0]
    opens.open()
    assert outputs(run, jobs[1:]) == [1, 2, 3, 4, 5]
    stays.reached()
    before = [run.status(job) for job in jobs[1:]]
    assert run.get("/health")["jobs"] == {"completed": 5, "failed": 0, "inProgress": 1, "inQueue": 0, "retried": 2}
    run.kill()
    supervise.all_gone()
    stays.close()

    # A job that kills the host does not do it for ever: three starts.
    run = supervise(*options).listening()
    stays.reached()
    run.kill()
    run = supervise(*options).ready()
    poison = run.ended(jobs[0])
    assert poison["status"] == "FAILED"
    assert "the supervisor was killed while the job ran" in poison["error"]
    assert [run.status(job) for job in jobs[1:]] == before
    assert run.get("/health")["jobs"] == {"completed": 5, "failed": 1, "inProgress": 0, "inQueue": 0, "retried": 3}
    assert run.stop() == 0


def test_of_the_supervisor_while_clients_submit(supervise: Runs) -> None:
    run = supervise(UNDER_LOAD, "--gpus", "none", "--workers", 2).ready()
    accepted: dict[str, int] = {}
    enough = threading.Event()

    def submit(client: int) -> None:
        """Until the server is gone."""
        with contextlib.suppress(OSError, http.client.HTTPException):
            for number in itertools.count(client, CLIENTS):
                accepted[run.run({"n": number, "filling": "x" * 20_000})] = number
                if len(accepted) >= ENOUGH:
                    enough.set()

    with ThreadPoolExecutor() as pool:
        clients = [pool.submit(submit, client) for client in range(CLIENTS)]
        assert enough.wait(20)
        run.kill()
    for client in clients:
        client.result()
    run = supervise(UNDER_LOAD, "--gpus", "none", "--workers", 2).listening()
    assert outputs(run, list(accepted)) == list(accepted.values())
    # One more of each client may have been accepted, and it was not told.
    assert 0 <= run.get("/health")["jobs"]["completed"] - len(accepted) <= CLIENTS
    assert run.stop() == 0


def test_of_the_supervisor_as_the_options_say(supervise: Runs, make_gate: Callable[[], Gate]) -> None:
    handler = supervise.write("streams.py", STREAMS)
    options = (handler, "--gpus", "none", "--workers", 2)
    seen, unseen = make_gate(), make_gate()
    run = supervise(*options).ready("cpu0", "cpu1")
    jobs = [run.run({"gate": gate.path}) for gate in (seen, unseen)]
    for gate in (seen, unseen):
        gate.reached()
    assert run.get(f"/stream/{jobs[0]}") == {"status": "IN_PROGRESS", "stream": [{"output": "first"}]}
    run.kill()
    supervise.all_gone()
    for gate in (seen, unseen):
        gate.close()

    # Whose chunks were handed out cannot run again; the other one can.
    run = supervise(*options).ready()
    failed = run.ended(jobs[0])
    assert failed["status"] == "FAILED"
    assert "--requeue-streams" in failed["error"]
    unseen.reached()
    assert run.get(f"/stream/{jobs[1]}")["stream"] == [{"output": "first"}]
    run.kill()
    supervise.all_gone()
    unseen.close()

    run = supervise(*options, "--requeue-streams").ready()
    unseen.reached()
    assert run.get(f"/stream/{jobs[1]}")["stream"] == [{"output": "first"}]
    run.kill()
    supervise.all_gone()
    unseen.close()

    run = supervise(*options, "--on-restart", "fail").ready()
    failed = run.ended(jobs[1])
    assert failed["status"] == "FAILED"
    assert "--on-restart fail" in failed["error"]
    assert run.stop() == 0


def test_of_the_template(supervise: Runs, make_gate: Callable[[], Gate]) -> None:
    run = supervise(UNDER_LOAD, "--gpus", "none", "--workers", 2).ready("cpu0", "cpu1")
    gates = [make_gate(), make_gate()]
    jobs = start_load(run, gates)
    grandchild = int(run.wait_for_line(r"grandchild (\d+)")[1])
    workers = {worker["pid"] for worker in run.workers().values()}
    os.kill(template_of(supervise, run), signal.SIGKILL)
    run.wait_for_line("the template process was killed by SIGKILL")
    run.until(lambda: not any(map(alive, [grandchild, *workers])))
    for gate in gates:
        gate.close()
    for gate in gates:
        gate.open()
    assert outputs(run, jobs) == [0, 1, 2, 3, 4, 5]
    assert [run.status(job)["retries"] for job in jobs] == [1, 1, 0, 0, 0, 0]
    assert [worker["restarts"] for worker in run.workers().values()] == [1, 1]
    assert run.get("/health")["jobs"]["retried"] == 2
    assert run.stop() == 0


@pytest.mark.parametrize("attempts", [1, 2])
def test_of_a_worker(supervise: Runs, make_gate: Callable[[], Gate], attempts: int) -> None:
    run = supervise(UNDER_LOAD, "--gpus", "none", "--workers", 2, "--max-attempts", attempts).ready("cpu0", "cpu1")
    gates = [make_gate(), make_gate()]
    jobs = start_load(run, gates)
    grandchild = int(run.wait_for_line(r"grandchild (\d+)")[1])
    slot, victim = next((slot, worker) for slot, worker in run.workers().items() if jobs[0] in worker["running"])
    os.kill(victim["pid"], signal.SIGKILL)
    run.until(lambda: not alive(victim["pid"]))
    gates[0].close()
    if attempts == 1:
        failed = run.ended(jobs[0])
        assert failed["status"] == "FAILED"
        died = f"worker {slot} (pid {victim['pid']}) was killed by SIGKILL; it may have run out of memory"
        assert failed["error"].splitlines() == [f"{died}; its last output:", f"grandchild {grandchild}", "at the gate"]
    else:
        gates[0].open()
        assert run.ended(jobs[0])["retries"] == 1
    assert outputs(run, jobs[attempts == 1 : 1] + jobs[2:])[-4:] == [2, 3, 4, 5]
    run.until(lambda: not alive(grandchild))
    assert run.status(jobs[1])["status"] == "IN_PROGRESS"
    gates[1].open()
    assert outputs(run, [jobs[1]]) == [1]
    workers = run.workers()
    assert workers[slot]["restarts"] == 1
    assert [worker["restarts"] for name, worker in workers.items() if name != slot] == [0]
    assert run.stop() == 0
