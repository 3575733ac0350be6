"""The global parameter server (HALoS, GPS): a region's difference in, the global model back to that region.

Its clients are local servers; everything else is as in any server of the tree.
"""

from collections.abc import Mapping

import torch

from farflung.systems.hierarchy.config import HierarchyConfig
from farflung.systems.hierarchy.dispatcher import first_dispatch
from farflung.systems.hierarchy.durable import Kept
from farflung.systems.hierarchy.merge import ServedModel, layout
from farflung.systems.hierarchy.messages import RunIdentity
from farflung.systems.hierarchy.server import Server
from farflung.world.doors import World
from farflung.world.version import __version__


class GlobalServer(Server):
    """Delayed Nesterov on the differences that local servers push."""

    def __init__(
        self,
        config: HierarchyConfig,
        parameters: Mapping[str, torch.Tensor],
        kept: Kept,
        *,
        first_dispatch: int,
        update_seconds: float = 0.0,
    ) -> None:
        """`parameters`: the initial model, float32, which becomes the server's own. `update_seconds`: what the
        simulator charges for one update.

        Raises:
            ValueError: what was kept is of another model.
        """
        model = ServedModel(parameters, config.global_rule, config.values_per_part)
        run = RunIdentity(__version__, config.fingerprint, layout(parameters))
        super().__init__(
            config,
            run,
            model,
            kept,
            codec_down=config.codec_down_global,
            shards=(),
            first_dispatch=first_dispatch,
            update_seconds=update_seconds,
        )

    @classmethod
    def open(cls, world: World, config: HierarchyConfig, parameters: Mapping[str, torch.Tensor]) -> "GlobalServer":
        """With what its node's disk holds of an earlier life."""
        return cls(config, parameters, Kept.read(world), first_dispatch=first_dispatch(world))
