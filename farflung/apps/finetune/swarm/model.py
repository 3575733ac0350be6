"""A model whose blocks are elsewhere, with what is trained: parameters of the client's own.

    tokens ── embeddings (frozen) ── own prompt before them ── blocks, elsewhere ── norm ── a head

Rows are turned so that padding comes last, whatever the batch has: then no block needs a mask, the first positions are
the prompt's, and positions count as those of a text alone.
"""

from types import SimpleNamespace
from typing import Any

import torch
from torch import nn

from farflung.learn.parameters import Tensors
from farflung.model.adapters import LoraAdapter
from farflung.systems.onebyte.objective import Batch


class OwnParameters(nn.Module):
    """What the client trains. Legend: P prompt positions, L blocks, H hidden width, N values of the head."""

    def __init__(
        self,
        *,
        prompt_PH: torch.Tensor | None = None,
        deep_LPH: torch.Tensor | None = None,
        lora: LoraAdapter | None = None,
        head_NH: torch.Tensor | None = None,
    ) -> None:
        super().__init__()
        self.prompt_PH = _parameter(prompt_PH)
        """Stands before every text, in place of embeddings."""
        self.deep_LPH = _parameter(deep_LPH)
        """Added to the prompt's positions in the input of every block."""
        self.lora = lora
        """Added to layers of every block."""
        self.head_NH = _parameter(head_NH)
        """Reads the last token's hidden state; None: the model's own head is used."""

    def tensors(self) -> Tensors:
        """All of them by name; live."""
        return dict(self.named_parameters())


def _parameter(values: torch.Tensor | None) -> nn.Parameter | None:
    return nn.Parameter(values.clone()) if values is not None else None


class TunedModel(nn.Module):
    """See above; called as a causal language model of transformers is, without a cache."""

    def __init__(self, ends: Any, own: OwnParameters) -> None:
        """`ends`: a model of `farflung.systems.swarm.client`; its own weights stay as they are."""
        super().__init__()
        self.ends = ends.requires_grad_(False).eval()
        self.own = own
        self.training = False

    @property
    def device(self) -> torch.device:
        """Of embeddings and head."""
        return self.ends.device

    @property
    def num_prompted(self) -> int:
        """Positions before every text."""
        return 0 if self.own.prompt_PH is None else len(self.own.prompt_PH)

    def forward(
        self,
        input_ids: torch.Tensor,
        attention_mask: torch.Tensor | None = None,
        *,
        use_cache: bool = False,
        logits_to_keep: int = 0,
    ) -> Any:
        """Logits [B, T, V] at the tokens' places, or at the last `logits_to_keep` of them."""
        assert not use_cache, "sessions are for generating"
        turned = _Turned(input_ids, attention_mask)
        length = input_ids.shape[1]
        wanted = turned.places(torch.arange(length - (logits_to_keep or length), length, device=input_ids.device))
        # Rows that are padded differently need logits in different places: all of them are computed in every row.
        computed = wanted.unique()
        logits = self._run(turned.input_ids, logits_to_keep=computed + self.num_prompted).logits
        index = torch.searchsorted(computed, wanted)
        return SimpleNamespace(logits=logits.gather(1, index[:, :, None].expand(-1, -1, logits.shape[2])))

    def read_last(self, batch: Batch) -> torch.Tensor:
        """What the own head reads from the last token of every row, [B, N]."""
        assert self.own.head_NH is not None, "an objective with a head is given one"
        turned = _Turned(batch["input_ids"], batch.get("attention_mask"))
        with self.ends.last_hidden_states() as found:
            self._run(turned.input_ids, logits_to_keep=1)
        (hidden_BTH,) = found
        places = turned.lengths - 1 + self.num_prompted
        last_BH = hidden_BTH[torch.arange(len(places), device=places.device), places]
        return last_BH.float() @ self.own.head_NH.T

    def _run(self, input_ids: torch.Tensor, **options: Any) -> Any:
        embeddings = self.ends.get_input_embeddings()(input_ids)
        if self.own.prompt_PH is not None:
            prompt = self.own.prompt_PH.to(embeddings).expand(len(embeddings), -1, -1)
            embeddings = torch.cat([prompt, embeddings], dim=1)
        self.ends.set_deep_prompts(self.own.deep_LPH)
        self.ends.set_lora(self.own.lora)
        return self.ends(inputs_embeds=embeddings, use_cache=False, **options)


class _Turned:
    """A batch with its padding last, and where its places have gone."""

    def __init__(self, input_ids: torch.Tensor, mask: torch.Tensor | None) -> None:
        self._length = input_ids.shape[1]
        mask = torch.ones_like(input_ids) if mask is None else mask
        self.lengths = mask.sum(1)
        """Tokens of each row, [B]."""
        self._firsts = mask.argmax(1)
        self.input_ids = input_ids.gather(1, (self._all(input_ids) + self._firsts[:, None]) % self._length)

    def places(self, before: torch.Tensor) -> torch.Tensor:
        """Where these places [K] are now, in each row [B, K]; those of padding are somewhere."""
        return (before - self._firsts[:, None]) % self._length

    def _all(self, input_ids: torch.Tensor) -> torch.Tensor:
        return torch.arange(self._length, device=input_ids.device)
