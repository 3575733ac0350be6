"""Plans that a pilot tries in a few seconds: two sites with one machine each, and a thin link."""

_PLACES = """
[[sites]]
name = "east"

[[sites]]
name = "west"

[[machines]]
site = "east"
device = "cpu"

[[machines]]
site = "west"
device = "cpu"

[[links]]
between = ["east", "west"]
bandwidth_mbit = 20
round_trip_ms = 20
"""
_MODEL = """
[model]
hidden_size = 32
intermediate_size = 64
num_hidden_layers = 2
num_attention_heads = 2
vocab_size = 512
max_position_embeddings = 64
"""
PRETRAIN_PLAN = f"""
[goal]
kind = "pretrain"
tokens = 1_000_000
sequence_length = 32
batch_size = 2
{_MODEL}{_PLACES}"""
FINETUNE_PLAN = f"""
[goal]
kind = "finetune"
sequence_length = 32
batch_size = 2
num_slots = 32
{_MODEL}{_PLACES}"""
ALIGN_PLAN = f"""
[goal]
kind = "align"
prompts_per_update = 2
answers_per_prompt = 4
prompt_tokens = 8
answer_tokens = 16

[model]
hidden_size = 64
intermediate_size = 128
num_hidden_layers = 2
num_attention_heads = 2
vocab_size = 600
{_PLACES}"""
