"""Models that benchmarks measure with: random weights, made once and kept in the system's temporary folder."""

import tempfile
from pathlib import Path

import torch
from transformers import LlamaConfig, LlamaForCausalLM

from farflung.learn.corpus import standard_library
from farflung.learn.tokenizer import learn_tokenizer


def llama_60m() -> Path:
    """About 60 M parameters: hidden 512, 8 layers, vocabulary 32000, float32."""
    config = _llama(32_000, 512, 1376, num_layers=8, num_heads=8, num_key_value_heads=8)
    return _saved("farflung-bench-llama-60m", config)


def llama_wide() -> Path:
    """About 50 M parameters in blocks and few beside them: hidden 768, 7 layers, vocabulary 512, float32."""
    config = _llama(512, 768, 2112, num_layers=7, num_heads=12, num_key_value_heads=4)
    return _saved("farflung-bench-llama-wide", config)


def llama_even() -> Path:
    """About 43 M parameters in blocks and few beside them: as `llama_wide`, with 6 layers, which 2 and 3 divide."""
    config = _llama(512, 768, 2112, num_layers=6, num_heads=12, num_key_value_heads=4)
    return _saved("farflung-bench-llama-even", config)


def llama_large(num_layers: int) -> Path:
    """About 51 M parameters a block, 0.2 GB in float32, and few beside them: hidden 2048, vocabulary 8000."""
    config = _llama(8_000, 2048, 5632, num_layers=num_layers, num_heads=16, num_key_value_heads=16)
    return _saved(f"farflung-bench-llama-large-{num_layers}", config)


def llama_four_blocks() -> Path:
    """Four small blocks: hidden 128, vocabulary 256, float32; for simulations that compute for real."""
    config = _llama(256, 128, 256, num_layers=4, num_heads=2, num_key_value_heads=2, initializer_range=0.1)
    return _saved("farflung-bench-llama-four-blocks", config)


def llama_with_tokenizer() -> Path:
    """Four small blocks with a tokenizer of 512 tokens; it never ends an answer."""
    tokenizer = learn_tokenizer(standard_library(200_000), 512)
    config = _llama(len(tokenizer), 128, 256, num_layers=4, num_heads=4, num_key_value_heads=2, initializer_range=0.1)
    folder = _saved("farflung-bench-llama-with-tokenizer", config)
    tokenizer.save_pretrained(folder)
    return folder


def _llama(
    vocabulary_size: int,
    hidden_size: int,
    intermediate_size: int,
    *,
    num_layers: int,
    num_heads: int,
    num_key_value_heads: int,
    initializer_range: float = 0.05,
) -> LlamaConfig:
    """For 4096 positions, without an end token, so that answers are as long as they are asked to be."""
    return LlamaConfig(
        vocab_size=vocabulary_size,
        hidden_size=hidden_size,
        intermediate_size=intermediate_size,
        num_hidden_layers=num_layers,
        num_attention_heads=num_heads,
        num_key_value_heads=num_key_value_heads,
        max_position_embeddings=4096,
        initializer_range=initializer_range,
        tie_word_embeddings=False,
        eos_token_id=None,
        bos_token_id=None,
        pad_token_id=0,
    )


def _saved(name: str, config: LlamaConfig) -> Path:
    folder = Path(tempfile.gettempdir()) / name
    if not (folder / "model.safetensors").exists():
        torch.manual_seed(0)
        LlamaForCausalLM(config).save_pretrained(folder)
    return folder
