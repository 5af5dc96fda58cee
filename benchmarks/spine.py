"""Measures supervise against the machine's limit, interleaved in one run: `python benchmarks/spine.py`.

Three figures, each the median of --runs with its lowest and highest:
- /runsync of a job that does nothing, 16 clients (wrk), durable, against a bare server with one worker process (limit_server.py);
- a refresh: from the result in the client's hands to the start of the next handler in a fresh worker, against os.fork;
- memory (PSS) of supervisor, template and one worker together, serving.

Needs wrk (Debian: apt install wrk).
"""

import argparse
import contextlib
import http.client
import json
import os
import shutil
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import psutil

HERE = Path(__file__).resolve().parent
ROOT = HERE.parent
BODY = '{"input": {"n": 1}}'
LUA = """
wrk.method = "POST"
wrk.body = '%s'
wrk.headers["Content-Type"] = "application/json"
function done(s, l, r)
  local bad = s.errors.connect + s.errors.read + s.errors.write + s.errors.status + s.errors.timeout
  io.write(string.format("JSON{\\"requests\\":%%d,\\"us\\":%%d,\\"p99\\":%%d,\\"bad\\":%%d}\\n",
    s.requests, s.duration, l:percentile(99), bad))
end
"""


def free_port():
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        return sock.getsockname()[1]


@contextlib.contextmanager
def running(command, port, cwd):
    """A server command, until its port answers; ended in the end."""
    environ = {name: value for name, value in os.environ.items() if name != "PYTHONDONTWRITEBYTECODE"}
    process = subprocess.Popen(command, cwd=cwd, env=environ, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        deadline = time.monotonic() + 30
        while True:
            try:
                post(port, BODY)
                break
            except OSError:
                if time.monotonic() > deadline or process.poll() is not None:
                    raise
                time.sleep(0.05)
        yield process
    finally:
        process.terminate()
        process.wait(20)


@contextlib.contextmanager
def supervise(handler, *options):
    port = free_port()
    with tempfile.TemporaryDirectory() as folder:
        command = [sys.executable, ROOT / "bin" / "supervise", f"handlers:{handler}", "--port", port, "--gpus", "none"]
        command += ["--store", Path(folder) / "jobs.db", *options]
        with running([str(word) for word in command], port, HERE) as process:
            yield port, process


@contextlib.contextmanager
def limit():
    port = free_port()
    options = [
        "--loop",
        "uvloop",
        "--http",
        "httptools",
        "--log-level",
        "error",
        "--no-access-log",
        "--lifespan",
        "off",
    ]
    with running(
        [sys.executable, "-m", "uvicorn", "limit_server:app", "--port", str(port), *options], port, HERE
    ) as process:
        yield port, process


def post(port, body):
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=30)
    try:
        connection.request("POST", "/runsync", body, {"Content-Type": "application/json"})
        return json.loads(connection.getresponse().read())
    finally:
        connection.close()


def wrk(port, clients, seconds):
    with tempfile.NamedTemporaryFile("w", suffix=".lua") as script:
        script.write(LUA % BODY)
        script.flush()
        command = ["wrk", "-t1", f"-c{clients}", f"-d{seconds}s", "--timeout", "30s", "-s", script.name]
        out = subprocess.run(
            [*command, f"http://127.0.0.1:{port}/runsync"], capture_output=True, text=True, check=True
        ).stdout
    figures = json.loads(out[out.index("JSON") + 4 :].splitlines()[0])
    if figures["bad"]:
        raise SystemExit(f"{figures['bad']} requests failed")
    return figures["requests"] / (figures["us"] / 1e6), figures["p99"] / 1000


def pss_mb(process):
    """MB of a process and all below it, shared pages counted once."""
    tree = [process, *process.children(recursive=True)]
    return sum(each.memory_full_info().pss for each in tree) / 1e6


def throughput(runs, seconds, clients):
    ours, theirs, ratios, p99, memory = [], [], [], [], []
    with supervise("noop") as (port, process), limit() as (limit_port, _):
        for each in (port, limit_port):
            wrk(each, clients, 1)
        for _ in range(runs):
            rate, slow = wrk(port, clients, seconds)
            most, _ = wrk(limit_port, clients, seconds)
            ours.append(rate)
            theirs.append(most)
            ratios.append(rate / most)
            p99.append(slow)
        memory.append(pss_mb(psutil.Process(process.pid)))
    line(f"/runsync, {clients} clients: supervise", ours, "req/s", 0)
    line(f"/runsync, {clients} clients: limit", theirs, "req/s", 0)
    line("  supervise / limit", ratios, "", 2)
    line("  p99", p99, "ms", 1)
    line("memory after the load (PSS)", memory, "MB", 1)


def refresh(runs, count):
    ours, forks = [], []
    with supervise("fresh") as (port, _):
        for _ in range(runs):
            ours.append(statistics.median(refresh_times(port, count)))
            forks.append(statistics.median(fork_times(count)))
    line("refresh, result in hand to next start: supervise", ours, "ms", 2)
    line("refresh: os.fork of this process, exit and reap", forks, "ms", 2)


def refresh_times(port, count):
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=30)
    times, pids, in_hand = [], set(), None
    for _ in range(count + 1):
        connection.request("POST", "/runsync", BODY, {"Content-Type": "application/json"})
        output = json.loads(connection.getresponse().read())["output"]
        now = time.monotonic_ns()
        if in_hand is not None:
            times.append((output["start"] - in_hand) / 1e6)
        in_hand = now
        if output["pid"] in pids:
            raise SystemExit("a worker served twice")
        pids.add(output["pid"])
    connection.close()
    return times


def fork_times(count):
    """End a child and have another one answer: what the operating system alone takes."""
    times, child = [], fork_child()
    for _ in range(count):
        begun = time.monotonic_ns()
        pid, sock = child
        sock.close()
        os.waitpid(pid, 0)
        child = fork_child()
        child[1].send(b"x")
        times.append((int(child[1].recv(64)) - begun) / 1e6)
    child[1].close()
    os.waitpid(child[0], 0)
    return times


def fork_child():
    ours, theirs = socket.socketpair()
    pid = os.fork()
    if pid == 0:
        ours.close()
        while theirs.recv(64):
            theirs.send(str(time.monotonic_ns()).encode())
        os._exit(0)
    theirs.close()
    return pid, ours


def memory_idle():
    with supervise("noop") as (_, process):
        line("memory at rest (PSS)", [pss_mb(psutil.Process(process.pid))], "MB", 1)


def line(name, values, unit, digits):
    low, high = min(values), max(values)
    spread = f" ({low:,.{digits}f} to {high:,.{digits}f})" if len(values) > 1 else ""
    print(f"{name:<52} {statistics.median(values):>10,.{digits}f} {unit}{spread}", flush=True)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--runs", type=int, default=3)
    parser.add_argument("--seconds", type=int, default=4, help="of load, for each server in each run")
    parser.add_argument("--clients", type=int, default=16)
    parser.add_argument("--refreshes", type=int, default=40, help="in each run")
    args = parser.parse_args()
    if shutil.which("wrk") is None:
        parser.error("wrk is missing (Debian: apt install wrk)")
    memory_idle()
    throughput(args.runs, args.seconds, args.clients)
    refresh(args.runs, args.refreshes)


if __name__ == "__main__":
    main()
