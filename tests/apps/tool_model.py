"""A tiny model that has learnt by heart to call a tool and to say what it returned, with Hermes' chat template."""

from pathlib import Path
from typing import Any

import torch
from transformers import LlamaConfig, LlamaForCausalLM

from farflung.learn.tokenizer import END, learn_tokenizer

TEMPLATE = (
    "{% if tools %}<|tools|>{% for tool in tools %}{{ tool.function.name }}\n{% endfor %}"
    "{% endif %}"
    "{% for message in messages %}<|{{ message.role }}|>"
    "{% for call in message.tool_calls or [] %}<tool_call>\n"
    '{"name": "{{ call.function.name }}", "arguments": {{ call.function.arguments | tojson }}}\n</tool_call>'
    "{% endfor %}{{ message.content or '' }}\n{% endfor %}<|assistant|>"
)
WEATHER: Any = {
    "type": "function",
    "function": {
        "name": "weather",
        "description": "The weather of a city.",
        "parameters": {
            "type": "object",
            "properties": {"city": {"enum": ["Rome", "Oslo"]}, "days": {"type": "integer", "minimum": 1, "maximum": 9}},
            "required": ["city"],
            "additionalProperties": False,
        },
    },
}
QUESTION = {"role": "user", "content": "How is it in Rome?"}
CALL = {"name": "weather", "arguments": {"city": "Rome"}}
CALLING = 'I look.\n<tool_call>\n{"name": "weather", "arguments": {"city": "Rome"}}\n</tool_call>'
SAYING = "It is warm in Rome."


def save_tool_model(folder: Path) -> Path:
    """Train it (some seconds) and write it to `folder`."""
    torch.set_num_threads(1)
    tokenizer = learn_tokenizer([TEMPLATE, CALLING, SAYING] * 3, 400)
    tokenizer.chat_template = TEMPLATE
    called = {"role": "assistant", "tool_calls": [{"type": "function", "function": CALL}]}
    told = {"role": "tool", "tool_call_id": "1", "content": "warm"}
    samples = [([QUESTION], CALLING), ([QUESTION, called, told], SAYING)]
    rows: list[tuple[list[int], int]] = []
    for messages, answer in samples:
        prompt = str(
            tokenizer.apply_chat_template(messages, tools=[WEATHER], tokenize=False, add_generation_prompt=True)
        )
        start = len(tokenizer.encode(prompt))
        rows.append((tokenizer.encode(prompt) + tokenizer.encode(answer + END), start))
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=64,
        intermediate_size=128,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=1024,
        bos_token_id=None,
        eos_token_id=tokenizer.convert_tokens_to_ids(END),
    )
    model = LlamaForCausalLM(config)
    optimizer = torch.optim.AdamW(model.parameters(), lr=5e-3)
    for _ in range(200):
        losses = []
        for tokens, start in rows:
            ids = torch.tensor([tokens])
            labels = ids.clone()
            labels[:, :start] = -100
            losses.append(model(input_ids=ids, labels=labels).loss)
        loss = torch.stack(losses).sum()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        if loss.item() < 0.05:
            break
    else:
        raise AssertionError("it has not learnt its words")
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder
