"""Each stage, and the roofline, as a fixture for a user's own tests on any callable:

    def test_ours(shape_sweep, roofline):
        shape_sweep(my_softmax, op="softmax")
        roofline(my_softmax, op="softmax")

The callable comes from the user's test: it is trusted, and runs in this process.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING, Any, Protocol

import pytest

if TYPE_CHECKING:
    from pytest_autokernel.figures import Timing
    from pytest_autokernel.judge import Judge
    from pytest_autokernel.op import Op

Callee = Callable[..., Any]


class StageFixture(Protocol):
    def __call__(self, fn: Callee, op: str, supports: Iterable[str] = ()) -> None:
        """Judge `fn` as a kernel of `op` on all cases of this stage; fails the test."""


class RooflineFixture(Protocol):
    def __call__(self, fn: Callee, op: str) -> list[Timing]:
        """Time `fn` on the op's timed cases beside its baseline; fails above the roof."""


def judge_of(config: pytest.Config) -> Judge:
    """The run's judge, started at the first need."""
    from pytest_autokernel import baselines
    from pytest_autokernel.judge import Judge
    from pytest_autokernel.plugin import JUDGE
    from pytest_autokernel.settings import Settings

    if JUDGE not in config.stash:
        config.stash[JUDGE] = Judge(Settings.from_config(config))
        baselines.refuse_unknown(config.stash[JUDGE])
    return config.stash[JUDGE]


@pytest.fixture(scope="session")
def autokernel_judge(pytestconfig: pytest.Config) -> Judge:
    """The judge's processes and settings."""
    return judge_of(pytestconfig)


def _op(judge: Judge, name: str) -> Op:
    from pytest_autokernel.ops import OpError

    try:
        return judge.op(name)
    except OpError as error:
        pytest.fail(str(error), pytrace=False)


def _stage(stage: str) -> Any:
    def fixture(autokernel_judge: Judge, request: pytest.FixtureRequest) -> StageFixture:
        from pytest_autokernel import collection, examination, plan
        from pytest_autokernel.subjects import LocalSubject

        def run(fn: Callee, op: str, supports: Iterable[str] = ()) -> None:
            judge = autokernel_judge
            subject = LocalSubject(judge, fn, frozenset(supports))
            under = examination.of_callable(judge, subject, _op(judge, op), request.node.nodeid)
            for check in plan.checks(
                under.op, subject.supports, under.target, judge.settings.effort
            ):
                if check.stage == stage:
                    under.judge(collection.seeded(check, judge.settings.seed), request.node)

        return run

    fixture.__doc__ = f"Judge any callable in the stage {stage}: `{stage}(fn, op='softmax')`."
    return pytest.fixture(name=stage)(fixture)


smoke = _stage("smoke")
shape_sweep = _stage("shape_sweep")
numerical_stability = _stage("numerical_stability")
determinism = _stage("determinism")
edge_cases = _stage("edge_cases")


@pytest.fixture
def roofline(autokernel_judge: Judge, request: pytest.FixtureRequest) -> RooflineFixture:
    """Time any callable against its roof and its baselines: `roofline(fn, op='softmax')`."""
    from pytest_autokernel import examination, plan
    from pytest_autokernel.subjects import LocalSubject

    def run(fn: Callee, op: str) -> list[Timing]:
        judge = autokernel_judge
        subject = LocalSubject(judge, fn, frozenset())
        under = examination.of_callable(judge, subject, _op(judge, op), request.node.nodeid)
        cases = plan.timed_cases(under.op, under.target.name)
        timings = [under.time(case, request.node) for case in cases]
        for timing in timings:
            under.accept(timing)
        return timings

    return run
