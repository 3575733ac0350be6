"""The page *Swarm*: coverage, what a lost node would break, sites and the ways between them, and every node."""

from html import escape

from nicegui import ui

from farflung.apps.dashboard.live import Live, LiveList
from farflung.apps.dashboard.site_map import site_map
from farflung.apps.dashboard.swarm_view import ModelView, NodeView, Served, SwarmPicture, Way
from farflung.apps.dashboard.tiles import draw_tiles
from farflung.apps.dashboard.words import rate_text, round_trip_text
from farflung.apps.status import SHORT_PEER


class SwarmPage:
    """Made within an element of the page; `show` brings it up to date."""

    def __init__(self) -> None:
        self._tiles = Live(_card(), draw_tiles)
        self._models = LiveList(ui.element("div").classes("cards"), _draw_model, _card)
        with _card():
            ui.html("<h2>Sites and the ways between them</h2>", sanitize=False)
            self._map = Live(ui.element("div"), _draw_html)
            self._ways = Live(ui.element("div"), _draw_ways)
        self._sites = LiveList(ui.element("div").classes("panel"), _draw_site)

    def show(self, picture: SwarmPicture) -> None:
        """Bring it up to date."""
        self._tiles.show(tiles(picture))
        self._models.show({model.fingerprint: model for model in picture.models})
        self._map.show(site_map(picture.sites, picture.ways))
        self._ways.show(picture.ways)
        self._sites.show(picture.sites)


def _card() -> ui.element:
    return ui.element("div").classes("card")


def tiles(picture: SwarmPicture) -> tuple[tuple[str, str], ...]:
    """The numbers at the top, with their names."""
    servers = [node for node in picture.nodes if node.served is not None]
    return (
        (str(len(picture.nodes)), "nodes"),
        (str(len(picture.sites)), "sites"),
        (str(len(servers)), "block servers"),
        (str(len(picture.models)), "models"),
        (str(sum(node.served.num_sessions for node in servers if node.served)), "sessions"),
    )


def _draw_model(model: ModelView) -> None:
    ui.html(model_html(model), sanitize=False)


def model_html(model: ModelView) -> str:
    """Coverage of a model, and what would break."""
    words = {0: "none", 1: "one"}
    cells = "".join(
        f'<span class="{words.get(count, "many")}" data-block="{block}" title="block {block}: servers {count}">'
        f"{count}</span>"
        for block, count in enumerate(model.counts)
    )
    lines = [
        f"<h2>{escape(model.name)} <span class='soft mono'>{escape(model.fingerprint[:SHORT_PEER])}</span></h2>",
        f'<div class="soft">servers per block</div><div class="blocks" data-model="{escape(model.name)}">{cells}</div>',
    ]
    if model.missing:
        lines.append(f'<div class="bad">No server for blocks {model.missing}: the model cannot answer.</div>')
    for one in model.breaks:
        where = f"{escape(one.peer[:SHORT_PEER])} ({escape(one.site)})"
        lines.append(f'<div class="careful">If {where} is lost, nobody serves blocks {one.blocks}.</div>')
    if not model.missing and not model.breaks:
        lines.append('<div class="good">Any one server may be lost.</div>')
    return "".join(lines)


def _draw_html(html: str) -> None:
    ui.html(html, sanitize=False)


def _draw_ways(ways: tuple[Way, ...]) -> None:
    rows = "".join(
        f"<tr><td>{escape(way.one if way.one == way.other else f'{way.one} – {way.other}')}</td>"
        f"<td>{round_trip_text(way.round_trip_seconds)}</td><td>{rate_text(way.bytes_per_second)}</td>"
        f"<td>{way.num_measured}</td></tr>"
        for way in ways
    )
    head = "<tr><th>way</th><th>round trip</th><th>bandwidth</th><th>measured</th></tr>"
    empty = '<div class="soft">Nobody has measured a way yet.</div>'
    ui.html(f'<table class="rows">{head}{rows}</table>' if ways else empty, sanitize=False)


def _draw_site(nodes: tuple[NodeView, ...]) -> None:
    ui.html(f"<h2>{escape(nodes[0].site)}</h2>", sanitize=False)
    with ui.element("div").classes("cards"):
        for node in nodes:
            ui.html(node_html(node), sanitize=False).classes("card").props(f'data-peer="{node.name}"')


def node_html(node: NodeView) -> str:
    """One node."""
    far = f" · {round_trip_text(node.round_trip_seconds)} from here" if node.round_trip_seconds is not None else ""
    head = f'<h2 class="mono">{escape(node.name)}</h2><div class="soft">{escape(node.roles)}{far}</div>'
    return head + (served_html(node.served) if node.served is not None else "")


def served_html(served: Served) -> str:
    """What a node serves."""
    share = served.cache_tokens_left / served.cache_tokens_max
    rows = (
        ("model", escape(served.model)),
        ("blocks", f"{escape(served.blocks)}, {escape(served.state)}"),
        ("speed", f"{served.blocks_per_second:.0f} blocks/s, {escape(served.dtype)}"),
        ("memory", f"{share:.0%} of {served.cache_tokens_max:,} cache tokens free"),
        ("device used for", served.work or "nothing yet"),
        ("queue", f"{served.queue_length} jobs, {served.num_sessions} sessions"),
    )
    cells = "".join(f"<tr><th>{name}</th><td>{text}</td></tr>" for name, text in rows)
    return f'<table class="rows">{cells}</table>'
