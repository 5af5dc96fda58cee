"""`supervise workers`: the slots and the workers in them, and orders to them; a client's process."""

from __future__ import annotations

import click

from supervisor.cli import remote
from supervisor.cli.serving.event_log import visible
from supervisor.client.client import Client

_ORDERS = {
    "refresh": "Refresh the worker of this slot, after the jobs that it runs.",
    "pause": "Take this slot out of service, after the jobs that its worker runs.",
    "resume": "Put this slot, which was paused, back into service.",
}


def _order(name: str) -> click.Option:
    return click.Option([f"--{name}"], metavar="SLOT", multiple=True, help=f"{_ORDERS[name]} May be repeated.")


@click.command(context_settings=remote.HELP)
@remote.as_json
@remote.asks
def workers(client: Client, as_json: bool, **orders: tuple[str, ...]) -> int:
    """List the slots and their workers; or refresh, pause or resume some.

    Such a command returns once it is accepted; it is done when the slot's state says so.
    """
    given = [(slot, what) for what, slots in orders.items() for slot in slots]
    if given:
        for slot, what in given:
            answer = client.order(slot, what)
            if remote.for_people(as_json):
                click.echo(f"{visible(answer.slot)}: {visible(answer.status)}")
            else:
                remote.put_json(answer)
        return 0
    views = client.workers()
    if remote.for_people(as_json):
        from supervisor.cli import tables  # noqa: PLC0415 - rich, which only people wait for

        tables.workers(views)
    else:
        for view in views:
            remote.put_json(view)
    return 0


workers.params[:0] = map(_order, _ORDERS)
