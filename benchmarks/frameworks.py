"""Measures our ASGI application against web frameworks, interleaved in one run: `python benchmarks/frameworks.py`.

Four operations over an engine in memory that answers at once, so that only HTTP is measured: in our application, in starlette, in
litestar (built on msgspec) and, as the limit, in an echo that does nothing; all on our connection and loop (framework_server.py).
First it checks that all but the limit give the same answers, byte for byte. Each figure is a median with its lowest and highest:
- requests/s, the server's CPU time for one, p50 and p99, as ratios to the limit's of the same round;
- what importing and building add to the rest of the supervisor: milliseconds and memory (PSS). Ours is with the code of all
  operations, which the others would need besides.

Needs `pip install starlette litestar`; what is missing is left out. wrk asks (Debian: apt install wrk); without it a client in
Python does, whose own slowness narrows the differences. Takes about 100 seconds.
"""

import argparse
import asyncio
import contextlib
import http.client
import importlib.util
import json
import os
import re
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections import defaultdict
from pathlib import Path

import psutil
import uvloop

SERVER = Path(__file__).resolve().parent / "framework_server.py"
LIMIT = "limit"
FRAMEWORKS = ("starlette", "litestar")
#: Compiled files are kept, or every start would compile again what a user's does not.
ENVIRON = {name: value for name, value in os.environ.items() if name != "PYTHONDONTWRITEBYTECODE"}
PREFIX = "/v2/echo"
BODY = '{"input": {"n": 1}}'
LOADS = {
    "POST /run": ("POST", f"{PREFIX}/run", BODY),
    "POST /runsync": ("POST", f"{PREFIX}/runsync", BODY),
    "GET /status": ("GET", f"{PREFIX}/status/known", None),
    "GET /health": ("GET", "/health", None),
}

#: Status of the answer, method, path, body and headers. The first makes the job of `GET /status`.
CHECKS = (
    (200, "POST", f"{PREFIX}/run", '{"id": "known", "input": {"n": 1}}', {}),
    (200, "POST", "/runsync", '{"id": "other", "input": [1.50, "\u00e9"], "policy": {"lowPriority": true}}', {}),
    (200, "POST", f"{PREFIX}/runsync", '{"input": null}', {"Idempotency-Key": "once"}),
    (200, "GET", f"{PREFIX}/status/known", None, {}),
    (200, "POST", "/status/other", None, {}),
    (200, "GET", "/health", None, {}),
    (404, "GET", f"{PREFIX}/status/unknown", None, {}),
    (400, "POST", f"{PREFIX}/run", '{"input": ', {}),
    (400, "POST", f"{PREFIX}/runsync", '{"inputs": 1}', {}),
    (400, "POST", "/run", "", {}),
    (403, "GET", "/health", None, {"Host": "evil.example"}),
    (403, "POST", f"{PREFIX}/run", BODY, {"Origin": "https://evil.example"}),
)

LUA = """
wrk.method = "%s"
wrk.body = %s
wrk.headers["Content-Type"] = "application/json"
function done(s, l, r)
  local bad = s.errors.connect + s.errors.read + s.errors.write + s.errors.status + s.errors.timeout
  io.write(string.format("JSON[%%d,%%d,%%d,%%d,%%d]\\n", s.requests, s.duration, l:percentile(50), l:percentile(99), bad))
end
"""


@contextlib.contextmanager
def serving(name):
    """The port and the process of a server; ended in the end."""
    process = subprocess.Popen([sys.executable, SERVER, name], env=ENVIRON, stdout=subprocess.PIPE, text=True)
    try:
        line = process.stdout.readline()
        if not line:
            raise SystemExit(f"{name} did not start")
        yield int(line), psutil.Process(process.pid)
    finally:
        process.terminate()
        process.wait(20)
        process.stdout.close()


def answers(port):
    """What CHECKS are answered: status, headers and body of each."""
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=30)
    found = []
    for _, method, path, body, headers in CHECKS:
        connection.request(method, path, body and body.encode(), headers)
        response = connection.getresponse()
        kept = sorted((name.lower(), value) for name, value in response.getheaders() if name.lower() != "date")
        found.append((response.status, kept, response.read()))
    connection.close()
    return found


def check(servers):
    ours = answers(servers["supervise"][0])
    names = [name for name in servers if name != LIMIT]
    for name in names:
        for (status, method, path, body, _), right, found in zip(CHECKS, ours, answers(servers[name][0]), strict=True):
            if found != right or found[0] != status:
                raise SystemExit(f"{name}: {method} {path} {body}: {found}, not {status} as {right}")
    print(f"{len(CHECKS)} requests, refused ones too, are answered alike to the byte by {', '.join(names)}\n")


def wrk(port, load, clients, seconds):
    """How many requests in how many seconds, p50 and p99 (µs)."""
    method, path, body = load
    with tempfile.NamedTemporaryFile("w", suffix=".lua") as script:
        script.write(LUA % (method, f"'{body}'" if body else "nil"))
        script.flush()
        command = ["wrk", "-t1", f"-c{clients}", f"-d{seconds}s", "--timeout", "30s", "-s", script.name]
        out = subprocess.run(
            [*command, f"http://127.0.0.1:{port}{path}"], capture_output=True, text=True, check=True
        ).stdout
    requests, taken_us, p50, p99, bad = json.loads(out[out.index("JSON") + 4 :].splitlines()[0])
    if bad:
        raise SystemExit(f"{bad} requests failed")
    return requests, taken_us / 1e6, p50, p99


class Client(asyncio.Protocol):
    """Asks again as soon as it is answered; ``times`` takes the seconds of each request."""

    LENGTH = re.compile(rb"content-length: (\d+)")

    def __init__(self, request, times):
        self.request, self.times, self.buffer = request, times, b""

    def connection_made(self, transport):
        self.transport = transport
        self.ask()

    def ask(self):
        self.begun = time.perf_counter()
        self.transport.write(self.request)

    def data_received(self, data):
        self.buffer += data
        head, end, body = self.buffer.partition(b"\r\n\r\n")
        if end and len(body) == int(self.LENGTH.search(head)[1]):
            if not head.startswith(b"HTTP/1.1 200 "):
                raise SystemExit(f"a request failed: {head}")
            self.times.append(time.perf_counter() - self.begun)
            self.buffer = b""
            self.ask()


def python_client(port, load, clients, seconds):
    """As wrk does, where there is none."""
    method, path, body = load[0], load[1], (load[2] or "").encode()
    head = (
        f"{method} {path} HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Type: application/json\r\nContent-Length: {len(body)}"
    )
    times = []

    async def run():
        loop = asyncio.get_running_loop()
        request = f"{head}\r\n\r\n".encode() + body
        made = [await loop.create_connection(lambda: Client(request, times), "127.0.0.1", port) for _ in range(clients)]
        times.clear()
        await asyncio.sleep(seconds)
        count = len(times)
        for transport, _ in made:
            transport.abort()
        return count

    count = uvloop.run(run())
    cuts = statistics.quantiles(times, n=100)
    return count, seconds, cuts[49] * 1e6, cuts[98] * 1e6


def measure(servers, load, args):
    """By operation and server, for each round: requests/s, CPU time of the server for one, p50 and p99 (all times in µs)."""
    figures = defaultdict(list)
    names = list(servers)
    for port, _ in servers.values():
        load(port, LOADS["POST /runsync"], args.clients, 1)
    for turn in range(args.rounds):
        first = turn % len(names)
        for operation, request in LOADS.items():
            for name in names[first:] + names[:first]:
                port, process = servers[name]
                before = sum(process.cpu_times()[:2])
                count, seconds, p50, p99 = load(port, request, args.clients, args.seconds)
                cpu = sum(process.cpu_times()[:2]) - before
                figures[operation, name].append((count / seconds, cpu / count * 1e6, p50, p99))
    return figures


def report(names, figures):
    print(f"{'':<26}" + "".join(f"{title:>24}" for title in ("requests/s", "CPU", "p50", "p99")))
    for name in (LIMIT, *names):
        figures["all four", name] = [each for operation in LOADS for each in figures[operation, name]]
    for operation in (*LOADS, "all four"):
        limit = figures[operation, LIMIT]
        rate, *times = (statistics.median(column) for column in zip(*limit, strict=True))
        columns = [f"{rate:,.0f}", *(f"{value:,.0f} µs" for value in times)]
        print(f"{operation:<15}{LIMIT:<11}" + "".join(f"{column:>24}" for column in columns))
        for name in names:
            ratios = [
                [value / most for value, most in zip(*pair, strict=True)]
                for pair in zip(figures[operation, name], limit, strict=True)
            ]
            columns = [spread(column) for column in zip(*ratios, strict=True)]
            print(f"{'':<15}{name:<11}" + "".join(f"{column:>24}" for column in columns))
    print()


def costs(names, rounds):
    """What importing and building add; the first of each is not counted, as it may compile."""
    found = defaultdict(list)
    for turn in range(rounds + 1):
        for name in names:
            out = subprocess.check_output([sys.executable, SERVER, name, "--cost"], env=ENVIRON)
            if turn:
                found[name].append(json.loads(out))
    for name in names:
        times, sizes = zip(*found[name], strict=True)
        size = spread([kb * 1024 / 1e6 for kb in sizes])
        print(f"{name + ' adds':<26}{spread(times, 1):>24} ms{size:>24} MB")


def spread(values, digits=2):
    low, high = min(values), max(values)
    return f"{statistics.median(values):.{digits}f} ({low:.{digits}f} to {high:.{digits}f})"


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--seconds", type=int, default=1, help="of load, for each server and operation in each round")
    parser.add_argument("--clients", type=int, default=16)
    args = parser.parse_args()
    load = wrk if shutil.which("wrk") else python_client
    names = ["supervise"]
    for name in FRAMEWORKS:
        if importlib.util.find_spec(name):
            names.append(name)
        else:
            print(f"{name} is left out: it is not installed (pip install {name})")
    if load is python_client:
        print("wrk is missing: a client in Python asks, whose own slowness narrows the differences")
    with contextlib.ExitStack() as stack:
        servers = {name: stack.enter_context(serving(name)) for name in (*names, LIMIT)}
        check(servers)
        report(names, measure(servers, load, args))
    costs(names, args.rounds)


if __name__ == "__main__":
    main()
