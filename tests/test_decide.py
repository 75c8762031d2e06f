"""Decisions about speed: what they may depend on, what they claim, and how often they err."""

from __future__ import annotations

import itertools
import math
import random
from collections.abc import Callable

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pytest_autokernel.decide import (
    GATE,
    NOTHING,
    SCREEN,
    Answer,
    Block,
    Change,
    Decision,
    Estimate,
    Need,
    Prospect,
    Rule,
    Trial,
    decide,
    decide_cases,
    estimate,
    judge_cases,
    judge_change,
    overall,
    screen,
)

TIMES = st.floats(1.0, 1000.0)
PAIRS = st.lists(st.tuples(TIMES, TIMES), min_size=1, max_size=4)
BLOCKS = st.lists(PAIRS.map(lambda pairs: tuple(zip(*pairs, strict=True))), min_size=1, max_size=16)
CONFIDENCE = st.sampled_from([0.5, 0.9, 0.99])


def of_ratios(*ratios: float) -> list[Block]:
    """Blocks of one pair each with these ratios of the other's time to the candidate's."""
    return [([100.0 * ratio], [100.0]) for ratio in ratios]


def around(speed: float, count: int) -> list[Block]:
    """`count` blocks within 0.1 % of a speed."""
    return of_ratios(*(speed * (1 + 0.001 * (i % 7 - 3) / 3) for i in range(count)))


def between(low: float, high: float) -> Estimate:
    return Estimate(math.sqrt(low * high), low, high, 0.99, 12)


def bounds(found: Estimate) -> tuple[float, float, float]:
    return found.low, found.ratio, found.high


class TestAnEstimate:
    def test_is_above_one_for_a_faster_candidate(self) -> None:
        found = estimate([([20.0, 22.0], [10.0, 11.0])] * 8, 0.9)
        assert bounds(found) == pytest.approx((2.0, 2.0, 2.0))
        assert found.blocks == 8

    @given(BLOCKS, CONFIDENCE)
    def test_lies_within_its_interval(self, blocks: list[Block], confidence: float) -> None:
        found = estimate(blocks, confidence)
        assert found.low <= found.ratio <= found.high

    @given(BLOCKS, CONFIDENCE, st.sampled_from([2.0**-9, 0.5, 1024.0]))
    def test_has_no_unit(self, blocks: list[Block], confidence: float, scale: float) -> None:
        scaled = [([scale * t for t in a], [scale * t for t in b]) for a, b in blocks]
        assert estimate(scaled, confidence) == estimate(blocks, confidence)

    @given(BLOCKS, CONFIDENCE)
    def test_is_inverted_by_swapping_the_kernels(
        self, blocks: list[Block], confidence: float
    ) -> None:
        found = estimate(blocks, confidence)
        swapped = estimate([(b, a) for a, b in blocks], confidence)
        inverse = (1 / x if x else math.inf for x in (found.high, found.ratio, found.low))
        assert bounds(swapped) == pytest.approx(tuple(inverse))

    @given(BLOCKS, CONFIDENCE, st.randoms(use_true_random=False))
    def test_ignores_the_order_of_blocks_and_of_pairs(
        self, blocks: list[Block], confidence: float, draw: random.Random
    ) -> None:
        shuffled: list[Block] = []
        for other, candidate in blocks:
            pairs = list(zip(other, candidate, strict=True))
            draw.shuffle(pairs)
            shuffled.append(([a for a, _ in pairs], [b for _, b in pairs]))
        draw.shuffle(shuffled)
        assert estimate(shuffled, confidence) == estimate(blocks, confidence)

    @given(BLOCKS, CONFIDENCE, st.randoms(use_true_random=False))
    def test_ignores_a_clock_that_both_samples_of_a_pair_saw(
        self, blocks: list[Block], confidence: float, draw: random.Random
    ) -> None:
        clocks = [[draw.choice([0.5, 1.0, 2.0, 8.0]) for _ in other] for other, _ in blocks]
        drifted = [
            ([c * t for c, t in zip(clock, a, strict=True)],
             [c * t for c, t in zip(clock, b, strict=True)])
            for clock, (a, b) in zip(clocks, blocks, strict=True)
        ]  # fmt: skip
        assert estimate(drifted, confidence) == estimate(blocks, confidence)

    @given(BLOCKS, CONFIDENCE, st.data())
    def test_never_falls_when_a_block_gets_better(
        self, blocks: list[Block], confidence: float, data: st.DataObject
    ) -> None:
        which = data.draw(st.integers(0, len(blocks) - 1))
        other, candidate = blocks[which]
        better = [*blocks[:which], ([2 * t for t in other], candidate), *blocks[which + 1 :]]
        before, after = estimate(blocks, confidence), estimate(better, confidence)
        assert all(b <= a for b, a in zip(bounds(before), bounds(after), strict=True))

    @given(BLOCKS)
    def test_is_wider_for_more_confidence(self, blocks: list[Block]) -> None:
        sure, surer = estimate(blocks, 0.9), estimate(blocks, 0.99)
        assert surer.low <= sure.low
        assert sure.high <= surer.high

    def test_says_nothing_from_fewer_blocks_than_its_confidence_needs(self) -> None:
        assert bounds(estimate(of_ratios(*[1.5] * 7), 0.99)) == pytest.approx((0, 1.5, math.inf))
        assert bounds(estimate(of_ratios(*[1.5] * 8), 0.99)) == pytest.approx((1.5, 1.5, 1.5))
        assert estimate([], 0.99) is NOTHING

    def test_takes_many_samples_of_one_layout_for_one_block(self) -> None:
        assert estimate([([150.0] * 10_000, [100.0] * 10_000)], 0.5).low == 0

    @pytest.mark.parametrize("confidence", [0.5, 0.9, 0.99, 0.999])
    def test_misses_the_truth_as_often_as_it_says(self, confidence: float) -> None:
        """Exactly: of all the ways in which 10 unequal blocks can err up or down."""
        errors = [1.01**2**i for i in range(10)]
        missed = 0
        for signs in itertools.product((1, -1), repeat=10):
            found = estimate(
                of_ratios(*(e**s for e, s in zip(errors, signs, strict=True))), confidence
            )
            missed += not found.low <= 1 <= found.high
        assert missed / 2**10 <= 1 - confidence
        assert missed / 2**10 > 0.7 * (1 - confidence) or confidence == 0.999

    def test_drops_nothing_and_yet_survives_wild_blocks(self) -> None:
        found = estimate(around(1.0, 22) + of_ratios(5.0, 0.1), 0.99)
        assert found.blocks == 24
        assert 0.998 < found.low < 1 < found.high < 1.002

    @pytest.mark.parametrize(
        ("block", "message"),
        [
            (([1.0, 2.0], [1.0]), "other=2 candidate=1"),
            (([math.nan], [1.0]), "time_us=nan"),
            (([1.0], [1e300]), "time_us=1e\\+300"),
        ],
    )
    def test_refuses_what_no_clock_says(self, block: Block, message: str) -> None:
        with pytest.raises(ValueError, match=message):
            estimate([block], 0.99)


@pytest.mark.parametrize(
    ("low", "high", "decision", "change"),
    [
        (1.02, 1.04, Decision.KEEP, Change.FASTER),
        (1.002, 1.009, Decision.REVERT, Change.SAME),
        (0.995, 1.02, Decision.UNDECIDED, Change.UNDECIDED),
        (0.98, 1.002, Decision.REVERT, Change.UNDECIDED),
        (0.96, 0.98, Decision.REVERT, Change.SLOWER),
    ],
)
def test_an_answer_needs_the_whole_interval_on_one_side(
    low: float, high: float, decision: Decision, change: Change
) -> None:
    assert decide(between(low, high), Rule()) is decision
    assert judge_change(between(low, high), Rule()) is change


def test_a_gate_claims_a_smaller_change_than_the_agent_keeps() -> None:
    assert judge_change(between(0.985, 0.995), GATE) is Change.SLOWER
    assert judge_change(between(0.985, 0.995), Rule()) is Change.UNDECIDED


@given(st.floats(0.5, 2), st.floats(1, 1.1))
def test_what_is_faster_one_way_is_slower_the_other(low: float, width: float) -> None:
    opposite = {Change.FASTER: Change.SLOWER, Change.SLOWER: Change.FASTER}
    there = judge_change(between(low, low * width), Rule(margin=0.03))
    back = judge_change(between(1 / (low * width), 1 / low), Rule(margin=0.03))
    assert back is opposite.get(there, there)


def test_many_comparisons_share_one_error() -> None:
    assert Rule(confidence=0.99).over(5).confidence == pytest.approx(0.998)
    assert Rule(confidence=0.97, looks=(12, 24, 48)).look_confidence == pytest.approx(0.99)


class TestADecisionOverCases:
    GAIN, NONE, LOSS = between(1.10, 1.12), between(0.997, 1.003), between(0.95, 0.97)
    SMALL_LOSS, UNSURE = between(0.992, 0.996), between(0.97, 1.03)

    def over(
        self, *found: Estimate, weights: tuple[float, ...] = (1, 1), critical: str = ""
    ) -> Decision:
        names = "ab"[: len(found)]
        return decide_cases(
            dict(zip(names, found, strict=True)),
            Rule(),
            dict(zip(names, weights, strict=False)),
            critical,
        )

    def test_keeps_a_gain_on_one_case_that_costs_none(self) -> None:
        assert self.over(self.GAIN, self.NONE) is Decision.KEEP
        assert self.over(self.NONE, self.NONE) is Decision.REVERT

    def test_never_pays_for_a_loss_beyond_the_threshold(self) -> None:
        assert self.over(self.GAIN, self.LOSS, weights=(1000, 1)) is Decision.REVERT

    def test_leaves_open_what_may_be_such_a_loss(self) -> None:
        assert self.over(self.GAIN, self.UNSURE) is Decision.UNDECIDED
        assert self.over(self.GAIN, NOTHING) is Decision.UNDECIDED

    def test_lets_a_critical_case_lose_nothing(self) -> None:
        assert self.over(self.GAIN, self.SMALL_LOSS) is Decision.KEEP
        assert self.over(self.GAIN, self.SMALL_LOSS, critical="b") is Decision.REVERT

    def test_weighs_cases(self) -> None:
        assert self.over(self.GAIN, self.NONE, weights=(1, 100)) is Decision.REVERT
        assert self.over(self.NONE, self.GAIN, weights=(0, 1)) is Decision.KEEP

    def test_says_by_how_much_in_all(self) -> None:
        found = {"a": between(1.0, 4.0), "b": between(4.0, 16.0)}
        whole = overall(found, {"a": 1, "b": 1})
        assert (whole.ratio, whole.low, whole.high) == pytest.approx((4.0, 2.0, 8.0))
        assert whole.confidence == pytest.approx(1 - 2 * (1 - found["a"].confidence))

    def test_blocks_a_change_that_makes_one_case_slower(self) -> None:
        def said(*found: Estimate) -> Change:
            return judge_cases(dict(zip("abc", found, strict=False)), Rule())

        assert said(self.GAIN, self.NONE) is Change.FASTER
        assert said(self.NONE, self.NONE) is Change.SAME
        assert said(self.GAIN, self.UNSURE) is Change.UNDECIDED
        assert said(self.GAIN, self.UNSURE, self.LOSS) is Change.SLOWER


class TestATrial:
    RULE = Rule(looks=(12, 24, 48), glance=0)

    def run(self, trial: Trial, *speeds: float) -> tuple[Trial, list[Need]]:
        """The trial, with blocks of the next speed whenever it asks for fresh processes."""
        needs, left = [], list(speeds)
        while need := trial.need:
            needs.append(need)
            if need.fresh:
                speed = left.pop(0)
            trial = trial.add(around(speed, need.blocks))
        return trial, needs

    def test_stops_at_the_first_look_that_is_clear(self) -> None:
        trial, needs = self.run(Trial(self.RULE), 0.9)
        assert trial.answer is Decision.REVERT
        assert needs == [Need(12, fresh=True)]

    def test_keeps_only_what_twice_as_many_fresh_blocks_confirm(self) -> None:
        trial, needs = self.run(Trial(self.RULE), 1.5, 1.2)
        assert trial.answer is Decision.KEEP
        assert needs == [Need(12, fresh=True), Need(24, fresh=True)]

    def test_publishes_the_confirmed_estimate_alone(self) -> None:
        trial, _ = self.run(Trial(self.RULE), 1.5, 1.2)
        assert trial.estimate == estimate(trial.confirmation, self.RULE.confidence)
        assert trial.estimate.ratio == pytest.approx(1.2, rel=0.001)

    @pytest.mark.parametrize(("second", "answer"), [(1.0, "REVERT"), (1.01, "UNDECIDED")])
    def test_does_not_keep_a_gain_that_goes_away(self, second: float, answer: str) -> None:
        assert self.run(Trial(self.RULE), 1.5, second)[0].answer == answer

    def test_takes_more_blocks_until_the_last_look(self) -> None:
        trial, needs = self.run(Trial(self.RULE), 1.01)
        assert trial.answer is Decision.UNDECIDED
        assert [need.blocks for need in needs] == [12, 12, 24]
        assert [need.fresh for need in needs] == [True, False, False]

    @pytest.mark.parametrize(
        ("speeds", "answer"),
        [
            ((0.9, 0.9), Change.SLOWER),
            ((1.1, 1.1), Change.FASTER),
            ((1.0,), Change.SAME),
            ((0.9, 1.1), Change.UNDECIDED),
        ],
    )
    def test_of_a_gate_confirms_either_claim(
        self, speeds: tuple[float, ...], answer: Change
    ) -> None:
        assert self.run(Trial(GATE, judge_change), *speeds)[0].answer is answer

    @given(st.integers(0, 35))
    def test_that_is_cut_short_is_undecided(self, count: int) -> None:
        blocks = around(1.5, count)
        trial = Trial(self.RULE).add(blocks[:12]).add(blocks[12:])
        assert trial.answer is Decision.UNDECIDED

    @given(st.lists(st.integers(1, 12), min_size=36))
    def test_does_not_mind_how_blocks_are_handed_in(self, sizes: list[int]) -> None:
        trial = Trial(self.RULE)
        for size in sizes:
            if need := trial.need:
                trial = trial.add(around(1.5, min(size, need.blocks)))
        assert trial.answer is Decision.KEEP
        assert (len(trial.first), len(trial.confirmation)) == (12, 24)

    @pytest.mark.parametrize(
        ("judge", "answer"), [(decide, Decision.REVERT), (screen, Prospect.REVERT)]
    )
    def test_ends_at_a_glance_that_shows_a_loss(
        self, judge: Callable[[Estimate, Rule], Answer], answer: Answer
    ) -> None:
        trial, needs = self.run(Trial(Rule(), judge), 0.97)
        assert needs == [Need(6, fresh=True)]
        assert trial.answer is answer
        assert trial.estimate == estimate(trial.first, 0.95)

    @pytest.mark.parametrize("speed", [0.995, 1.0, 1.5])
    def test_claims_nothing_at_a_glance(self, speed: float) -> None:
        trial = Trial(Rule()).add(around(speed, 6))
        assert trial.answer is Decision.UNDECIDED
        assert trial.need == Need(6, fresh=False)

    def test_of_a_gate_takes_no_glance(self) -> None:
        assert self.run(Trial(GATE, judge_change), 0.9, 0.9)[1][0] == Need(12, fresh=True)

    def test_of_a_screen_confirms_nothing_and_so_keeps_nothing(self) -> None:
        trial, needs = self.run(Trial(SCREEN, screen), 1.5)
        assert trial.answer is Prospect.PROMISING
        assert [need.blocks for need in needs] == [6, 6]
        assert not trial.confirmation

    def test_refuses_blocks_that_it_did_not_ask_for(self) -> None:
        with pytest.raises(ValueError, match="at most 12, found 13"):
            Trial(self.RULE).add(around(1.0, 13))
        done, _ = self.run(Trial(self.RULE), 0.9)
        with pytest.raises(ValueError, match="at most 0, found 1"):
            done.add(around(1.0, 1))
