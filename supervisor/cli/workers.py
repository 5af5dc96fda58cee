"""`supervise workers`: lists the slots and their workers, and sends commands to slots; a client's process."""

from __future__ import annotations

import click

from supervisor.cli import remote
from supervisor.cli.serving.event_log import visible
from supervisor.client.client import Client

_COMMANDS = {
    "refresh": "Refresh the slot's worker after its running jobs.",
    "pause": "Take the slot out of service after its running jobs.",
    "resume": "Put the paused slot back into service.",
}


def _option(name: str) -> click.Option:
    return click.Option([f"--{name}"], metavar="SLOT", multiple=True, help=f"{_COMMANDS[name]} May be repeated.")


@click.command(context_settings=remote.HELP)
@remote.as_json
@remote.with_client
def workers(client: Client, as_json: bool, **commands: tuple[str, ...]) -> int:
    """List the slots and their workers, or send commands to slots.

    A command returns once it is accepted; watch the slot's state for completion.
    """
    given = [(slot, what) for what, slots in commands.items() for slot in slots]
    if given:
        for slot, what in given:
            answer = client.order(slot, what)
            if remote.for_terminal(as_json):
                click.echo(f"{visible(answer.slot)}: {visible(answer.status)}")
            else:
                remote.put_json(answer)
        return 0
    views = client.workers()
    if remote.for_terminal(as_json):
        from supervisor.cli import tables  # noqa: PLC0415 - imports rich, which JSON output does not need

        tables.workers(views)
    else:
        for view in views:
            remote.put_json(view)
    return 0


workers.params[:0] = map(_option, _COMMANDS)
