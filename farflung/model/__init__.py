"""A Hugging Face causal language model that can be cut by layer."""
