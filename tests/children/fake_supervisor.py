"""A supervisor in a process of its own: a template and two workers with a grandchild each; says their pids, then obeys its stdin.

A "bystander" that it forked holds copies of its descriptors, as a child of a user's program might.

``python fake_supervisor.py TMP_ROOT LOCK_FILE``. Words: ``kill_template`` kills the template and sweeps what it left.
"""

import fcntl
import json
import os
import select
import signal
import sys
from multiprocessing.connection import wait
from pathlib import Path

from supervisor.host.orphans import orphans_of_this_process, sweep_orphans
from supervisor.host.processes import set_subreaper
from supervisor.pool.template.launch import make_pipes
from supervisor.pool.template.process import TemplateExited, TemplateProcess
from supervisor.wire import messages as wire

folder = Path(__file__).resolve().parent
lock = os.open(sys.argv[2], os.O_RDWR | os.O_CREAT)
fcntl.flock(lock, fcntl.LOCK_EX)
set_subreaper()
setup = wire.Setup(wire.VERSION, "run-1", wire.HandlerSpec("file", "unused.py"), (), sys.argv[1])
template = TemplateProcess(setup, [lock], program=folder / "template_stand_in.py")


def receive():
    if not select.select([template], [], [], 10)[0]:
        sys.exit("the template is silent")
    return template.receive()


os.close(lock)
bystander = os.fork()
if bystander == 0:
    signal.alarm(60)  # should the test not get as far as ending it
    signal.pause()
pids = {"template": template.pid, "bystander": bystander}
pipes = [make_pipes() for _ in range(2)]
for number, pair in enumerate(pipes):
    env = {"CHILD": str(folder / "leaves_a_grandchild.py")}
    template.send(wire.Fork(f"cpu{number}", 1, env), pair.for_worker)
    if not wait([pair.connection], 10):
        sys.exit("the worker is silent")
    os.set_blocking(pair.connection.fileno(), True)
    pids[f"grandchild{number}"] = json.loads(pair.connection.recv_bytes())["grandchild"]
while len(pids) < 6:
    reports = receive()
    pids |= {report.slot: report.pid for report in reports if isinstance(report, wire.Forked)}
    if isinstance(reports[-1], TemplateExited):
        sys.exit(f"the template is gone: {reports}")
print(json.dumps(pids), flush=True)

if sys.stdin.readline().strip() == "kill_template":
    template.kill()
    reports = []
    while not reports or not isinstance(reports[-1], TemplateExited):
        reports += receive()
    swept = sweep_orphans(known=[bystander])
    print(
        json.dumps({"status": reports[-1].status, "swept": swept, "left": orphans_of_this_process([bystander])}),
        flush=True,
    )
    sys.stdin.readline()
