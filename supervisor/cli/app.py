"""The program ``supervise``: its commands, exit codes and error messages; runs in the process that the user starts.

A command's module is imported when the command is used: serving a handler does not wait for the dashboard's imports.
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
    "serve": "Serve HANDLER, also when it has the name of a command.",
    "gpus": "Show the GPUs that NVML lists, and which supervisor holds each.",
}
REMOTE = {
    "top": "Live dashboard.",
    "submit": "Submit a job; optionally wait for it.",
    "status": "Show a job's status and output.",
    "stream": "Print a job's chunks as they arrive.",
    "logs": "Print a job's log.",
    "cancel": "Cancel jobs.",
    "retry": "Retry failed jobs.",
    "jobs": "List jobs.",
    "workers": "List slots; refresh, pause or resume them.",
}
"""Commands to a running supervisor."""

COMMANDS = {**HERE, **REMOTE}
"""Commands and their lines in ``--help``. Each is ``NAME`` in ``supervisor/cli/NAME.py``, those about jobs in ``jobs.py``."""

_IN_JOBS = ("status", "stream", "logs", "cancel", "retry")

_NO_THREAD = "can't start new thread"
"""Text of the RuntimeError that Python's ``threading`` raises at the limit of threads."""


class Program(click.Group):
    """Command group that treats a first word that is no command as the HANDLER of ``serve``."""

    def list_commands(self, ctx: click.Context) -> list[str]:  # noqa: ARG002 - click's signature
        """Return the names of the commands."""
        return list(COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:  # noqa: ARG002 - as above
        """Import and return the command ``cmd_name``; None if there is no such command."""
        if cmd_name not in COMMANDS:
            return None
        module = importlib.import_module(f"supervisor.cli.{'jobs' if cmd_name in _IN_JOBS else cmd_name}")
        command = module.make_command() if cmd_name == "serve" else getattr(module, cmd_name)
        return command if isinstance(command, click.Command) else None

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        """Determine the command.

        Raises:
            UsageError: the first word is a misspelt command and cannot be a handler.
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
        """Write the help of ``serve``, which is the program's, and the list of commands."""
        from supervisor.cli import serve  # noqa: PLC0415 - see the module docstring

        commands = {"Commands": HERE, "Commands to a running supervisor": REMOTE}
        serve.write_page(ctx, formatter, [serve.make_command(), self], commands)


def _may_be_handler(word: str) -> bool:
    if not word.isidentifier() or os.path.exists(word):  # noqa: PTH110 - Path.exists raises for a name that is too long
        return True
    # Finding a module that has no dots in its name imports nothing.
    return (
        word in sys.builtin_module_names or importlib.machinery.PathFinder.find_spec(word, [".", *sys.path]) is not None
    )


class ErrorReporter:
    """Writes the program's error messages to stderr, in the format of the event lines once that is known."""

    def __init__(self) -> None:
        self.log_format: object = "text"

    def report(self, message: str, code: int) -> int:
        """Write ``message`` and return ``code``."""
        try:
            if self.log_format == "json":
                click.echo(
                    event_log.as_json(time.time_ns() // 1_000_000, "error", {"text": message}), nl=False, err=True
                )
            else:
                click.echo(f"supervise: {message}", err=True)
        except OSError:
            _redirect_to_null(2)  # nowhere else to report it; the exit code still gets through
        return code


def make_program() -> click.Group:
    """Build the whole command line."""
    program = Program("supervise", context_settings={"help_option_names": ["-h", "--help"]})
    return click.version_option(__version__, prog_name="supervise", message="%(prog)s %(version)s")(program)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line ``arguments`` (default: the process's), report errors on stderr and return the exit code."""
    reporter = ErrorReporter()
    try:
        code = _run(arguments, reporter)
        sys.stdout.flush()
    except OSError as error:
        return _report_os_error(error, reporter)
    return code


def _run(arguments: Sequence[str] | None, reporter: ErrorReporter) -> int:
    try:
        code = make_program().main(arguments, prog_name="supervise", standalone_mode=False, obj=reporter)
    except click.Abort:
        return 130
    except click.NoSuchOption as error:
        if error.option_name == "--url":
            return reporter.report("--url: goes after a command, as in supervise jobs --url URL", error.exit_code)
        names = error.ctx.command.get_params(error.ctx) if error.ctx else []
        near = nearest(error.option_name, itertools.chain.from_iterable(parameter.opts for parameter in names))
        return reporter.report(f"{error.option_name}: no such option{near}", error.exit_code)
    except click.ClickException as error:
        message = error.format_message()
        return reporter.report(message[:1].lower() + message[1:], error.exit_code)
    except SuperviseError as error:
        return reporter.report(str(error), exit_code(error))
    except RuntimeError as error:
        if _NO_THREAD not in str(error):
            raise
        return reporter.report(
            "the system refused: no thread can be started; raise the limit of processes (`ulimit -u`, pids.max)", 2
        )
    return code if isinstance(code, int) else 0


def exit_code(error: SuperviseError) -> int:
    """Return the exit code for ``error``."""
    if isinstance(error, StartError):
        return 3
    return 2 if isinstance(error, (UsageError, StoreError)) else 1


def _report_os_error(error: OSError, reporter: ErrorReporter) -> int:
    """Report what the operating system refused, before serving or in a client command; return the exit code."""
    try:
        sys.stdout.flush()
    except OSError as refused:
        _redirect_to_null(1)
        if isinstance(refused, BrokenPipeError):
            return 1  # the reader closed the pipe, as `head` does
        return reporter.report(f"standard output cannot be written: {files.refusal(refused)}", 2)
    try:
        Path.cwd()
    except OSError as gone:
        return reporter.report(f"the current folder cannot be used, change to another: {files.refusal(gone)}", 2)
    return reporter.report(f"the system refused: {files.refusal(error)}", 2)


def _redirect_to_null(fd: int) -> None:
    """Redirect ``fd`` to /dev/null: flushing the stream's buffer at interpreter exit must not fail again."""
    nothing = os.open(os.devnull, os.O_WRONLY | os.O_CLOEXEC)
    os.dup2(nothing, fd)
    os.close(nothing)
