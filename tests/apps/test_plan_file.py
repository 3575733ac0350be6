"""Plan files: what is read, what is refused, and how."""

import re
import tomllib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from farflung.apps.cli import main
from farflung.apps.plan.changes import with_link, with_machines
from farflung.apps.plan.devices import DEVICES, FLOPS_SHARE
from farflung.apps.plan.fleet import machines_of
from farflung.apps.plan.goals import GOALS
from farflung.apps.plan.plan_file import LinkSettings, load_plan, plan_of
from farflung.apps.plan.words import WORDS, said

EXAMPLE = Path(__file__).parents[2] / "examples" / "plan.toml"
SMALL: dict[str, Any] = {
    "goal": {"kind": "serve", "users": 2},
    "model": {"parameters": 1e9, "layers": 16, "hidden_size": 2048},
    "sites": [{"name": "east"}, {"name": "west"}],
    "machines": [{"site": "east", "device": "L4", "count": 2}, {"site": "west", "device": "t4"}],
}


def test_the_example_is_read() -> None:
    plan = load_plan(EXAMPLE)
    assert plan.site_names == ["eu", "us", "jp"]
    assert len(machines_of(plan)) == 12
    assert plan.link("us", "eu").bandwidth_mbit == 400
    assert plan.link("us", "jp") == plan.default_link


def test_a_value_is_changed_on_the_command_line() -> None:
    assert load_plan(EXAMPLE, ("goal.users=3",)).goal.users == 3  # pyright: ignore[reportAttributeAccessIssue]


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        ({"goals": {}}, "did you mean 'goal'"),
        ({"goal": {"kind": "sing"}}, "unknown goal 'sing'"),
        ({"goal": {"kind": "serve", "user": 2}}, "did you mean 'users'"),
        ({"goal": {"kind": "serve", "users": 0}}, "users must be at least 1"),
        ({"goal": {"kind": "serve", "users_at": ["noth"]}}, "unknown site 'noth'"),
        ({"machines": [{"site": "eastt", "device": "L4"}]}, "did you mean 'east'"),
        ({"machines": [{"site": "east", "device": "L5"}]}, "did you mean 'L4'"),
        ({"machines": [{"site": "east", "device": "L4", "memory_gb": -1}]}, "memory_gb must be positive"),
        ({"machines": []}, "at least one site and one machine"),
        ({"sites": [{"name": "east"}, {"name": "east"}]}, "two sites 'east'"),
        ({"links": [{"between": ["east", "east"]}]}, "joins 'east' with itself"),
        ({"links": [{"between": ["east", "west"]}] * 2}, "two links between 'east' and 'west'"),
        ({"default_link": {"bandwidth_mbit": 0}}, "bandwidth_mbit must be positive"),
        ({"default_link": {"round_trip_ms": -1}}, "round_trip_ms must be finite and not negative"),
        ({"links": [{"between": ["east", "mars"]}]}, "unknown site 'mars'"),
        ({"machines": [{"site": "east", "device": "L4", "watts": -5}]}, "watts must be finite and not negative"),
        ({"goal": {"users": 2}}, 'does not say what for: write kind = "serve"'),
        ({"goal": {"kind": "pretrain", "days_max": float("inf")}}, "days_max must be positive and finite"),
        ({"goal": {"kind": "pretrain", "days_max": -1}}, "days_max must be positive"),
    ],
)
def test_mistakes_end_in_a_sentence(change: Mapping[str, Any], sentence: str) -> None:
    with pytest.raises(ValueError, match=sentence):
        plan_of({**SMALL, **change})


@pytest.mark.parametrize("name", ["sites", "machines", "model", "goal"])
def test_what_is_missing_is_named(name: str) -> None:
    with pytest.raises(ValueError, match=f"has no .*{name}.*examples/plan.toml"):
        plan_of({key: value for key, value in SMALL.items() if key != name})


def test_speeds_are_measured_or_looked_up() -> None:
    looked_up = machines_of(plan_of(SMALL))[0]
    assert looked_up.flops == DEVICES["L4"].flops * FLOPS_SHARE
    # A block of 10 million values of 2 bytes, read at 60 % of 300 GB/s.
    assert looked_up.blocks_per_second(10_000_000) == pytest.approx(0.6 * 300e9 / 20e6)
    assert not looked_up.is_measured_for("serve")
    given = [{"site": "east", "device": "L4", "blocks_per_second": 77.0}]
    measured = machines_of(plan_of({**SMALL, "machines": given}))[0]
    assert measured.blocks_per_second(10_000_000) == 77.0
    assert measured.is_measured_for("serve")


def test_a_device_of_no_table_is_taken_as_described() -> None:
    given = [{"site": "east", "device": "own", "flops": 1e12, "memory_gb": 8, "dtype": "float16"}]
    (machine,) = machines_of(plan_of({**SMALL, "machines": given}))
    assert (machine.flops, machine.memory_bytes, machine.value_bytes) == (1e12, 8e9, 2)


def test_changes_leave_the_rest_of_the_plan_alone() -> None:
    plan = plan_of(SMALL)
    wider = with_link(plan, "west", "east", LinkSettings(bandwidth_mbit=7))
    assert wider.link("east", "west").bandwidth_mbit == 7
    assert plan.link("east", "west").bandwidth_mbit == plan.default_link.bandwidth_mbit
    more = with_machines(plan, "west", "t4", 1)
    assert [one.count for one in more.machines] == [2, 2]


def test_everything_is_said_in_both_languages() -> None:
    for key, (english, japanese) in WORDS.items():
        assert bool(english) == bool(japanese), key
        holes = [part.split("}")[0].split(":")[0] for part in english.split("{")[1:]]
        others = [part.split("}")[0].split(":")[0] for part in japanese.split("{")[1:]]
        assert sorted(holes) == sorted(others), key
    assert said("some sites", sites="a, b")("ja") == "a, b のみのスウォーム"


def test_the_command_refuses_before_it_works(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    commands = (
        [str(EXAMPLE), "--language", "fr"],
        [str(EXAMPLE), "--html", str(tmp_path / "none" / "report.html")],
        [str(EXAMPLE), "--json", str(tmp_path)],
        [str(tmp_path / "none.toml")],
        [str(EXAMPLE), "--set", "goal.users=0"],
    )
    for words in commands:
        with pytest.raises(SystemExit) as ended:
            main(["plan", *words])
        assert ended.value.code == 2, words
        told = capsys.readouterr().err
        assert told.startswith("farflung: ") and told.count("\n") == 1, words


def test_the_page_s_plan_and_all_goals_on_it_are_read() -> None:
    page = (EXAMPLE.parents[1] / "docs" / "plan.md").read_text(encoding="utf-8")
    whole, *others = [tomllib.loads(shown) for shown in re.findall(r"^```toml\n(.*?)^```$", page, re.M | re.S)]
    found = [plan_of({**whole, **other}) for other in ({}, *others)]
    assert [plan.kind for plan in found] == ["finetune", *GOALS]
    assert len(machines_of(found[0])) == 4
