"""Any coding agent's command line as a proposer.

It gets a private work tree with the one kernel file and what there is to know, a home of its own,
its key and no other of the user's secrets, and no GPU. Whether it did its work is judged by the
difference that it left: neither its exit status nor its words count. Not covered: how much memory
and disk it uses, and what it sends to where over the network, which it needs.
"""

from __future__ import annotations

import difflib
import json
import os
import shlex
import shutil
import subprocess
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from ..errors import Refused
from ..usage import Usage
from . import watched
from .agents import AGENTS, Agent, plain
from .briefing import situation_text
from .hygiene import Secrets
from .installation import installation
from .program import program_text
from .proposer import Edit, ProposalFailed, Situation, Try
from .settings import Settings
from .workspace import Unusable, Workspace, lay_out

PROMPT = """\
Make the GPU kernel in {kernel} faster. Read {context}/program.md, then {context}/situation.md \
(how fast it is, and what was tried), and {context}/reference.py (what it computes). Then make one \
change to {kernel} that you expect to be faster and that keeps it right. Change no other file, and \
add none. Do not try to run it: there is no GPU here, and it will be judged when you have ended. \
End with one line of at most twelve words that says what you changed.\
"""
CONTEXT = "context"
WORDS_KEPT = 4_000


class Command:
    """Runs the agent anew for every proposal: what it learns it reads in the situation."""

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self._agent = _chosen(settings)
        self._variables = _variables(self._agent, settings)
        self._secrets = Secrets(self._variables)
        path = settings.environment.get("PATH", os.defpath)
        found = shutil.which(self._agent.argv[0], path=path)
        if found is None:
            raise Refused(f"no program {self._agent.argv[0]!r} on PATH: install it, or add it")
        self._program, self._path = Path(found).absolute(), path
        system = probe() if settings.sandbox != "off" else System(0, ())
        if settings.sandbox == "require" and system.lacks:
            raise Refused(f"--agent-sandbox require: this system has {'; '.join(system.lacks)}")
        self._confined = system.landlock > 0

    def ask(self, situation: Situation) -> Edit | None:
        with tempfile.TemporaryDirectory("-agent", ignore_cleanup_errors=True) as folder:
            # The folder for temporary files may be a link, which an agent would resolve.
            home, tree = (Path(folder).resolve() / name for name in ("home", "tree"))
            for made in (home, home / "tmp", tree):
                made.mkdir()
            work = lay_out(tree, Path(situation.kernel).name, situation.text, _context(situation))
            return self._run(situation, work, home)

    def tell(self, tried: Try) -> None:
        """It is told of all tries by the situation."""

    def _run(self, situation: Situation, work: Workspace, home: Path) -> Edit:
        heard = Heard(self._agent)
        limits = watched.Limits(self._settings.limit_s, self._settings.stall_s)
        ending = watched.run(self._order(work, home), limits, heard)
        usage = self._priced(heard.usage)
        try:
            text = work.edited()
        except Unusable as error:
            words = self._secrets.clean(ending.last_words)
            last = f"; its last words: {words}" if words else ""
            raise ProposalFailed(f"{error}; {ending.how}{last}", usage) from error
        if name := self._secrets.found_in(text):
            raise ProposalFailed(f"the kernel file holds the value of {name}", usage)
        said = self._secrets.clean(heard.last_line)
        return Edit(text, said or _size(situation.text, text), usage)

    def _order(self, work: Workspace, home: Path) -> watched.Program:
        agent, settings = self._agent, self._settings
        values = {
            "prompt": PROMPT.replace("{kernel}", work.kernel).replace("{context}", CONTEXT),
            "kernel": work.kernel,
            "context": CONTEXT,
            "model": settings.model or "",
            "home": str(home),
            "sandbox": "danger-full-access" if self._confined else "workspace-write",
        }
        for path, text in agent.files.items():
            (home / path).parent.mkdir(parents=True, exist_ok=True)
            (home / path).write_text(_filled(text, values))
        words = agent.argv + (agent.model if settings.model else ())
        env = {**_bare(home, self._path), **agent.env, **self._variables}
        return watched.Program(
            argv=[str(self._program), *(_filled(word, values) for word in words[1:])],
            env={name: _filled(value, values) for name, value in env.items()},
            cwd=work.tree,
            confined=self._confined,
            readable=[*installation(self._program, self._path), *settings.agent_read],
            writable=[work.tree, home],
        )

    def _priced(self, usage: Usage) -> Usage:
        return self._settings.price.of(usage) if self._settings.price else usage


class Heard:
    """What the lines of an agent's output add up to."""

    def __init__(self, agent: Agent) -> None:
        self._agent = agent
        self._usage: Usage | None = None
        self._words = ""

    def __call__(self, line: str) -> None:
        said = self._agent.read(line)
        if said.usage is not None:
            self._usage = said.usage if self._usage is None else self._usage + said.usage
        self._words = (self._words + said.words)[-WORDS_KEPT:]

    @property
    def usage(self) -> Usage:
        return self._usage or Usage()

    @property
    def last_line(self) -> str:
        lines = (line.strip() for line in reversed(self._words.split("\n")))
        return next(filter(None, lines), "")


@dataclass(frozen=True)
class System:
    """Landlock's version here (0 is none), and what cannot be taken from an agent, in words."""

    landlock: int
    lacks: tuple[str, ...]


def probe() -> System:
    done = subprocess.run([*watched.KEEPER, "probe"], check=True, capture_output=True, text=True)
    found = json.loads(done.stdout)
    return System(found["landlock"], tuple(found["lacks"]))


def _chosen(settings: Settings) -> Agent:
    agent, command = settings.agent, settings.agent_command
    if command is not None and agent is None:
        return _template(command)
    if agent is not None and agent in AGENTS and command is None:
        return AGENTS[agent]
    raise Refused(
        f"the command proposer needs either --agent, one of {', '.join(AGENTS)}, or "
        f"--agent-command, got agent={agent!r} and agent_command={command!r}"
    )


def _template(command: str) -> Agent:
    try:
        words = shlex.split(command)
    except ValueError as error:
        raise Refused(f"--agent-command {command!r}: {error}") from error
    if not any("{prompt}" in word for word in words[1:]):
        raise Refused(f"expected --agent-command 'PROGRAM ... {{prompt}} ...', got {command!r}")
    return Agent(argv=tuple(words), model=(), read=plain)


def _variables(agent: Agent, settings: Settings) -> dict[str, str]:
    """Of the user's environment, what the agent is given."""
    there = settings.environment
    for name in settings.agent_env:
        if name not in there:
            raise Refused(f"--agent-env {name}: there is no such variable: set it")
    if agent.keys and not any(name in there for name in (*agent.keys, *settings.agent_env)):
        raise Refused(
            f"{agent.argv[0]} needs its key: set {' or '.join(agent.keys)}, or name the variable "
            "that it takes it from with --agent-env"
        )
    given = (*agent.keys, *agent.optional, *settings.agent_env)
    return {name: there[name] for name in given if name in there}


def _bare(home: Path, path: str) -> dict[str, str]:
    return {
        "HOME": str(home),
        "TMPDIR": str(home / "tmp"),
        "PATH": path,
        "LANG": "C.UTF-8",
        "TERM": "dumb",
        "NO_COLOR": "1",
        "CUDA_VISIBLE_DEVICES": "",
        "GIT_CONFIG_NOSYSTEM": "1",
        "PYTHONDONTWRITEBYTECODE": "1",  # a changed file would be one too many
    }


def _context(situation: Situation) -> dict[str, str]:
    return {
        f"{CONTEXT}/program.md": program_text(),
        f"{CONTEXT}/situation.md": situation_text(situation),
        f"{CONTEXT}/reference.py": situation.reference,
    }


def _filled(text: str, values: Mapping[str, str]) -> str:
    for name, value in values.items():
        text = text.replace("{" + name + "}", value)
    return text


def _size(before: str, after: str) -> str:
    lines = list(difflib.unified_diff(before.splitlines(), after.splitlines(), n=0))[2:]
    added, removed = (sum(line[0] == sign for line in lines) for sign in "+-")
    return f"+{added} -{removed} lines"
