"""The names that users' programs depend on. What changes here is a change for them: it goes into CHANGELOG.md, too."""

from __future__ import annotations

import inspect
from concurrent.futures import Future

import click
import pytest

import supervisor
from supervisor import errors, serverless
from supervisor.cli.app import make_program
from supervisor.embed.job import JobFuture

SUPERVISOR = {
    "__init__": "(self, handler, **options)",
    "start": "(self)",
    "close": "(self, *, drain=True)",
    "submit": "(self, input, *, webhook=None, policy=None, s3Config=None, id=None)",
    "map": "(self, inputs, *, as_completed=False, buffersize=None)",
    "workers": "(self)",
    "refresh": "(self, slot)",
}
JOB = {
    "running": "(self)",
    "result": "(self, timeout=None)",
    "exception": "(self, timeout=None)",
    "cancel": "(self)",
    "progress": "(self)",
    "stream": "(self)",
}
SERVERLESS = {
    "start": "(config)",
    "progress_update": "(job, value)",
    "register_fitness_check": "(check)",
    "current_job": "()",
    "upload_file": "(job, path, key=None)",
}
ERRORS = {
    "SuperviseError": "Exception",
    "UsageError": "SuperviseError",
    "HandlerError": "UsageError",
    "StartError": "SuperviseError",
    "JobError": "SuperviseError",
    "JobFailed": "JobError",
    "WorkerDied": "JobFailed",
    "JobCancelled": "JobError",
    "JobTimedOut": "JobError",
}
OPTIONS = {
    "serve": """
        --adopt --allow-origin --api-key --api-key-file --auth --config --cpu-affinity --dashboard --drain-timeout
        --durability --endpoint-id --execution-timeout --gpus --gpus-per-worker --grace --host --idle-timeout --input
        --lock-dir --log-format --max-attempts --max-body --max-log --max-processes --max-queue --max-result
        --max-store --max-workers --min-workers --no-adopt --no-auth --no-dashboard --no-private-tmp
        --no-refresh-on-oom --no-refresh-worker --no-reload --no-requeue-streams --no-share-gpus
        --no-webhook-deny-private --on-restart --output --pin-by --port --preload --preload-timeout --private-tmp
        --refresh-above --refresh-after-jobs --refresh-on-oom --refresh-worker --release-timeout --reload
        --requeue-streams --retention --scale-after --share-gpus --simulate-gpus --start-timeout --store --test-input
        --ttl --webhook-delay --webhook-deny-private --webhook-retries --webhook-secret --webhook-timeout --workers
        --workers-per-gpu
    """,
    "gpus": "--json --lock-dir --simulate-gpus",
    "top": "--api-key --height --once --url --width",
    "submit": """
        --api-key --execution-timeout --id --idempotency-key --input-file --json --low-priority --stream --ttl --url --wait
        --webhook
    """,
    "status": "--api-key --json --url --wait",
    "stream": "--api-key --json --url",
    "logs": "--api-key --follow --url",
    "cancel": "--api-key --json --url",
    "retry": "--api-key --json --url",
    "jobs": "--all --api-key --json --limit --status --url",
    "workers": "--api-key --json --pause --refresh --resume --url",
}


def plain(function: object) -> str:
    """Its parameters and their defaults, without types."""
    signature = inspect.signature(function)  # type: ignore[arg-type]
    parameters = [each.replace(annotation=inspect.Parameter.empty) for each in signature.parameters.values()]
    return str(signature.replace(parameters=parameters, return_annotation=inspect.Signature.empty))


@pytest.mark.parametrize(
    ("owner", "names"),
    [(supervisor.Supervisor, SUPERVISOR), (JobFuture, JOB), (serverless, SERVERLESS)],
    ids=["Supervisor", "Job", "serverless"],
)
def test_what_programs_and_handlers_call(owner: object, names: dict[str, str]) -> None:
    assert {name: plain(getattr(owner, name)) for name in names} == names


def test_a_job_is_a_future() -> None:
    assert issubclass(JobFuture, Future)


@pytest.mark.parametrize(("name", "base"), ERRORS.items())
def test_what_programs_catch(name: str, base: str) -> None:
    assert [each.__name__ for each in getattr(errors, name).__bases__] == [base]


def test_commands_and_options() -> None:
    program = make_program()
    context = click.Context(program)
    commands = {name: program.get_command(context, name) for name in program.list_commands(context)}
    assert {name: options_of(command) for name, command in commands.items() if command} == {
        name: set(options.split()) for name, options in OPTIONS.items()
    }


def options_of(command: click.Command) -> set[str]:
    return {
        name
        for option in command.params
        if not getattr(option, "hidden", False)  # arguments have no such thing
        for name in (*option.opts, *option.secondary_opts)
        if name.startswith("--")
    }
