"""What preloading saves: a handler that imports torch, refreshed after every job: `python benchmarks/preload.py`.

Two servers, one with --preload auto and one with --preload none, are asked in turns, in one run. For each:
- from the result in the client's hands to the start of the next handler in a fresh worker (median, lowest, highest);
- how long the job itself took then, and from the program's start to the first result.
"""

import argparse
import contextlib
import http.client
import importlib.util
import json
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

HERE = Path(__file__).resolve().parent
ROOT = HERE.parent
HANDLER = HERE / "torch_handler.py"
PATIENCE_S = 120


class Server:
    """supervise with HANDLER; ``first_s`` is how long it took to the first result."""

    def __init__(self, preload, folder):
        with socket.socket() as sock:
            sock.bind(("127.0.0.1", 0))
            self.port = sock.getsockname()[1]
        options = ["--preload", preload, "--gpus", "none", "--port", self.port, "--store", folder / f"{preload}.db"]
        command = [sys.executable, ROOT / "bin" / "supervise", HANDLER, "--no-dashboard", *options]
        self.name = preload
        self.begun = time.monotonic()
        self.process = subprocess.Popen(
            list(map(str, command)), cwd=folder, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True
        )
        self.workers = set()
        self.gaps_ms, self.jobs_ms = [], []

    def first(self):
        for line in self.process.stderr:
            if line.startswith("listening on "):
                break
        self.ask()
        self.first_s = time.monotonic() - self.begun

    def measure(self):
        """Two jobs in a row: the second one waits for its fresh worker."""
        _, in_hand = self.ask()
        start, end = self.ask()
        self.gaps_ms.append((start - in_hand) / 1e6)
        self.jobs_ms.append((end - start) / 1e6)

    def ask(self):
        """One job: when it started, and when its result was in hand."""
        job = self.request("POST", "/runsync", json.dumps({"input": None}))
        now = time.monotonic_ns()
        output = job["output"]
        if output["pid"] in self.workers:
            raise SystemExit("a worker served twice")
        self.workers.add(output["pid"])
        return output["start"], now

    def settle(self):
        """Wait for the fresh worker, so that it does not load while another server is measured."""
        while self.request("GET", "/workers")[0]["state"] != "idle":
            time.sleep(0.01)

    def request(self, method, path, body=None):
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=PATIENCE_S)
        try:
            connection.request(method, path, body, {"Content-Type": "application/json"})
            return json.loads(connection.getresponse().read())
        finally:
            connection.close()

    def close(self):
        self.process.stderr.close()
        self.process.terminate()
        self.process.wait(30)


def show(name, values, unit, digits=1):
    low, high = min(values), max(values)
    spread = f" ({low:,.{digits}f} to {high:,.{digits}f})" if len(values) > 1 else ""
    print(f"{name:<58} {statistics.median(values):>10,.{digits}f} {unit}{spread}", flush=True)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--refreshes", type=int, default=15, help="of each server, by turns")
    args = parser.parse_args()
    if importlib.util.find_spec("torch") is None:
        parser.error("torch is not installed in this environment; pip install torch")
    with tempfile.TemporaryDirectory() as folder, contextlib.ExitStack() as stack:
        servers = []
        for preload in ("auto", "none"):
            server = Server(preload, Path(folder))
            stack.callback(server.close)
            server.first()
            server.settle()
            servers.append(server)
        for _ in range(args.refreshes):
            for server in servers:
                server.measure()
                server.settle()
        for server in servers:
            show(f"--preload {server.name}: result in hand to next start", server.gaps_ms, "ms")
            show(f"--preload {server.name}: that job, start to result in hand", server.jobs_ms, "ms")
            show(f"--preload {server.name}: program start to first result", [server.first_s], "s", 2)
        ratio = statistics.median(servers[1].gaps_ms) / statistics.median(servers[0].gaps_ms)
        show("none / auto", [ratio], "times")


if __name__ == "__main__":
    main()
