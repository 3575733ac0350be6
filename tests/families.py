"""Small random-weight models of every tested family, made once per run and saved as their users would save them."""

from collections.abc import Callable
from pathlib import Path

import torch
from transformers import (
    AutoModelForCausalLM,
    BloomConfig,
    Gemma2Config,
    Gemma3TextConfig,
    GPT2Config,
    GPTNeoXConfig,
    LlamaConfig,
    MistralConfig,
    MptConfig,
    OPTConfig,
    Phi3Config,
    PreTrainedConfig,
    Qwen2Config,
    Qwen3Config,
    Qwen3MoeConfig,
)

VOCABULARY = 199
WINDOW_TOKENS = 12
"""Sliding windows are shorter than the tests' texts, so that they matter."""

COMMON = {
    "vocab_size": VOCABULARY,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_attention_heads": 4,
    "max_position_embeddings": 512,
    "bos_token_id": 1,
    "eos_token_id": None,
    "pad_token_id": 0,
    "initializer_range": 0.3,  # wide enough that greedy texts vary instead of repeating one token
}
GROUPED = {**COMMON, "num_key_value_heads": 2}
GEMMA = {**GROUPED, "head_dim": 8, "query_pre_attn_scalar": 8, "sliding_window": WINDOW_TOKENS}


SPECIAL = {"vocab_size": VOCABULARY, "bos_token_id": 1, "eos_token_id": None, "pad_token_id": 0}


def _gpt2() -> PreTrainedConfig:
    sizes = {"n_embd": 32, "n_head": 4, "n_layer": 4, "n_positions": 512, "n_inner": 48}
    return GPT2Config(initializer_range=0.3, **sizes, **SPECIAL)


def _bloom() -> PreTrainedConfig:
    return BloomConfig(hidden_size=32, n_head=4, n_layer=3, initializer_range=0.3, **SPECIAL)


def _mpt() -> PreTrainedConfig:
    sizes = {"d_model": 32, "n_heads": 4, "n_layers": 3, "max_seq_len": 512}
    return MptConfig(initializer_range=0.3, use_cache=True, **sizes, **SPECIAL)


def _opt() -> PreTrainedConfig:
    sizes = {"hidden_size": 32, "word_embed_proj_dim": 32, "ffn_dim": 48, "max_position_embeddings": 512}
    return OPTConfig(num_attention_heads=4, num_hidden_layers=3, init_std=0.3, **sizes, **SPECIAL)


FAMILIES: dict[str, Callable[[], PreTrainedConfig]] = {
    "llama": lambda: LlamaConfig(**GROUPED, num_hidden_layers=4),
    "llama-tied": lambda: LlamaConfig(**GROUPED, num_hidden_layers=3, tie_word_embeddings=True),
    "qwen2": lambda: Qwen2Config(**GROUPED, num_hidden_layers=4),
    "qwen2-sliding": lambda: Qwen2Config(
        **GROUPED, num_hidden_layers=4, use_sliding_window=True, sliding_window=WINDOW_TOKENS, max_window_layers=2
    ),
    "qwen3": lambda: Qwen3Config(**GROUPED, num_hidden_layers=5, head_dim=16),
    "qwen3-moe": lambda: Qwen3MoeConfig(
        **GROUPED,
        num_hidden_layers=4,
        head_dim=8,  # pyright: ignore[reportCallIssue]  taken, though not declared
        num_experts=4,
        num_experts_per_tok=2,
        moe_intermediate_size=24,
        decoder_sparse_step=2,
        mlp_only_layers=[0],
    ),
    "mistral": lambda: MistralConfig(**GROUPED, num_hidden_layers=4, sliding_window=WINDOW_TOKENS),
    "gemma2": lambda: Gemma2Config(**GEMMA, num_hidden_layers=4),
    "gemma3": lambda: Gemma3TextConfig(**GEMMA, num_hidden_layers=5, layer_types=_gemma3_layer_types()),
    "phi3": lambda: Phi3Config(**GROUPED, num_hidden_layers=3),
    "gpt2": _gpt2,
    "bloom": _bloom,  # a norm after its embeddings, biases by distance, layers that return tuples
    "mpt": _mpt,  # wants a mask even where nothing is hidden
    "opt": _opt,  # makes positions out of the attention mask
    "gpt-neox": lambda: GPTNeoXConfig(**COMMON, num_hidden_layers=4),
}
"""Family -> configuration; 3 to 5 layers, tied and untied heads, full and sliding attention."""


def _gemma3_layer_types() -> list[str]:
    return ["sliding_attention", "sliding_attention", "full_attention", "sliding_attention", "full_attention"]


def save_family(family: str, folder: Path, *, max_shard_size: str = "5GB") -> Path:
    """Make the family's model with seeded weights and save it in `folder`; returns the folder."""
    torch.manual_seed(sum(family.encode()))
    model = AutoModelForCausalLM.from_config(FAMILIES[family](), dtype=torch.float32)
    with torch.no_grad():
        for name, weight in model.named_parameters():
            if name.endswith(("norm.weight", "layernorm.weight", "bias")):
                weight.add_(
                    torch.randn_like(weight) * 0.1
                )  # fresh norms and biases are trivial and would hide mistakes
    model.save_pretrained(folder, max_shard_size=max_shard_size)
    return folder
