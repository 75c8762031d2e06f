"""What the user settles of proposers."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from ..usage import Price

Sandbox = Literal["auto", "require", "off"]


@dataclass(frozen=True)
class Settings:
    """`search` is how the tuner searches. `environment` is the user's own, of which an agent gets
    what its profile names and what `agent_env` names, and a model's endpoint what `key_env` names.
    `limit_s` is for one proposal, `stall_s` for a silence within it."""

    environment: Mapping[str, str]
    search: str = "local"
    model: str | None = None
    base_url: str | None = None
    key_env: str = "OPENAI_API_KEY"
    price: Price | None = None
    agent: str | None = None
    agent_command: str | None = None
    agent_env: tuple[str, ...] = ()
    agent_read: tuple[Path, ...] = ()
    sandbox: Sandbox = "auto"
    limit_s: float = 1800
    stall_s: float = 600

    @property
    def names(self) -> list[str]:
        """Who it is, for the ledger: search, agent and model, as far as they are named."""
        program = [Path(word).name for word in (self.agent_command or "").split()[:1]]
        search = self.search if self.search != "local" else None
        return [name for name in (search, self.agent, *program, self.model) if name]
