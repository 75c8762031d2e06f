"""What peers.py measured as a picture: % of the roof by op and shape, ours and the best peer."""

from __future__ import annotations

from pathlib import Path

import matplotlib as mpl
from matplotlib.figure import Figure
from peers_record import Record

# Text, lines, ours, the best peer: Okabe and Ito's orange and blue are told apart by all eyes.
PAGES = {
    "light": ("#1f2328", "#d1d9e0", "#d55e00", "#0072b2"),
    "dark": ("#f0f6fc", "#3d444d", "#e69f00", "#56b4e9"),
}


def draw(record: Record, plot: Path) -> None:
    """`plot` with `-light.svg` and `-dark.svg`, each on a transparent ground."""
    for page, colours in PAGES.items():
        _draw(record, plot.with_name(f"{plot.name}-{page}.svg"), *colours)


def _draw(record: Record, file: Path, text: str, lines: str, ours: str, peers: str) -> None:
    rows = [row for row in record.rows if row.size == "large" and row.roof and row.ours]
    places = range(len(rows), 0, -1)
    style = {
        "svg.hashsalt": "peers",  # the same names in each drawing of the same figures
        "svg.fonttype": "none",  # text stays text
        "font.size": 9,
        "text.color": text,
        "axes.labelcolor": text,
        "axes.edgecolor": lines,
        "xtick.color": text,
        "ytick.color": text,
    }
    with mpl.rc_context(style):
        figure = Figure(figsize=(8, 1 + 0.24 * len(rows)), layout="constrained")
        axes = figure.subplots()
        for name, colour, marker in (("peer", peers, "D"), ("ours", ours, "o")):
            found = [
                (row.pct(who), y)
                for row, y in zip(rows, places, strict=True)
                if (who := getattr(row, name))
            ]
            label = {"peer": "best peer", "ours": "ours"}[name]
            x, y = zip(*found, strict=True) if found else ((), ())
            axes.scatter(x, y, s=28, c=colour, marker=marker, label=label, zorder=3)
        axes.set_yticks(list(places), [f"{row.op}  {row.shape}" for row in rows])
        axes.margins(y=0.02)
        axes.set_xlim(0, max(105.0, axes.get_xlim()[1]))
        axes.set_xlabel(f"% of the measured roof ({record.machine['device']})")
        axes.grid(axis="both", color=lines, linewidth=0.6)
        axes.spines[["top", "right"]].set_visible(False)
        figure.legend(loc="outside upper right", ncols=2, frameon=False)
        figure.savefig(file, transparent=True, metadata={"Date": None})
