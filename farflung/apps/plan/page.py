"""A plan as one HTML file that needs nothing else: the table, a plot of times and costs, and what to start with."""

from collections.abc import Sequence
from html import escape

from farflung.apps.plan.outcome import Outcome
from farflung.apps.plan.places import between_sites
from farflung.apps.plan.planning import Planned, assumptions, verdict
from farflung.apps.plan.table import columns, remarks, row
from farflung.apps.plan.units import bytes_of, time_of
from farflung.apps.plan.words import Sentence, said

BAR_WIDTH, BAR_HEIGHT, LABEL_WIDTH = 420, 22, 260
STYLE = """
:root { color-scheme: light dark; --bar: #3572b0; --missed: #b05a35; }
body { font: 15px/1.5 system-ui, sans-serif; max-width: 70rem; margin: 2rem auto; padding: 0 1rem; }
div.wide { overflow-x: auto; }
table { border-collapse: collapse; }
td, th { padding: .3rem .7rem; text-align: left; border-bottom: 1px solid #8884; white-space: nowrap; }
pre { overflow-x: auto; background: #8882; padding: 1rem; }
svg { max-width: 100%; height: auto; }
svg text { fill: currentColor; font-size: 13px; }
"""


def page_of(planned: Planned, language: str) -> str:
    """The whole page."""
    outcomes, best = planned.outcomes, planned.outcomes[0]
    is_serving = planned.plan.kind == "serve"
    title = verdict(planned)(language)
    start = f"{said('start')(language)}: {best.start_name}".rstrip(": ")
    parts = [
        f"<h1>{escape(title)}</h1>",
        plain_table(
            [title(language) for title in columns(planned)],
            [row(planned, number, one, language) for number, one in enumerate(outcomes, 1)],
        ),
        item_list([f"{number}. {'; '.join(remarks(one, language))}" for number, one in enumerate(outcomes, 1)]),
        _bars(said("time serve" if is_serving else "time"), outcomes, [one.seconds for one in outcomes], language),
        _bars(said("cost serve" if is_serving else "cost"), outcomes, [one.cost for one in outcomes], language),
        f"<h2>{escape(said('bytes per way')(language))}</h2>",
        item_list(
            [f"{one} → {other}: {bytes_of(num)}" for (one, other), num in sorted(between_sites(best.sent).items())]
        ),
        item_list([said("left out", method=how(language), why=why)(language) for how, why in planned.left_out]),
        f"<h2>{escape(start)}</h2><pre>{escape(chr(10).join(best.start))}</pre>",
        f"<h2>{escape(said('assumptions')(language))}</h2>",
        item_list([one(language) for one in assumptions(planned.plan, planned.sizes)]),
    ]
    return document(title, parts, language)


def document(title: str, parts: Sequence[str], language: str) -> str:
    """A page of these pieces of HTML, which is whole by itself."""
    head = f'<meta charset="utf-8"><meta name="viewport" content="width=device-width"><title>{escape(title)}</title>'
    body = "\n".join(parts)
    return (
        f'<!doctype html>\n<html lang="{language}"><head>{head}<style>{STYLE}</style></head>\n'
        f"<body>\n{body}\n</body></html>\n"
    )


def plain_table(titles: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Texts under titles."""
    head = "".join(f"<th>{escape(title)}</th>" for title in titles)
    lines = "".join(f"<tr>{''.join(f'<td>{escape(cell)}</td>' for cell in cells)}</tr>" for cells in rows)
    return f'<div class="wide"><table><tr>{head}</tr>{lines}</table></div>'


def item_list(lines: Sequence[str]) -> str:
    """Nothing where there are none."""
    return f"<ul>{''.join(f'<li>{escape(line)}</li>' for line in lines)}</ul>" if lines else ""


def _bars(title: Sentence, outcomes: Sequence[Outcome], values: Sequence[float], language: str) -> str:
    """One bar for each outcome; nothing where all are 0."""
    most = max(values)
    if most <= 0:
        return ""
    height = BAR_HEIGHT * len(outcomes)
    bars: list[str] = []
    for number, (one, value) in enumerate(zip(outcomes, values, strict=True)):
        top, middle = number * BAR_HEIGHT, number * BAR_HEIGHT + 15
        length = max(1.0, BAR_WIDTH * value / most)
        shown = time_of(value) if title.key.startswith("time") else f"{value:,.2f}"
        color = "var(--bar)" if one.meets else "var(--missed)"
        bars.append(
            f'<text x="0" y="{middle}">{escape(one.method(language))}</text>'
            f'<rect x="{LABEL_WIDTH}" y="{top + 3}" width="{length:.1f}" height="{BAR_HEIGHT - 6}" fill="{color}"/>'
            f'<text x="{LABEL_WIDTH + length + 6:.1f}" y="{middle}">{escape(shown)}</text>'
        )
    width = LABEL_WIDTH + BAR_WIDTH + 90
    opening = f'<svg viewBox="0 0 {width} {height}" width="{width}" role="img">'
    return f"<h2>{escape(title(language))}</h2>{opening}{''.join(bars)}</svg>"
