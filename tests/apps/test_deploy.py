"""deploy/: files that their programs take, and commands in them that this command line takes."""

import re
import shlex
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import typer
import yaml

from farflung.apps import cli
from tests.apps.processes import ROOT

DEPLOY = ROOT / "deploy"
UNITS = sorted((DEPLOY / "systemd").glob("*.service"))
COMPOSE = DEPLOY / "compose.yaml"
KUBERNETES = DEPLOY / "kubernetes.yaml"


def parse(words: list[str]) -> None:
    """As the command line reads them, without doing anything.

    Raises:
        typer.TyperException: an unknown command or option, or a value of a wrong type.
    """
    command: Any = typer.main.get_command(cli.app)
    context = command.make_context("farflung", list(words))
    while hasattr(command, "commands"):
        name, command, rest = command.resolve_command(context, [*context._protected_args, *context.args])
        context = command.make_context(name, rest, parent=context)


def of_units() -> Iterator[tuple[str, list[str]]]:
    """What systemd starts."""
    for unit in UNITS:
        (line,) = re.findall(r"^ExecStart=/opt/farflung/bin/farflung (.*)$", unit.read_text(), re.MULTILINE)
        yield unit.name, [word for word in shlex.split(line) if word != "$OPTIONS"]


def of_compose() -> Iterator[tuple[str, list[str]]]:
    """What the services of Compose start, those in scripts too."""
    for name, service in yaml.safe_load(COMPOSE.read_text())["services"].items():
        if service["image"] != "farflung":
            continue
        if "command" in service:
            yield name, [re.sub(r"\$\{(\w+)[^}]*\}", r"\1", word) for word in service["command"]]
        for script in service.get("entrypoint", [])[2:]:
            for line in re.findall(r"\bfarflung ((?:invite|api)[^)\n]*)", script):
                yield name, shlex.split(re.sub(r"\"\$\$\(.*", "TICKET", line))


def of_kubernetes() -> Iterator[tuple[str, list[str]]]:
    """What containers of Kubernetes start."""
    for document in yaml.safe_load_all(KUBERNETES.read_text()):
        for container in document.get("spec", {}).get("template", {}).get("spec", {}).get("containers", []):
            yield document["metadata"]["name"], container["args"]


COMMANDS = [*of_units(), *of_compose(), *of_kubernetes()]


@pytest.mark.parametrize(("name", "words"), COMMANDS, ids=[f"{name}-{words[0]}" for name, words in COMMANDS])
def test_commands_are_those_of_this_command_line(name: str, words: list[str]) -> None:
    parse(words)


def test_a_command_that_there_is_not_would_be_found() -> None:
    assert len(COMMANDS) == 3 + 3 + 3
    for words in (["serve", "MODEL", "--metrix", "1"], ["serf"], ["api", "--port", "many"], ["config", "chek"]):
        with pytest.raises(typer.TyperException):
            parse(words)


@pytest.mark.skipif(shutil.which("systemd-analyze") is None, reason="no systemd here")
@pytest.mark.parametrize("unit", UNITS, ids=[unit.name for unit in UNITS])
def test_systemd_takes_the_units(unit: Path, tmp_path: Path) -> None:
    # The program need not be installed here; everything else must be as systemd wants it.
    text = unit.read_text().replace("/opt/farflung/bin/farflung", "/bin/true")
    (tmp_path / unit.name).write_text(text)
    assert verified(tmp_path / unit.name) == ""
    (tmp_path / unit.name).write_text(text.replace("Restart=", "Restarrt="))
    assert "Restarrt" in verified(tmp_path / unit.name)


def verified(path: Path) -> str:
    """What systemd has to say about this unit."""
    command = ["systemd-analyze", "verify", "--man=no", "--recursive-errors=no", str(path)]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=60)
    return "".join(line for line in done.stderr.splitlines(keepends=True) if path.name in line or "farflung" in line)


def test_what_is_mounted_and_copied_is_there() -> None:
    compose = yaml.safe_load(COMPOSE.read_text())
    for service in compose["services"].values():
        for volume in service.get("volumes", []):
            source = volume.partition(":")[0]
            assert (DEPLOY / source).exists() if source.startswith(".") else source in compose["volumes"], volume
    docker = (DEPLOY / "Dockerfile").read_text()
    ignored = (DEPLOY / "Dockerfile.dockerignore").read_text().splitlines()
    copied = [word for line in re.findall(r"^COPY (?!--from)(.*) \S+$", docker, re.MULTILINE) for word in line.split()]
    assert copied and all((ROOT / name).exists() and f"!{name}" in ignored for name in copied)


def test_prometheus_asks_ports_that_services_have() -> None:
    services = yaml.safe_load(COMPOSE.read_text())["services"]
    (job,) = yaml.safe_load((DEPLOY / "prometheus.yaml").read_text())["scrape_configs"]
    for target in job["static_configs"][0]["targets"]:
        host, port = target.split(":")
        words = " ".join([*services[host].get("command", []), *services[host].get("entrypoint", [])])
        assert re.search(rf"(--metrics=\S*:|--port ){port}\b", words), target
    source = yaml.safe_load((DEPLOY / "grafana-datasource.yaml").read_text())["datasources"][0]
    assert source["url"].split("/")[2].split(":")[0] in services


def test_kubernetes_objects_refer_to_each_other() -> None:
    documents = list(yaml.safe_load_all(KUBERNETES.read_text()))
    assert [one["kind"] for one in documents].count("Service") == 2
    labels = [one["spec"]["template"]["metadata"]["labels"] for one in documents if "template" in one.get("spec", {})]
    for one in documents:
        selector = one.get("spec", {}).get("selector")
        if selector is not None:
            assert selector.get("matchLabels", selector) in labels, one["metadata"]["name"]
        template = one.get("spec", {}).get("template", {})
        for container in template.get("spec", {}).get("containers", []):
            ports = {port["name"]: str(port["containerPort"]) for port in container["ports"]}
            told = template["metadata"]["annotations"]["prometheus.io/port"]
            assert told in ports.values() and any(word.endswith(told) for word in container["args"])
            probe = container.get("readinessProbe", {"httpGet": {"port": next(iter(ports))}})
            assert probe["httpGet"]["port"] in ports
