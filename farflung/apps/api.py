"""`farflung api`: the HTTP interface over models of a swarm."""

from collections.abc import Mapping, Sequence
from functools import partial

import torch
import uvicorn

from farflung.apps.adapters import AdapterChoice, fitting
from farflung.apps.announced import AnnouncedServers
from farflung.apps.drafting import OFF, speculation_of
from farflung.apps.http.app import build_app
from farflung.apps.http.engine import Engine, EngineLimits
from farflung.apps.http.metrics import Metrics, RerouteCollector
from farflung.apps.http.resuming import StreamLimits
from farflung.apps.library import ConnectedModel, connect_model, load_tokenizer
from farflung.apps.listening import bind
from farflung.apps.metrics.node import NodeCollector
from farflung.apps.wiring import Connection
from farflung.model.generator import ModelGenerator, stop_tokens_of
from farflung.model.sample import Sampling
from farflung.model.source import ModelSource
from farflung.systems.swarm.adapters import NamedAdapter
from farflung.systems.swarm.config import SessionConfig

GRACE_SECONDS = 3
"""How long answers under way may go on after the interface was told to stop."""


def advised_sampling(connected: ConnectedModel) -> Sampling:
    """What the model's makers advise in its generation config, for requests that leave it open."""
    config = connected.model.generation_config
    if config is None or not config.do_sample:
        return Sampling()
    return Sampling(
        temperature=1.0 if config.temperature is None else config.temperature,
        top_k=config.top_k or 0,
        top_p=1.0 if config.top_p is None else config.top_p,
        min_p=config.min_p or 0.0,
        repetition_penalty=config.repetition_penalty or 1.0,
    )


def find_models(named: Sequence[str], connection: Connection) -> list[ModelSource]:
    """The models that were named, or all that servers of the swarm announce.

    Raises:
        ValueError: none was named and none is announced, or one that is announced can only be opened by its folder.
    """
    if named:
        return [ModelSource.open(name) for name in named]

    async def look() -> list[str]:
        servers = AnnouncedServers(connection.node.member)()
        return sorted({info.model_name for info in servers.values()})

    names = connection.bridge.run(look())
    if not names:
        raise ValueError("no server announces a model yet: name the model, as in `farflung api MODEL`")
    try:
        return [ModelSource.open(name) for name in names]
    except ValueError as error:
        raise ValueError(
            f"the swarm serves {', '.join(names)}, but the part that runs here cannot be opened by that name "
            f"({error}): give the folder, as in `farflung api FOLDER`"
        ) from None


def make_engines(
    connected: ConnectedModel, limits: EngineLimits, draft: str, adapters: Mapping[str, NamedAdapter] | None = None
) -> dict[str, Engine]:
    """Engines over a connected model by the names that requests use: the model's own, and `model:adapter` for each
    adapter. `draft` as `speculation_of` takes it."""
    source = connected.source
    tokenizer, speculation = load_tokenizer(source), speculation_of(draft, connected)
    engines: dict[str, Engine] = {}
    variants: dict[str, NamedAdapter | None] = {source.name: None}
    variants |= {f"{source.name}:{name}": adapter for name, adapter in (adapters or {}).items()}
    for name, adapter in variants.items():
        weights = source.fingerprint if adapter is None else f"{source.fingerprint}:{adapter.name}"
        generator = ModelGenerator(
            connected.model,
            open_cache=partial(connected.open_cache, adapter=adapter),
            weights_version=partial(str, weights),
            speculation=speculation,
        )
        engines[name] = Engine(
            name,
            generator,
            tokenizer,
            defaults=advised_sampling(connected),
            stop_tokens=stop_tokens_of(connected.model),
            limits=limits,
            why_unavailable=connected.why_unavailable,
            weights=weights,
            hidden_states=partial(connected.hidden_states, adapter=adapter),
            watch_route=partial(connected.watch_route, is_guessing=draft != OFF),
        )
    return engines


def serve_api(
    named: Sequence[str],
    ticket: str,
    *,
    host: str,
    port: int,
    api_keys: Sequence[str],
    limits: EngineLimits,
    stream_limits: StreamLimits | None = None,
    draft: str = OFF,
    adapters: Sequence[AdapterChoice] = (),
    is_standby_wanted: bool = False,
    dtype: torch.dtype = torch.float32,
) -> None:
    """Serve the interface until the process is told to stop.

    Raises:
        ValueError: a port in use, a bad ticket, an unknown model, a draft of another vocabulary, an adapter that
            cannot be read or is of another model.
        FarflungError: nobody of the swarm answers.
    """
    listening = bind(host, port)
    with listening, Connection(ticket) as connection:
        sources = find_models(named, connection)
        adapted = fitting(adapters, sources)
        config = SessionConfig(is_standby_wanted=is_standby_wanted)
        models = [connect_model(source, connection, config=config, dtype=dtype) for source in sources]
        metrics = Metrics()
        metrics.report(RerouteCollector(lambda: sum(connected.num_reroutes for connected in models)))
        metrics.report(NodeCollector(connection.node, connection.bridge.call))
        engines: dict[str, Engine] = {}
        for connected in models:
            engines |= make_engines(connected, limits, draft, adapted[connected.source.name])
        app = build_app(engines, api_keys=api_keys, metrics=metrics, stream_limits=stream_limits)
        shown_host, shown_port = listening.getsockname()[:2]
        print(f"serving {', '.join(engines)} at http://{shown_host}:{shown_port}/v1", flush=True)
        server = uvicorn.Config(app, log_level="warning", timeout_graceful_shutdown=GRACE_SECONDS)
        uvicorn.Server(server).run(sockets=[listening])
