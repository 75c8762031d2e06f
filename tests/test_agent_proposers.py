"""The tuner: what it reads of a kernel file, what it proposes, and in which order."""

from __future__ import annotations

import ast
import itertools
import random
from typing import Any

import pytest
from autokernel_agent.errors import Refused
from autokernel_agent.proposers.literals import literal, rewrite
from autokernel_agent.proposers.proposer import Edit, Situation, Try
from autokernel_agent.proposers.rules import compile_rule
from autokernel_agent.proposers.search import Search
from autokernel_agent.proposers.space import Space
from autokernel_agent.proposers.tuner import Tuner
from autokernel_agent.report import Report, Speedup
from hypothesis import given
from hypothesis import strategies as st

from . import agent_fakes
from .agent_fakes import KERNEL

SPACES = st.dictionaries(
    st.sampled_from("abcd"),
    st.lists(st.integers(1, 64), min_size=1, max_size=4, unique=True),
    min_size=1,
)


def kernel(config: object, space: object) -> str:
    return f"CONFIG = {config!r}\nSPACE = {space!r}\n"


REPORT = Report.parse(agent_fakes.report(KERNEL, None, 1, full=False))


def ask(tuner: Tuner) -> Edit | None:
    return tuner.ask(Situation("kernels/softmax.py", "softmax", KERNEL, REPORT, ()))


def tell(tuner: Tuner, text: str, kept: bool, ratio: float | None) -> None:
    speedup = None if ratio is None else Speedup(ratio, ratio, ratio, 0.99)
    verdict, decision = "PASS" if speedup else "FAIL", "KEEP" if kept else "REVERT"
    tuner.tell(Try(text, "", verdict, decision, None, speedup))


def asked(tuner: Tuner, outcome: Any = lambda text: (False, None)) -> list[str]:
    """All that a tuner asks for, told what `outcome` says of it."""
    texts = []
    while edit := ask(tuner):
        texts.append(edit.text)
        tell(tuner, edit.text, *outcome(edit.text))
    return texts


class TestRules:
    @pytest.mark.parametrize(
        "rule",
        [
            "a * b <= 8",
            "a % b == 0 or b == 1",
            "1 <= a < b",
            "not (a > 4 and b > 4)",
            "a in (1, 2, 4)",
            "min(a, b) + abs(-a) // 2 != 3",
            "(a if b > 2 else b) - 1 >= 0",
            "a / b < 2.5",
        ],
    )
    @given(a=st.integers(1, 64), b=st.integers(1, 64))
    def test_a_rule_says_what_python_would_say(self, rule: str, a: int, b: int) -> None:
        holds = compile_rule(rule, frozenset("ab"))
        assert holds({"a": a, "b": b}) == bool(eval(rule, {"a": a, "b": b}))

    @pytest.mark.parametrize(
        "rule",
        [
            "__import__('os').system('true')",
            "a.bit_length() > 1",
            "a ** b < 5",
            "[x for x in (a,)]",
            "(lambda: a)()",
            "c > 1",
            "a[0]",
            "f'{a}'",
            "min(a, b, key=None)",
            "a >",
        ],
    )
    def test_a_rule_that_is_more_than_arithmetic_is_refused(self, rule: str) -> None:
        with pytest.raises(Refused, match="SPACE rule"):
            compile_rule(rule, frozenset("ab"))

    @pytest.mark.parametrize("rule", ["a // (a - 1) > 0", "'x' * a == 'x'", "a < 'x'"])
    def test_a_rule_that_fails_is_refused_with_the_configuration(self, rule: str) -> None:
        with pytest.raises(Refused, match="'a': 1"):
            compile_rule(rule, frozenset("a"))({"a": 1})


class TestLiterals:
    def test_only_the_changed_value_is_rewritten(self) -> None:
        text = 'é = "ß"\nCONFIG = {  # the tile\n    "w": 1, "ü": "ä",\n    "u":2}  # rest\n'
        changed = rewrite(text, "CONFIG", {"w": 16, "u": "on"})
        assert changed == text.replace('"w": 1', '"w": 16').replace('"u":2', "\"u\":'on'")

    @given(values=st.dictionaries(st.sampled_from("abc"), st.integers(), min_size=1))
    def test_what_was_written_is_read(self, values: dict[str, int]) -> None:
        text = kernel(dict.fromkeys(values, 0), {})
        assert literal(rewrite(text, "CONFIG", values), "CONFIG") == values

    def test_an_annotated_literal_is_found_and_a_local_one_is_not(self) -> None:
        text = "def f():\n    CONFIG = {'a': 1}\nCONFIG: dict[str, int] = {'a': 2}\n"
        assert literal(text, "CONFIG") == {"a": 2}
        assert literal(text, "SPACE") is None

    def test_a_computed_config_is_refused(self) -> None:
        with pytest.raises(Refused, match="line 1: expected CONFIG to be a literal"):
            literal("CONFIG = dict(a=1)", "CONFIG")

    def test_a_syntax_error_is_refused_with_its_line(self) -> None:
        with pytest.raises(Refused, match="syntax error in line 2"):
            literal("a = 1\nb = = 2\n", "CONFIG")


class TestSpace:
    def test_rules_see_the_constants_of_the_configuration_too(self) -> None:
        space = Space.of({"a": [1, 2, 4], "rules": ["a <= limit"]}, {"a": 1, "limit": 2})
        assert [space.values(point) for point in space.valid] == [{"a": 1}, {"a": 2}]

    def test_numbers_have_neighbours_and_names_have_all_others(self) -> None:
        space = Space.of({"n": [1, 2, 4, 8], "s": ["x", "y", "z"]}, {"n": 2, "s": "x"})
        assert list(space.neighbours((1, 0), 0)) == [(2, 0), (0, 0)]
        assert list(space.neighbours((1, 0), 1)) == [(1, 1), (1, 2)]

    @pytest.mark.parametrize(
        ("space", "config", "words"),
        [
            ({"a": [1, 2]}, {}, "SPACE has the axis 'a', CONFIG does not"),
            ({"a": [1, 2]}, {"a": 3}, r"CONFIG\['a'\]=3 is not in"),
            ({"a": [1, 2]}, {"a": True}, r"CONFIG\['a'\]=True is not in"),
            ({"a": [1, 2], "rules": ["a > 1"]}, {"a": 1}, "CONFIG breaks a rule"),
            ({c: list(range(99)) for c in "abc"}, dict.fromkeys("abc", 1), "970,299 config"),
        ],
    )
    def test_a_space_that_does_not_fit_is_refused(
        self, space: dict[str, Any], config: dict[str, Any], words: str
    ) -> None:
        with pytest.raises(Refused, match=words):
            Space.of(space, config)


class TestTuner:
    @given(space=SPACES, limit=st.integers(1, 80), data=st.data())
    def test_it_tries_every_valid_configuration_once_and_no_other(
        self, space: dict[str, list[int]], limit: int, data: st.DataObject
    ) -> None:
        valid = [
            dict(zip(space, values, strict=True))
            for values in itertools.product(*space.values())
            if sum(values) <= limit
        ]
        if not valid:
            return
        start = data.draw(st.sampled_from(valid))
        rules = [f"{' + '.join(space)} <= {limit}"]
        outcomes = st.sampled_from([(True, 1.3), (False, 1.005), (False, 0.5), (False, None)])
        tuner = Tuner(kernel(start, {**space, "rules": rules}), seed=data.draw(st.integers(0, 9)))
        texts = asked(tuner, lambda text: data.draw(outcomes))
        tried = [literal(text, "CONFIG") for text in texts]
        assert len(tried) == len(valid) - 1
        assert all(config in valid and config != start for config in tried)
        assert len({str(config) for config in tried}) == len(tried)

    @given(space=SPACES, seed=st.integers(), stop=st.integers(0, 20))
    def test_told_its_past_again_it_goes_on_as_if_never_stopped(
        self, space: dict[str, list[int]], seed: int, stop: int
    ) -> None:
        text = kernel({name: values[0] for name, values in space.items()}, space)

        def outcome(text: str) -> tuple[bool, float]:
            speedup = random.Random(text).uniform(0.5, 1.5)
            return speedup > 1.3, speedup

        texts = asked(Tuner(text, seed), outcome)
        again = Tuner(text, seed)
        for past in texts[:stop]:
            tell(again, past, *outcome(past))
        assert asked(again, outcome) == texts[stop:]

    def test_it_changes_the_incumbent_and_says_how(self) -> None:
        tuner = Tuner(KERNEL, seed=1)
        first = ask(tuner)
        assert first is not None
        assert first.description == "width 1 -> 4"
        assert first.text == KERNEL.replace('"width": 1,', '"width": 4,')
        tell(tuner, first.text, True, 2.0)
        second = ask(tuner)
        assert second is not None
        assert second.description == "unroll 1 -> 2"
        assert ast.literal_eval(second.text.splitlines()[5][9:]) == {"width": 4, "unroll": 2}

    def test_an_empty_value_is_called_none_and_no_other(self) -> None:
        tuner = Tuner(kernel({"hint": "", "unroll": 0}, {"hint": ["", "x"], "unroll": [0, 1]}), 1)
        said = set()
        while edit := ask(tuner):
            said.add(edit.description)
            tell(tuner, edit.text, False, 0.9)
        assert {"hint none -> x", "unroll 0 -> 1"} <= said

    def test_an_edit_that_was_not_kept_is_no_start_for_the_next(self) -> None:
        tuner = Tuner(KERNEL, seed=1)
        for _ in range(3):
            edit = ask(tuner)
            assert edit is not None
            tell(tuner, edit.text, False, 1.5)
        edit = ask(tuner)
        assert edit is not None
        assert edit.description.count("->") == 1

    @given(seed=st.integers(), stop=st.integers(0, 5))
    def test_it_goes_on_from_what_others_kept_and_passes_over_the_rest(
        self, seed: int, stop: int
    ) -> None:
        theirs = KERNEL.replace("return x", "return 1 * x").replace("[1, 2, 4]", "[1, 2]")
        tuner = Tuner(KERNEL, seed)
        for other in ("KERNEL_TYPE = 1", "x = (", KERNEL.replace('"width": 1', '"width": 3')):
            tell(tuner, other, False, 1.5)
        for _ in range(stop):
            edit = ask(tuner)
            assert edit is not None
            tell(tuner, edit.text, False, 0.9)
        tell(tuner, theirs, True, 1.5)
        assert asked(tuner) == asked(Tuner(theirs, seed))

    def test_it_has_nothing_to_go_on_from_without_a_space(self) -> None:
        with pytest.raises(Refused, match="the tuner needs a dictionary literal CONFIG"):
            tell(Tuner(KERNEL, seed=1), "KERNEL_TYPE = 'softmax'", True, 1.5)

    @pytest.mark.parametrize("text", ["SPACE = {'a': [1]}", "CONFIG = {'a': 1}", "CONFIG = [1]"])
    def test_a_kernel_without_a_space_is_refused_with_what_to_add(self, text: str) -> None:
        with pytest.raises(Refused, match="the tuner needs a dictionary literal"):
            Tuner(text, seed=1)


class TestSearch:
    @pytest.mark.parametrize("seed", range(5))
    def test_a_gain_on_any_axis_is_found_within_six_experiments(self, seed: int) -> None:
        """Five axes as a CPU kernel has them: half-way along each comes first."""
        space = Space.of({c: [1, 2, 4, 8] for c in "abcde"}, dict.fromkeys("abcde", 1))
        search = Search(space, (0,) * 5, seed)
        asked = []
        for _ in range(5):
            point = search.ask()
            assert point is not None
            search.tell(point, False, 0.9)
            asked.append(point)
        assert sorted(asked) == sorted((0,) * i + (2,) + (0,) * (4 - i) for i in range(5))

    def test_the_axis_that_helped_most_is_stepped_along_first(self) -> None:
        space = Space.of({c: [1, 2, 4, 8, 16] for c in "abc"}, dict.fromkeys("abc", 1))
        search = Search(space, (0, 0, 0), seed=1)
        for point, speedup in [((2, 0, 0), 1.1), ((2, 2, 0), 2.0), ((2, 2, 2), 0.5)]:
            assert search.ask() == point
            search.tell(point, speedup > 1, speedup)
        assert search.ask() == (2, 3, 0)

    def test_a_restart_is_walked_from_while_it_gains(self) -> None:
        """All around the start is slow; the optimum lies behind a ridge."""
        space = Space.of({c: [1, 2, 3, 4, 5, 6, 7, 8] for c in "ab"}, {"a": 1, "b": 1})
        search = Search(space, (0, 0), seed=3)
        tried = 0
        while (point := search.ask()) and point != (7, 7):
            search.tell(point, False, 0.5 + sum(point) / 40 if min(point) else 0.4)
            tried += 1
        assert point == (7, 7)
        assert tried < len(space.valid) / 2
