"""A tiny model with random weights and a real tokenizer, saved as Hugging Face saves models."""

from pathlib import Path

import torch
from transformers import LlamaConfig, LlamaForCausalLM

from farflung.learn.tokenizer import END, learn_tokenizer

TEXTS = ["def main(arguments):\n    return len(arguments)\n\n\nclass Tree:\n    pass\n"] * 3


def save_tiny_model(folder: Path, *, context_length_max: int = 512, num_blocks: int = 4) -> Path:
    """Write config, weights, tokenizer and chat template to `folder`; the same ones each time."""
    torch.set_num_threads(1)
    tokenizer = learn_tokenizer(TEXTS, 320)
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=num_blocks,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=context_length_max,
        initializer_range=0.3,
        bos_token_id=None,
        eos_token_id=tokenizer.convert_tokens_to_ids(END),
    )
    LlamaForCausalLM(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder
