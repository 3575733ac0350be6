"""Which engine runs which algorithm."""

from farflung.apps.pretrain.materials import Materials
from farflung.apps.pretrain.run_file import RunFile
from farflung.apps.runs.engine import Engine


def engine_of(run: RunFile) -> Engine[RunFile, Materials]:
    """The engine of the run's algorithm."""
    if run.algorithm.is_hierarchical:
        from farflung.apps.pretrain.hierarchy import HierarchyEngine

        return HierarchyEngine()
    from farflung.apps.pretrain.desync import DesyncEngine

    return DesyncEngine()
