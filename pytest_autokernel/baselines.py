"""What a kernel is timed against: the kernel that the user named, and the op's own baselines.

The first alone can decide anything. An op's baselines are trusted as to what they are, and left
out with the reason where they fail.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import git

from pytest_autokernel.candidate import KernelFile, KernelFileError, parse, read
from pytest_autokernel.judge import HandedOver, Judge
from pytest_autokernel.machine import package_version
from pytest_autokernel.op import Op
from pytest_autokernel.subjects import Answer, Subject, WorkerSubject
from pytest_autokernel.verdict import CandidateError, JudgeError, Verdict

USERS = "baseline"  # the name of the kernel given by --autokernel-baseline
EVERY = "all"
PATIENCE_S = 600.0  # torch.compile and some libraries try many kernels at their first call
# What pip installs for the baseline of that name.
LIBRARIES = {"liger": "liger-kernel", "quack": "quack-kernels", "flag_gems": "flag-gems"}


class BaselineError(CandidateError):
    """An op's baseline gave no right result, which says nothing of the kernel beside it."""

    def __init__(self, name: str, verdict: Verdict, reason: str) -> None:
        super().__init__(verdict, reason)
        self.name = name


class BaselineSubject(WorkerSubject):
    """One of an op's baselines in its worker."""

    def __init__(
        self, judge: Judge, reference: KernelFile, op: Op, like: Subject, name: str
    ) -> None:
        super().__init__(judge, reference, like.device, name)
        self.op, self.name = op, name

    def examine(self, call: HandedOver, options: Mapping[str, Any]) -> None:
        """Whether it computes the op at all. Not asked of the first, by which the oracle itself
        knows what PyTorch reaches. Raises BaselineError."""
        if self.name == next(iter(self.op.baselines)):
            return
        reply, out = self.ask({"do": "run", **call.message, "options": options}, call.fds)
        try:
            found = self.judge.compare(Answer.of(reply, out))
        except CandidateError as error:
            raise BaselineError(self.name, error.verdict, error.reason) from None
        if not found["ok"]:
            raise BaselineError(self.name, Verdict.FAIL, f"its result is wrong: {found['reason']}")

    def _ask(
        self, message: dict[str, Any], fds: tuple[int, ...], timeout_s: float
    ) -> tuple[dict[str, Any], tuple[int, ...]]:
        try:
            return super()._ask(message, fds, max(timeout_s, PATIENCE_S))
        except CandidateError as error:
            first, *_ = error.reason.splitlines()
            reason = first.replace("the kernel's process", "its process")[:300]
            raise BaselineError(self.name, error.verdict, reason) from None


@dataclass(frozen=True)
class Rivals:
    """Name -> a maker of fresh processes, where the user's kernel comes first; and who was asked
    for and is missing, with the reason."""

    makers: dict[str, Callable[[], Subject]]
    missing: dict[str, str]


def rivals(judge: Judge, subject: Subject, op: Op, failed: Mapping[str, str]) -> Rivals:
    """Those of a kernel but for the ones that have `failed` beside it, name -> reason."""
    found = Rivals({}, {})
    named = judge.settings.baseline
    if named is not None and isinstance(subject, WorkerSubject):
        try:
            kernel = _users(named, subject.kernel)
        except KernelFileError as error:
            raise CandidateError(Verdict.FAIL, f"--autokernel-baseline: {error}") from error
        if kernel is not None:
            found.makers[USERS] = lambda: WorkerSubject(judge, kernel, subject.device)
    file = judge.files[op.name]
    reference = KernelFile(file, file.read_text(encoding="utf-8"), op.name, "torch")
    for name in _asked(judge.settings.compare, op):
        reason = failed.get(name) or _missing(name, op)
        if reason:
            found.missing[name] = reason
        else:
            found.makers[name] = partial(BaselineSubject, judge, reference, op, subject, name)
    return found


def examine(contenders: Iterable[Subject], call: HandedOver, options: Mapping[str, Any]) -> None:
    """Whether the op's baselines among them compute the op. Raises BaselineError."""
    for contender in contenders:
        if isinstance(contender, BaselineSubject):
            contender.examine(call, options)


def refuse_nowhere(named: str, arguments: Iterable[Path]) -> None:
    """Raises JudgeError where --autokernel-baseline is neither a file nor a git revision in any of
    the places that pytest was given. Whether it can be compared with a kernel is seen later."""
    if Path(named).is_file():
        return
    folders = {path if path.is_dir() else path.parent for path in arguments}
    for folder in folders:
        with _commit(folder, named) as commit:
            if commit is not None:
                return
    raise JudgeError(
        f"--autokernel-baseline: expected a kernel file or a git revision, got {named!r}, which "
        "is neither"
    )


def refuse_unknown(judge: Judge) -> None:
    """Raises JudgeError where --autokernel-compare names what no op has."""
    asked = set(judge.settings.compare) - {EVERY}
    if not asked:
        return
    known = {name for op in judge.files for name in judge.op(op).baselines}
    if unknown := sorted(asked - known):
        raise JudgeError(
            f"--autokernel-compare: expected {EVERY}, or some of {', '.join(sorted(known))}; "
            f"got {', '.join(unknown)}"
        )


def _asked(compare: tuple[str, ...], op: Op) -> list[str]:
    """The first, and what the user asked for beside it."""
    own = list(op.baselines)
    return list(dict.fromkeys(own[:1] + (own if EVERY in compare else [*compare])))


def _missing(name: str, op: Op) -> str | None:
    """Why there is nothing to start."""
    if name not in op.baselines:
        return "the op has none"
    package = LIBRARIES.get(name)
    if package and package_version(package) is None:
        return f"not installed (pip install {package})"
    return None


def _users(named: str, kernel: KernelFile) -> KernelFile | None:
    """The kernel that `--autokernel-baseline` names: a file, or a git revision of `kernel`.
    None for a kernel that the revision does not have yet."""
    if Path(named).is_file():
        baseline = read(Path(named))
    else:
        found = _at_revision(named, kernel)
        if found is None:
            return None
        baseline = found
    if baseline.op != kernel.op:
        raise KernelFileError(
            f"expected a kernel of {kernel.op}, got {named}, one of {baseline.op}"
        )
    return baseline


def _at_revision(revision: str, kernel: KernelFile) -> KernelFile | None:
    with _commit(kernel.path.parent, revision) as commit:
        if commit is None:
            raise KernelFileError(f"expected a kernel file or a git revision, got {revision!r}")
        assert commit.repo.working_tree_dir is not None
        relative = kernel.path.resolve().relative_to(Path(commit.repo.working_tree_dir).resolve())
        try:
            blob = commit.tree / relative.as_posix()
        except KeyError:
            return None
        return parse(kernel.path, blob.data_stream.read().decode("utf-8"))


@contextmanager
def _commit(folder: Path, revision: str) -> Iterator[git.Commit | None]:
    """None where `folder` is in no git repository that has this revision."""
    wanted = ("--verify", "--quiet", "--end-of-options", f"{revision}^{{commit}}")
    with ExitStack() as stack:
        try:
            repo = stack.enter_context(git.Repo(folder, search_parent_directories=True))
            commit = repo.commit(repo.git.rev_parse(*wanted))
        except (git.InvalidGitRepositoryError, git.NoSuchPathError, git.GitCommandError):
            yield None
        else:
            yield commit
