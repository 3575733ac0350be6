"""The page *Runs* in a browser, while a run goes on; no swarm is needed for it."""

import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from farflung.apps.fork_server import ForkServer
from tests.apps.runs import HALOS, ONE_SERVER, write_run
from tests.browser.conftest import PHONE_WIDTH, is_too_wide, start_dashboard
from tests.loopback.fleet import wait_until
from tests.loopback.pretraining import SECONDS_MAX, Command

pytestmark = pytest.mark.loopback

END_OF_PLOT = """(() => {
    const node = document.querySelector('.nicegui-echart');
    const chart = node && getElement(Number(node.id.slice(1)))?.chart;
    return chart?.getOption()?.series?.[0]?.data?.at(-1)?.[0] ?? 0;
})()"""
"""How far to the right the first line goes."""


def wait_plot_moves(page: Any) -> None:
    """Wait until the line is longer than it was."""
    page.wait_for_function(f"{END_OF_PLOT} > 0")
    before = page.evaluate(END_OF_PLOT)
    page.wait_for_function(f"{END_OF_PLOT} > {before}")


ONE_WORKER = ["--set", "regions=[{name='east', workers=1}]", "--set", "links=[]"]


@pytest.mark.parametrize(
    ("algorithm", "options", "link"),
    [
        pytest.param(ONE_SERVER, ONE_WORKER, "east", id="one site"),
        pytest.param(HALOS, [], "east → west", id="two sites", marks=pytest.mark.slow),
    ],
)
def test_the_plot_moves_while_a_run_goes_on(
    fleet: Any,
    forge: ForkServer,
    look: Callable[..., Any],
    photograph: Callable[..., None],
    tmp_path: Path,
    algorithm: str,
    options: list[str],
    link: str,
) -> None:
    path = write_run(tmp_path, algorithm=algorithm, tokens=10_000_000)
    command = Command(tmp_path, str(path), *options, forge=forge)
    try:
        wait_until(lambda: command.num_tokens > 0, "the run has begun")
        assert [kept.read_text().strip() for kept in (tmp_path / "home" / "runs").iterdir()] == [str(command.folder)]
        page = look(start_dashboard(fleet, "--run", str(command.folder)), width=PHONE_WIDTH)
        page.get_by_text("pretrain · runs").wait_for()
        wait_plot_moves(page)
        assert not is_too_wide(page)
        photograph(page, "run", page.get_by_text("pretrain · runs"))
        page.get_by_role("button", name="bytes").click()
        page.get_by_role("cell", name=link, exact=True).wait_for()
        wait_plot_moves(page)
        page.get_by_label("plot").click()
        page.get_by_role("option", name="staleness").click()
        wait_plot_moves(page)
        assert page.get_by_text("east-worker-0", exact=True).count() == 1
        assert page.get_by_role("tab").all_inner_texts() == ["Runs"]
    finally:
        command.send(signal.SIGKILL)  # nothing of it is to be saved
        command.process.wait(SECONDS_MAX)
