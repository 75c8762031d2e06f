"""What peers.py measured, as data, as a file, and as tables in Markdown."""

from __future__ import annotations

import dataclasses
import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import typer

BEGIN, END = "<!-- peers: benchmarks/peers.py draws what is between -->", "<!-- /peers -->"
ALIKE = {"sdpa": "eager"}  # PyTorch's attention stands in one column with its other ops
MOST_SLOWER = 1.05  # of eager's time, that a small shape may take
LEFT_OUT = "left out"  # who was not to be measured


@dataclass(frozen=True)
class Row:
    """One op on one shape. Times in microseconds, by contender.

    `ratios` are, for each kernel of ours and each of the others, the other's time over ours and
    the interval's bounds. `roof` is the measured one (`what`), and the time that it allows.
    `clock` is the GPU's (a cold L2 cache, captured graphs) or the host's (a warm one, launches
    included)."""

    op: str
    shape: str
    size: str
    clock: str
    times_us: Mapping[str, float] = field(default_factory=dict)
    ratios: Mapping[str, Mapping[str, Sequence[float]]] = field(default_factory=dict)
    roof: Mapping[str, Any] | None = None
    missing: Mapping[str, str] = field(default_factory=dict)
    sm_mhz: float | None = None
    throttled: int | None = None
    seconds: float | None = None

    @property
    def ours(self) -> str | None:
        """The faster one of our kernels."""
        return min(self.ratios, key=lambda name: self.times_us[name], default=None)

    @property
    def peer(self) -> str | None:
        """The fastest of the others."""
        others = self.times_us.keys() - self.ratios
        return min(others, key=lambda name: self.times_us[name], default=None)

    @property
    def standing(self) -> Sequence[float] | None:
        """The fastest other's time over that of the faster of ours, and the bounds."""
        return self.ratios[self.ours][self.peer] if self.ours and self.peer else None

    def pct(self, name: str) -> float | None:
        """Of the roof."""
        return 100 * self.roof["time_us"] / self.times_us[name] if self.roof else None


@dataclass(frozen=True)
class Record:
    """Rows, and what they were measured on and with."""

    machine: Mapping[str, str]
    rows: list[Row]

    @staticmethod
    def read(file: Path) -> Record:
        found = json.loads(file.read_text(encoding="utf-8"))
        return Record(found["machine"], [Row(**row) for row in found["rows"]])

    def write(self, file: Path) -> None:
        rows = [dataclasses.asdict(row) for row in self.rows]
        text = json.dumps({"machine": self.machine, "rows": rows}, indent=1, ensure_ascii=False)
        part = file.with_suffix(".part")
        part.write_text(text + "\n", encoding="utf-8")
        part.replace(file)

    @staticmethod
    def merged(records: Sequence[Record]) -> Record:
        """Of two measurements of one row the later file's. One table is of one machine, one day
        and one set of versions."""
        first, *others = records
        for other in others:
            if other.machine != first.machine:
                differ = set(first.machine.items()) ^ set(other.machine.items())
                raise typer.BadParameter(f"expected the same machine, got {sorted(differ)}")
        rows = {(r.op, r.shape, r.size, r.clock): r for record in records for r in record.rows}
        ops = list(dict.fromkeys(op for op, *_ in rows))
        return Record(
            first.machine, sorted(rows.values(), key=lambda r: (ops.index(r.op), _key(r)))
        )


def _key(row: Row) -> tuple[Any, ...]:
    return (row.size, row.clock, [int(n) for n in re.findall(r"\d+", row.shape)])


def line(row: Row) -> str:
    """A row in a terminal."""
    times = ", ".join(f"{name} {us:.4g}" for name, us in sorted(row.times_us.items(), key=_second))
    missing = "".join(f"; no {name}: {why}" for name, why in row.missing.items())
    return f"{row.op} {row.shape} ({row.clock}, {row.seconds} s): {times or 'nothing'}{missing}"


def markdown(record: Record) -> str:
    """Two tables, and what they were measured with."""
    large = [row for row in record.rows if row.size == "large"]
    little = [row for row in record.rows if row.size == "small"]
    parts = [_large(large)] if large else []
    parts += [_small(little)] if little else []
    return "\n\n".join([*parts, _notes(record)])


def _large(rows: list[Row]) -> str:
    """One row per op and shape."""
    ours = list(dict.fromkeys(name for row in rows for name in sorted(row.ratios, reverse=True)))
    names = (ALIKE.get(n, n) for row in rows for n in row.times_us if n not in ours)
    peers = list(dict.fromkeys(names))
    head = ["op", "shape", *ours, *peers, "faster than the best of them", "% of roof", "roof"]
    cells = [
        [
            row.op,
            row.shape,
            *(_us(row, name) for name in (*ours, *peers)),
            _standing(row.standing),
            _share(row),
            str(row.roof["what"]) if row.roof else "-",
        ]
        for row in rows
    ]
    return _table(head, cells)


def _small(rows: list[Row]) -> str:
    """Where each op is at its worst beside its first baseline, by either clock."""
    head = ["op", "shapes", "GPU alone: least", "at", "launch included: least", "at"]
    cells = []
    for op in dict.fromkeys(row.op for row in rows):
        of_op = [row for row in rows if row.op == op and row.standing]
        found = [op, str(len({row.shape for row in of_op}))]
        for clock in ("gpu", "host"):
            some = [row for row in of_op if row.clock == clock]
            worst = min(some, key=lambda row: (row.standing or [0.0])[0], default=None)
            found += [_standing(worst.standing), worst.shape] if worst else ["-", "-"]
        cells.append(found)
    return _table(head, cells)


def too_slow(rows: Sequence[Row]) -> list[Row]:
    """Small shapes on which ours is shown to take more than 5 % longer, launch included."""
    return [
        row
        for row in rows
        if row.clock == "host" and row.standing and row.standing[2] < 1 / MOST_SLOWER
    ]


def _notes(record: Record) -> str:
    about = dict(record.machine)
    device, date = about.pop("device"), about.pop("date")
    versions = ", ".join(f"{name} {version}" for name, version in about.items() if version != "-")
    words = [
        "Forward, bf16 on a GPU and fp32 on a CPU, in microseconds: medians of 12 blocks, all "
        "contenders in turn, in processes of their own, which are started twice. Large shapes: a "
        "cold L2 cache, captured graphs. The ratio is the best peer's time over that of our faster "
        "kernel, with its 95 % interval: above 1 ours is faster. The roof is the measured one.",
        f"{device}, {versions}, {date}.",
    ]
    absent = [name for name, version in about.items() if version == "-"]
    if absent:
        words.append(f"Not installed: {', '.join(absent)}.")
    left_out: dict[str, list[str]] = {}
    reasons: dict[str, list[str]] = {}
    for row in record.rows:
        for name, why in row.missing.items():
            if why == LEFT_OUT:
                left_out.setdefault(name, []).append(row.op)
            elif not why.startswith(("not installed", "the op has none")):
                reasons.setdefault(f"{row.op}: no {name}: {why}", []).append(row.shape)
    if left_out:
        of = (f"{name} ({', '.join(dict.fromkeys(ops))})" for name, ops in left_out.items())
        words.append(f"Left out: {'; '.join(of)}.")
    words += [f"{reason} ({', '.join(dict.fromkeys(at))})." for reason, at in reasons.items()]
    slow = too_slow(record.rows)
    if slow:
        where = ", ".join(f"{row.op} {row.shape}" for row in slow)
        words.append(f"More than 5 % slower than PyTorch, launch included: {where}.")
    return "\n".join(words)


def section(text: str, plot: str | None) -> str:
    """The tables below the plot, which has a version for a dark page."""
    if plot is None:
        return text
    picture = (
        f'<picture><source media="(prefers-color-scheme: dark)" srcset="{plot}-dark.svg">'
        f'<img src="{plot}-light.svg" alt="Share of the roof by op and shape"></picture>'
    )
    return f"{picture}\n\n{text}"


def put(page: str, text: str) -> str:
    """The page with the text between its marks."""
    before, begin, rest = page.partition(BEGIN)
    _, end, after = rest.partition(END)
    if not begin or not end:
        raise typer.BadParameter(f"expected a page with {BEGIN} and {END}")
    return f"{before}{BEGIN}\n{text}\n{END}{after}"


def _us(row: Row, column: str) -> str:
    name = next((n for n in row.times_us if ALIKE.get(n, n) == column), column)
    us = row.times_us.get(name)
    if us is None:
        return "-"
    shown = f"{us:.1f}" if us < 1000 else f"{us:.0f}"
    return f"**{shown}**" if name in (row.ours, row.peer) else shown


def _standing(ratio: Sequence[float] | None) -> str:
    return "{:.2f}x [{:.2f}, {:.2f}]".format(*ratio) if ratio else "-"


def _share(row: Row) -> str:
    shares = [row.pct(name) for name in (row.ours, row.peer) if name]
    return ", peer ".join(f"{share:.0f} %" for share in shares if share is not None) or "-"


def _second(item: tuple[str, float]) -> float:
    return item[1]


def _table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join(f"| {' | '.join(cells)} |" for cells in lines)
