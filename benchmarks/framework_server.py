"""What frameworks.py measures: four of our operations in each framework, over an engine that answers at once, and a bare echo.

`python framework_server.py NAME` serves on a free port and prints it; `... NAME --cost` prints what importing NAME and building
its routes add to the rest of the supervisor. Guard, bodies and shapes are the API's own. Each framework gets all paths of our
table and is spared some of what we do: `wait`, the limit on a body, clients that leave.
"""

import argparse
import asyncio
import gc
import json
import re
import sys
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import msgspec
import uvloop

import supervisor.api.http.connection
import supervisor.assembly  # noqa: F401 - these two bring in the rest of the supervisor, and uvicorn
from supervisor.api.auth import Guard
from supervisor.config.resolve import make_settings
from supervisor.errors import RequestError
from supervisor.job import Job, JobStatus
from supervisor.protocol import responses
from supervisor.protocol.requests import job_request
from supervisor.protocol.views import JobCounts, Snapshot, Stats, WorkerView

ENDPOINT = "echo"
PREFIX = f"/v2/{ENDPOINT}"
AT_MS = 1_700_000_000_000
JSON = "application/json"


class Engine:
    """The part of the engine's public face that is measured. Each job has ended at once; those that the client named are kept."""

    def __init__(self):
        self.settings = make_settings("echo:handler", endpoint_id=ENDPOINT, store="unused.db")
        self.loop = asyncio.get_running_loop()
        self.jobs = {}
        slots = (f"gpu{index}" for index in range(8))
        workers = tuple(WorkerView(f"{slot}-1", slot, (0,), "idle", 41, 1, 3, 0, 0) for slot in slots)
        counts, stats = JobCounts(completed=3), Stats(1.0, 6, 4, 0.5)
        self.seen = Snapshot(AT_MS, "0", ENDPOINT, "echo.py", 1, None, False, counts, workers, (), (), (), (), stats)

    def submit(self, request):
        job = Job(
            seq=1,
            id=request.id,
            status=JobStatus.COMPLETED,
            input=request.input,
            created_ms=AT_MS,
            started_ms=AT_MS + 5,
            ended_ms=AT_MS + 12,
            worker_id="gpu0-1",
            output=request.input,
        )
        if not request.generated:
            self.jobs[job.id] = job
        future = self.loop.create_future()
        future.set_result(job)
        return future

    def job(self, job_id):
        return self.jobs.get(job_id)

    def snapshot(self):
        return self.seen


class Operations:
    """What a framework's functions call: body and headers in, bytes out."""

    def __init__(self, engine):
        self.engine = engine
        self.guard = Guard(engine.settings.api_key)

    async def run(self, body, headers):
        return responses.accepted_body(await self.engine.submit(job_request(body, headers.get(b"idempotency-key"))))

    async def runsync(self, body, headers):
        return responses.status_body(await self.engine.submit(job_request(body, headers.get(b"idempotency-key"))))

    def status(self, job_id):
        job = self.engine.job(job_id)
        if job is None:
            raise RequestError(404, f"no job {job_id!r}: never submitted here, or forgotten (--retention)")
        return responses.status_body(job)

    def health(self):
        return responses.health(self.engine.snapshot())


def refusal(error):
    return msgspec.json.encode({"error": str(error)})


def table():
    """Path, operation and methods of our own table, those under the endpoint first."""
    from supervisor.api.operations import ROUTES  # noqa: PLC0415 - part of what we cost

    ours = [(PREFIX + route.path, route.path, route.methods) for route in ROUTES if not route.root_only]
    return ours + [(route.path, route.path, route.methods) for route in ROUTES]


def make_supervise(engine, _):
    from supervisor.api.app import App  # noqa: PLC0415 - what it costs is measured

    return App(engine, print)


def make_starlette(engine, table):
    from starlette.applications import Starlette  # noqa: PLC0415 - what it costs is measured
    from starlette.responses import Response  # noqa: PLC0415 - what it costs is measured
    from starlette.routing import Route  # noqa: PLC0415 - what it costs is measured

    do = Operations(engine)

    def guarded(request):
        headers = dict(request.scope["headers"])
        do.guard.check(headers)
        return headers

    async def run(request):
        headers = guarded(request)
        return Response(await do.run(await request.body(), headers), media_type=JSON)

    async def runsync(request):
        headers = guarded(request)
        return Response(await do.runsync(await request.body(), headers), media_type=JSON)

    async def status(request):
        guarded(request)
        return Response(do.status(request.path_params["id"]), media_type=JSON)

    async def health(request):
        guarded(request)
        return Response(do.health(), media_type=JSON)

    async def other(request):
        guarded(request)
        raise RequestError(404, "not measured")

    async def refuse(request, error):  # noqa: ARG001 - as starlette calls it
        return Response(refusal(error), error.status, media_type=JSON)

    measured = {"/run": run, "/runsync": runsync, "/status/{id}": status, "/health": health}
    routes = [Route(path, measured.get(name, other), methods=methods) for path, name, methods in table]
    return Starlette(routes=routes, exception_handlers={RequestError: refuse})


def make_litestar(engine, table):
    from litestar import Litestar, Request, Response, route  # noqa: PLC0415 - what it costs is measured

    do = Operations(engine)

    async def guard(request: Request) -> None:  # its own guards copy the route for each request
        do.guard.check(dict(request.scope["headers"]))

    async def run(request: Request, body: bytes) -> bytes:
        return await do.run(body, dict(request.scope["headers"]))

    async def runsync(request: Request, body: bytes) -> bytes:
        return await do.runsync(body, dict(request.scope["headers"]))

    async def status(id: str) -> bytes:  # noqa: A002 - as in the path
        return do.status(id)

    async def health() -> bytes:
        return do.health()

    async def other() -> bytes:
        raise RequestError(404, "not measured")

    def refuse(request: Request, error: RequestError) -> Response[bytes]:  # noqa: ARG001 - as litestar calls it
        return Response(refusal(error), status_code=error.status, media_type=JSON)

    measured = {"/run": run, "/runsync": runsync, "/status/{id}": status, "/health": health}
    handlers = [
        route(re.sub(r"\{(\w+)\}", r"{\1:str}", path), http_method=methods, media_type=JSON, status_code=200)(
            measured.get(name, other)
        )
        for path, name, methods in table
    ]
    return Litestar(
        handlers,
        before_request=guard,
        exception_handlers={RequestError: refuse},
        openapi_config=None,
        logging_config=None,
        request_max_body_size=None,
    )


async def echo(scope, receive, send):
    """The limit: nothing is routed, checked or made."""
    body = b""
    while scope["method"] == "POST":
        message = await receive()
        body += message["body"]
        if not message["more_body"]:
            break
    body = body or b"{}"
    headers = [(b"content-type", b"application/json"), (b"content-length", b"%d" % len(body))]
    await send({"type": "http.response.start", "status": 200, "headers": headers})
    await send({"type": "http.response.body", "body": body})


def pss_kb():
    gc.collect()
    return int(re.search(r"^Pss: +(\d+) kB", Path("/proc/self/smaps_rollup").read_text(), re.MULTILINE)[1])


async def cost(make):
    """What importing and building take: (ms, kB of PSS)."""
    engine, routes = Engine(), None if make is make_supervise else table()
    before, begun = pss_kb(), time.perf_counter()
    app = make(engine, routes)
    taken = (time.perf_counter() - begun) * 1000
    print(json.dumps([taken, pss_kb() - before]))
    return app


async def serve(make):
    from supervisor.api.http.server import Server, listen  # noqa: PLC0415 - it imports our application, whose cost is measured

    sockets = listen("127.0.0.1", 0)
    await Server(make(Engine(), table()), sockets).start()
    print(sockets[0].getsockname()[1], flush=True)
    await asyncio.get_running_loop().create_future()


MAKE = {
    "supervise": make_supervise,
    "starlette": make_starlette,
    "litestar": make_litestar,
    "limit": lambda *_: echo,
}


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("name", choices=MAKE)
    parser.add_argument("--cost", action="store_true")
    args = parser.parse_args()
    uvloop.run((cost if args.cost else serve)(MAKE[args.name]))


if __name__ == "__main__":
    main()
