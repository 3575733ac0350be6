"""The plan of a running swarm: its records become sites, machines and links, and what nobody measured is said."""

from dataclasses import replace

import msgspec
import pytest

from farflung.apps.machines import MACHINE_TOPIC, MachineInfo, announced_machines
from farflung.apps.plan.fleet import machines_of
from farflung.apps.plan.measured import Seen, by_site, model_served, places_of
from farflung.apps.plan.outcome import confidence_of
from farflung.apps.plan.plan_file import LinkSettings, PlanFile
from farflung.apps.plan.swarm import completed
from farflung.apps.plan.words import LANGUAGES, Sentence
from farflung.mesh.reach import TOPIC, Distance
from farflung.mesh.records import Record
from farflung.systems.swarm.info import BlockRange, ServerInfo, ServerState
from farflung.wire.certificate import TicketRole
from farflung.world.address import PeerId

A, B, C, D = (PeerId(letter * 52) for letter in "abcd")
HIDDEN, VOCABULARY, LAYERS = 64, 256, 4
BLOCK = 12 * HIDDEN**2
MACHINE = MachineInfo(
    device="NVIDIA A100-SXM4-80GB",
    memory_bytes=40_000_000_000,
    block_parameters=BLOCK,
    model_parameters=LAYERS * BLOCK + 2 * VOCABULARY * HIDDEN,
    hidden_size=HIDDEN,
    vocabulary_size=VOCABULARY,
)
ASSUMED = LinkSettings(bandwidth_mbit=50.0, round_trip_ms=70.0, price_per_gb=0.25)


def info(model: str = "fingerprint") -> ServerInfo:
    return ServerInfo(
        model=model,
        model_name=f"the {model}",
        blocks=BlockRange(0, LAYERS),
        state=ServerState.ONLINE,
        blocks_per_second=1000.0,
        forward_tokens_per_second=5000.0,
        cache_tokens_max=64,
        cache_tokens_left=32,
        dtype="float32",
        started_at=0.0,
        version="0",
        num_model_blocks=LAYERS,
    )


def record(peer: PeerId, site: str, *, role: TicketRole = TicketRole.SERVER, **measured: Distance) -> Record:
    table = {PeerId(letter * 52): distance for letter, distance in measured.items()}
    topics = {TOPIC: msgspec.msgpack.encode(table), MACHINE_TOPIC: msgspec.msgpack.encode(MACHINE)}
    return Record(peer=peer, sequence=1, issued_at=0.0, lease_seconds=30.0, role=role, site=site, topics=topics)


VIEW = {
    A: record(A, "west", b=Distance(0.010, 25e6), c=Distance(0.100, 4e6)),
    B: record(B, "west", a=Distance(0.010, None)),
    C: record(C, "east", a=Distance(0.100, None), d=Distance(0.040, None)),
    D: record(D, "north"),
}
SEEN = Seen(swarm="ours", view=VIEW, servers={peer: info() for peer in VIEW}, machines=announced_machines(VIEW))


def keys(remarks: tuple[Sentence, ...]) -> list[str]:
    return [one.key for one in remarks]


def plan(seen: Seen = SEEN, **tables: object) -> PlanFile:
    return completed({"goal": {"prompt_tokens": 8, "answer_tokens": 8}, **tables}, seen)


def test_sites_machines_and_links_are_those_that_the_records_tell() -> None:
    found = plan()
    assert found.site_names == ["east", "north", "west"]
    west = next(site for site in found.sites if site.name == "west")
    assert (west.round_trip_ms, west.bandwidth_mbit) == pytest.approx((10.0, 200.0))
    assert found.link("west", "east").round_trip_ms == pytest.approx(100.0)
    assert found.link("west", "east").bandwidth_mbit == pytest.approx(32.0)
    assert by_site(SEEN) == [C, D, A, B]
    machines = machines_of(found)
    assert [one.name for one in machines] == ["east-1", "north-1", "west-1", "west-2"]
    assert {one.device for one in machines} == {"NVIDIA A100-SXM4-80GB"}
    assert {one.memory_bytes for one in machines} == {40e9}
    assert machines[0].blocks_per_second(BLOCK) == pytest.approx(1000.0)
    assert machines[0].forward_tokens_per_second(BLOCK) == pytest.approx(5000.0)
    assert confidence_of(machines, "serve").key == "measured"


def test_what_nobody_measured_is_assumed_and_said() -> None:
    places = places_of(SEEN, BLOCK, ASSUMED)
    by_pair = {tuple(link["between"]): link for link in places.tables["links"]}
    assert by_pair["east", "north"] == {
        "between": ["east", "north"],
        "bandwidth_mbit": 50.0,
        "round_trip_ms": pytest.approx(40.0),
        "price_per_gb": 0.25,
    }
    assert by_pair["north", "west"]["round_trip_ms"] == 70.0
    by_key = {one.key: one for one in places.remarks}
    assert by_key["assumed bandwidth"].values["links"] == "east–north, north–west"
    assert by_key["assumed round trip"].values["links"] == "north–west"
    for language in LANGUAGES:
        assert "50 Mbit/s" in by_key["assumed bandwidth"](language)
        assert "70 ms" in by_key["assumed round trip"](language)
    whole = replace(SEEN, servers={peer: SEEN.servers[peer] for peer in (A, C)})
    assert keys(places_of(whole, BLOCK, ASSUMED).remarks) == ["from swarm"]


def test_machines_that_tell_nothing_of_themselves_or_of_their_place_are_counted() -> None:
    lonely = {**VIEW, D: replace_site(VIEW[D], "")}
    seen = replace(SEEN, view=lonely, machines=dict.fromkeys((A, B), MACHINE))
    found = plan(seen, model={"parameters": 1e6, "layers": 4, "hidden_size": 64, "vocabulary_size": 256})
    by_key = {one.key: one.values.get("count") for one in found.remarks}
    assert by_key["silent machines"] == 2 and by_key["no site"] == 1 and by_key["scaled speeds"] == 2
    assert "no site given" in found.site_names


def test_speeds_measured_with_another_model_are_scaled_by_the_size_of_a_block() -> None:
    table = {"parameters": 8 * LAYERS * BLOCK, "layers": LAYERS, "hidden_size": HIDDEN, "vocabulary_size": 1}
    (machine, *_) = machines_of(plan(model=table))
    assert machine.blocks_per_second(8 * BLOCK) == pytest.approx(1000 / 8, rel=0.05)
    assert machine.train_tokens_per_second(1000) == pytest.approx(2 * BLOCK * 5000 / 6000)


def test_training_speeds_are_worked_out_from_forward_passes() -> None:
    found = plan(goal={"kind": "pretrain", "sequence_length": 8, "batch_size": 2})
    assert confidence_of(machines_of(found), "pretrain").key == "worked out"


def test_without_a_model_that_of_most_servers_is_planned_for() -> None:
    servers = {A: info("rare"), B: info(), C: info(), D: info("other")}
    served = model_served(replace(SEEN, servers=servers))
    assert served.tables["layers"] == LAYERS and served.tables["parameters"] == MACHINE.model_parameters
    assert served.remarks[0].values["model"] == "the fingerprint"
    assert "model served" in keys(plan().remarks)


def test_places_in_the_file_are_left_aside_and_its_goal_is_kept() -> None:
    found = plan(sites=[{"name": "here"}], links=[], goal={"users": 3, "prompt_tokens": 8, "answer_tokens": 8})
    assert found.site_names == ["east", "north", "west"]
    assert found.goal.users == 3  # pyright: ignore[reportAttributeAccessIssue]
    (aside,) = [one for one in found.remarks if one.key == "left aside"]
    assert aside.values["sections"] == "sites, links"


def test_a_swarm_of_which_nothing_can_be_planned_is_refused() -> None:
    with pytest.raises(ValueError, match="nobody serves blocks in the swarm 'ours'"):
        plan(replace(SEEN, servers={}))
    with pytest.raises(ValueError, match=r"do not tell how large it is: give --set model\.path"):
        plan(replace(SEEN, machines={}))


def test_only_those_who_may_serve_are_believed_and_nonsense_is_left_out() -> None:
    client = record(A, "west", role=TicketRole.CLIENT)
    odd = record(B, "west")
    odd.topics[MACHINE_TOPIC] = msgspec.msgpack.encode({**msgspec.to_builtins(MACHINE), "memory_bytes": -1})
    later = record(C, "west")
    later.topics[MACHINE_TOPIC] = msgspec.msgpack.encode({**msgspec.to_builtins(MACHINE), "watts": 400})
    assert announced_machines({A: client, B: odd, C: later}) == {C: MACHINE}


def replace_site(before: Record, site: str) -> Record:
    return record(before.peer, site)
