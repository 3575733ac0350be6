"""The methods that `halos_learning` compares, each with the grid of settings that it is tuned over."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

from farflung.learn.rules import Nesterov
from farflung.systems.desync.config import DesyncConfig, RoundConfig, diloco, farflung
from farflung.systems.hierarchy.config import HierarchyConfig

NUM_WORKERS = 16
OURS = "farflung"
THIN = "farflung, for thin links"
RIVAL = "DynUpd, 4 bits"
ROUNDS = RoundConfig(quorum=NUM_WORKERS)


@dataclass(frozen=True, slots=True)
class Setting:
    """One point of a grid."""

    told: str
    config: Callable[[int], DesyncConfig | HierarchyConfig]
    """From the budget in local steps."""
    has_global: bool = True
    """Whether a tree has a server above those of the regions."""


def _rounds(every: int, rate: float, momentum: float, codec: str, *, is_scaled: bool) -> Setting:
    outer = Nesterov(learning_rate=rate, momentum=momentum)
    return Setting(
        f"H {every}, outer {rate}/{momentum}",
        lambda budget: diloco(
            budget, every, outer=outer, is_speed_scaled=is_scaled, codec=codec, site_codec=codec, rounds=ROUNDS
        ),
    )


def _grid_of_rounds(codec: str, *, is_scaled: bool) -> list[Setting]:
    points = [(32, 0.7, 0.9), (64, 1.0, 0.5), (32, 1.0, 0.5), (128, 1.0, 0.5)]
    return [_rounds(*point, codec, is_scaled=is_scaled) for point in points]


@dataclass(frozen=True, slots=True)
class TreePoint:
    """Rates of a tree; the paper's names."""

    eta_l: float = 0.2
    beta_l: float = 0.9
    d_l: int = 16
    eta_g: float = 0.15
    beta_g: float = 0.5
    d_g: int = 2
    alpha: float = 0.25
    K: int = 32

    def setting(self, codec: str) -> Setting:
        """With `codec` between the regions, both ways."""
        told = (
            f"l {self.eta_l}/{self.beta_l}/{self.d_l}, g {self.eta_g}/{self.beta_g}/{self.d_g}, a {self.alpha}, "
            f"K {self.K}"
        )
        return Setting(
            told,
            lambda budget: HierarchyConfig(
                budget_steps=budget,
                local_learning_rate=self.eta_l,
                local_momentum=self.beta_l,
                local_delay=self.d_l,
                global_learning_rate=self.eta_g,
                global_momentum=self.beta_g,
                global_delay=self.d_g,
                merge_weight=self.alpha,
                updates_per_push=self.K,
                codec_up_global=codec,
                codec_down_global=codec,
            ),
        )


MEANS = TreePoint(eta_l=0.25, beta_l=0.0, d_l=1, eta_g=0.35, beta_g=0.0, d_g=1, alpha=0.5, K=16)
"""Servers that average: the published momenta look back over more steps than so short a run has."""
TREES = [TreePoint(), replace(MEANS, eta_g=0.5), replace(MEANS, eta_l=0.5, eta_g=0.5), replace(MEANS, K=32)]


def _flat(rate: float, momentum: float, delay: int) -> Setting:
    """Asynchronous local SGD: one server, in the first region."""

    def config(budget: int) -> HierarchyConfig:
        return HierarchyConfig(
            budget_steps=budget,
            num_local_steps=32,
            local_learning_rate=rate,
            local_momentum=momentum,
            local_delay=delay,
        )

    return Setting(f"eta {rate}/{momentum}/{delay}", config, has_global=False)


FLATS = [(0.05, 0.9, 32), (0.1, 0.0, 1), (0.06, 0.5, 16), (0.15, 0.0, 1)]


def _ours(num_fragments: int, rate: float, codec: str) -> Setting:
    outer = Nesterov(learning_rate=rate, momentum=0.0)
    return Setting(
        f"{num_fragments} fragments, outer {rate}, {codec}",
        lambda budget: farflung(budget, num_fragments, outer=outer, codec=codec, rounds=ROUNDS),
    )


GRIDS: dict[str, list[Setting]] = {
    "DiLoCo": _grid_of_rounds("raw", is_scaled=False),
    "DynUpd": _grid_of_rounds("raw", is_scaled=True),
    RIVAL: _grid_of_rounds("int4", is_scaled=True),
    "async local SGD": [_flat(*point) for point in FLATS],
    "HALoS": [point.setting("raw") for point in TREES],
    "HALoS, 4 bits": [point.setting("int4") for point in TREES],
    OURS: [_ours(4, 1.25, "int4"), _ours(2, 1.6, "int4"), _ours(4, 1.6, "int4"), _ours(2, 2.0, "int4")],
}
SETTINGS = GRIDS | {THIN: [_ours(16, 1.25, "int2")]}
"""All there are; the last is for links of a tenth of the bandwidth."""
