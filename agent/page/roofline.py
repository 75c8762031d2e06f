"""A kernel under the device's roofs, before and after, as geometry. Pure."""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

from .geometry import Axis, Down, Legend, Line, Mark, Plot
from .story import Case, KernelStory, Point

FAR = 30.0  # a ridge that many times away would squeeze the kernels into a corner

Roof = tuple[float, float]  # GB/s, TFLOP/s


@dataclass(frozen=True)
class Pair:
    """A case before and after; `before` is None where nothing was kept."""

    before: float | None
    after: Point


def roofline(story: KernelStory) -> Plot | None:
    """The kernel under the roofs, before and after. None where the judge reports no throughput."""
    now = ("after", "the kernel as it is now")
    if story.total and story.total.speedup:
        pairs, legend = _pairs(story.total.cases), (("before", "the starter"), now)
    elif story.kept:
        before = ("before", "the kernel that the last kept one replaced")
        pairs, legend = _pairs(story.kept[-1].cases), (before, now)
    else:
        pairs = [Pair(None, point) for point in story.steps[0].points]
        return _under_roofs(story, pairs, (("after", "the starter"),)) if pairs else None
    return _under_roofs(story, pairs, legend) if pairs else None


def _note(roofs: Sequence[Roof]) -> str:
    """The roofs in words too, since the plot leaves a far one out."""
    least = "FLOP and bytes are the least that the op needs."
    if not roofs:
        return f"{least} Where the roofs are, the judge's report does not say."
    gb_s, tflops = map(_span, zip(*roofs, strict=True))
    ridge = _span([tflops * 1e3 / gb_s for gb_s, tflops in roofs])
    return (
        f"{least} This device was measured to reach {gb_s} GB/s and {tflops} TFLOP/s, which meet "
        f"at {ridge} FLOP per byte."
    )


def _span(values: Sequence[float]) -> str:
    """Cases of different sizes and dtypes have roofs of their own."""
    low, high = f"{min(values):.4g}", f"{max(values):.4g}"
    return low if low == high else f"{low} to {high}"


def _roofs(points: Iterable[Point]) -> list[Roof]:
    return sorted({(p.roof["gb_s"], p.roof["tflops"]) for p in points if p.roof})


def _pairs(cases: Sequence[Case]) -> list[Pair]:
    """Both speeds are from one run: the one before is what the ratio makes of the one after."""
    return [Pair(c.point.tflops / c.speedup.ratio, c.point) for c in cases if c.point]


def _under_roofs(story: KernelStory, pairs: Sequence[Pair], legend: Legend) -> Plot:
    roofs = _roofs(pair.after for pair in pairs)
    across = [pair.after.intensity for pair in pairs]
    ridges = [tflops * 1e3 / gb_s for gb_s, tflops in roofs]
    ridges = [ridge for ridge in ridges if min(across) / FAR < ridge < max(across) * FAR]
    x = Axis(min([*across, *ridges]) / 4, max([*across, *ridges]) * 4, log=True)
    speeds = [speed for p in pairs for speed in (p.before or p.after.tflops, p.after.tflops)]
    tops = [min(tflops, at * gb_s / 1e3) for gb_s, tflops in roofs for at in (*across, *ridges)]
    y = Down(Axis(min(speeds) / 2.5, max([*speeds, *tops]) * 2.5, log=True))
    lines = [line for roof in roofs for line in _roof(roof, roofs, x, y)]
    marks = []
    names = _names(pairs)
    for pair, name in zip(pairs, names, strict=True):
        found = list(_pair(pair, name, x, y))
        marks += found
        lines += [Line(a.x, a.y, b.x, b.y, "gain") for a, b in itertools.pairwise(found)]
    return Plot(
        x_ticks=x.ticks(),
        y_ticks=tuple((y.at_share(share), words) for share, words in y.axis.ticks()),
        lines=tuple(lines),
        marks=tuple(sorted(marks, key=lambda mark: mark.shape != "before")),
        legend=(*legend, *_numbered(pairs, names)),
        title=f"Roofline of {story.kernel}: " + "; ".join(mark.title for mark in marks),
        note=_note(roofs),
    )


def _roof(roof: Roof, roofs: Sequence[Roof], x: Axis, y: Down) -> Iterator[Line]:
    """The slope of the bandwidth up to the ridge, where the peak begins, as far as they show.
    The highest of several is named."""
    gb_s, tflops = roof
    ridge, slope = tflops * 1e3 / gb_s, gb_s / 1e3
    start, end = max(x.low, y.axis.low / slope), min(ridge, x.high, y.axis.high / slope)
    if start < end:
        name = f"{gb_s:.4g} GB/s" if gb_s == max(g for g, _ in roofs) else ""
        yield Line(x.at(start), y.at(start * slope), x.at(end), y.at(end * slope), "slope", name)
    if ridge < x.high and tflops < y.axis.high:
        name = f"{tflops:.4g} TFLOP/s" if tflops == max(t for _, t in roofs) else ""
        yield Line(x.at(ridge), y.at(tflops), 100, y.at(tflops), "peak", name)


def _names(pairs: Sequence[Pair]) -> list[str]:
    """One case is named in the plot, several have numbers there."""
    return [str(n) for n in range(1, len(pairs) + 1)] if len(pairs) > 1 else [pairs[0].after.name]


def _numbered(pairs: Sequence[Pair], names: Sequence[str]) -> Iterator[tuple[str, str]]:
    if len(pairs) > 1:
        for pair, name in zip(pairs, names, strict=True):
            yield "", f"{name}: {pair.after.name}"


def _pair(pair: Pair, name: str, x: Axis, y: Down) -> Iterator[Mark]:
    point = pair.after
    across = x.at(point.intensity)
    if pair.before is not None:
        title = f"{point.name} before: {pair.before:.3g} TFLOP/s"
        yield Mark(across, y.at(pair.before), "before", title)
    title = f"{point.name}: {point.tflops:.3g} TFLOP/s at {point.intensity:.3g} FLOP per byte"
    inside = name != point.name
    shape = "numbered" if inside else "after"
    yield Mark(across, y.at(point.tflops), shape, title, label=name, inside=inside)
