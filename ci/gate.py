"""The gate of a merge: did a change make a kernel wrong, or slower?

    python ci/gate.py BASE HEAD [--json FILE] [--markdown FILE] [-- PYTEST OPTIONS]

Every kernel file that differs between two git revisions is judged as it is in HEAD, then timed
against its own text in BASE: in pairs, on this device, in this job (decide.py has the rule). What
decides is `pytest --autokernel`; this program finds the files, and tells what came of it. Where
code is the same as in BASE nothing is timed, nor where what is compiled of it is: that is the word
of the kernel's own process, and asked for where all that Python runs there is BASE's.

Exit code 0: nothing is wrong, nothing is shown to be slower. 1: a kernel is wrong or SLOWER.
2: something could not be measured, which is no leave to merge.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from enum import IntEnum
from pathlib import Path
from typing import Annotated, Any

import git
import typer
from rich.console import Console
from rich.table import Table

from kernel_changes import Change, changes, checked_out, same_code, same_python, text

SCHEMA = 1
# -P and --noconftest: what a change brings along runs where kernels run, not in the judge.
PYTEST = (sys.executable, "-P", "-m", "pytest", "--noconftest", "-o", "addopts=")
LIMIT_S = 3600
WIDE = 200  # columns where there is no terminal, so that a log keeps one row a line


class Exit(IntEnum):
    """What the caller is told; a failure outweighs what could not be measured."""

    PASSED = 0
    FAILED = 1
    NOT_MEASURED = 2


# Outcome -> its exit code, and what it says to somebody who sees the word for the first time.
OUTCOMES: Mapping[str, tuple[Exit, str]] = {
    "WRONG": (Exit.FAILED, "a stage of the judge refused it"),
    "SLOWER": (Exit.FAILED, "shown to be slower, and confirmed by fresh samples"),
    "NOT MEASURED": (Exit.NOT_MEASURED, "nothing is known of its speed: the gate stays shut"),
    "UNDECIDED": (Exit.PASSED, "the noise is wider than any change: nothing is shown"),
    "SAME": (Exit.PASSED, "within 1 % of the base, on a CPU within 3 %"),
    "FASTER": (Exit.PASSED, "shown to be faster, and confirmed by fresh samples"),
    "RIGHT": (Exit.PASSED, "judged, and not timed against a base"),
    "DELETED": (Exit.PASSED, "no longer there"),
}


class Refused(Exception):
    """What was asked for cannot be done: the message says what was expected and what came."""


@dataclass(frozen=True)
class Finding:
    """What the gate says of one kernel. `timings` are the report's, one per timed case; their
    ratios are the base's time over the head's."""

    change: Change
    outcome: str
    reason: str = ""
    timings: Sequence[Mapping[str, Any]] = ()
    environment: Mapping[str, Any] = field(default_factory=dict)

    @property
    def exit(self) -> Exit:
        return OUTCOMES[self.outcome][0]

    def speeds(self) -> Iterator[str]:
        for timing in self.timings:
            found = timing["comparisons"]["baseline"]
            yield (
                f"{found['ratio']:.3f}x [{found['low']:.3f}, {found['high']:.3f}] "
                f"{timing['case']}, {timing['time_us']:.1f} us"
            )

    def to_json(self) -> dict[str, Any]:
        return {**asdict(self), "change": self.change.what, "path": self.change.path,
                "base_path": self.change.base_path}  # fmt: skip


class Gate:
    """Judges changes in a work tree of its own at HEAD."""

    def __init__(self, base: git.Commit, worktree: Path, scratch: Path, options: Sequence[str]):
        self.base, self.worktree, self.scratch = base, worktree, scratch
        self.options = options

    def judge(self, change: Change) -> Finding:
        if change.what == "deleted":
            return Finding(change, "DELETED")
        before = text(self.base, change.base_path) if change.base_path else None
        now = (self.worktree / change.path).read_text(encoding="utf-8", errors="replace")
        same, options = "", self.options
        if before is not None:
            file = self.scratch / "base" / Path(change.path).name
            file.parent.mkdir(exist_ok=True)
            file.write_text(before, encoding="utf-8")
            same = self._same(before, now, [change.path, str(file)])
            more = ["-k", "not roofline"] if same else ["--autokernel-baseline", str(file)]
            options = [*options, *more]
        code, report = self._pytest([change.path], options)
        if report is None:
            return Finding(change, "NOT MEASURED", f"the judge itself failed: pytest exited {code}")
        return finding(change, report, same)

    def _same(self, before: str, now: str, paths: Sequence[str]) -> str:
        """Of two files: what of them is the same, so that they need no timing; else nothing."""
        if same_code(before, now):
            return "code"
        if not same_python(before, now):
            return ""
        asked = ["--autokernel-ask", "binary", "-k", "binary"]
        _, report = self._pytest(paths, [*self.options, *asked])
        found = {kernel.get("binary") for kernel in report["kernels"]} if report else {None}
        return "binary in every timed case" if len(found) == 1 and None not in found else ""

    def _pytest(
        self, paths: Sequence[str], options: Sequence[str]
    ) -> tuple[int, Mapping[str, Any] | None]:
        """Its exit code, and its report where the judge came to an end."""
        report = self.scratch / "report.json"
        report.unlink(missing_ok=True)
        command = [
            *PYTEST,
            *("--autokernel", *paths, f"--rootdir={self.worktree}", "-q"),
            *("-p", "no:cacheprovider", "-p", "no:randomly", "--autokernel-json", str(report)),
            *options,
        ]
        env = {name: value for name, value in os.environ.items() if not name.startswith("PYTEST_")}
        try:
            code = subprocess.run(
                command, cwd=self.worktree, env=env, timeout=LIMIT_S, check=False
            ).returncode
        except subprocess.TimeoutExpired:
            return -1, None
        done = code in (0, 1) and report.exists()
        return code, json.loads(report.read_text()) if done else None


def finding(change: Change, report: Mapping[str, Any], same: str = "") -> Finding:
    """What the judge's report on one kernel means for a merge; `same` says what did not change."""
    kernel = next((k for k in report["kernels"] if k["path"] == change.path), None)
    environment = {**report["environment"], "seed": report["seed"]}
    if kernel is None:
        return Finding(change, "NOT MEASURED", "the report does not name it", (), environment)
    wrong = [i for i in kernel["items"] if i["stage"] != "roofline" and i["verdict"] != "PASS"]
    failed = [i for i in wrong if i["verdict"] != "SKIP"]
    if failed:
        words = "{stage}: {verdict}: {reason}".format_map(failed[0])
        return Finding(change, "WRONG", words, (), environment)
    timed = [t for t in kernel["timings"] if "baseline" in t["comparisons"]]
    decisions = [t["comparisons"]["baseline"]["decision"] for t in timed]
    refused = [i for i in kernel["items"] if i["stage"] == "roofline" and i["verdict"] != "PASS"]
    if "SLOWER" in decisions:
        return Finding(change, "SLOWER", "", timed, environment)
    if not OUTCOMES.keys() >= set(decisions):
        words = "effort quick answers an agent's question and no gate's: ask for normal"
        return Finding(change, "NOT MEASURED", words, (), environment)
    compared = change.base_path is not None and not same
    whole = kernel["overall"]
    if kernel["verdict"] != "PASS" or (compared and (refused or whole is None)):
        words = refused[0]["reason"] if refused else kernel["reason"] or "it was not timed"
        return Finding(change, "NOT MEASURED", str(words), timed, environment)
    if not compared:
        words = f"the same {same} as in the base" if same else "no base to be timed against"
        return Finding(change, "RIGHT", words, (), environment)
    return Finding(change, whole["decision"], "", timed, environment)


def summary(base: str, head: str, findings: Sequence[Finding]) -> str:
    """What a reviewer reads, as Markdown."""
    lines = [f"### Kernels, {base[:12]}..{head[:12]}: {verdict(findings)}", ""]
    if findings:
        lines += ["| kernel | | outcome | speed of head over base |", "|---|---|---|---|"]
    for found in findings:
        note = "<br>".join([*found.speeds()]) or _cell(found.reason)
        lines.append(f"| `{found.change.path}` | {found.change} | {found.outcome} | {note} |")
    said = dict.fromkeys(found.outcome for found in findings)
    lines += ["", *(f"- **{outcome}**: {OUTCOMES[outcome][1]}" for outcome in said)]
    environment = next((f.environment for f in findings if f.environment), None)
    if environment:
        versions = f"torch {environment['torch']}, triton {environment['triton']}"
        lines += ["", f"{environment['device']}, {versions}, seed {environment['seed']}. Pairs in "
                  "one job; 99 % intervals."]  # fmt: skip
    return "\n".join(lines) + "\n"


def _cell(words: str) -> str:
    return words.replace("|", "\\|").replace("\n", " ")


def verdict(findings: Sequence[Finding]) -> str:
    if not findings:
        return "none was touched"
    return {
        Exit.PASSED: "passed",
        Exit.FAILED: "failed",
        Exit.NOT_MEASURED: "not measured",
    }[exit_code(findings)]


def exit_code(findings: Sequence[Finding]) -> Exit:
    codes = {found.exit for found in findings}
    order = (Exit.FAILED, Exit.NOT_MEASURED)
    return next((code for code in order if code in codes), Exit.PASSED)


def commit_of(repo: git.Repo, name: str) -> git.Commit:
    try:
        wanted = ("--verify", "--quiet", "--end-of-options", f"{name}^{{commit}}")
        return repo.commit(repo.git.rev_parse(*wanted))
    except git.GitCommandError as error:
        raise Refused(
            f"expected a git revision, got {name!r}, which is not here: a shallow clone has not "
            "all of them (actions/checkout: fetch-depth: 0)"
        ) from error


def run(
    base: str, head: str, options: Sequence[str], folder: Path
) -> tuple[str, str, list[Finding]]:
    """Both revisions' hashes, and what is found of each kernel that differs between them."""
    try:
        repo = git.Repo(folder, search_parent_directories=True)
    except (git.InvalidGitRepositoryError, git.NoSuchPathError) as error:
        raise Refused(f"expected a git repository, {folder} is in none") from error
    with repo:
        old, new = commit_of(repo, base), commit_of(repo, head)
        touched = changes(old, new)
        findings = []
        if touched:
            with checked_out(repo, new) as (worktree, scratch):
                gate = Gate(old, worktree, scratch, options)
                findings = [gate.judge(change) for change in touched]
        return old.hexsha, new.hexsha, findings


app = typer.Typer(add_completion=False, pretty_exceptions_enable=False)


@app.command()
def main(
    base: Annotated[str, typer.Argument(help="the revision to be compared with")],
    head: Annotated[str, typer.Argument(help="the revision that is to be merged")],
    options: Annotated[
        list[str] | None, typer.Argument(help="options for pytest, after --")
    ] = None,
    json_file: Annotated[Path | None, typer.Option("--json", help="write all of it here")] = None,
    markdown: Annotated[
        Path | None,
        typer.Option(help="append a summary here", envvar="GITHUB_STEP_SUMMARY"),
    ] = None,
) -> None:
    console = Console()
    if not console.is_terminal:
        console = Console(width=WIDE)
    try:
        _expect_folders(json_file, markdown)
        old, new, findings = run(base, head, options or [], Path.cwd())
    except (Refused, git.GitCommandError) as error:
        Console(stderr=True).print(f"gate: {error}", style="red", highlight=False)
        raise typer.Exit(Exit.NOT_MEASURED) from error
    console.print(table(findings))
    console.print(f"gate: {verdict(findings)}", style="bold", highlight=False)
    code = exit_code(findings)
    if json_file:
        found = {"schema": SCHEMA, "base": old, "head": new, "exit_code": int(code)}
        found["kernels"] = [finding.to_json() for finding in findings]
        json_file.write_text(json.dumps(found, indent=1) + "\n")
    if markdown:
        with markdown.open("a") as file:
            file.write(summary(old, new, findings))
    raise typer.Exit(code)


def _expect_folders(*files: Path | None) -> None:
    """Refused before anything is judged, and not after."""
    for file in filter(None, files):
        if not file.absolute().parent.is_dir():
            raise Refused(f"{file} cannot be written: expected a folder {file.parent}")


def table(findings: Sequence[Finding]) -> Table:
    found = Table(box=None, pad_edge=False, header_style="bold")
    for name in ("kernel", "change", "outcome", "speed of head over base"):
        found.add_column(name, overflow="fold")
    for each in findings:
        note = "\n".join(each.speeds()) or each.reason or OUTCOMES[each.outcome][1]
        found.add_row(each.change.path, str(each.change), each.outcome, note)
    return found


if __name__ == "__main__":
    app()
