"""The seats that keep the journal: the sequencer, which orders it, and its standby."""

from io import BytesIO

from farflung.apps.finetune.engine import group_of
from farflung.apps.finetune.run_file import FinetuneRun
from farflung.apps.finetune.server import ServerPart
from farflung.apps.runs.part import Sitting
from farflung.systems.onebyte.header import decode_header
from farflung.systems.onebyte.journal import JournalWriter
from farflung.systems.onebyte.messages import ACTOR
from farflung.systems.onebyte.sequencer import Sequencer
from farflung.wire.identity import Identity


class CandidatePart(ServerPart):
    """See `runs.part.Part`."""

    def __init__(self, sitting: Sitting[FinetuneRun]) -> None:
        charter, run = self.charter_of(sitting), sitting.run
        self._header = decode_header(charter.header)
        config = run.onebyte.rounds_config(run.training.rounds)
        identity = Identity(charter.key)
        self._sequencer = Sequencer.open(sitting.world, self._header, config, group_of(sitting), identity)
        super().__init__(sitting, self._sequencer, ACTOR)

    def result(self) -> bytes | None:
        """The journal as a file, if it has come to its end here."""
        file = BytesIO()
        writer = JournalWriter(file, self._header)
        for record in self._sequencer.records:
            writer.add(record)
        return file.getvalue() if writer.ledger.is_closed else None
