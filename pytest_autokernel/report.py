"""What a run found: the header, the table at the end, and the JSON that agents and CI read.

Built from what the items recorded. A kernel passes when every check that was collected for it
has a result and none failed; a check without a result is a failure.
"""

from __future__ import annotations

import io
import json
import os
import platform
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from rich.console import Console
from rich.table import Table

from pytest_autokernel import __version__
from pytest_autokernel.decide import Estimate, answer_cases, overall, rule_for
from pytest_autokernel.gpu import no_spec
from pytest_autokernel.machine import cpu_name, package_version
from pytest_autokernel.ops import overridden

if TYPE_CHECKING:
    from pytest_autokernel.judge import Judge

SCHEMA = 1
SEVERITY = ("PASS", "SKIP", "FAIL", "TIMEOUT", "CRASH")


class Report:
    """Collects records as they come, and gives them in three forms."""

    def __init__(self, judge: Judge) -> None:
        self.judge = judge
        self.kernels: dict[str, dict[str, Any]] = {}
        self.expected: dict[str, set[str]] = {}
        self.broken: dict[str, str] = {}  # why, by item

    def header(self) -> list[str]:
        """What the numbers below depend on."""
        settings = self.judge.settings
        lines = [
            *self._device(),
            f"torch {package_version('torch')}, triton {package_version('triton')}, "
            f"effort {settings.effort}, "
            f"seed {settings.seed} (repeat with --autokernel-seed {settings.seed})",
        ]
        confinement = self.judge.confinement
        if confinement is None:
            lines.append("sandbox off: a kernel's process can do whatever you can")
        elif confinement.missing:
            lines.append(f"sandbox incomplete: {'; '.join(confinement.missing)}")
        if own := overridden(settings.rootdir):
            lines.append(f"this repository's reference/ replaces our {', '.join(own)}")
        return [f"autokernel: {line}" for line in lines]

    def _device(self) -> list[str]:
        gpu, spec = self.judge.hardware.gpu, self.judge.hardware.spec
        if gpu is None:
            threads = len(self.judge.settings.cpus)
            return [
                f"no CUDA GPU: C++ on {threads} CPU threads, Triton through its interpreter, "
                "CUDA C++ skipped"
            ]
        if spec is None:
            return [f"{gpu.name}; {no_spec(gpu)}"]
        peak = spec.tflops.get("bf16") or spec.tflops["fp32"]
        source = (
            "as it was measured, for want of a data sheet" if spec.measured else "by its data sheet"
        )
        return [f"{gpu.name} ({spec.bandwidth_gb_s:.0f} GB/s, {peak:.0f} TFLOP/s {source})"]

    def expect(self, items: list[pytest.Item]) -> None:
        """The checks that were collected and selected, by kernel file."""
        from pytest_autokernel.collection import KernelModule

        for item in items:
            module = item.getparent(KernelModule)
            if module is not None:
                self.expected.setdefault(module.nodeid, set()).add(item.nodeid)

    def add(self, record: dict[str, Any]) -> None:
        about = record["kernel"]
        kernel = self.kernels.setdefault(about["path"], {**about, "items": [], "timings": []})
        kernel["items"].append(record["item"])
        if record.get("timing"):
            kernel["timings"].append(record["timing"])

    def broke(self, nodeid: str, why: str) -> None:
        """An item failed and left no record: if it is a kernel's, the judge itself broke there."""
        if any(nodeid in items for items in self.expected.values()):
            self.broken[nodeid] = why

    def to_json(self) -> dict[str, Any]:
        settings = self.judge.settings
        return {
            "schema": SCHEMA,
            "version": __version__,
            "seed": settings.seed,
            "effort": settings.effort,
            "environment": self.environment(),
            "kernels": [self._kernel(path) for path in {**self.expected, **self.kernels}],
        }

    def environment(self) -> dict[str, Any]:
        """What the figures were measured with."""
        gpu, clock = self.judge.hardware.gpu, self.judge.hardware.clock
        return {
            "device": gpu.name if gpu else cpu_name(),
            "gpu": asdict(gpu) if gpu else None,
            "torch": package_version("torch"),
            "triton": package_version("triton"),
            "python": platform.python_version(),
            "cpus": len(self.judge.settings.cpus),
            "driver": clock.driver if clock else None,
            "max_sm_mhz": clock.max_mhz if clock else None,
        }

    def _kernel(self, path: str) -> dict[str, Any]:
        kernel = self.kernels.get(path) or {"path": path, "items": [], "timings": []}
        items = kernel["items"]
        missing = self.expected.get(path, set()) - {item["id"] for item in items}
        worst = max((SEVERITY.index(item["verdict"]) for item in items), default=0)
        reason = next((i["reason"] for i in items if i["verdict"] == SEVERITY[worst]), None)
        verdict = SEVERITY[worst]
        if verdict in {"PASS", "SKIP"}:
            passed = any(item["verdict"] == "PASS" for item in items)
            verdict, reason = ("PASS", None) if passed else ("FAIL", "no check was completed")
            if kernel.get("skipped") and not passed:
                verdict, reason = "SKIP", kernel["skipped"]
            if missing:
                verdict = "FAIL"
                reason = f"{len(missing)} of {len(self.expected[path])} checks have no result"
                if why := next((self.broken[i] for i in self.broken if i in missing), None):
                    reason += f": the judge itself failed: {why}"
        hybrid = sorted({name for item in items for name in item.get("hybrid", ())})
        found = {"verdict": verdict, "reason": reason, "hybrid": hybrid}
        return {**kernel, **found, "overall": self._overall(kernel) if kernel["timings"] else None}

    def _overall(self, kernel: dict[str, Any]) -> dict[str, Any] | None:
        """What all timed cases come to against the user's baseline; None until it is known of
        each."""
        figures = ("ratio", "low", "high", "confidence")
        found = {
            timing["name"]: Estimate(**{name: c[name] for name in figures}, blocks=len(c["blocks"]))
            for timing in kernel["timings"]
            if (c := timing["comparisons"].get("baseline"))
        }
        weights = kernel.get("weights", {})
        if not found or found.keys() != weights.keys():
            return None
        question = self.judge.settings.ask
        rule = rule_for(question, kernel["device"] == "cuda", len(found))
        decision = str(answer_cases(question, found, rule, weights, kernel["critical"]))
        whole = overall(found, weights)
        return {**{name: getattr(whole, name) for name in figures}, "decision": decision}

    def write(self) -> None:
        """The report as a file, whole or not at all."""
        target = self.judge.settings.json
        if target is None:
            return
        part = target.with_name(target.name + ".part")
        try:
            part.write_text(json.dumps(self.to_json(), indent=1, allow_nan=False) + "\n")
            part.replace(target)
        except OSError as error:
            part.unlink(missing_ok=True)
            raise pytest.UsageError(
                f"--autokernel-json: {target} cannot be written: {error}"
            ) from error

    def summarise(self, reporter: pytest.TerminalReporter) -> None:
        """One row per kernel, then what was left out and why."""
        report = self.to_json()
        if not report["kernels"]:
            return
        reporter.section("autokernel")
        table = Table(box=None, pad_edge=False, header_style="bold")
        for name, side in (
            ("kernel", "left"),
            ("verdict", "left"),
            ("checks", "right"),
            ("worst error", "right"),
            ("time", "right"),
            ("of roof (data sheet)", "right"),
            ("speedup over", "left"),
        ):
            # mypy takes the literals above for any str.
            table.add_column(name, justify=side, no_wrap=True)  # type: ignore[arg-type]
        for kernel in report["kernels"]:
            for row in _rows(kernel):
                table.add_row(*row)
        reporter.write_line(_rendered(table, reporter))
        if self.broken:
            first = next(iter(self.broken))
            reporter.write_line(
                f"the judge itself failed, which says nothing of the kernel: {first}", red=True
            )
        for line in _notes(report["kernels"]):
            reporter.write_line(line)
        if text := self.judge.hardware.measured_spec:
            reporter.write_line(
                "this GPU has no spec; it was measured to reach, for you to contribute:"
            )
            reporter.write_line(text)
        if self.judge.settings.json:
            reporter.write_line(f"report: {os.path.relpath(self.judge.settings.json, Path.cwd())}")


def _rows(kernel: dict[str, Any]) -> list[tuple[str, ...]]:
    items = kernel["items"]
    passed = sum(item["verdict"] == "PASS" for item in items)
    errors = [i["worst"] for i in items if i["completed"] and i["worst"] is not None]
    first = (
        kernel["path"],
        kernel["verdict"],
        f"{passed}/{len(items)}",
        f"{max(errors):.0%}" if errors else "-",
    )
    rows: list[tuple[str, ...]] = []
    for timing in kernel["timings"] or [None]:
        left = first if not rows else ("", "", "", "")
        rows.append(left + (_timing(timing) if timing else ("-", "-", "-")))
    return rows


def _timing(timing: dict[str, Any]) -> tuple[str, str, str]:
    roof = f"{timing['pct_roof']:.0f} %"
    if timing["pct_datasheet"] is not None:
        roof += f" ({timing['pct_datasheet']:.0f} %)"
    pairs = [f"{name} {_interval(c)}" for name, c in timing["comparisons"].items()]
    return f"{timing['time_us']:.1f} us", roof, "\n".join(pairs)


def _interval(found: dict[str, Any]) -> str:
    words = f"{found['ratio']:.3f} [{found['low']:.3f}, {found['high']:.3f}]"
    return f"{words} {found['decision']}, confirmed" if found["confirmed"] else words


def _notes(kernels: list[dict[str, Any]]) -> list[str]:
    """What was not judged and why, each reason once."""
    by_reason: dict[str, list[str]] = {}
    for kernel in kernels:
        name = kernel["path"]
        for extension in kernel.get("not_claimed", ()):
            by_reason.setdefault(f"extension {extension} not claimed", []).append(name)
        if kernel["hybrid"]:
            called = ", ".join(kernel["hybrid"])
            by_reason.setdefault(f"hybrid, calls {called}", []).append(name)
        if kernel.get("left_out"):
            reason = f"cases left out, too large for {kernel['device']}"
            by_reason.setdefault(reason, []).append(f"{name} ({len(kernel['left_out'])})")
        for timing in kernel["timings"]:
            for reason in _of_baselines(timing):
                by_reason.setdefault(reason, []).append(name)
        for item in kernel["items"]:
            stage = item["stage"]
            if kernel.get("skipped"):
                by_reason.setdefault(f"skipped: {kernel['skipped']}", []).append(name)
                break
            if stage in ("roofline", "sanitizer") and item["verdict"] == "SKIP":
                names = by_reason.setdefault(f"{stage} skipped: {item['reason']}", [])
                names += [] if name in names else [name]
    notes = [f"{reason}: {', '.join(names)}" for reason, names in by_reason.items()]
    return [*_conditions([t for kernel in kernels for t in kernel["timings"]]), *notes]


def _conditions(timings: list[dict[str, Any]]) -> list[str]:
    """How the times were taken."""
    lines = []
    for l2 in sorted({t["l2"] for t in timings}):
        some = [t for t in timings if t["l2"] == l2]
        words = [f"timed with {'a cold L2 cache' if l2 == 'cold' else 'warm caches'}"]
        if eager := sum(t["captured"] is False and t["floor_us"] is not None for t in some):
            words.append(f"{eager} of {len(some)} not as CUDA graphs: launches count")
        if clocks := [t["sm_mhz"] for t in some if t["sm_mhz"]]:
            dropped = sum(t["throttled"] for t in some if t["throttled"])
            words.append(f"SM clock {_range(clocks)} MHz, {dropped} samples dropped as throttled")
        if floors := [t["floor_us"] for t in some if t["floor_us"]]:
            words.append(f"an empty pair of events reads {max(floors):.1f} us")
        lines.append("; ".join(words))
    return lines


def _range(values: list[float]) -> str:
    low, high = f"{min(values):.0f}", f"{max(values):.0f}"
    return low if low == high else f"{low} to {high}"


def _of_baselines(timing: dict[str, Any]) -> list[str]:
    """Which were asked for and are missing, and what others took in an earlier run."""
    missing = [f"baseline {name}: {reason}" for name, reason in timing["missing"].items()]
    cached = [
        f"{name} {kept['time_us']:.1f} us (cached {_age(kept['age_s'])})"
        for name, kept in timing["cached"].items()
    ]
    return missing + cached


def _age(seconds: float) -> str:
    for unit, length in (("day", 86400), ("hour", 3600), ("minute", 60)):
        if count := int(seconds // length):
            return f"{count} {unit}{'s' if count > 1 else ''} ago"
    return "just now"


def _rendered(table: Table, reporter: pytest.TerminalReporter) -> str:
    width = max(reporter._tw.fullwidth, 120)
    console = Console(file=io.StringIO(), width=width, color_system=None)
    console.print(table)
    assert isinstance(console.file, io.StringIO)
    return "\n".join(line.rstrip() for line in console.file.getvalue().splitlines())
