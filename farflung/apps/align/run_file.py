"""The file of an alignment run, as dataclasses, read strictly and shown in full.

A key that is left out has the value that `farflung align --show` prints.
"""

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, replace
from typing import Any, Literal

import msgspec

from farflung.apps.align.environment_config import EnvironmentConfig
from farflung.apps.runs.form import RunForm
from farflung.apps.runs.reader import check_known
from farflung.apps.runs.run import LoggingSettings, RunSettings, check_places
from farflung.apps.runs.sites import LinkSettings, Parallelism, RegionSettings
from farflung.systems.alignment.config import AlignmentConfig, PublishConfig
from farflung.systems.alignment.learning_config import LearnerConfig, LossConfig, published

KIND = "align"
Mode = Literal["sequential", "async", "colocated"]


@dataclass(frozen=True, slots=True, kw_only=True)
class AlignSettings(RunSettings):
    """[run] of an alignment run."""

    kind: str = KIND
    name: str = "alignment"
    folder: str = "alignment"


@dataclass(frozen=True, slots=True, kw_only=True)
class PolicySettings:
    """[model]: the policy."""

    path: str = ""
    """A folder or Hub id of a causal language model; empty: a small one that adds, pretrained here once."""
    adapter_rank: int = 0
    """Above 0: train, and send to the workers, a LoRA adapter of this rank alone."""
    device: str = "auto"

    def __post_init__(self) -> None:
        if self.adapter_rank < 0:
            raise ValueError("adapter_rank must be 0, which trains all weights, or the rank of a LoRA adapter")


@dataclass(frozen=True, slots=True, kw_only=True)
class TrainingSettings:
    """[training]: how long, on what batches, by which loss."""

    steps: int = 100
    prompts_per_step: int = 16
    answers_per_prompt: int = 8
    tokens_per_answer: int = 4
    """At most."""
    loss: str = "dppo"
    loss_settings: Mapping[str, Any] = field(default_factory=dict[str, Any])
    """Of the loss, where they are not to be its authors': `clip_high = 0.3` and the like, see `LossConfig`."""
    learning_rate: float = 5e-4
    steps_per_checkpoint: int = 10
    evaluation_prompts: int = 128
    """Prompts that are not trained on, answered at the end for the pass rate."""
    steps_per_evaluation: int = 0
    """Above 0: every so many steps these prompts are answered by exactly the version that came out."""
    passing_reward: float = 1.0
    """An answer that is worth so much counts as passed."""
    ranks: int = 1
    """Processes that are the trainer together, each with its share of every step's answers and an accelerator of its
    own. In a simulation they are one."""
    parallelism: Parallelism = "ddp"
    """What such processes are to each other: ddp (each has the model) or fsdp (each has a shard of it)."""
    num_threads: int = 1
    """Of the processor, for each process."""

    def __post_init__(self) -> None:
        for name in ("evaluation_prompts", "ranks", "num_threads"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 1")
        if self.steps_per_evaluation < 0:
            raise ValueError("steps_per_evaluation must be 0, which evaluates at the end alone, or a number of steps")
        num_answers = self.prompts_per_step * self.answers_per_prompt
        if self.ranks > max(1, num_answers):
            raise ValueError(f"ranks = {self.ranks} have only {num_answers} answers to share in a step: start fewer")
        if not self.learning_rate > 0:
            raise ValueError("learning_rate must be positive")
        _ = self.loss_config

    @property
    def loss_config(self) -> LossConfig:
        """The loss with its settings.

        Raises:
            ValueError: there is no such loss or setting, or its value is none.
        """
        usual = asdict(published(self.loss, length_tokens=self.tokens_per_answer))
        for name in self.loss_settings:
            check_known(name, [one for one in usual if one != "name"], "training.loss_settings")
        return msgspec.convert({**usual, **self.loss_settings}, LossConfig)


@dataclass(frozen=True, slots=True, kw_only=True)
class SyncSettings:
    """[sync]: how rollouts and training are kept in step."""

    mode: Mode = "async"
    """sequential: each batch is sampled with the newest weights, nothing overlaps; async: workers never wait for the
    trainer; colocated: one process does both by turns."""
    staleness_max: int = 1
    """Of async: steps that a token's weights may be old when it is trained on."""
    steps_per_version: int = 1
    drift_budget: float = 0.0
    """Of async, above 0: publish when drift x answers under way exceeds this; steps_per_version is the longest wait."""
    audit_share: float = 0.0
    """Share of the answers whose tokens are drawn again by the trainer; who is caught lying is banned."""


@dataclass(frozen=True, slots=True, kw_only=True)
class RolloutSettings:
    """[rollout]: where workers that are started here compute."""

    stages: int = 0
    """0: each in its own process; else the model's blocks lie on so many block servers behind each worker, which keeps
    embeddings, norm and head. Workers that join from elsewhere hold the whole model."""

    def __post_init__(self) -> None:
        if self.stages < 0:
            raise ValueError("stages must be 0, which needs no block servers, or their number")


@dataclass(frozen=True, slots=True, kw_only=True)
class SimulationSettings:
    """[simulation]: what virtual time charges where a real run measures."""

    step_seconds: float = 0.5
    """One optimizer step."""
    token_seconds: float = 0.001
    """One token of one answer on a worker of speed 1."""

    def __post_init__(self) -> None:
        if not (self.step_seconds > 0 and self.token_seconds > 0):
            raise ValueError("step_seconds and token_seconds must be positive")


@dataclass(frozen=True, slots=True, kw_only=True)
class RunFile:
    """A whole run."""

    run: AlignSettings = field(default_factory=AlignSettings)
    model: PolicySettings = field(default_factory=PolicySettings)
    environment: EnvironmentConfig = field(default_factory=EnvironmentConfig)
    training: TrainingSettings = field(default_factory=TrainingSettings)
    sync: SyncSettings = field(default_factory=SyncSettings)
    rollout: RolloutSettings = field(default_factory=RolloutSettings)
    regions: tuple[RegionSettings, ...] = (RegionSettings(name="here", workers=2),)
    links: tuple[LinkSettings, ...] = ()
    simulation: SimulationSettings = field(default_factory=SimulationSettings)
    logging: LoggingSettings = field(default_factory=LoggingSettings)

    @property
    def num_threads(self) -> int:
        """As `runs.run.Run`."""
        return self.training.num_threads

    @property
    def num_workers(self) -> int:
        """Rollout workers that the file names; others may join."""
        return sum(len(region.speeds) for region in self.regions)

    @property
    def conversation(self) -> AlignmentConfig:
        """The engine's settings.

        Raises:
            ValueError: they do not fit each other.
        """
        training, sync = self.training, self.sync
        is_async = sync.mode == "async"
        return AlignmentConfig(
            num_steps=training.steps,
            prompts_per_step=training.prompts_per_step,
            answers_per_prompt=training.answers_per_prompt,
            num_tokens_max=training.tokens_per_answer,
            staleness_max=sync.staleness_max if is_async else 0,
            seed=self.run.seed,
            audit_share=sync.audit_share,
            steps_per_checkpoint=training.steps_per_checkpoint,
            publish=PublishConfig(
                steps_per_version=sync.steps_per_version if is_async else 1,
                drift_budget=sync.drift_budget if is_async else 0.0,
            ),
        )

    @property
    def learning(self) -> LearnerConfig:
        """The learner's settings."""
        settings = LearnerConfig(loss=self.training.loss_config)
        optimizer = replace(settings.optimizer, learning_rate=self.training.learning_rate)
        return replace(settings, optimizer=optimizer)


class AlignForm(RunForm[RunFile]):
    """See `runs.form.RunForm`."""

    def read(self, tables: Mapping[str, Any], *, is_simulated: bool = False) -> RunFile:
        run = super().read(tables, is_simulated=is_simulated)
        return replace(run, training=replace(run.training, ranks=1)) if is_simulated else run

    def check(self, run: RunFile, *, is_simulated: bool) -> None:
        check_places(run, is_simulated=is_simulated, first_may_be_empty=run.sync.mode != "colocated")
        if any(region.ranks_per_worker > 1 for region in run.regions):
            raise ValueError(
                "a rollout worker is one process: leave out ranks_per_worker, and add workers instead (training.ranks "
                "is for the trainer)"
            )
        if run.training.ranks > 1 and run.sync.mode == "colocated":
            raise ValueError("a colocated run is one process: leave out training.ranks, or choose another sync.mode")
        if run.environment.kind == "addition" and run.model.path:
            raise ValueError(
                "the environment addition is for the small model that adds: give [environment] another kind"
            )
        if run.environment.kind != "addition" and not run.model.path:
            raise ValueError("the small model only adds: give [model] the path of a causal language model")
        _check_stages(run, is_simulated=is_simulated)
        _ = run.conversation


ALIGN = AlignForm(kind=KIND, run_type=RunFile)


def _check_stages(run: RunFile, *, is_simulated: bool) -> None:
    if not run.rollout.stages:
        return
    if is_simulated or run.sync.mode == "colocated":
        how = "a simulation" if is_simulated else "a colocated run"
        raise ValueError(f"{how} has no block servers: leave out rollout.stages")
    if any(region.has_remote for region in run.regions):
        raise ValueError(
            "block servers stand behind workers that are started here: leave out rollout.stages, or remote regions"
        )
