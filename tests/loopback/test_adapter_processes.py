"""Adapters over real processes: two at once through one HTTP interface, from Python, and one tuned through the chain,
while servers are killed; words, losses and gradients are those of plain peft."""

import re
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx
import pytest
import torch
from transformers import AutoTokenizer

from farflung.apps.library import AutoModelForCausalLM
from farflung.model.peft_files import save_adapter
from farflung.model.source import ModelSource
from tests.loopback.fleet import Fleet, Program, wait_until
from tests.loras import lora, saved_by_peft, under_peft

pytestmark = pytest.mark.loopback

PROMPT = "def main(arguments):\n"
NUM_TOKENS = 24
NUM_ASKED = 12


@pytest.fixture(scope="module")
def adapters(whole: Any, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Folders of two adapters as peft saves them, of other layers and ranks."""
    folders = {name: tmp_path_factory.mktemp(name) for name in ("one", "two")}
    saved_by_peft(whole, folders["one"], 1, target_modules="all-linear")
    saved_by_peft(whole, folders["two"], 2, r=2, target_modules=["q_proj", "down_proj"], use_rslora=True)
    return folders


@pytest.fixture(scope="module")
def answers(whole: Any, folder: Path, adapters: dict[str, Path]) -> dict[str, str]:
    """What one machine says, by the name of the adapter."""
    tokenizer = AutoTokenizer.from_pretrained(folder)
    ids = tokenizer(PROMPT, return_tensors="pt")["input_ids"]
    models = {"": whole, **{name: under_peft(whole, path) for name, path in adapters.items()}}
    said: dict[str, str] = {}
    for name, model in models.items():
        generated = model.generate(input_ids=ids, max_new_tokens=NUM_TOKENS, do_sample=False)
        said[name] = tokenizer.decode(generated[0, ids.shape[1] :], skip_special_tokens=True)
    assert len(set(said.values())) == 3, "each changes something"
    return said


def url_of(api: Program) -> str:
    wait_until(lambda: "/v1" in api.text or not api.is_alive, "the interface listens")
    found = re.search(r"http://\S+/v1", api.text)
    assert found is not None, api.text
    return found[0]


def test_two_adapters_and_none_answer_at_once_while_a_server_is_killed(
    fleet: Fleet, folder: Path, whole: Any, adapters: dict[str, Path], answers: dict[str, str]
) -> None:
    named = [text for name, path in adapters.items() for text in ("--adapter", f"{name}={path}")]
    api = fleet.start("api", str(folder), "--join", fleet.ticket(), "--port", "0", "--sessions", "12", *named)
    base = folder.name
    with httpx.Client(base_url=url_of(api), timeout=300) as client:
        listed = [model["id"] for model in client.get("models").raise_for_status().json()["data"]]
        assert listed == [base, f"{base}:one", f"{base}:two"]
        unknown = client.post("completions", json={"model": f"{base}:three", "prompt": PROMPT})
        assert unknown.status_code == 404 and f"{base}:one" in unknown.json()["error"]["message"]

        def ask(number: int) -> tuple[str, str]:
            name = ("", "one", "two")[number % 3]
            asked = {"prompt": PROMPT, "max_tokens": NUM_TOKENS, "temperature": 0}
            answer = client.post("completions", json={"model": f"{base}:{name}" if name else base, **asked})
            return name, answer.raise_for_status().json()["choices"][0]["text"]

        with ThreadPoolExecutor(NUM_ASKED) as users:
            asked = [users.submit(ask, number) for number in range(NUM_ASKED)]
            fleet.replace(fleet.servers[0])
            for future in asked:
                name, text = future.result()
                assert text == answers[name], name
        ids = AutoTokenizer.from_pretrained(folder)(PROMPT, return_tensors="pt")["input_ids"]
        for name in ("", "one"):
            asked_of = {"model": f"{base}:{name}" if name else base, "input": PROMPT}
            vector = client.post("embeddings", json=asked_of).raise_for_status().json()["data"][0]["embedding"]
            local = under_peft(whole, adapters[name]) if name else whole
            with torch.no_grad():
                mean_H = local(input_ids=ids, output_hidden_states=True).hidden_states[-1][0].mean(dim=0)
            assert vector == pytest.approx((mean_H / mean_H.norm()).tolist(), abs=1e-5), name
    api.kill()


def test_python_and_the_command_line_take_an_adapters_folder(
    fleet: Fleet, folder: Path, adapters: dict[str, Path], answers: dict[str, str]
) -> None:
    model: Any = AutoModelForCausalLM.from_pretrained(str(folder), swarm=fleet.ticket(), adapter=adapters["one"])
    tokenizer = AutoTokenizer.from_pretrained(folder)
    ids = tokenizer(PROMPT, return_tensors="pt")["input_ids"]
    generated = model.generate(ids, max_new_tokens=NUM_TOKENS, do_sample=False)
    assert tokenizer.decode(generated[0, ids.shape[1] :], skip_special_tokens=True) == answers["one"]
    common = ("generate", str(folder), "--join", fleet.ticket(), "--prompt", PROMPT, "--max-tokens", str(NUM_TOKENS))
    program = fleet.start(*common, "--adapter", str(adapters["two"]), "--draft", "lookup")
    assert program.status == 0 and program.text == answers["two"] + "\n"
    program = fleet.start(*common, "--adapter", str(folder))
    assert program.status == 2 and program.text.startswith(f"farflung: {folder} has no adapter_config.json")
    program = fleet.start("api", str(folder), "--join", fleet.ticket(), "--port", "0", "--adapter", "poems")
    assert program.status == 2 and "is not NAME=FOLDER" in program.text


def test_a_tune_goes_on_as_in_peft_while_servers_are_killed(
    fleet: Fleet, model: Any, whole: Any, folder: Path, tmp_path: Path
) -> None:
    source = ModelSource.open(str(folder))
    adapter = lora(source, targets=["q_proj", "v_proj"])
    save_adapter(adapter, tmp_path / "before")
    theirs = under_peft(whole, tmp_path / "before", is_trainable=True)
    batch = torch.randint(2, whole.config.vocab_size, (4, 12), generator=torch.Generator().manual_seed(0))
    expected = losses_of(theirs, [each for each in theirs.parameters() if each.requires_grad], batch)
    model.set_lora(adapter)
    try:
        found: list[float] = []
        for number, loss in enumerate(losses_of(model, list(adapter.parameters()), batch)):
            found.append(loss)
            if number in (0, 2):
                fleet.replace(fleet.servers[0])
        assert found == pytest.approx(list(expected), rel=1e-4)
        save_adapter(adapter, tmp_path / "after")
        tuned = under_peft(whole, tmp_path / "after")
        with torch.no_grad():
            torch.testing.assert_close(model(batch).logits, tuned(batch).logits, rtol=1e-4, atol=1e-4)
    finally:
        model.set_lora(None)


def losses_of(model: Any, parameters: list[torch.Tensor], batch: torch.Tensor) -> Any:
    """Of five steps of Adam, one after another."""
    optimizer = torch.optim.AdamW(parameters, lr=1e-2)
    for _ in range(5):
        optimizer.zero_grad()
        loss = model(input_ids=batch, labels=batch).loss
        loss.backward()
        optimizer.step()
        yield loss.item()
