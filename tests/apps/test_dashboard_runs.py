"""What the page *Runs* reads and shows: a log that grows, curves over time and bytes, idle seats, and known runs."""

import json
from pathlib import Path
from typing import Any

import pytest

from farflung.apps.dashboard.run_log import RunLog
from farflung.apps.dashboard.runs_page import chart_options
from farflung.apps.dashboard.runs_view import Curve, bytes_at, curves, quantities, view_of
from farflung.apps.runs.known import known_runs, remember

RUN = '[run]\nkind = "pretrain"\nname = "first"\n'


def report(seconds: float, seat: str = "east-worker-0", **more: Any) -> dict[str, Any]:
    return {
        "kind": "report",
        "seconds": seconds,
        "seat": seat,
        "region": seat.split("-", maxsplit=1)[0],
        "num_steps": 1,
        "num_tokens": 10,
        "loss": None,
        **more,
    }


def counted(seconds: float, num_bytes: int) -> dict[str, Any]:
    links = [
        {"from": "east", "to": "west", "bytes": num_bytes},
        {"from": "east", "to": "east", "bytes": 10 * num_bytes},
    ]
    return {"kind": "bytes", "seconds": seconds, "links": links}


def run_in(folder: Path, *entries: dict[str, Any]) -> RunLog:
    (folder / "run.toml").write_text(RUN)
    write(folder, *entries)
    log = RunLog.open(folder)
    log.read()
    return log


def write(folder: Path, *entries: dict[str, Any]) -> None:
    with (folder / "log.jsonl").open("a") as file:
        file.writelines(json.dumps(entry) + "\n" for entry in entries)


def test_a_log_is_read_as_it_grows_and_half_a_line_is_left(tmp_path: Path) -> None:
    log = run_in(tmp_path, report(1.0, loss=5.0))
    assert (len(log.history.points), log.version, log.state) == (1, 1, "runs")
    with (tmp_path / "log.jsonl").open("a") as file:
        file.write('{"kind": "rep')
    log.read()
    assert (len(log.history.points), log.version) == (1, 1)
    with (tmp_path / "log.jsonl").open("a") as file:
        file.write('orted"}\n')
    write(tmp_path, report(2.0), {"kind": "decision", "seconds": 2.0, "seat": "east-worker-0", "decision": "fewer"})
    log.read()
    assert (len(log.history.points), log.version) == (2, 2)
    assert [decided.sentence for decided in view_of(log).decisions] == ["fewer"]


def test_a_log_that_was_begun_anew_is_read_anew(tmp_path: Path) -> None:
    log = run_in(tmp_path, report(1.0), report(2.0))
    (tmp_path / "log.jsonl").write_text("")
    log.read()
    assert log.history.points == []


def test_the_end_of_a_run_is_told(tmp_path: Path) -> None:
    log = run_in(tmp_path, report(1.0))
    (tmp_path / "summary.json").write_text("{}")
    log.read()
    assert log.state == "has ended"


@pytest.mark.parametrize(("text", "sentence"), [(None, "there is no run"), ("[run]", "is not the file of a run")])
def test_a_folder_without_a_run_is_refused(text: str | None, sentence: str, tmp_path: Path) -> None:
    if text is not None:
        (tmp_path / "run.toml").write_text(text)
    with pytest.raises(ValueError, match=sentence):
        RunLog.open(tmp_path)


def test_a_damaged_log_is_told_in_a_sentence(tmp_path: Path) -> None:
    (tmp_path / "log.jsonl").write_text("no JSON\n")
    with pytest.raises(ValueError, match="is not the log of a run"):
        run_in(tmp_path)


def test_curves_are_per_region_over_seconds_or_bytes(tmp_path: Path) -> None:
    log = run_in(
        tmp_path,
        report(1.0, loss=5.0),
        counted(1.0, 100),
        report(2.0, loss=4.0),
        report(2.0, "west-worker-1", loss=6.0),
        report(3.0, loss=None),
        counted(3.0, 300),
    )
    assert curves(log, "loss", "time") == (Curve("east", ((1.0, 5.0), (2.0, 4.0))), Curve("west", ((2.0, 6.0),)))
    assert curves(log, "loss", "bytes") == (Curve("east", ((100.0, 5.0), (200.0, 4.0))), Curve("west", ((200.0, 6.0),)))
    assert curves(log, "reward", "time") == ()


def test_bytes_between_two_counts_lie_on_the_line_between_them() -> None:
    totals = [(1.0, 100.0), (3.0, 300.0)]
    assert [bytes_at(totals, seconds) for seconds in (0.5, 1.0, 2.0, 3.0, 9.0)] == [50.0, 100.0, 200.0, 300.0, 300.0]
    assert bytes_at([], 5.0) == 0.0


def test_what_is_plotted_first_is_the_reward_and_waiting_is_no_curve(tmp_path: Path) -> None:
    values = {"pass_rate": 0.5, "reward": 1.0, "waited_for_tasks": 3.0}
    log = run_in(tmp_path, report(10.0, loss=1.0, staleness=2.0, values=values))
    assert quantities(log.history) == ["reward", "loss", "pass_rate", "staleness"]
    assert ("1.000", "reward") in view_of(log).tiles


def test_idle_seats_say_how_much_and_why(tmp_path: Path) -> None:
    waited = {"waited_for_tasks": 3.0, "waited_for_weights": 1.0}
    log = run_in(
        tmp_path,
        report(10.0, values=waited, waiting_seconds=4.0),
        report(10.0, "west-worker-1", waiting_seconds=2.5),
        report(10.0, "west-worker-2"),
    )
    assert [seat.idle for seat in view_of(log).seats] == ["40%, mostly for tasks", "25%", "0 %"]


def test_links_are_told_with_the_busiest_as_measure(tmp_path: Path) -> None:
    view = view_of(run_in(tmp_path, report(1.0), counted(1.0, 100)))
    assert [(row.name, row.num_bytes, row.share) for row in view.links] == [
        ("east → west", 100, 0.1),
        ("east", 1000, 1.0),
    ]
    assert ("100 B", "sent") in view.tiles


def test_the_chart_shows_bytes_in_units_that_people_read() -> None:
    options = chart_options([Curve("east", ((0.0, 5.0), (2e6, 4.0)))], "loss", "bytes")
    assert options["xAxis"]["name"] == "MB sent"
    assert options["series"][0]["data"] == [[0.0, 5.0], [2.0, 4.0]]


def test_runs_led_here_are_found_as_long_as_they_are_there(tmp_path: Path) -> None:
    assert known_runs() == []
    for name in ("one", "two"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "run.toml").write_text(RUN)
        remember(tmp_path / name)
        remember(tmp_path / name)
    remember(tmp_path / "gone")
    assert sorted(known_runs()) == [tmp_path / "one", tmp_path / "two"]


def test_a_home_that_takes_nothing_costs_a_run_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("FARFLUNG_HOME", str(tmp_path / "file"))
    remember(tmp_path)
    assert known_runs() == []
