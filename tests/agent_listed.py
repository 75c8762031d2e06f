"""Runs with several workers and a proposer that gives a list of edits, whatever becomes of them."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest
from autokernel_agent.proposers import PROPOSERS, Edit, Settings, Situation, Try
from autokernel_agent.records import Experiment
from autokernel_agent.stop import never

from .agent_fakes import KERNEL, config_of
from .agent_repository import ScriptedJudge, crew, loop, opened

WIDE = KERNEL.replace('"width": 1,', '"width": 2,')
WIDER = KERNEL.replace('"width": 1,', '"width": 4,')
WIDEST = KERNEL.replace('"width": 1,', '"width": 8,')
TWICE = KERNEL.replace('"unroll": 1}', '"unroll": 2}')
WRONG = KERNEL.replace('"unroll": 1}', '"unroll": 4}')
EDITS = tuple(Edit(text, str(config_of(text))) for text in (WIDE, TWICE, WIDER, WIDEST, WRONG))


class Listed:
    """Proposes a list, and can say what comes next: so it is asked as far ahead as may be."""

    def __init__(self) -> None:
        self.number = 0
        self.situations: list[Situation] = []
        self.told: list[Try] = []

    def ask(self, situation: Situation) -> Edit | None:
        self.situations.append(situation)
        self.number += 1
        return EDITS[self.number - 1] if self.number <= len(EDITS) else None

    def tell(self, tried: Try) -> None:
        self.told.append(tried)

    def foresee(self, edit: Edit, situation: Situation) -> Edit | None:
        return None


def opened_as_listed(monkeypatch: pytest.MonkeyPatch) -> list[Listed]:
    """Every proposer named `listed` that is opened: a first one to look at the starter."""
    all_of_them: list[Listed] = []

    def open_it(text: str, seed: int, settings: Settings) -> Listed:
        all_of_them.append(Listed())
        return all_of_them[-1]

    monkeypatch.setattr("autokernel_agent.loop.PROPOSERS", {**PROPOSERS, "listed": open_it})
    return all_of_them


def worked(folder: Path, *judges: ScriptedJudge, by: str = "listed") -> list[Experiment]:
    """All experiments of a new tag, with a worker for each judge."""
    with opened(folder) as ledger:
        dataclasses.replace(loop(ledger), crew=crew(*judges), proposer=by).run(never())
        return ledger.experiments
