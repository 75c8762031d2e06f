"""What a kernel is timed against: the kernel that the user named, and the op's own baseline."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import git

from pytest_autokernel.candidate import KernelFile, KernelFileError, parse, read
from pytest_autokernel.judge import Judge
from pytest_autokernel.op import Op
from pytest_autokernel.subjects import Subject, WorkerSubject
from pytest_autokernel.verdict import CandidateError, Verdict

USERS = "baseline"  # the name of the kernel given by --autokernel-baseline


def rivals(judge: Judge, subject: Subject, op: Op) -> dict[str, Callable[[], Subject]]:
    """Name -> a maker of fresh processes. The first is the one that decisions are about."""
    found: dict[str, Callable[[], Subject]] = {}
    named = judge.settings.baseline
    if named is not None and isinstance(subject, WorkerSubject):
        try:
            kernel = _users(named, subject.kernel)
        except KernelFileError as error:
            raise CandidateError(Verdict.FAIL, f"--autokernel-baseline: {error}") from error
        if kernel is not None:
            found[USERS] = lambda: WorkerSubject(judge, kernel, subject.device)
    file = judge.files[op.name]
    reference = KernelFile(file, file.read_text(encoding="utf-8"), op.name, "torch")
    name = next(iter(op.baselines))
    found[name] = lambda: WorkerSubject(judge, reference, subject.device, name)
    return found


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
    try:
        repo = git.Repo(kernel.path.parent, search_parent_directories=True)
        commit = repo.commit(revision)
    except (git.InvalidGitRepositoryError, git.BadName, ValueError) as error:
        raise KernelFileError(
            f"expected a kernel file or a git revision, got {revision!r}"
        ) from error
    assert repo.working_tree_dir is not None
    relative = kernel.path.resolve().relative_to(Path(repo.working_tree_dir).resolve())
    try:
        blob = commit.tree / relative.as_posix()
    except KeyError:
        return None
    text = blob.data_stream.read().decode("utf-8")
    return parse(kernel.path, text)
