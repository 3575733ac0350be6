"""What every seat of an alignment run starts from: the policy's model, its tokenizer, the environment."""

import functools
import hashlib
import importlib.util
import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

import torch
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedModel, PreTrainedTokenizerBase

from farflung.apps.align.addition import addition_model
from farflung.apps.align.chain import Chain, place_of
from farflung.apps.align.environments import open_environment
from farflung.apps.align.evaluated import EvaluatedLearner
from farflung.apps.align.run_file import RunFile
from farflung.apps.capacity import choose_device
from farflung.apps.runs.cache import cache_of_this_machine
from farflung.apps.runs.parallel import check_accelerators
from farflung.learn.parameters import Tensors, assign_, fingerprint, named_parameters
from farflung.learn.tokenizer import fingerprint as tokenizer_fingerprint
from farflung.learn.tokenizer import open_tokenizer
from farflung.model.cut import build_skeleton
from farflung.model.generator import ModelGenerator, stop_tokens_of
from farflung.model.source import ModelSource
from farflung.systems.alignment.auditor import ReplayAuditor
from farflung.systems.alignment.environment import GameEnvironment, QuestionEnvironment
from farflung.systems.alignment.learner import PolicyLearner
from farflung.systems.alignment.policy import SamplingPolicy

if TYPE_CHECKING:
    from farflung.apps.align.group_learner import GroupLearner


def adapter_config(rank: int, target_modules: str | list[str]) -> Any:
    """A LoRA adapter as peft describes it."""
    from peft import LoraConfig

    return LoraConfig(r=rank, lora_alpha=2 * rank, lora_dropout=0.0, target_modules=target_modules)


@dataclass(frozen=True, slots=True)
class Materials:
    """Loaded as needed: workers do not need the learner, and the trainer samples nothing."""

    run: RunFile
    path: str
    """Of the model."""
    tokenizer: PreTrainedTokenizerBase
    group_learner: "GroupLearner | None" = None
    """Of the trainer's seat, if a group of processes sits on it here."""

    @classmethod
    def gather(cls, run: RunFile) -> "Materials":
        """Find model and tokenizer; pretrains the small model unless that was done before.

        Raises:
            ValueError: there is no such model.
        """
        if run.model.adapter_rank and importlib.util.find_spec("peft") is None:
            raise ValueError("adapter_rank needs peft, which is not here: pip install 'farflung[peft]'")
        path = run.model.path
        if not path:
            folder = cache_of_this_machine()
            folder.mkdir(parents=True, exist_ok=True)
            path = str(addition_model(folder))
        return cls(run, path, open_tokenizer(path))

    def check(self) -> None:
        """Try what seats will do, before any is started.

        Raises:
            ValueError: model, environment and settings do not fit each other.
        """
        check_accelerators(self.run.model.device, self.run.training.ranks)
        model = self.model()
        if not self.stop_tokens(model):
            raise ValueError(
                f"{self.path} names no token that ends an answer: set eos_token_id in its generation config"
            )
        tokens = self.environment().prompt(0)
        num_tokens, most = len(tokens) + self.run.training.tokens_per_answer, ModelGenerator(model).context_length_max
        if num_tokens > most:
            raise ValueError(
                f"the first prompt has {len(tokens)} tokens and {self.run.training.tokens_per_answer} may follow, but "
                f"the model takes {most} together: lower training.tokens_per_answer, or take shorter prompts"
            )

    @property
    def fingerprint(self) -> str:
        """Equal where tokens, architecture, environment and (of an adapter) the weights beneath are equal."""
        config = AutoConfig.from_pretrained(self.path).to_dict()
        known: list[Any] = [tokenizer_fingerprint(self.tokenizer), asdict(self.run.environment), self.run.run.seed]
        known.append({name: config.get(name) for name in sorted(config) if name not in ("_name_or_path", "dtype")})
        if self.run.model.adapter_rank:
            known.append(fingerprint(dict(self._base().named_parameters())).hex())
        return hashlib.sha256(json.dumps(known, sort_keys=True, default=str).encode()).hexdigest()

    def _base(self) -> PreTrainedModel:
        try:
            return AutoModelForCausalLM.from_pretrained(self.path).eval()
        except (OSError, ValueError) as error:
            raise ValueError(f"{self.path} cannot be loaded as a causal language model: {error}") from None

    def model(self, device: torch.device | None = None) -> Any:
        """A copy of the policy as it begins, on `device` or that of the run: of transformers, or of peft around one."""
        model, device = self._base(), device or choose_device(self.run.model.device)
        if self.run.model.adapter_rank:
            from peft import get_peft_model

            torch.manual_seed(self.run.run.seed)  # an adapter begins alike everywhere
            settings = adapter_config(self.run.model.adapter_rank, "all-linear")
            return get_peft_model(model, settings).eval().to(device)
        return model.to(device)  # pyright: ignore[reportArgumentType]

    def stop_tokens(self, model: Any) -> Sequence[int]:
        """What ends an answer."""
        return stop_tokens_of(model.get_base_model() if self.run.model.adapter_rank else model)

    def environment(self) -> QuestionEnvironment | GameEnvironment:
        """As the run file says."""
        return open_environment(self.run.environment, self.tokenizer, seed=self.run.run.seed)

    def policy(self, chain: Chain | None = None) -> SamplingPolicy:
        """Samples, here or over a chain; it has no weights until some are installed."""
        environment = self.environment()
        replies = environment if isinstance(environment, GameEnvironment) else None
        if chain is not None:
            generator = ModelGenerator(chain.model, open_cache=chain.open_cache)
            stop_tokens = stop_tokens_of(chain.model)
            return SamplingPolicy(generator, chain.assign, stop_tokens=stop_tokens, environment=replies)
        model = self.model()
        assign = functools.partial(assign_, named_parameters(model))
        stop_tokens = self.stop_tokens(model)
        return SamplingPolicy(ModelGenerator(model), assign, stop_tokens=stop_tokens, environment=replies)

    def adapter_of_blocks(self) -> Any:
        """The peft settings of what is trained within a block; None: all weights are.

        Raises:
            ValueError: something beside the blocks is trained too.
        """
        if not self.run.model.adapter_rank:
            return None
        source = ModelSource.open(self.path)
        path = build_skeleton(source, torch.float32).layers_path
        places = [place_of(name, path) for name in self.first_weights()]
        if None in places:
            raise ValueError("the adapter reaches beyond the model's blocks: leave out rollout.stages")
        modules = dict.fromkeys(rest.partition(".lora_")[0] for _, rest in filter(None, places))
        return adapter_config(self.run.model.adapter_rank, list(modules))

    def learner(self) -> "PolicyLearner | GroupLearner | EvaluatedLearner":
        """Trains, and is evaluated while it does if the run says so."""
        training = self.run.training
        learner = self.group_learner
        if learner is None:
            learner = PolicyLearner(self.model(), self.run.learning, group_size=training.answers_per_prompt)
        if not training.steps_per_evaluation:
            return learner
        return EvaluatedLearner(
            learner,
            self.policy(),
            self.environment(),
            self.run.conversation,
            self.evaluation_prompts(),
            steps_per_evaluation=training.steps_per_evaluation,
            passing_reward=training.passing_reward,
        )

    def evaluation_prompts(self) -> range:
        """Those after the last one that the run trains on."""
        first = self.run.training.steps * self.run.training.prompts_per_step
        return range(first, first + self.run.training.evaluation_prompts)

    def auditor(self) -> ReplayAuditor | None:
        """Draws answers again; None: the run audits nothing."""
        if not self.run.sync.audit_share:
            return None
        model = self.model()
        return ReplayAuditor(
            model,
            self.environment(),
            seed=self.run.run.seed,
            stop_tokens=self.stop_tokens(model),
            num_tokens_max=self.run.training.tokens_per_answer,
        )

    def first_weights(self) -> Tensors:
        """What is trained, as it begins."""
        return named_parameters(self.model())
