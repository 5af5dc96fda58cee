"""The program ``supervise``: its commands, its exit codes, and how errors are said; runs in the process that a person starts.

A command's module is imported when the command is used: who serves a handler does not wait for the dashboard's imports.
"""

from __future__ import annotations

import importlib
import importlib.machinery
import itertools
import os
import sys
import time
from collections.abc import Sequence
from pathlib import Path

import click

from supervisor import __version__
from supervisor.cli.serving import event_log
from supervisor.config.kinds import nearest
from supervisor.errors import StartError, StoreError, SuperviseError, UsageError
from supervisor.host import files

HERE = {
    "serve": "Serve HANDLER, even if it has the name of a command.",
    "gpus": "Show what NVML sees, and which supervisor holds it.",
}
REMOTE = {
    "top": "Live dashboard.",
    "submit": "Submit a job, and optionally wait for it.",
    "status": "Show a job's status and output.",
    "stream": "Print the chunks of a job as they come.",
    "logs": "Print what a job printed.",
    "cancel": "Cancel jobs.",
    "retry": "Retry failed jobs.",
    "jobs": "List the jobs.",
    "workers": "List the slots; refresh, pause or resume them.",
}
"""To a running supervisor."""

COMMANDS = {**HERE, **REMOTE}
"""The commands and their line in ``--help``. Each is ``NAME`` in ``supervisor/cli/NAME.py``, those about jobs in ``jobs.py``."""

_IN_JOBS = ("status", "stream", "logs", "cancel", "retry")

_NO_THREAD = "can't start new thread"
"""What Python's ``threading`` says (a RuntimeError) where the system has no room for one more."""


class Program(click.Group):
    """Takes a first word that is no command as the HANDLER of ``serve``."""

    def list_commands(self, ctx: click.Context) -> list[str]:  # noqa: ARG002 - click's signature
        """The names of the commands."""
        return list(COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:  # noqa: ARG002 - as above
        """The command ``cmd_name``, imported now."""
        if cmd_name not in COMMANDS:
            return None
        module = importlib.import_module(f"supervisor.cli.{'jobs' if cmd_name in _IN_JOBS else cmd_name}")
        command = module.make_command() if cmd_name == "serve" else getattr(module, cmd_name)
        return command if isinstance(command, click.Command) else None

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        """Find out which command is meant.

        Raises:
            UsageError: the first word is nearly a command and cannot be a handler.
        """
        if not args:
            click.echo(ctx.get_help(), err=True)
            ctx.exit(2)
        if args[0] not in COMMANDS and args[0] not in ("-h", "--help", "--version"):
            if not _may_be_handler(args[0]) and (hint := nearest(args[0], COMMANDS)):
                raise UsageError(f"{args[0]}: no such command, file or module{hint}")
            args = ["serve", *args]
        return super().parse_args(ctx, args)

    def format_help(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """Write the help of ``serve``, which is the program's, with the commands in it."""
        from supervisor.cli import serve  # noqa: PLC0415 - see the top

        commands = {"Commands": HERE, "Commands to a running supervisor": REMOTE}
        serve.write_page(ctx, formatter, [serve.make_command(), self], commands)


def _may_be_handler(word: str) -> bool:
    if not word.isidentifier() or os.path.exists(word):  # noqa: PTH110 - Path.exists raises for a name that is too long
        return True
    # Finding a module that has no dots in its name imports nothing.
    return (
        word in sys.builtin_module_names or importlib.machinery.PathFinder.find_spec(word, [".", *sys.path]) is not None
    )


class Speech:
    """How the program says its last words on stderr: as the event lines are written, once that is known."""

    def __init__(self) -> None:
        self.log_format: object = "text"

    def say(self, message: str, code: int) -> int:
        """Say ``message`` and give ``code``."""
        try:
            if self.log_format == "json":
                click.echo(
                    event_log.as_json(time.time_ns() // 1_000_000, "error", {"text": message}), nl=False, err=True
                )
            else:
                click.echo(f"supervise: {message}", err=True)
        except OSError:
            _abandon(2)  # there is no other place to say it, and the exit code is still heard
        return code


def make_program() -> click.Group:
    """The whole command line."""
    program = Program("supervise", context_settings={"help_option_names": ["-h", "--help"]})
    return click.version_option(__version__, prog_name="supervise", message="%(prog)s %(version)s")(program)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line ``arguments`` (those of the process unless given) and give the exit code, errors said on stderr."""
    speech = Speech()
    try:
        code = _run(arguments, speech)
        sys.stdout.flush()
    except OSError as error:
        return _refused(error, speech)
    return code


def _run(arguments: Sequence[str] | None, speech: Speech) -> int:
    try:
        code = make_program().main(arguments, prog_name="supervise", standalone_mode=False, obj=speech)
    except click.Abort:
        return 130
    except click.NoSuchOption as error:
        if error.option_name == "--url":
            return speech.say("--url: goes after a command, as in supervise jobs --url URL", error.exit_code)
        names = error.ctx.command.get_params(error.ctx) if error.ctx else []
        near = nearest(error.option_name, itertools.chain.from_iterable(parameter.opts for parameter in names))
        return speech.say(f"{error.option_name}: no such option{near}", error.exit_code)
    except click.ClickException as error:
        message = error.format_message()
        return speech.say(message[:1].lower() + message[1:], error.exit_code)
    except SuperviseError as error:
        return speech.say(str(error), exit_code(error))
    except RuntimeError as error:
        if _NO_THREAD not in str(error):
            raise
        return speech.say(
            "the system refused: no thread can be started; raise the limit of processes (`ulimit -u`, pids.max)", 2
        )
    return code if isinstance(code, int) else 0


def exit_code(error: SuperviseError) -> int:
    """The exit code for ``error``."""
    if isinstance(error, StartError):
        return 3
    return 2 if isinstance(error, (UsageError, StoreError)) else 1


def _refused(error: OSError, speech: Speech) -> int:
    """Say what the operating system refused: before anything was served, or to who asks a supervisor something."""
    try:
        sys.stdout.flush()
    except OSError as refused:
        _abandon(1)
        if isinstance(refused, BrokenPipeError):
            return 1  # who reads it has seen enough
        return speech.say(f"standard output cannot be written: {files.refusal(refused)}", 2)
    try:
        Path.cwd()
    except OSError as gone:
        return speech.say(f"the current folder cannot be used, change to another: {files.refusal(gone)}", 2)
    return speech.say(f"the system refused: {files.refusal(error)}", 2)


def _abandon(fd: int) -> None:
    """Point ``fd`` at nothing: what is left in a stream's buffer must not fail once more as the interpreter ends."""
    nothing = os.open(os.devnull, os.O_WRONLY | os.O_CLOEXEC)
    os.dup2(nothing, fd)
    os.close(nothing)
