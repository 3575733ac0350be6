"""A seat that serves others until it is told to stop."""

import asyncio

from farflung.apps.finetune.charter import Charter, read_charter
from farflung.apps.finetune.run_file import FinetuneRun
from farflung.apps.runs.messages import SeatReport
from farflung.apps.runs.part import Sitting, sent_bytes
from farflung.world.host import Host
from farflung.world.role import Role


class ServerPart:
    """See `runs.part.Part`; a role at work."""

    def __init__(self, sitting: Sitting[FinetuneRun], role: Role, actor: str) -> None:
        self._sitting = sitting
        self._stopped = asyncio.Event()
        self._host = Host(role, sitting.world, actor)

    @staticmethod
    def charter_of(sitting: Sitting[FinetuneRun]) -> Charter:
        """What the lead has told this seat."""
        return read_charter(sitting.charter)

    async def run(self) -> None:
        await self._stopped.wait()

    def stop(self) -> None:
        self._stopped.set()  # whatever was told to anybody is on disk

    def report(self) -> SeatReport:
        return SeatReport(seat=self._sitting.seat.index, sent=sent_bytes(self._sitting.world))

    def result(self) -> bytes | None:
        return None

    def close(self) -> None:
        self._host.stop()
