"""The settings: one frozen record, made and checked once by ``resolve``, in the supervisor's process.

The class is the table of options: its annotations define the options of the command line, the ``SUPERVISE_*`` variables, the keys
of ``--config FILE.toml`` and the keywords of ``Supervisor``.
"""

from __future__ import annotations

import ipaddress
import types
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, get_type_hints

import msgspec

from supervisor.config import kinds
from supervisor.config.kinds import Option
from supervisor.wire.messages import HandlerSpec

OTHER = "Other"
_GROUPS = {
    "handler": "Handler",
    "gpus": "GPUs",
    "workers": "Workers",
    "refresh_worker": "Refresh",
    "store": "Jobs",
    "host": "HTTP",
    "api_key": "Security",
    "webhook_retries": "Webhooks",
    "dashboard": "Output",
    "input": "Batch",
    "config": OTHER,
}
"""The headings of `--help`, by the first option below each."""

DAY = 86_400.0
MIB = 2**20


class Settings(msgspec.Struct, frozen=True, kw_only=True):
    """Every option, checked. Times are seconds, sizes bytes, paths absolute; an option left out has its default.

    ``spec`` is ``handler`` as sent to the workers. ``store_given`` is the source of ``store``, or of the ``endpoint_id`` that
    names it, such as ``--store``; None where both have their defaults. ``preload`` is None for ``auto``. ``api_key`` includes the
    keys of ``api_key_file``.
    """

    spec: HandlerSpec
    store_given: str | None

    handler: Annotated[
        str, Option(kinds.TEXT, "A file (run as `python FILE`), a module, or module:function.", positional=True)
    ]
    handler_args: Annotated[
        tuple[str, ...], Option(kinds.WORDS, "Arguments for the handler, in its sys.argv.", positional=True)
    ] = ()
    endpoint_id: Annotated[str, Option(kinds.ENDPOINT_ID, "Name in the URLs: /v2/ID.", shown="the handler's last name")]
    preload: Annotated[
        tuple[str, ...] | None,
        Option(
            kinds.MODULES,
            "Modules to import once, before workers are forked; auto: those that the handler imports.",
            shown="auto",
        ),
    ] = None
    preload_timeout: Annotated[float, Option(kinds.duration(0.1), "How long a preloaded import may take.")] = 60.0
    reload: Annotated[
        bool, Option(kinds.FLAG, "Reload the handler when its file, or a Python file below its folder, changes.")
    ] = False

    gpus: Annotated[
        str, Option(kinds.GPUS, "auto: every free GPU; all; none; or a list of indices, UUIDs or MIG UUIDs.")
    ] = "auto"
    pin_by: Annotated[str, Option(kinds.choice("index", "uuid"), "How CUDA_VISIBLE_DEVICES names a worker's GPUs.")] = (
        "index"
    )
    share_gpus: Annotated[bool, Option(kinds.FLAG, "Also use GPUs that another supervisor holds.")] = False
    simulate_gpus: Annotated[
        int,
        Option(kinds.whole(0, 64), "Simulate N GPUs, to try supervise on a machine without any.", shown="off"),
    ] = 0
    gpus_per_worker: Annotated[int, Option(kinds.whole(1, 64), "Give each worker N GPUs; they must divide evenly.")] = 1
    workers_per_gpu: Annotated[
        int, Option(kinds.whole(1, 64), "Run N workers on each GPU, or on each group of GPUs.")
    ] = 1
    lock_dir: Annotated[
        Path, Option(kinds.PATH, "Folder for GPU locks; the same for all supervisors on this machine.")
    ] = Path("/tmp/supervise-locks")

    workers: Annotated[int, Option(kinds.whole(1, 1024), "Number of CPU workers, if no GPU is used.")] = 1
    min_workers: Annotated[
        int | None, Option(kinds.whole(0, 1024), "Minimum number of workers (0: scale to zero).", shown="all slots")
    ] = None
    max_workers: Annotated[
        int | None, Option(kinds.whole(1, 1024), "Maximum number of workers.", shown="all slots")
    ] = None
    idle_timeout: Annotated[
        float, Option(kinds.DURATION, "Idle time after which a worker is stopped, down to --min-workers.")
    ] = 60.0
    scale_after: Annotated[
        float, Option(kinds.DURATION, "Start one more worker for each job that has waited this long.")
    ] = 4.0
    start_timeout: Annotated[
        float, Option(kinds.DURATION, "How long a worker may take to load the handler; 0: no limit.", shown="0")
    ] = 0.0
    grace: Annotated[float, Option(kinds.DURATION, "Grace period before SIGTERM, and again before SIGKILL.")] = 5.0
    drain_timeout: Annotated[
        float, Option(kinds.DURATION, "How long running jobs may continue after SIGTERM or Ctrl-C.")
    ] = 30.0

    cpu_affinity: Annotated[
        str,
        Option(
            kinds.choice("off", "auto"),
            "Pin each worker to its share of the cores: those near its GPU, if the system reports them.",
        ),
    ] = "off"
    max_processes: Annotated[
        int,
        Option(kinds.whole(0), "Stop a worker whose process tree has more than N processes; 0: no limit."),
    ] = 4096
    private_tmp: Annotated[
        bool, Option(kinds.FLAG, "Give each worker its own /tmp and /var/tmp, deleted when it exits.")
    ] = False

    refresh_worker: Annotated[bool, Option(kinds.FLAG, "Refresh a worker after every job.")] = False
    refresh_after_jobs: Annotated[int, Option(kinds.whole(0), "Refresh a worker after N jobs.", shown="off")] = 0
    refresh_above: Annotated[
        int,
        Option(
            kinds.MEBIBYTES, "Refresh a worker that holds more GPU memory when it is idle after a job.", shown="off"
        ),
    ] = 0
    refresh_on_oom: Annotated[bool, Option(kinds.FLAG, "Refresh a worker whose job ran out of GPU memory.")] = False
    release_timeout: Annotated[
        float,
        Option(
            kinds.DURATION,
            "How long GPU memory may stay allocated after a worker's death before its slot is marked held.",
        ),
    ] = 30.0

    store: Annotated[Path, Option(kinds.PATH, "The job database.", shown=".supervise/ENDPOINT_ID.db")]
    adopt: Annotated[bool, Option(kinds.FLAG, "Take over and run the unfinished jobs of another handler.")] = False
    retention: Annotated[float, Option(kinds.DURATION, "How long results are kept after a job's end.")] = DAY
    max_store: Annotated[int, Option(kinds.SIZE, "Delete the oldest results when the database is larger.")] = 10 * 2**30
    durability: Annotated[
        str,
        Option(
            kinds.choice("normal", "full"),
            "What accepted jobs survive: kill -9; or also a power cut, for which each answer waits for the disk.",
        ),
    ] = "normal"
    execution_timeout: Annotated[
        float,
        Option(kinds.DURATION, "How long a job may run, unless its policy sets executionTimeout.", shown="no limit"),
    ] = 0.0
    ttl: Annotated[
        float,
        Option(
            kinds.DURATION,
            "How long after submission a job times out, queued or running, unless its policy sets ttl.",
            shown="never",
        ),
    ] = 0.0
    max_log: Annotated[int, Option(kinds.SIZE, "How much of a job's log is kept.")] = 10 * MIB
    max_queue: Annotated[int, Option(kinds.whole(0), "Reject jobs (429) while N are queued.", shown="no limit")] = 0
    max_result: Annotated[int, Option(kinds.SIZE, "Fail a job whose result is larger.")] = 100 * MIB
    max_attempts: Annotated[
        int, Option(kinds.whole(1, 1000), "Maximum number of starts of a job whose workers die.")
    ] = 1
    on_restart: Annotated[
        str,
        Option(
            kinds.choice("requeue", "fail"), "What happens to jobs that were running when the supervisor was killed."
        ),
    ] = "requeue"
    requeue_streams: Annotated[bool, Option(kinds.FLAG, "Also requeue those whose chunks were handed out.")] = False

    host: Annotated[str, Option(kinds.HOST, "Address to listen on.")] = "127.0.0.1"
    port: Annotated[int, Option(kinds.PORT, "Port to listen on; 0 picks one.")] = 8900
    max_body: Annotated[int, Option(kinds.SIZE, "Reject (413) a request whose body is larger.")] = 20 * MIB

    api_key: Annotated[
        tuple[str, ...],
        Option(
            kinds.API_KEYS,
            "A key that clients must send; may be repeated. Better in SUPERVISE_API_KEYS or a file.",
            more_variables=("SUPERVISE_API_KEYS",),
            secret=True,
        ),
    ] = ()
    api_key_file: Annotated[
        Path | None, Option(kinds.PATH, "Keys, one per line; lines that start with # are comments.", secret=True)
    ] = None
    no_auth: Annotated[bool, Option(kinds.FLAG, "Serve a host other than loopback without keys.")] = False
    allow_origin: Annotated[
        tuple[str, ...],
        Option(kinds.ORIGINS, "Origin whose web pages may call the API from a browser; may be repeated."),
    ] = ()

    webhook_retries: Annotated[
        int, Option(kinds.whole(0, 1000), "Number of retries of a webhook that was not answered with 200.")
    ] = 2
    webhook_delay: Annotated[float, Option(kinds.DURATION, "Delay between tries.")] = 10.0
    webhook_timeout: Annotated[
        float, Option(kinds.duration(0.01), "How long a try may take, including the DNS lookup.")
    ] = 10.0
    webhook_secret: Annotated[
        str | None,
        Option(
            kinds.WEBHOOK_SECRET,
            "Sign as Standard Webhooks do: whsec_ and base64, or any text. Better in SUPERVISE_WEBHOOK_SECRET.",
            secret=True,
        ),
    ] = None
    webhook_deny_private: Annotated[
        bool,
        Option(kinds.FLAG, "Post only to public addresses: not to this machine, its networks or cloud metadata."),
    ] = False

    dashboard: Annotated[
        bool, Option(kinds.FLAG, "Show the live dashboard, or one line per event.", shown="on a terminal")
    ]
    log_format: Annotated[
        str, Option(kinds.choice("text", "json"), "Format of event lines; if set, they replace the dashboard.")
    ] = "text"
    test_input: Annotated[
        str | None, Option(kinds.JSON, "Run one job with this input, print its status, and exit.")
    ] = None
    input: Annotated[
        Path | None,
        Option(kinds.FILE, "Run the lines of a JSONL file (-: standard input) as jobs, without a server, and exit."),
    ] = None
    output: Annotated[
        Path | None,
        Option(
            kinds.FILE,
            "File for their results, one per line. If it exists, only lines without a result in it are run.",
            shown="standard output",
        ),
    ] = None

    config: Annotated[Path | None, Option(kinds.PATH, "A TOML file of options, such as port = 8080.")] = None


def _read_table() -> dict[str, Option]:
    hints = get_type_hints(Settings, include_extras=True)
    table, group = {}, ""
    for name, hint in hints.items():
        if mark := getattr(hint, "__metadata__", ()):
            group = _GROUPS.get(name, group)
            table[name] = msgspec.structs.replace(mark[0], name=name, group=group)
    return table


OPTIONS: Mapping[str, Option] = types.MappingProxyType(_read_table())
"""Every option by the name of its field, in the order that ``--help`` shows."""

DEFAULTS: Mapping[str, Any] = types.MappingProxyType(
    {field.name: field.default for field in msgspec.structs.fields(Settings) if field.default is not msgspec.NODEFAULT}
)
"""Defaults of the options whose default does not depend on other options."""


SECRET_VARIABLES = frozenset(variable for option in OPTIONS.values() if option.secret for variable in option.variables)
"""Environment variables that are removed for handlers."""


def is_loopback(host: str) -> bool:
    """Return whether ``host`` is loopback. Names are not resolved: any but ``localhost`` counts as external."""
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host.lower().rstrip(".") == "localhost"
