"""The user's git repository, which we add to and otherwise leave as it is.

Plumbing alone: commits are built from a tree and one blob, references move by comparison
with their old value, and no command looks at, or writes to, the user's index, work tree or
branch. Hooks and signing are off.
"""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import git
from git.exc import GitCommandError, InvalidGitRepositoryError, NoSuchPathError

from .errors import Refused

NAME, EMAIL = "autokernel", "autokernel@localhost"


class Repository:
    """The repository whose work tree holds `start`."""

    def __init__(self, start: Path) -> None:
        try:
            self._repo = git.Repo(start, search_parent_directories=True)
        except (InvalidGitRepositoryError, NoSuchPathError) as error:
            raise Refused(
                f"{start} is not in a git repository: kept experiments are commits, so run "
                "`git init`, then commit the kernel file"
            ) from error
        if self._repo.working_tree_dir is None:
            raise Refused(f"{start} is a bare repository: expected one with a work tree")
        self.root = Path(self._repo.working_tree_dir).resolve()
        self._git = self._repo.git
        settings = ["core.hooksPath=/dev/null", "commit.gpgsign=false", "core.fsync=all"]
        self._git.set_persistent_git_options(c=settings)
        self._git.update_environment(GIT_OPTIONAL_LOCKS="0", GIT_LITERAL_PATHSPECS="1")
        self._identify()

    def close(self) -> None:
        self._repo.close()

    def head(self) -> str:
        """The commit that is checked out, on a branch."""
        try:
            sha: str = self._git.rev_parse("--verify", "--quiet", "HEAD^{commit}")
        except GitCommandError as error:
            raise Refused(
                f"{self.root} has no commits yet: commit the kernel file first, with `git add` "
                "and `git commit`"
            ) from error
        if self._repo.head.is_detached:
            raise Refused(
                f"expected a branch, HEAD is detached at {sha[:12]}: run `git switch -c NAME`"
            )
        return sha

    def committed(self, file: Path) -> str:
        """The path within the repository of a kernel file that is in HEAD as it is on disk."""
        if not file.is_file():
            raise Refused(f"no such kernel file: {file}")
        try:
            path = file.resolve().relative_to(self.root).as_posix()
        except ValueError as error:
            raise Refused(
                f"{file} is outside of the repository {self.root}: run autokernel in its own"
            ) from error
        head = self.head()
        if not self._git.ls_tree(head, "--", path):
            raise Refused(f"{path} is not committed: run `git add {path}` and `git commit` first")
        if self._git.status("--porcelain", "--", path):
            raise Refused(
                f"{path} has uncommitted changes: commit them, or drop them with "
                f"`git restore {path}`"
            )
        return path

    def text(self, commit: str, path: str) -> str:
        try:
            blob = self._repo.commit(commit).tree / path
        except (KeyError, ValueError) as error:
            raise Refused(f"{path} is not in commit {commit[:12]}") from error
        content: bytes = blob.data_stream.read()
        return content.decode()

    def commit(self, parent: str, path: str, text: str, message: str) -> str:
        """A commit on `parent` that differs from it in one file alone. No reference moves."""
        mode = self._git.ls_tree(parent, "--", path).split()[0]
        with tempfile.TemporaryDirectory() as folder:
            file = Path(folder, "blob")
            file.write_bytes(text.encode())
            blob = self._git.hash_object("-w", "--no-filters", str(file))
            with self._git.custom_environment(GIT_INDEX_FILE=str(Path(folder, "index"))):
                self._git.read_tree(parent)
                self._git.update_index("--cacheinfo", f"{mode},{blob},{path}")
                tree = self._git.write_tree()
        sha: str = self._git.commit_tree(tree, "-p", parent, "-m", message)
        return sha

    def resolve(self, ref: str) -> str | None:
        """The commit that a full reference name stands for, or None."""
        try:
            sha: str = self._git.rev_parse("--verify", "--quiet", f"{ref}^{{commit}}")
        except GitCommandError:
            return None
        return sha

    def point(self, ref: str, commit: str) -> None:
        """Make `ref`, which is ours alone, name `commit`."""
        self._git.update_ref(ref, commit)

    def move(self, ref: str, new: str, old: str | None) -> None:
        """Point `ref` at `new` if it is at `old` now (None: if there is none)."""
        if self.resolve(ref) == new:
            return
        try:
            self._git.update_ref("-m", "autokernel", ref, new, old or "0" * len(new))
        except GitCommandError as error:
            now = self.resolve(ref)
            raise Refused(
                f"{ref} was moved by somebody else: expected {old and old[:12]}, found "
                f"{now and now[:12]}: put it back, or choose another --tag"
            ) from error

    def checked_out(self, ref: str) -> Path | None:
        """The work tree that has a branch checked out, if one has."""
        for entry in self._git.worktree("list", "--porcelain").split("\n\n"):
            lines = entry.splitlines()
            if f"branch {ref}" in lines:
                return Path(lines[0].removeprefix("worktree "))
        return None

    def diff(self, commit: str, path: str) -> str:
        text: str = self._git.diff("--no-color", "--no-ext-diff", f"{commit}^", commit, "--", path)
        return text

    def log(self, base: str, tip: str) -> str:
        text: str = self._git.log("--oneline", "--no-decorate", "--no-color", f"{base}..{tip}")
        return text

    @contextmanager
    def worktree(self, folder: Path, commit: str) -> Iterator[Path]:
        """A work tree of our own at `commit`, gone afterwards; one left by a crash is replaced."""
        self.remove_worktree(folder)
        self._git.worktree("add", "--detach", "--force", str(folder), commit)
        try:
            yield folder
        finally:
            self.remove_worktree(folder)

    def remove_worktree(self, folder: Path) -> None:
        """`git worktree remove` refuses half a work tree, which is what a crash may leave."""
        if folder.exists():
            shutil.rmtree(folder)
        if f"worktree {folder}" in self._git.worktree("list", "--porcelain").splitlines():
            self._git.worktree("remove", "--force", "--force", str(folder))  # twice: even if locked

    def _identify(self) -> None:
        """Commit as the user, and as ourselves where git was told no name."""
        try:
            self._git.execute(
                ["git", "-c", "user.useConfigOnly=true", "var", "GIT_COMMITTER_IDENT"]
            )
        except GitCommandError:
            for role in ("AUTHOR", "COMMITTER"):
                self._git.update_environment(
                    **{f"GIT_{role}_NAME": NAME, f"GIT_{role}_EMAIL": EMAIL}
                )
