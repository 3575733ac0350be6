"""`farflung journal export --format adapter`: plain peft loads it, and computes what the tuned model computes."""

from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM, PreTrainedModel
from typer.testing import CliRunner

from farflung.apps.cli import app
from farflung.systems.onebyte.journal import read_journal
from farflung.systems.onebyte.replay import replay
from tests.families import FAMILIES, VOCABULARY
from tests.onebyte_journals import header_for, invented_journal

peft = pytest.importorskip("peft")
# What peft says about tied weights and transposed layers concerns merging, and it asks transformers by an old name.
pytestmark = [pytest.mark.filterwarnings("ignore::UserWarning"), pytest.mark.filterwarnings("ignore::FutureWarning")]


def export(folder: Path, output: str, rank: int) -> str:
    """What the command prints; its mistake, if it makes one."""
    files = [str(folder / "a.flj"), "-o", str(folder / output), "--base", str(folder / "base")]
    command = ["journal", "export", *files, "--format", "adapter", "--rank", str(rank)]
    done = CliRunner().invoke(app, command)
    if done.exception is not None:
        raise done.exception
    return " ".join(done.output.split())


def prepare(folder: Path, family: str, patterns: list[str]) -> PreTrainedModel:
    """A base model and its journal in a folder; the model that the journal stands for."""
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(FAMILIES[family]()).eval()
    model.save_pretrained(folder / "base")
    journal = invented_journal(header_for(model, patterns), num_rounds=2)
    (folder / "a.flj").write_bytes(journal.content)
    with (folder / "a.flj").open("rb") as file:
        replay(read_journal(file, name="a.flj"), dict(model.named_parameters()))
    return model


def logits_by_peft(folder: Path, adapter: str, tokens: torch.Tensor) -> torch.Tensor:
    base = AutoModelForCausalLM.from_pretrained(folder / "base")
    with torch.no_grad():
        return peft.PeftModel.from_pretrained(base, folder / adapter).eval()(input_ids=tokens).logits


@pytest.mark.parametrize(
    ("family", "patterns"),
    [("llama-tied", ["all"]), ("llama", ["attention", "norm"]), ("gpt2", ["*.attn.c_*.weight", "*.mlp.c_*.weight"])],
)
def test_plain_peft_computes_what_the_tuned_model_does(tmp_path: Path, family: str, patterns: list[str]) -> None:
    tuned = prepare(tmp_path, family, patterns)
    assert "of rank 24 that holds the whole update" in export(tmp_path, "whole", 24)
    tokens = torch.randint(2, VOCABULARY, (2, 9), generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        expected = tuned(input_ids=tokens).logits
        plain = AutoModelForCausalLM.from_pretrained(tmp_path / "base")(input_ids=tokens).logits
    assert (expected - plain).abs().max() > 1e-3, "the tune must matter"
    torch.testing.assert_close(logits_by_peft(tmp_path, "whole", tokens), expected, rtol=1e-5, atol=1e-5)


def test_a_lower_rank_says_what_it_leaves_out(tmp_path: Path) -> None:
    tuned = prepare(tmp_path, "llama", ["attention"])
    said = export(tmp_path, "low", 2)
    assert "of rank 2 that leaves out" in said and "holds all of it" in said
    share = float(said.split("leaves out ")[1].split("%")[0]) / 100
    base = AutoModelForCausalLM.from_pretrained(tmp_path / "base")
    found = peft.PeftModel.from_pretrained(base, tmp_path / "low").merge_and_unload()
    missing, whole = 0.0, 0.0
    for name, tensor in AutoModelForCausalLM.from_pretrained(tmp_path / "base").named_parameters():
        target = dict(tuned.named_parameters())[name]
        missing += float((dict(found.named_parameters())[name] - target).square().sum())
        whole += float((tensor - target).square().sum())
    assert (missing / whole) ** 0.5 == pytest.approx(share, abs=2e-3)


def test_what_adapters_cannot_hold_is_refused(tmp_path: Path) -> None:
    prepare(tmp_path, "gpt2", ["*.attn.c_attn.bias", "*.attn.c_attn.weight"])
    with pytest.raises(ValueError, match=r"c_attn.bias is neither a matrix .*--format update"):
        export(tmp_path, "x", 2)
    prepare(tmp_path, "llama", ["norm"])
    with pytest.raises(ValueError, match="tunes no matrix"):
        export(tmp_path, "x", 2)
    with pytest.raises(ValueError, match="--rank must be at least 1"):
        export(tmp_path, "x", 0)
    assert not (tmp_path / "x").exists()
