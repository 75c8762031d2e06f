"""The tuner and its playbook: when it tries a rewrite, and how it goes on from there; and Optuna as
the way to search."""

from __future__ import annotations

import random
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from autokernel_agent.errors import Refused
from autokernel_agent.proposers import PROPOSERS, Settings
from autokernel_agent.proposers.literals import literal
from autokernel_agent.proposers.proposer import Edit, Situation, Try
from autokernel_agent.proposers.rewrites import rewritten
from autokernel_agent.proposers.space import Space
from autokernel_agent.proposers.tuner import BETWEEN, LULL, MOST, SEARCHES, Tuner
from autokernel_agent.report import Report, Speedup
from hypothesis import given, settings
from hypothesis import strategies as st

from . import agent_fakes
from .agent_cli import Cli
from .agent_fakes import KERNEL
from .agent_repository import PATH, user_repository
from .conftest import ROOT

STARTER = (ROOT / "tests/starters/softmax.py").read_text(encoding="utf-8")
WIDE = STARTER.replace('{"warps": 4}', '{"warps": 4, "a": 1, "b": 1}').replace(
    "[1, 2, 4, 8, 16, 32]}", '[1, 2, 4, 8, 16, 32], "a": [1, 2, 3, 4], "b": [1, 2, 3, 4]}'
)
REPORT = Report.parse(agent_fakes.report(KERNEL, None, 1, full=False))
Outcome = Callable[[Edit], tuple[bool, float | None]]


SITUATION = Situation("kernels/softmax.py", "softmax", STARTER, REPORT, ())


def ask(tuner: Tuner) -> Edit | None:
    return tuner.ask(SITUATION)


def tell(tuner: Tuner, edit: Edit, kept: bool, ratio: float | None) -> None:
    speedup = None if ratio is None else Speedup(ratio, ratio, ratio, 0.99)
    verdict, decision = "PASS" if speedup else "FAIL", "KEEP" if kept else "REVERT"
    tuner.tell(Try(edit.text, edit.description, verdict, decision, None, speedup))


def slower(edit: Edit) -> tuple[bool, float | None]:
    return False, 0.9


def asked(tuner: Tuner, outcome: Outcome = slower, most: int = 1000) -> list[Edit]:
    """What a tuner asks for, told what `outcome` says of it."""
    edits: list[Edit] = []
    while len(edits) < most and (edit := ask(tuner)):
        edits.append(edit)
        tell(tuner, edit, *outcome(edit))
    return edits


def words(edits: list[Edit]) -> list[str]:
    return [edit.description for edit in edits]


def rewrites(edits: list[Edit]) -> list[str]:
    """The rewrites that were begun, in order."""
    said = [edit.description.partition(": ")[2] for edit in edits]
    return [name for name in said if name and "," not in name]


class TestRewrites:
    def test_come_after_the_space_is_exhausted_in_the_order_of_the_playbook(self) -> None:
        edits = asked(Tuner(STARTER, 1))
        assert not any("rewrite" in word for word in words(edits[:5]))
        assert words(edits)[5] == "rewrite: loop a long row"
        assert rewrites(edits) == [
            "loop a long row",
            "rows per program",
            "exp2",
            "eviction hints",
            "persistent grid",
        ]

    def test_come_when_the_search_no_longer_gains_and_then_in_turn_with_it(self) -> None:
        said = [word.startswith("rewrite") for word in words(asked(Tuner(WIDE, 1), most=30))]
        assert said.index(True) == LULL
        assert said[LULL : LULL + MOST + BETWEEN + 1] == [True] * MOST + [False] * BETWEEN + [True]

    def test_are_put_off_while_the_search_gains(self) -> None:
        gains = iter([(True, 1.1), (False, 0.9), (False, 0.9)] * 9)
        edits = asked(Tuner(WIDE, 1), lambda edit: next(gains), most=20)
        assert not rewrites(edits)

    def test_are_tried_with_a_few_values_of_what_they_open(self) -> None:
        (first, *others) = [w for w in words(asked(Tuner(STARTER, 1))) if "rows per" in w]
        assert first == "rewrite: rows per program"
        assert 0 < len(others) < MOST
        assert all(word.startswith(f"{first}, tile 8192 -> ") for word in others)

    def test_that_are_wrong_as_they_start_are_tried_no_further(self) -> None:
        edits = asked(Tuner(STARTER, 1), lambda edit: (False, None))
        assert [word for word in words(edits) if "rewrite" in word] == [
            f"rewrite: {name}" for name in rewrites(edits)
        ]

    def test_that_are_kept_are_where_the_search_goes_on_in_the_wider_space(self) -> None:
        tuner = Tuner(STARTER, 1)

        def outcome(edit: Edit) -> tuple[bool, float | None]:
            return (True, 1.5) if edit.description == "rewrite: rows per program" else (False, 0.9)

        edits = asked(tuner, outcome)
        place = words(edits).index("rewrite: rows per program")
        after = edits[place + 1 :]
        assert all("these_rows" in edit.text for edit in after)
        assert {"tile", "warps"} <= {word.split()[0] for word in words(after)}
        configs = [str(literal(e.text, "CONFIG")) for e in after if "rewrite" not in e.description]
        assert len(set(configs)) == len(configs) == 6 * 6 - 1
        assert "rows per program" not in rewrites(after)

    def test_that_failed_are_not_proposed_again_for_the_same_kernel(self) -> None:
        edits = asked(Tuner(WIDE, 1))
        assert len(set(rewrites(edits))) == len(rewrites(edits))
        assert len({edit.text for edit in edits}) == len(edits)

    def test_that_failed_may_pay_for_another_kernel_once_nothing_else_is_left(self) -> None:
        edits = asked(Tuner(STARTER, 1), lambda e: (e.description == "rewrite: exp2", 1.5))
        begun = rewrites(edits)
        kept = begun.index("exp2")
        assert begun[:kept] == ["loop a long row", "rows per program"]
        assert begun[kept + 1 :] == [
            "eviction hints",
            "persistent grid",
            "loop a long row",
            "rows per program",
        ]
        assert len({edit.text for edit in edits}) == len(edits)

    def test_whose_space_would_be_too_large_to_search_are_left_out(self) -> None:
        many = f'"a": 1, "b": 1}}\nSPACE = {{"a": {[*range(200)]}, "b": {[*range(100)]}, "warps'
        text = STARTER.replace('4}\nSPACE = {"warps', f"4, {many}")
        edits = asked(Tuner(text, 1), most=LULL + 4)
        assert rewrites(edits)[0] == "exp2"

    @settings(max_examples=10)  # each parses a kernel some hundred times
    @given(seed=st.integers(0, 99), stop=st.integers(0, 40), text=st.sampled_from([STARTER, WIDE]))
    def test_told_its_past_again_it_goes_on_as_if_never_stopped(
        self, seed: int, stop: int, text: str
    ) -> None:
        def outcome(edit: Edit) -> tuple[bool, float | None]:
            speedup = random.Random(f"{seed}{edit.text}").uniform(0.5, 1.5)
            return speedup > 1.4, None if speedup < 0.6 else speedup

        edits = asked(Tuner(text, seed), outcome, most=40)
        again = Tuner(text, seed)
        for edit in edits[:stop]:
            tell(again, edit, *outcome(edit))
        assert asked(again, outcome, most=40 - min(stop, len(edits))) == edits[stop:]

    def test_of_what_another_proposer_kept_begin_anew(self) -> None:
        tuner = Tuner(STARTER, 1)
        asked(tuner, most=8)
        theirs = rewritten("exp2", STARTER)
        assert theirs is not None
        theirs = theirs.replace("col < cols", "cols > col")
        tell(tuner, Edit(theirs, "by another"), True, 1.5)
        edit = ask(tuner)
        assert edit is not None
        assert "cols > col" in edit.text
        assert edit.description.startswith("warps")


class TestOptuna:
    @pytest.fixture(autouse=True)
    def _optuna(self, request: pytest.FixtureRequest) -> None:
        if "without" not in request.node.name:
            pytest.importorskip("optuna", reason="the extra optuna is not installed")

    SPACE = Space.of(
        {"a": [1, 2, 4, 8], "b": [1, 2, 4], "c": ["x", "y"], "rules": ["a * b <= 16"]},
        {"a": 1, "b": 1, "c": "x"},
    )

    def test_tries_every_valid_configuration_once_and_no_other(self) -> None:
        search = SEARCHES["optuna"](self.SPACE, (0, 0, 0), 1)
        tried = []
        while point := search.ask():
            tried.append(point)
            search.tell(point, False, None if len(tried) % 3 else 0.5 + len(tried) / 20)
        assert sorted(tried) == sorted(point for point in self.SPACE.valid if point != (0, 0, 0))

    def test_learns_where_it_is_fast(self) -> None:
        """Of 256 points on 4 axes the fastest tenth is half of what is tried after a start."""
        space = Space.of({c: [1, 2, 3, 4] for c in "abcd"}, dict.fromkeys("abcd", 1))
        search = SEARCHES["optuna"](space, (0, 0, 0, 0), 1)
        tried = []
        for _ in range(40):
            point = search.ask()
            assert point is not None
            tried.append(sum(point))
            search.tell(point, False, 1 + sum(point) / 10)
        assert sum(tried[20:]) / 20 > sum(tried[:10]) / 10 + 1

    def test_told_its_past_again_goes_on_as_if_never_stopped(self) -> None:
        def run(search: Any, most: int, told: list[Any]) -> list[Any]:
            for point in told:
                search.tell(point, sum(point) > 4, 1 + sum(point) / 10)
            asked = []
            for _ in range(most):
                asked.append(point := search.ask())
                search.tell(point, sum(point) > 4, 1 + sum(point) / 10)
            return asked

        make = SEARCHES["optuna"]
        whole = run(make(self.SPACE, (0, 0, 0), 7), 12, [])
        assert run(make(self.SPACE, (0, 0, 0), 7), 7, whole[:5]) == whole[5:]
        assert run(make(self.SPACE, (0, 0, 0), 8), 12, []) != whole

    def test_is_chosen_by_an_option_and_named_in_the_ledger(self) -> None:
        chosen = Settings({}, search="optuna")
        assert chosen.names == ["optuna"]
        tuner = PROPOSERS["tuner"](KERNEL, 1, chosen)
        assert isinstance(tuner, Tuner)
        edit = ask(tuner)
        assert edit is not None
        assert "->" in edit.description

    def test_without_the_package_it_is_refused_with_what_to_install(
        self, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setitem(sys.modules, "optuna", None)
        with pytest.raises(Refused, match=r"pip install 'pytest-autokernel\[optuna\]'"):
            Tuner(KERNEL, 1, "optuna")

    @pytest.mark.parametrize(
        ("given", "reason"),
        [
            (("--search", "random"), "expected one of local, optuna, got 'random'"),
            (("--search", "optuna", "--proposer", "llm"), "is for --proposer tuner, got 'llm'"),
        ],
    )
    def test_a_search_that_fits_nothing_is_refused_even_without_the_package(
        self, tmp_path: Path, given: tuple[str, ...], reason: str
    ) -> None:
        cli = Cli(user_repository(tmp_path / "repo"), tmp_path)
        done = cli("optimize", PATH, *given)
        assert done.returncode == 2
        assert reason in " ".join(done.stderr.replace("│", " ").split())

    def test_a_run_of_the_command_line_searches_with_it(self, tmp_path: Path) -> None:
        cli = Cli(user_repository(tmp_path / "repo"), tmp_path)
        done = cli("optimize", PATH, "--tag", "t", "--search", "optuna", "--experiments", "4")
        assert done.returncode == 0, done.stderr
        assert "tuner optuna" in done.stdout
        assert "experiments" in done.stdout


@pytest.mark.parametrize("search", SEARCHES)
def test_what_is_foreseen_is_what_is_asked_next_and_changes_nothing(search: str) -> None:
    """Of an edit that gains nothing, in the space as well as while a rewrite is tried."""
    if search == "optuna":
        pytest.importorskip("optuna")
    tuner, undisturbed = Tuner(WIDE, 1, search), Tuner(WIDE, 1, search)
    for _ in range(LULL + MOST + BETWEEN):
        edit = ask(tuner)
        assert edit == ask(undisturbed)
        assert edit
        foreseen = tuner.foresee(edit, SITUATION)
        for each in (tuner, undisturbed):
            tell(each, edit, False, 0.9)
        assert foreseen == ask(tuner)
