"""Models that benchmarks measure with: random weights, made once and kept in the system's temporary folder."""

import tempfile
from pathlib import Path

import torch
from transformers import LlamaConfig, LlamaForCausalLM

from farflung.learn.corpus import standard_library
from farflung.learn.tokenizer import learn_tokenizer


def llama_60m() -> Path:
    """About 60 M parameters: hidden 512, 8 layers, vocabulary 32000, float32."""
    return _saved(
        "farflung-bench-llama-60m",
        LlamaConfig(
            vocab_size=32_000,
            hidden_size=512,
            intermediate_size=1376,
            num_hidden_layers=8,
            num_attention_heads=8,
            num_key_value_heads=8,
            max_position_embeddings=4096,
            initializer_range=0.05,
            tie_word_embeddings=False,
            eos_token_id=None,
            pad_token_id=0,
        ),
    )


def llama_wide() -> Path:
    """About 50 M parameters in blocks and few beside them: hidden 768, 7 layers, vocabulary 512, float32."""
    return _saved(
        "farflung-bench-llama-wide",
        LlamaConfig(
            vocab_size=512,
            hidden_size=768,
            intermediate_size=2112,
            num_hidden_layers=7,
            num_attention_heads=12,
            num_key_value_heads=4,
            max_position_embeddings=4096,
            initializer_range=0.05,
            tie_word_embeddings=False,
            eos_token_id=None,
            pad_token_id=0,
        ),
    )


def llama_even() -> Path:
    """About 43 M parameters in blocks and few beside them: as `llama_wide`, with 6 layers, which 2 and 3 divide."""
    return _saved(
        "farflung-bench-llama-even",
        LlamaConfig(
            vocab_size=512,
            hidden_size=768,
            intermediate_size=2112,
            num_hidden_layers=6,
            num_attention_heads=12,
            num_key_value_heads=4,
            max_position_embeddings=4096,
            initializer_range=0.05,
            tie_word_embeddings=False,
            eos_token_id=None,
            pad_token_id=0,
        ),
    )


def llama_large() -> Path:
    """About 1.3 B parameters, 5 GB in float32, of which few are beside the 24 blocks."""
    return _saved(
        "farflung-bench-llama-large",
        LlamaConfig(
            vocab_size=8_000,
            hidden_size=2048,
            intermediate_size=5632,
            num_hidden_layers=24,
            num_attention_heads=16,
            num_key_value_heads=16,
            max_position_embeddings=4096,
            initializer_range=0.05,
            tie_word_embeddings=False,
            eos_token_id=None,
            pad_token_id=0,
        ),
    )


def llama_four_blocks() -> Path:
    """Four small blocks: hidden 128, vocabulary 256, float32; for simulations that compute for real."""
    return _saved(
        "farflung-bench-llama-four-blocks",
        LlamaConfig(
            vocab_size=256,
            hidden_size=128,
            intermediate_size=256,
            num_hidden_layers=4,
            num_attention_heads=2,
            num_key_value_heads=2,
            max_position_embeddings=4096,
            initializer_range=0.1,
            tie_word_embeddings=False,
            eos_token_id=None,
            pad_token_id=0,
        ),
    )


def llama_with_tokenizer() -> Path:
    """Four small blocks with a tokenizer of 512 tokens; it never ends an answer."""
    tokenizer = learn_tokenizer(standard_library(200_000), 512)
    folder = _saved(
        "farflung-bench-llama-with-tokenizer",
        LlamaConfig(
            vocab_size=len(tokenizer),
            hidden_size=128,
            intermediate_size=256,
            num_hidden_layers=4,
            num_attention_heads=4,
            num_key_value_heads=2,
            max_position_embeddings=2048,
            initializer_range=0.1,
            tie_word_embeddings=False,
            eos_token_id=None,
            bos_token_id=None,
            pad_token_id=0,
        ),
    )
    tokenizer.save_pretrained(folder)
    return folder


def _saved(name: str, config: LlamaConfig) -> Path:
    folder = Path(tempfile.gettempdir()) / name
    if not (folder / "model.safetensors").exists():
        torch.manual_seed(0)
        LlamaForCausalLM(config).save_pretrained(folder)
    return folder
