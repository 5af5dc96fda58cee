"""What a user of the package ``runpod`` writes: ``python runpod_sync.py FIFO``. Prints what each call gave, as JSON."""

import json
import sys
from pathlib import Path

import runpod

runpod.api_key = "key"
endpoint = runpod.Endpoint("handler")
said = {}

job = endpoint.run({"kind": "echo", "n": 1})
said["output"] = job.output(timeout=30)
said["status"] = job.status()
said["run_sync"] = endpoint.run_sync({"kind": "echo", "n": 2}, timeout=30)
said["wrapped"] = endpoint.run_sync({"input": {"kind": "echo"}, "policy": {"lowPriority": True}}, timeout=30)
failed = endpoint.run({"kind": "fail"})
said["failed_output"] = failed.output(timeout=30)
said["failed"] = failed.status()
said["stream"] = list(endpoint.run({"kind": "stream"}).stream())

waiting = endpoint.run({"kind": "wait", "reached": sys.argv[1]})
Path(sys.argv[1]).read_bytes()
said["in_progress"] = waiting.status()
queued = endpoint.run({"kind": "echo"})
said["health"] = endpoint.health()
said["purge_queue"] = endpoint.purge_queue()
said["purged"] = queued.status()
said["cancel"] = waiting.cancel()
said["cancelled"] = waiting.status()
print(json.dumps(said))
