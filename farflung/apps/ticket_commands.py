"""`farflung invite` and `farflung revoke`."""

import sys
import time
from pathlib import Path
from typing import Annotated

import typer

Join = Annotated[
    str | None, typer.Option("--join", envvar="FARFLUNG_TICKET", show_envvar=True, help="The ticket of an admin.")
]
Home = Annotated[
    Path | None,
    typer.Option("--home", envvar="FARFLUNG_HOME", show_envvar=True, help="Where the founder's ticket lies."),
]


def invite(
    role: Annotated[str, typer.Option("--role", help="client, server, worker or admin.")] = "client",
    expires: Annotated[str, typer.Option("--expires", help="How long it is valid, such as 12h or 7d.")] = "7d",
    join: Join = None,
    home: Home = None,
) -> None:
    """Print a ticket for somebody else; needs an admin's ticket (the founder has one at home)."""
    from farflung.apps.invites import keep
    from farflung.apps.tickets import invite
    from farflung.wire.ticket import Ticket

    text, now = invite(join, role, expires, home), time.time()
    made = keep(Ticket.parse(text, now), now)
    print(text)
    print(f"to withdraw it: farflung revoke {made.number}", file=sys.stderr)


def revoke(
    which: Annotated[str, typer.Argument(metavar="TICKET", help="The ticket, or the number that `invite` has told.")],
    join: Join = None,
    home: Home = None,
) -> None:
    """Withdraw a ticket: its holders' links are closed, and nobody is let in with it; needs an admin's ticket."""
    from farflung.apps.tickets import admin_ticket, revocation_of

    admin = admin_ticket(join, home)
    revocation = revocation_of(which, admin)
    from farflung.apps.revoking import revoke_in_swarm
    from farflung.apps.wiring import Connection

    with Connection(admin.text()) as connection:
        told = connection.bridge.run(revoke_in_swarm(connection.node, revocation))
    print(f"revoked {revocation.serial.hex()}; {told}")
