"""[model] of a run file is checked by the text of a configuration as by transformers itself."""

import re
from dataclasses import fields
from typing import Any

import pytest
from transformers import CONFIG_MAPPING

from farflung.apps.pretrain.model_table import check_model_table, keys_declared

USUAL = ["llama", "qwen3", "gpt2", "mistral", "gpt_neox", "olmo2"]
OFTEN_SET = {"hidden_size", "num_hidden_layers", "num_attention_heads", "vocab_size"}


def fields_of(family: str) -> set[str]:
    return {field.name for field in fields(CONFIG_MAPPING[family])}


@pytest.mark.parametrize("family", USUAL)
def test_the_text_of_a_usual_family_declares_its_keys(family: str) -> None:
    declared = keys_declared(family)
    assert declared <= fields_of(family)
    renamed = set(CONFIG_MAPPING[family].attribute_map)  # GPT-2 calls them by names of its own
    assert declared >= OFTEN_SET - renamed


@pytest.mark.slow
def test_no_text_declares_a_key_that_transformers_does_not_know() -> None:
    declared = {family: keys_declared(family) for family in CONFIG_MAPPING}
    assert sum(1 for keys in declared.values() if keys) > 400
    wrong = {family: keys - fields_of(family) for family, keys in declared.items()}
    assert not {family: keys for family, keys in wrong.items() if keys}


@pytest.mark.parametrize("table", [{"id2label": {"0": "no"}}, {"model_type": "gemma3_text", "hidden_size": 64}, {}])
def test_what_the_text_does_not_declare_is_taken_where_transformers_knows_it(table: dict[str, Any]) -> None:
    check_model_table(table)


@pytest.mark.parametrize(
    ("table", "sentence"),
    [
        ({"hiden_size": 64}, "unknown key 'hiden_size' in [model]: did you mean 'hidden_size'?"),
        ({"model_type": "lama"}, "did you mean 'llama'?"),
        ({"model_type": "lama", "hidden_size": 64}, "did you mean 'llama'?"),
        ({"model_type": "../llama", "hidden_size": 64}, "family of models"),
        ({"path": "there", "hidden_size": 64}, "take 'hidden_size' out"),
    ],
)
def test_what_is_no_model_is_refused(table: dict[str, Any], sentence: str) -> None:
    with pytest.raises(ValueError, match=re.escape(sentence)):
        check_model_table(table)
