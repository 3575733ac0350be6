"""The seat that decides which candidate orders the journal; it needs neither the journal nor the model."""

from farflung.apps.finetune.engine import group_of
from farflung.apps.finetune.run_file import FinetuneRun
from farflung.apps.finetune.server import ServerPart
from farflung.apps.runs.part import Sitting
from farflung.systems.onebyte.messages import WITNESS_ACTOR
from farflung.systems.onebyte.views import Witness


class WitnessPart(ServerPart):
    """See `runs.part.Part`."""

    def __init__(self, sitting: Sitting[FinetuneRun]) -> None:
        run = self.charter_of(sitting).run
        super().__init__(sitting, Witness.open(sitting.world, group_of(sitting).candidates, run), WITNESS_ACTOR)
