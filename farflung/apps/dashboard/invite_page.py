"""The page *Invite*: makes tickets and shows each once, lists those made here, and withdraws them."""

import time
from collections.abc import Awaitable
from functools import partial
from typing import Protocol

from nicegui import ui

from farflung.apps.dashboard.invite_view import ROLES, InviteRow, InvitesView
from farflung.apps.dashboard.live import Live, LiveList
from farflung.wire.certificate import TicketRole
from farflung.world.errors import Unreachable

SHORT_NUMBER = 12
EXPIRES_DEFAULT = "7d"


class Inviting(Protocol):
    """Whoever makes and withdraws tickets."""

    def make(self, role: str, expires: str) -> Awaitable[str]:
        """The line with which the new ticket's holder comes in."""
        ...

    def revoke(self, number: str) -> Awaitable[str]:
        """Withdraw a ticket; a sentence about who knows."""
        ...


class InvitePage:
    """One viewer's. Made within an element of the page; `show` brings it up to date."""

    def __init__(self, inviting: Inviting) -> None:
        self._inviting = inviting
        self._build_dialog()
        self._refusal = Live(ui.element("div"), _draw_sentence)
        with ui.element("div").classes("card") as self._form:
            ui.html("<h2>Invite somebody</h2>", sanitize=False)
            with ui.row().classes("w-full items-center"):
                roles = {str(role): text for role, text in ROLES.items()}
                self._role = ui.select(roles, value=str(TicketRole.CLIENT), label="role").props("dense outlined")
                self._expires = ui.input("valid for", value=EXPIRES_DEFAULT, placeholder="12h, 7d").props(
                    "dense outlined"
                )
                self._expires.style("width: 110px")
                ui.button("Make a ticket", on_click=self._make).props("no-caps")
            self._made = Live(ui.element("div").classes("w-full"), self._draw_made)
        self._told = Live(ui.element("div"), _draw_sentence)
        with ui.element("div").classes("card"):
            ui.html("<h2>Invites made here, and tickets withdrawn anywhere</h2>", sanitize=False)
            self._none = ui.label("None that is still valid.").classes("soft")
            self._rows = LiveList(ui.element("div").classes("w-full"), self._draw_row)

    def show(self, view: InvitesView) -> None:
        """Bring it up to date."""
        self._refusal.show(view.refusal)
        self._form.set_visibility(not view.refusal)
        self._none.set_visibility(not view.rows)
        self._rows.show({row.number: row for row in view.rows})

    def say(self, sentence: str) -> None:
        """What has just been done, or has failed and why; empty: nothing."""
        self._told.show(sentence)

    async def _make(self) -> None:
        try:
            command = await self._inviting.make(str(self._role.value), str(self._expires.value or ""))
        except ValueError as error:
            self._made.show("")
            self.say(f"No ticket was made: {error}.")
            return
        self.say("")
        self._made.show(command)

    def _draw_made(self, command: str) -> None:
        if not command:
            return
        ui.label("Shown this once: whoever reads it may come in. To be run on the other machine:").classes("careful")
        ui.label(command).classes("mono said").style("max-height: 180px; overflow-y: auto").mark("command")
        with ui.row():
            ui.button("Copy", icon="content_copy", on_click=lambda: _copy(command)).props("no-caps dense")
            ui.button("Done", on_click=lambda: self._made.show("")).props("no-caps dense flat")

    def _draw_row(self, row: InviteRow) -> None:
        with ui.row().classes("w-full items-center no-wrap").props(f'data-invite="{row.number}"'):
            with ui.element("div").classes("grow").style("min-width: 0"):
                ui.label(f"{row.role or 'made elsewhere'} {row.number[:SHORT_NUMBER]}").classes("mono")
                ui.label(_state(row)).classes("bad" if row.is_withdrawn else "soft")
            if row.can_revoke:
                ui.button("Withdraw", on_click=partial(self._ask, row)).props("no-caps dense flat color=negative")

    async def _ask(self, row: InviteRow) -> None:
        """Withdrawing cannot be undone, so it is asked for twice."""
        self._question.set_text(
            f"Withdraw the {row.role}'s ticket {row.number[:SHORT_NUMBER]}? Its holders are shut out at once, for good."
        )
        if not await self._dialog:
            return
        try:
            self.say(f"Withdrawn {row.number[:SHORT_NUMBER]}: {await self._inviting.revoke(row.number)}.")
        except (ValueError, Unreachable) as error:
            self.say(f"{row.number[:SHORT_NUMBER]}: {error}.")

    def _build_dialog(self) -> None:
        with ui.dialog() as self._dialog, ui.card():
            self._question = ui.label()
            with ui.row():
                ui.button("Withdraw it", on_click=lambda: self._dialog.submit(True)).props("no-caps color=negative")
                ui.button("Keep it", on_click=lambda: self._dialog.submit(False)).props("no-caps flat")


def _copy(command: str) -> None:
    ui.clipboard.write(command)
    ui.notify("Copied.")


def _state(row: InviteRow) -> str:
    if row.is_withdrawn:
        return "withdrawn"
    assert row.made_at is not None and row.expires_at is not None
    return f"made {_moment(row.made_at)}, valid until {_moment(row.expires_at)}"


def _moment(wall_seconds: float) -> str:
    return time.strftime("%Y-%m-%d %H:%M", time.localtime(wall_seconds))


def _draw_sentence(sentence: str) -> None:
    if sentence:
        ui.label(sentence).classes("careful")
