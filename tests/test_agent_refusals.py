"""What `autokernel` refuses to do: one line that says what was expected, what came and what to
do, and exit code 2."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest

from .agent_cli import Cli
from .agent_fakes import KERNEL
from .agent_repository import PATH, git


@pytest.fixture
def cli(tmp_path: Path, repo: Path) -> Cli:
    return Cli(repo, tmp_path)


class TestRefusals:
    """One line that says what was expected, what came, and what to do; exit code 2."""

    def refused(self, done: subprocess.CompletedProcess[str]) -> str:
        assert done.returncode == 2
        assert done.stdout == ""
        assert "Traceback" not in done.stderr
        assert done.stderr.count("\n") == 1
        return done.stderr

    def test_a_kernel_with_uncommitted_changes(self, cli: Cli, repo: Path) -> None:
        (repo / PATH).write_text(KERNEL + "# more\n")
        words = self.refused(cli("optimize", PATH))
        assert f"{PATH} has uncommitted changes: commit them, or drop them with" in words
        assert not cli.log.exists()

    def test_a_kernel_with_staged_changes(self, cli: Cli, repo: Path) -> None:
        (repo / PATH).write_text(KERNEL + "# more\n")
        git(repo, "add", PATH)
        (repo / PATH).write_text(KERNEL)
        assert "has uncommitted changes" in self.refused(cli("optimize", PATH))

    def test_a_kernel_that_is_not_committed(self, cli: Cli, repo: Path) -> None:
        (repo / "kernels/new.py").write_text(KERNEL)
        assert "kernels/new.py is not committed" in self.refused(cli("optimize", "kernels/new.py"))

    def test_a_kernel_that_does_not_exist(self, cli: Cli) -> None:
        assert "no such kernel file: nothing.py" in self.refused(cli("optimize", "nothing.py"))

    def test_a_kernel_outside_of_the_repository(self, cli: Cli, tmp_path: Path) -> None:
        (tmp_path / "far.py").write_text(KERNEL)
        assert "is outside of the repository" in self.refused(cli("optimize", "../far.py"))

    def test_a_kernel_that_was_changed_since_the_tag_began(self, cli: Cli, repo: Path) -> None:
        cli("optimize", PATH, "--tag", "demo", "--experiments", "1")
        (repo / PATH).write_text(KERNEL + "# more\n")
        git(repo, "commit", "--quiet", "--message=second", PATH)
        words = self.refused(cli("optimize", PATH, "--tag", "demo"))
        assert "neither the starter of tag 'demo' nor any kernel that it kept" in words

    def test_a_kernel_without_a_space(self, cli: Cli, repo: Path) -> None:
        (repo / PATH).write_text('KERNEL_TYPE = "softmax"\n')
        git(repo, "commit", "--quiet", "--message=second", PATH)
        done = cli("optimize", PATH)
        assert done.returncode == 2
        assert "the tuner needs a dictionary literal CONFIG" in done.stderr

    def test_a_detached_head(self, cli: Cli, repo: Path) -> None:
        git(repo, "switch", "--quiet", "--detach", "main")
        assert "expected a branch, HEAD is detached at" in self.refused(cli("optimize", PATH))

    def test_a_repository_without_commits(self, cli: Cli, tmp_path: Path) -> None:
        folder = tmp_path / "empty"
        folder.mkdir()
        git(folder, "init", "--quiet", "--template=")
        (folder / "k.py").write_text(KERNEL)
        assert "has no commits yet" in self.refused(cli("optimize", "k.py", cwd=folder))

    def test_no_repository(self, cli: Cli, tmp_path: Path) -> None:
        folder = tmp_path / "plain"
        folder.mkdir()
        (folder / "k.py").write_text(KERNEL)
        assert "is not in a git repository" in self.refused(cli("optimize", "k.py", cwd=folder))

    def test_nothing_to_show(self, cli: Cli) -> None:
        assert "no experiments of any tag" in self.refused(cli("log"))
        assert "no experiments of tag 'x'" in self.refused(cli("show", "1", "--tag", "x"))
