"""`farflung journal`: every command on journals of a real model folder, and the sentences for what is wrong."""

import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, LlamaForCausalLM
from typer.testing import CliRunner

from farflung.apps.cli import app
from farflung.systems.onebyte.header import Header
from farflung.systems.onebyte.quantised import round_to_quantised_
from tests.onebyte_journals import header_for, identity_of, invented_journal, tiny_model


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A base model, a journal of it, a branch of that journal, and a journal of another run."""
    model = tiny_model()
    model.save_pretrained(tmp_path / "base")
    header = header_for(model, base_name="tiny")
    write(tmp_path / "a.flj", header)
    write(tmp_path / "branch.flj", header, fork_at=3)
    write(tmp_path / "other.flj", header_for(model, ["attention"], run=bytes([7] * 16)))
    return tmp_path


def write(path: Path, header: Header, **options: object) -> None:
    path.write_bytes(invented_journal(header, **options).content)  # type: ignore[arg-type]


def journal(*arguments: object) -> str:
    """What the command prints; its mistake, if it makes one."""
    done = CliRunner().invoke(app, ["journal", *map(str, arguments)])
    if done.exception is not None:
        raise done.exception
    return " ".join(done.output.split())


def weights(folder: Path) -> dict[str, torch.Tensor]:
    """The tensors of a model folder."""
    model = AutoModelForCausalLM.from_pretrained(folder)
    assert isinstance(model, LlamaForCausalLM)
    return {name: tensor.detach() for name, tensor in model.named_parameters()}


def replayed(folder: Path, name: str) -> dict[str, torch.Tensor]:
    target = folder / f"model-{name}"
    shutil.rmtree(target, ignore_errors=True)
    said = journal("replay", folder / f"{name}.flj", "--base", folder / "base", "-o", target)
    assert "replayed in" in said and "state " in said
    return weights(target)


def update(folder: Path, name: str) -> dict[str, torch.Tensor]:
    """How far a journal moves each tensor."""
    base, tuned = weights(folder / "base"), replayed(folder, name)
    return {tensor: tuned[tensor].double() - base[tensor].double() for tensor in base}


def require_close(found: dict[str, torch.Tensor], *terms: dict[str, torch.Tensor]) -> None:
    for name, tensor in found.items():
        expected = sum(term[name] for term in terms)
        assert isinstance(expected, torch.Tensor)
        torch.testing.assert_close(tensor, expected, rtol=0, atol=2e-7)


def test_verify_and_show(folder: Path) -> None:
    assert "is right and is about this model" in journal("verify", folder / "a.flj", "--base", folder / "base")
    said = journal("verify", folder / "a.flj")
    assert "6 rounds, 68 entries, all signed" in said
    described = json.loads(CliRunner().invoke(app, ["journal", "show", str(folder / "a.flj"), "--json"]).output)
    (run,) = described
    assert run["entries"] == 68 and run["closed"] and run["base"] == "tiny" and run["parameters"] > 10_000
    assert [each["name"] for each in run["participants"]] == ["node-0", "node-1", "node-2"]
    assert [each["entries"] for each in run["participants"]] == [24, 24, 20]
    assert run["participants"][1]["peer"] == identity_of(1).peer
    table = journal("show", folder / "a.flj")
    assert "node-2" in table and "rank1" in table


def test_replay_gives_a_model_that_serves(folder: Path) -> None:
    moved = update(folder, "a")
    assert all(tensor.abs().max() > 1e-4 for tensor in moved.values())
    assert {path.name for path in folder.iterdir()} >= {"model-a"}
    assert not [path for path in folder.iterdir() if path.name.startswith(".")]


def test_revoking_everybody_gives_the_base_model_back(folder: Path) -> None:
    journal("revoke", folder / "a.flj", "node-1", "-o", folder / "two.flj", "--reason", "noise")
    journal("revoke", folder / "two.flj", "0", "-o", folder / "one.flj")
    journal("revoke", folder / "one.flj", identity_of(2).peer[:8], "-o", folder / "none.flj")
    for name, tensor in replayed(folder, "none").items():
        assert torch.equal(tensor, weights(folder / "base")[name])
    shares = {name: update(folder, name) for name in ("a", "two", "one")}
    assert any(not torch.equal(shares["a"][name], shares["two"][name]) for name in shares["a"])
    with pytest.raises(ValueError, match=r"nothing that counts is from 'node-1': .*node-0, node-1, node-2"):
        journal("revoke", folder / "two.flj", "node-1", "-o", folder / "again.flj")
    assert "revoked" in journal("show", folder / "two.flj")
    assert "is right" in journal("verify", folder / "none.flj")
    said = json.loads(CliRunner().invoke(app, ["journal", "show", str(folder / "two.flj"), "--json"]).output)
    assert said[0]["revocations"] == [{"participant": 1, "first_round": 0, "end_round": 6, "reason": "noise"}]


def test_revoking_from_a_round_on(folder: Path) -> None:
    journal("revoke", folder / "a.flj", "node-0", "-o", folder / "late.flj", "--from-round", 4)
    said = json.loads(CliRunner().invoke(app, ["journal", "show", str(folder / "late.flj"), "--json"]).output)
    assert [each["entries_revoked"] for each in said[0]["participants"]] == [8, 0, 0]


def test_merging_adds_updates(folder: Path) -> None:
    journal("merge", folder / "a.flj", folder / "other.flj", "-o", folder / "sum.flj")
    require_close(update(folder, "sum"), update(folder, "a"), update(folder, "other"))
    assert "is right" in journal("verify", folder / "sum.flj")
    journal("revoke", folder / "sum.flj", "node-1", "-o", folder / "fewer.flj")
    assert "is right" in journal("verify", folder / "fewer.flj")


def test_merging_branches_counts_their_trunk_once(folder: Path) -> None:
    said = journal("diff", folder / "a.flj", folder / "branch.flj")
    assert "The first 3 rounds are the same; then a.flj has 3 of its own and branch.flj 3." in said
    journal("merge", folder / "a.flj", folder / "branch.flj", "-o", folder / "sum.flj")
    assert "2 runs with 9 rounds that count" in journal(
        "merge", folder / "branch.flj", folder / "a.flj", "-o", folder / "mus.flj"
    )
    sums = (replayed(folder, "sum"), replayed(folder, "mus"))
    assert all(torch.equal(sums[0][name], sums[1][name]) for name in sums[0])
    header = header_for(tiny_model(), base_name="tiny")
    write(folder / "trunk.flj", header, num_rounds=3)
    trunk, fork = update(folder, "trunk"), update(folder, "branch")
    require_close(update(folder, "sum"), update(folder, "a"), fork, {name: -tensor for name, tensor in trunk.items()})
    with pytest.raises(ValueError, match="holds all rounds of the second already"):
        journal("merge", folder / "a.flj", folder / "trunk.flj", "-o", folder / "same.flj")


def test_diff_compares_updates(folder: Path) -> None:
    same = journal("diff", folder / "a.flj", folder / "a.flj", "--tensors")
    assert "Both hold the same 6 rounds." in same and "1.0000" in same
    other = journal("diff", folder / "a.flj", folder / "other.flj")
    assert "run" in other and "The first 0 rounds are the same" in other


def test_exports(folder: Path) -> None:
    journal("export", folder / "a.flj", "-o", folder / "entries.jsonl")
    entries = [json.loads(line) for line in (folder / "entries.jsonl").read_text().splitlines()]
    assert len(entries) == 68 and {entry["participant"] for entry in entries} == {"node-0", "node-1", "node-2"}
    assert all((entry["coefficient"] > 0) == (entry["projection"] > 0) for entry in entries if entry["coefficient"])
    journal("export", folder / "a.flj", "-o", folder / "update.safetensors", "--format", "update")
    exported = {name: tensor.double() for name, tensor in load_file(folder / "update.safetensors").items()}
    require_close(update(folder, "a"), exported)


def test_a_journal_over_codes_is_replayed_over_what_they_stand_for(folder: Path) -> None:
    rounded = tiny_model()
    round_to_quantised_(rounded, "nf4")
    write(folder / "codes.flj", header_for(rounded, base_name="tiny", quantisation="nf4"))
    assert "is right and is about this model" in journal("verify", folder / "codes.flj", "--base", folder / "base")
    base = {name: tensor.detach() for name, tensor in rounded.named_parameters()}
    moved = {name: tensor.double() - base[name].double() for name, tensor in replayed(folder, "codes").items()}
    journal("export", folder / "codes.flj", "-o", folder / "update.safetensors", "--format", "update")
    exported = {name: tensor.double() for name, tensor in load_file(folder / "update.safetensors").items()}
    require_close(moved, exported)
    with pytest.raises(ValueError, match="only journals of one base model fit"):
        journal("merge", folder / "a.flj", folder / "codes.flj", "-o", folder / "x.flj")


def test_other_models_are_refused(folder: Path) -> None:
    tiny_model(seed=5).save_pretrained(folder / "stranger")
    for arguments in (
        ("verify", folder / "a.flj", "--base", folder / "stranger"),
        ("replay", folder / "a.flj", "--base", folder / "stranger", "-o", folder / "x"),
    ):
        with pytest.raises(ValueError, match="not the base model of the journal, which is tiny: the weights here"):
            journal(*arguments)
    assert not (folder / "x").exists()
    write(folder / "strange.flj", header_for(tiny_model(seed=5)))
    with pytest.raises(ValueError, match="only journals of one base model fit"):
        journal("merge", folder / "a.flj", folder / "strange.flj", "-o", folder / "x.flj")
    write(folder / "fine.flj", header_for(tiny_model(), exponent=24, run=bytes([3] * 16)))
    with pytest.raises(ValueError, match="only journals of one exponent"):
        journal("merge", folder / "a.flj", folder / "fine.flj", "-o", folder / "x.flj")


def test_an_unfinished_journal_is_taken_when_said(folder: Path) -> None:
    write(folder / "open.flj", header_for(tiny_model()), is_closed=False, seal_every=4)
    with pytest.raises(ValueError, match="no end after round 5"):
        journal("verify", folder / "open.flj")
    said = journal("verify", folder / "open.flj", "--unfinished")
    assert "the last entries of node-0, node-1, node-2 not signed yet" in said


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (("verify", "nowhere.flj"), "cannot be read"),
        (("show", "base"), "cannot be read"),
        (("verify", "base/config.json"), "is no journal"),
        (("replay", "a.flj", "--base", "nowhere/at/all", "-o", "x"), "no model that transformers can load"),
        (("replay", "a.flj", "--base", "base", "-o", "base"), "is there already"),
        (("merge", "a.flj", "other.flj", "-o", "a.flj"), "is there already"),
        (("merge", "a.flj", "other.flj", "-o", "no/folder/x.flj"), "cannot be written"),
        (("export", "a.flj", "-o", "x", "--format", "pickle"), "--format must be one of"),
        (("export", "a.flj", "-o", "x", "--format", "adapter"), "give it with --base"),
        (("revoke", "a.flj", "nobody", "-o", "x.flj"), "nothing that counts is from 'nobody'"),
    ],
)
def test_mistakes_end_in_a_sentence(
    folder: Path, monkeypatch: pytest.MonkeyPatch, arguments: tuple[str, ...], sentence: str
) -> None:
    monkeypatch.chdir(folder)
    before = sorted(path.name for path in folder.iterdir())
    with pytest.raises(ValueError, match=sentence) as refusal:
        journal(*arguments)
    assert "\n" not in str(refusal.value)
    assert sorted(path.name for path in folder.iterdir()) == before


@pytest.mark.loopback
def test_a_damaged_file_ends_the_program_with_one_sentence(folder: Path) -> None:
    content = bytearray((folder / "a.flj").read_bytes())
    content[-40] ^= 1
    (folder / "a.flj").write_bytes(content)
    command = [sys.executable, "-m", "farflung", "journal", "verify", str(folder / "a.flj")]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 2
    (line,) = done.stderr.strip().splitlines()
    assert line.startswith("farflung: a.flj is damaged at record ")
