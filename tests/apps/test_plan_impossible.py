"""Plans that cannot be: each ends in one sentence that says why, by how much, and the way out."""

import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest
import torch

from farflung.apps.cli import main
from farflung.apps.plan.plan_file import plan_of
from farflung.apps.plan.planning import make_plan
from farflung.apps.plan.sizes import Sizes, sizes_of

SMALL: dict[str, Any] = {
    "model": {"parameters": 1e8, "layers": 8, "hidden_size": 512},
    "sites": [{"name": "east"}, {"name": "west"}],
    "machines": [{"site": "east", "device": "L4", "count": 2}, {"site": "west", "device": "L4", "count": 2}],
}
LARGE = {"parameters": 4e11, "layers": 120, "hidden_size": 16384}
THIN = {"bandwidth_mbit": 0.001, "round_trip_ms": 5000.0}
GOALS: dict[str, dict[str, Any]] = {
    "serve": {"kind": "serve", "users": 2},
    "pretrain": {"kind": "pretrain", "tokens": 10_000_000},
    "finetune": {"kind": "finetune", "examples": 1000},
    "align": {"kind": "align", "updates": 10},
}


@pytest.fixture(scope="module")
def sizes() -> Callable[[Mapping[str, Any]], Sizes]:
    """Of a model, each looked at once."""
    torch.set_num_threads(1)
    known: dict[str, Sizes] = {}

    def found(table: Mapping[str, Any]) -> Sizes:
        return known.setdefault(str(table), sizes_of(table))

    return found


@pytest.mark.parametrize("kind", GOALS)
def test_too_little_memory_says_how_much_is_short(kind: str, sizes: Callable[..., Sizes]) -> None:
    with pytest.raises(ValueError, match=r"this goal cannot be reached: .* [GT]B.* [GT]B short"):
        make_plan(plan_of({**SMALL, "model": LARGE, "goal": GOALS[kind]}), sizes(LARGE))


def tried(goal: Mapping[str, Any], sizes: Callable[..., Sizes], **changes: Any) -> dict[str, str]:
    """What cannot work of a plan, and why."""
    plan = plan_of({**SMALL, "goal": goal, "default_link": THIN, **changes})
    return {method("en"): reason for method, reason in make_plan(plan, sizes(SMALL["model"])).left_out}


def test_links_too_thin_for_rounds_are_named_with_what_they_would_need(sizes: Callable[..., Sizes]) -> None:
    left_out = tried(GOALS["pretrain"], sizes)
    rounds = ("ddp", "local_adam", "diloco", "diloco_dynamic", "desloc", "farflung")
    assert set(left_out) == {f"{name} over all sites" for name in rounds}
    wanted = {"farflung": "more than 2,000 works: it has 0.001 Mbit/s and needs ", "ddp": "needs 0.0032"}
    for name, words in wanted.items():
        assert words in left_out[f"{name} over all sites"]
        assert "between west and east" in left_out[f"{name} over all sites"]


def test_links_too_thin_for_prompts_are_named_with_how_long_one_would_take(sizes: Callable[..., Sizes]) -> None:
    left_out = tried({**GOALS["serve"], "prompt_tokens": 2048}, sizes)
    assert left_out
    for reason in left_out.values():
        assert re.search(r"2048 tokens of a prompt take .* h from \w+ to a server in \w+ and back.*: widen", reason)


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["finetune", "align"])
def test_links_too_thin_leave_what_does_without_them(kind: str, sizes: Callable[..., Sizes]) -> None:
    plan = plan_of({**SMALL, "goal": GOALS[kind], "default_link": THIN})
    best = make_plan(plan, sizes(SMALL["model"])).outcomes[0]
    assert best.bytes_between_sites == 0


REFUSED = [
    ("[model]\npath = '/nowhere/model'", "there is no folder '/nowhere/model': give the path of"),
    ("[model]\npath = 'HERE'", "has no configuration that transformers can read"),
    ("[model]\nmodel_type = 'llama'\nhidden_size = 64\nnum_attention_heads = 7", "not a multiple of the number of"),
    ("[model]", "[model] says nothing: give path, or parameters, layers and hidden_size"),
    ("[model]\nmodel_type = 'lama'", "did you mean 'llama'?"),
]


@pytest.mark.parametrize(("model", "sentence"), REFUSED)
def test_what_is_no_model_is_said_in_a_sentence(
    model: str, sentence: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "plan.toml"
    places = '[[sites]]\nname = "east"\n[[machines]]\nsite = "east"\ndevice = "L4"\n[goal]\nkind = "serve"\n'
    path.write_text(places + model.replace("HERE", str(tmp_path)) + "\n")
    assert sentence in refusal(path, capsys)


def test_a_file_that_is_no_plan_is_said_in_a_sentence(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    files = {"empty": b"", "photograph": b"\xff\xd8\xff", "broken": b"[goal\n", "aimless": b"[goal]\nusers = 1\n"}
    for name, content in files.items():
        (tmp_path / name).write_bytes(content)
    said = {name: refusal(tmp_path / name, capsys) for name in (*files, "none", ".")}
    assert "the plan has no [[sites]]" in said["empty"] and "the plan has no" in said["aimless"]
    assert "is no text: give a TOML file" in said["photograph"] and "is not TOML" in said["broken"]
    assert "there is no file" in said["none"] and "is a folder: give the name of a TOML file" in said["."]


def refusal(path: Path, capsys: pytest.CaptureFixture[str]) -> str:
    """The one line with which the command refuses a plan."""
    with pytest.raises(SystemExit) as ended:
        main(["plan", str(path)])
    told = capsys.readouterr().err
    assert ended.value.code == 2 and told.startswith("farflung: ") and told.count("\n") == 1, told
    return told
