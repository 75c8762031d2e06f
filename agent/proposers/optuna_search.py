"""Optuna's tree-structured Parzen estimator as a search over a space, behind ask and tell.

Needs the `optuna` package, which is an extra. A study is made anew for each question from all
that was told, with a seed that follows from it: so what is asked depends on nothing else, and a
search that is told its past again goes on as if it had never stopped. The estimator knows nothing
of rules: what it suggests is moved to the nearest valid point that was not tried. Rejecting such
suggestions, or telling of them as failures or violated constraints, did worse on replayed GPU
spaces, and took thousands of suggestions for 150 experiments.
"""

from __future__ import annotations

import copy
import math
import random
from typing import TYPE_CHECKING

from ..errors import Refused
from .space import Point, Space

if TYPE_CHECKING:
    from optuna.distributions import BaseDistribution


class OptunaSearch:
    """Asks for every point of `space` at most once, `start` excepted."""

    def __init__(self, space: Space, start: Point, seed: int) -> None:
        try:
            import optuna
        except ImportError as error:
            raise Refused(
                "--search optuna needs the package optuna: pip install 'pytest-autokernel[optuna]'"
            ) from error
        optuna.logging.set_verbosity(optuna.logging.WARNING)
        self._optuna = optuna
        self._space = space
        self._seed = seed
        self._unseen = dict.fromkeys(point for point in space.valid if point != start)
        self._best_score = 0.0
        self._told: list[tuple[Point, float | None]] = [(start, 0.0)]

    @property
    def exhausted(self) -> bool:
        return not self._unseen

    def ask(self) -> Point | None:
        """The point to try next, or None once the space is exhausted."""
        if self.exhausted:
            return None
        suggested = self._suggested()
        return min(self._unseen, key=lambda point: (self._distance(point, suggested), point))

    def tell(self, point: Point, kept: bool, speedup: float | None) -> None:
        """What became of a point. `speedup` is over the incumbent of that moment; None says
        that the kernel was wrong or was not timed."""
        self._unseen.pop(point, None)
        score = None if speedup is None else self._best_score + math.log(speedup)
        self._told.append((point, score))
        if kept and score is not None:
            self._best_score = score

    def copy(self) -> OptunaSearch:
        """One that can be told something else."""
        other = copy.copy(self)
        other._unseen, other._told = self._unseen.copy(), self._told.copy()
        return other

    def _suggested(self) -> Point:
        optuna, axes = self._optuna, self._distributions()
        worst = min(score for _, score in self._told if score is not None) - 1
        seed = random.Random(f"{self._seed}/{len(self._told)}").getrandbits(32)
        sampler = optuna.samplers.TPESampler(seed=seed)
        study = optuna.create_study(direction="maximize", sampler=sampler)
        study.add_trials(
            [
                optuna.trial.create_trial(
                    params=dict(zip(axes, point, strict=True)),
                    distributions=axes,
                    value=worst if score is None else score,
                )
                for point, score in self._told
            ]
        )
        suggested = study.ask(axes).params
        return tuple(suggested[name] for name in axes)

    def _distributions(self) -> dict[str, BaseDistribution]:
        """A point's places on the axes: in order where the values are."""
        optuna = self._optuna.distributions
        return {
            name: optuna.IntDistribution(0, len(values) - 1)
            if self._space.ordered(axis)
            else optuna.CategoricalDistribution(range(len(values)))
            for axis, (name, values) in enumerate(self._space.axes.items())
        }

    def _distance(self, one: Point, other: Point) -> float:
        """Steps, each as a share of its axis, with all values of an unordered one equally far."""
        return sum(
            abs(here - there) / len(values) if self._space.ordered(axis) else here != there
            for axis, (here, there, values) in enumerate(
                zip(one, other, self._space.axes.values(), strict=True)
            )
        )
