"""How the pages look, by day and by night: one style sheet, and the colours of charts, which suit both."""

from typing import Any

TEXT, GRID = "#8a93a3", "rgba(138,147,163,0.25)"
COLOURS = ["#4269d0", "#efb118", "#ff725c", "#6cc5b0", "#3ca951", "#ff8ab7", "#a463f2", "#97bbf5"]

CSS = """
:root { --card: #ffffff; --edge: #dfe3ea; --soft: #5d6675; --page: #f5f6f8; --none: #d5382f; --one: #d99a06;
        --many: #2e9d57; }
body.body--dark { --card: #1c2129; --edge: #323a46; --soft: #98a2b3; --page: #12161c; --none: #e5534b; --one: #c69026;
                  --many: #3fae68; }
body { background: var(--page); }
.nicegui-content, .q-tab-panel { padding: 12px; gap: 12px; }
.panel { width: 100%; max-width: 1200px; margin: 0 auto; display: flex; flex-direction: column; gap: 12px; }
.card { background: var(--card); border: 1px solid var(--edge); border-radius: 10px; padding: 12px; width: 100%;
        min-width: 0; overflow-wrap: anywhere; }
.panel h2 { font-size: 1rem; font-weight: 600; margin: 0 0 6px 0; line-height: 1.4; }
.cards { display: grid; grid-template-columns: repeat(auto-fill, minmax(min(100%, 250px), 1fr)); gap: 12px;
         width: 100%; }
.tiles { display: flex; flex-wrap: wrap; gap: 12px 28px; width: 100%; }
.tile b { display: block; font-size: 1.4rem; line-height: 1.2; }
.soft, .tile span { color: var(--soft); font-size: 0.85rem; }
.bad { color: var(--none); } .good { color: var(--many); } .careful { color: var(--one); }
.blocks { display: flex; flex-wrap: wrap; gap: 2px; }
.blocks span { min-width: 16px; height: 20px; border-radius: 3px; color: #fff; font-size: 0.7rem; line-height: 20px;
               text-align: center; flex: 1 1 16px; max-width: 48px; }
.blocks .none { background: var(--none); } .blocks .one { background: var(--one); }
.blocks .many { background: var(--many); }
.rows { width: 100%; border-collapse: collapse; font-size: 0.9rem; }
.rows th { text-align: left; font-weight: 500; color: var(--soft); }
.rows td, .rows th { padding: 3px 10px 3px 0; border-bottom: 1px solid var(--edge); vertical-align: top; }
.rows th { white-space: nowrap; }
.map { display: block; width: 100%; max-height: 420px; margin: 0 auto; }
.map text { fill: currentColor; font-size: 11px; text-anchor: middle; paint-order: stroke; stroke: var(--card);
            stroke-width: 4px; }
.map line { stroke: var(--soft); stroke-width: 1.5; } .map .backed { fill: var(--card); }
.bar { height: 14px; min-width: 2px; border-radius: 3px; background: #4269d0; margin-top: 4px; }
.chart { width: 100%; height: 300px; }
.said { white-space: pre-wrap; overflow-wrap: anywhere; }
.mine { border-left: 4px solid #4269d0; } .answer { border-left: 4px solid var(--many); }
.mono { font-family: ui-monospace, monospace; font-size: 0.8rem; }
"""


def axis(name: str, **more: Any) -> dict[str, Any]:
    """An axis of values of a chart."""
    return {
        "type": "value",
        "name": name,
        "nameLocation": "middle",
        "nameGap": 26,
        "axisLabel": {"color": TEXT, "hideOverlap": True},
        "nameTextStyle": {"color": TEXT},
        "axisLine": {"lineStyle": {"color": TEXT}},
        "splitLine": {"lineStyle": {"color": GRID}},
        **more,
    }
