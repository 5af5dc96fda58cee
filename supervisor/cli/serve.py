"""``supervise HANDLER``: its options as a command line, and its help; runs in the supervisor's process."""

from __future__ import annotations

import itertools
import os
import sys
from collections.abc import Mapping, Sequence
from typing import Any

import click

from supervisor.config.kinds import Option
from supervisor.config.resolve import settings_from_command_line
from supervisor.config.settings import DEFAULTS, OPTIONS, OTHER
from supervisor.dashboard import terminal
from supervisor.errors import UsageError

USAGE = "HANDLER [OPTIONS] [-- HANDLER_ARGS]"

INTRODUCTION = """\
Serves a RunPod serverless handler on this machine's GPUs: one pinned worker per GPU, the same HTTP API, and workers that are \
replaced with proof that their GPU memory is free.

HANDLER is a file (run as `python FILE`), a module (run as `python -m MODULE`), or module:function."""

EXAMPLES = """\
supervise handlers/my_handler.py
supervise my_package.handler --gpus 0,2 --refresh-worker
supervise handler.py --input prompts.jsonl --output results.jsonl
supervise handler.py --test-input '{"prompt": "a cat"}' -- --fp16"""

EXIT_CODES = (
    ("0", "done, also after SIGTERM or Ctrl-C"),
    ("1", "the test job, or a line of the batch, did not complete"),
    ("2", "wrong usage, handler, GPU or port, or refused by the system"),
    ("3", "no worker could start"),
    ("130", "a second Ctrl-C"),
)

SETTING = """\
Each option is also a variable, such as SUPERVISE_PORT (lists with commas), and a key of the --config file. The command line \
overrides the environment, which overrides the file. Defaults are in brackets. A TIME is in seconds or has a unit: ms, s, m, h \
or d."""


class Serve(click.Command):
    """Command that leaves what follows ``--`` to the handler, and groups its options in the help."""

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        """Set aside the handler's arguments, which follow ``--``, and parse the rest."""
        if "--" in args:
            split = args.index("--")
            args, ctx.meta["handler_args"] = args[:split], tuple(args[split + 1 :])
        return super().parse_args(ctx, args)

    def format_help(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """Write the help page."""
        write_page(ctx, formatter, [self])


class Entry(click.Option):
    """One option of the settings. Its value is not parsed here: the settings do that for every source alike."""

    def __init__(self, entry: Option) -> None:
        self.group = entry.group
        name, dashed = entry.name, entry.dashed
        # Every flag has its opposite, so that the command line can override a config file; the help leaves most of them out.
        opposite = dashed.replace("--no-", "--", 1) if dashed.startswith("--no-") else dashed.replace("--", "--no-", 1)
        self.left_column = f"{dashed} {entry.kind.metavar}".rstrip()
        if name == "dashboard":
            self.left_column = "--[no-]dashboard"
        shows = DEFAULTS.get(name) and not entry.kind.flag
        default = entry.shown or (entry.kind.show(DEFAULTS[name]) if shows else None)
        self.right_column = entry.help + (f" [{default}]" if default else "")
        super().__init__(
            [f"{dashed}/{opposite}" if entry.kind.flag else dashed, name],
            type=bool if entry.kind.flag else click.UNPROCESSED,
            default=None,
            multiple=entry.kind.multiple,
            metavar=entry.kind.metavar or None,
            help=entry.help,
        )

    def get_help_record(self, ctx: click.Context) -> tuple[str, str]:  # noqa: ARG002 - click's signature
        """Return the two columns of ``--help``."""
        return self.left_column, self.right_column


def write_page(
    ctx: click.Context,
    formatter: click.HelpFormatter,
    commands: Sequence[click.Command],
    lists: Mapping[str, Mapping[str, str]] | None = None,
) -> None:
    """Write the help page: introduction, the options of ``commands`` by group (shared ones once), ``lists`` under their
    headings, then sources of settings, examples and exit codes."""
    formatter.write_usage("supervise", USAGE)
    for paragraph in INTRODUCTION.split("\n\n"):
        formatter.write_paragraph()
        formatter.write_text(paragraph)
    groups: dict[str, dict[str, str]] = {}
    for parameter in itertools.chain.from_iterable(command.get_params(ctx) for command in commands):
        if isinstance(parameter, click.Option) and (record := parameter.get_help_record(ctx)):
            groups.setdefault(getattr(parameter, "group", OTHER), {}).update([record])
    for heading, records in groups.items():
        with formatter.section(heading):
            formatter.write_dl(list(records.items()), col_max=26)
    for heading, lines in (lists or {}).items():
        with formatter.section(heading):
            formatter.write_dl(list(lines.items()))
    formatter.write_paragraph()
    formatter.write_text(SETTING)
    with formatter.section("Examples"):
        formatter.write("".join(f"{'':{formatter.current_indent}}{line}\n" for line in EXAMPLES.splitlines()))
    with formatter.section("Exit codes"):
        formatter.write_dl(EXIT_CODES)


def _serve(words: tuple[str, ...], **options: Any) -> int:
    handler, *rest = words or (None,)
    if rest:
        raise UsageError(
            f"unexpected argument {rest[0]!r}; put the handler's arguments after --: "
            f"supervise {handler} -- {' '.join(rest)}"
        )
    context = click.get_current_context()
    context.obj.log_format = options["log_format"] or os.environ.get("SUPERVISE_LOG_FORMAT")
    settings = settings_from_command_line(
        {**options, "handler": handler, "handler_args": context.meta.get("handler_args")},
        terminal=terminal.usable() and sys.stderr.isatty(),
    )
    context.obj.log_format = settings.log_format
    # Wrong options are reported before the engine is imported.
    from supervisor.cli.serving.run import run_to_end  # noqa: PLC0415 - see above

    if settings.input is not None:
        from supervisor.cli.serving.batch import BatchRun  # noqa: PLC0415 - see above

        return run_to_end(BatchRun, settings)
    from supervisor.cli.serving.serve import Serving, TestJob  # noqa: PLC0415 - see above

    return run_to_end(Serving if settings.test_input is None else TestJob, settings)


def make_command() -> click.Command:
    """Build the command ``serve``. Its callback returns the exit code, and raises this program's errors."""
    entries = [Entry(entry) for entry in OPTIONS.values() if not entry.positional]
    return Serve(
        "serve",
        callback=_serve,
        params=[click.Argument(["words"], nargs=-1), *entries],
        context_settings={"help_option_names": ["-h", "--help"]},
    )
