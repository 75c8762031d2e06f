"""pytest's side of the door: options, fixtures, and with `--autokernel` the judge.

Imports neither torch nor triton nor hypothesis: a run without `--autokernel` pays nothing.
"""

from __future__ import annotations

from collections.abc import Generator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from pytest_autokernel.fixtures import (  # noqa: F401 - pytest finds fixtures as this module's attributes
    autokernel_judge,
    determinism,
    edge_cases,
    numerical_stability,
    roofline,
    shape_sweep,
    smoke,
)

if TYPE_CHECKING:
    from pytest_autokernel.judge import Judge

JUDGE: pytest.StashKey[Judge] = pytest.StashKey()


def pytest_addoption(parser: pytest.Parser) -> None:
    group = parser.getgroup("autokernel", "judging GPU kernels")
    group.addoption(
        "--autokernel",
        action="store_true",
        help="collect and judge kernel files (default: kernels/)",
    )
    group.addoption("--autokernel-json", metavar="FILE", help="write the report as JSON")
    group.addoption(
        "--autokernel-seed", type=int, metavar="N", help="replay a run; drawn afresh otherwise"
    )
    group.addoption(
        "--autokernel-baseline",
        metavar="FILE|REV",
        help="kernel file, or git revision of each file, to compare with",
    )
    for name, choices, text in (
        ("device", "auto|cuda|cpu", "where kernels run (auto: a CUDA GPU if there is one)"),
        ("effort", "quick|normal|thorough", "how much is judged (normal)"),
        ("ask", "binary|screen|keep|change", "what to find out (quick: keep, else change)"),
        ("compare", "NAMES", "baselines to time besides eager: compile, liger, quack, all, ..."),
        ("timeout", "SECONDS", "time limit of one call of a kernel, compilation included (60)"),
        ("memory", "GIB", "memory limit of a kernel's process (3/4 of the machine's)"),
        ("threads", "N", "CPU threads of a kernel (all)"),
        ("sandbox", "auto|require|off", "what confines a kernel's process (auto: what there is)"),
        ("l2", "cold|warm", "how timed calls find a GPU's L2 cache (cold)"),
        ("cache", "DIR|none", "where compiled kernels are kept (~/.cache/pytest-autokernel)"),
        ("allow", "NAMES", "torch operators, imports or launches of hybrids: aten.mm, aten.*"),
    ):
        group.addoption(f"--autokernel-{name}", metavar=choices, help=text)
        parser.addini(f"autokernel_{name}", help=text)


def pytest_configure(config: pytest.Config) -> None:
    if not config.getoption("autokernel"):
        return
    if config.args_source != pytest.Config.ArgsSource.ARGS:
        config.args = ["kernels"]
        if not (config.invocation_params.dir / "kernels").is_dir():
            raise pytest.UsageError(
                "--autokernel: expected a folder kernels/ here, or paths; found neither"
            )
    config.pluginmanager.register(AutokernelPlugin(config), "autokernel-run")


def pytest_unconfigure(config: pytest.Config) -> None:
    judge = config.stash.get(JUDGE, None)
    if judge is not None:
        judge.close()


class AutokernelPlugin:
    """Registered only with `--autokernel`."""

    def __init__(self, config: pytest.Config) -> None:
        from pytest_autokernel.baselines import refuse_nowhere
        from pytest_autokernel.fixtures import judge_of
        from pytest_autokernel.gpu import GpuSpecError
        from pytest_autokernel.ops import OpError
        from pytest_autokernel.report import Report
        from pytest_autokernel.verdict import JudgeError

        try:
            named, folder = config.getoption("autokernel_baseline"), config.invocation_params.dir
            if named is not None:
                refuse_nowhere(named, [folder / arg.partition("::")[0] for arg in config.args])
            self.judge = judge_of(config)
        except (JudgeError, GpuSpecError, OpError) as error:
            raise pytest.UsageError(str(error)) from error
        self.report = Report(self.judge)

    @pytest.hookimpl(wrapper=True)
    def pytest_collect_file(
        self, file_path: Path, parent: pytest.Collector
    ) -> Generator[None, list[pytest.Collector], list[pytest.Collector]]:
        from pytest_autokernel.collection import KernelModule, is_kernel_file

        others = yield
        if is_kernel_file(file_path, parent):
            return [KernelModule.of(parent, file_path, self.judge)]
        return others

    def pytest_report_header(self) -> list[str]:
        return self.report.header()

    @pytest.hookimpl(wrapper=True)  # not tryfirst, as --ff is: that has the last word
    def pytest_collection_modifyitems(
        self, items: list[pytest.Item]
    ) -> Generator[None, object, object]:
        from pytest_autokernel.collection import in_order

        result = yield
        items[:] = in_order(items)
        return result

    def pytest_collection_finish(self, session: pytest.Session) -> None:
        self.report.expect(session.items)

    @pytest.hookimpl(wrapper=True)
    def pytest_runtest_makereport(
        self, item: pytest.Item
    ) -> Generator[None, pytest.TestReport, pytest.TestReport]:
        from pytest_autokernel.examination import RECORD

        report = yield
        if report.when == "call" and RECORD in item.stash:
            # A report carries to xdist's controller whatever attributes it is given.
            report.autokernel = item.stash[RECORD]  # type: ignore[attr-defined]
        return report

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        record: dict[str, Any] | None = getattr(report, "autokernel", None)
        if record is not None:
            self.report.add(record)
        elif report.failed:
            self.report.broke(report.nodeid, _last_words(report))

    @pytest.hookimpl(optionalhook=True)
    def pytest_benchmark_update_machine_info(self, machine_info: dict[str, Any]) -> None:
        machine_info["autokernel"] = self.report.environment()

    @pytest.hookimpl(optionalhook=True)
    def pytest_benchmark_compare_machine_info(
        self, machine_info: dict[str, Any], compared_benchmark: dict[str, Any]
    ) -> None:
        here, there = (
            info.get("autokernel", {}).get("device")
            for info in (machine_info, compared_benchmark["machine_info"])
        )
        if there is not None and there != here:
            raise pytest.UsageError(
                f"--benchmark-compare: expected samples taken on {here}, got some of {there}: "
                "times on two devices say nothing of a kernel"
            )

    def pytest_sessionfinish(self, session: pytest.Session) -> None:
        self.report.write()
        if self.report.broken:
            session.exitstatus = pytest.ExitCode.INTERNAL_ERROR

    def pytest_terminal_summary(self, terminalreporter: pytest.TerminalReporter) -> None:
        self.report.summarise(terminalreporter)


def _last_words(report: pytest.TestReport) -> str:
    """What an item that broke died of, in one line."""
    crash = getattr(report.longrepr, "reprcrash", None)
    return str(crash.message if crash else report.longrepr).strip().splitlines()[0][:500]
