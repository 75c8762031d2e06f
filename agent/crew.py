"""The workers of a run: whoever is free takes the next question, and none is lost with a worker.

A worker that is gone is replaced. One whose judge has broken down is asked no more as long as there
are others. Either way its question goes to the next one, until so many have failed at it that it is
the question.
"""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from typing import Any, TypeVar

from .errors import JudgeFailed
from .judge import Judge
from .process import GRACE_S
from .report import Report
from .roster import Place
from .worker import Worker, WorkerLost

MOST_LOST = 3  # workers that die with a question
MOST_BROKEN = 2  # judges that break down, each asked twice by then: it may take hours

Answer = TypeVar("Answer")


@dataclass(eq=False)
class Question:
    kernel: str
    ask: Callable[[Judge], Any]
    what: str = ""
    answer: Future[Any] = field(default_factory=Future)
    failed: int = 0  # workers


class Seat:
    """Where one worker after another sits. `hire` gives the next."""

    def __init__(self, hire: Callable[[], Worker]) -> None:
        self._hire = hire
        self._worker: Worker | None = None
        self._lock = threading.Lock()
        self.closed = False
        self.place = Place()

    def worker(self) -> Worker:
        """Who sits here; somebody new after one that was lost."""
        with self._lock:
            if self._worker is None:
                self._worker = self._hire()
                if self.closed:  # meanwhile
                    self._worker.close()
            return self._worker

    def lose(self, worker: Worker) -> bool:
        """Whether it sat here until now."""
        with self._lock:
            sat = self._worker is worker
            if sat:
                self._worker = None
        worker.close()
        return sat

    def close(self) -> None:
        self.closed = True
        if worker := self._worker:
            worker.close()


class Crew:
    """A worker for each of `hires`, which are called when there is a first question. `told` is told
    of workers that are lost, `noted` what each is at, whenever that changes; `one_on_cpu` says that
    only one may time a kernel on the CPU, which all share."""

    def __init__(
        self,
        hires: Sequence[Callable[[], Worker]],
        told: Callable[[str], object] = str,
        one_on_cpu: bool = False,
        noted: Callable[[Sequence[Place]], object] = len,
    ) -> None:
        self._one_on_cpu = one_on_cpu
        self._noted = noted
        self._seats = [Seat(hire) for hire in hires]
        self._told = told
        self._changed = threading.Condition()
        self._over: BaseException | None = None  # why no question is answered any more
        self._judging, self._compiling = deque[Question](), deque[Question]()
        # For good: what a thread starts ends with it (lifeline.py).
        self._threads = [
            threading.Thread(target=self._serve, args=(seat, questions), daemon=True)
            for seat in self._seats
            for questions in (self._judging, self._compiling)
        ]
        self._noted(self.places)

    @property
    def places(self) -> list[Place]:
        """What each worker is at."""
        return [seat.place for seat in self._seats]

    def on(self, device: str) -> int:
        """How many may judge kernels of a device at a time."""
        return 1 if device == "cpu" and self._one_on_cpu else len(self._seats)

    def ask(self, kernel: str, what: str, ask: Callable[[Judge], Answer]) -> Future[Answer]:
        """Have the judge of a kernel asked; `what` it is about is for those who watch."""
        return self._put(self._judging, Question(kernel, ask, what))

    def binary(self, kernel: str, text: str) -> Future[Report]:
        """Have a text compiled, beside all other questions."""
        return self._put(self._compiling, Question(kernel, lambda judge: judge.binary(text)))

    def close(self) -> None:
        """End all workers, and what they are at."""
        self._end(JudgeFailed("the workers were closed"))
        with ThreadPoolExecutor() as pool:
            list(pool.map(Seat.close, self._seats))
        for thread in self._threads:
            if thread.is_alive():
                thread.join(2 * GRACE_S)  # not for ever: it may wait for a machine

    def _put(self, questions: deque[Question], question: Question) -> Future[Any]:
        with self._changed:
            if self._over:
                question.answer.set_exception(self._over)
                return question.answer
            questions.append(question)
            self._changed.notify_all()
        for thread in self._threads:
            if thread.ident is None:
                thread.start()
        return question.answer

    def _serve(self, seat: Seat, questions: deque[Question]) -> None:
        try:
            while not (seat.closed or self._over):
                worker = seat.worker()
                if seat.place.where != worker.where:
                    self._note(seat, where=worker.where)
                if question := self._take(seat, questions):
                    self._answer(seat, worker, questions, question)
        except Exception as error:  # noqa: BLE001 - no worker can be hired, for whatever reason
            self._leave(seat, error)

    def _take(self, seat: Seat, questions: deque[Question]) -> Question | None:
        with self._changed:
            self._changed.wait_for(lambda: questions or seat.closed or self._over)
            return None if seat.closed or not questions else questions.popleft()

    def _answer(
        self, seat: Seat, worker: Worker, questions: deque[Question], question: Question
    ) -> None:
        try:
            judge = worker.judge(question.kernel)
            if questions is self._judging:
                found = self._judged(seat, judge, question)
            else:
                found = question.ask(judge)
        except WorkerLost as lost:
            if seat.lose(worker):
                self._note(seat, where="", lost=(*seat.place.lost, str(lost)))
            self._again(questions, question, JudgeFailed(str(lost)), MOST_LOST)
        except JudgeFailed as failure:
            if questions is self._judging and self._others(seat):
                self._leave(seat, failure)
                self._again(questions, question, failure, MOST_BROKEN)
            else:
                question.answer.set_exception(failure)
        except Exception as error:  # noqa: BLE001 - it is for whoever asked
            question.answer.set_exception(error)
        else:
            question.answer.set_result(found)

    def _judged(self, seat: Seat, judge: Judge, question: Question) -> Any:
        """The answer; meanwhile the seat's place says what it is about."""
        answered = 0
        self._note(seat, kernel=question.kernel, what=question.what, since=time.time())
        try:
            found = question.ask(judge)
            answered = 1
            return found
        finally:
            self._note(seat, kernel=None, what="", judged=seat.place.judged + answered)

    def _note(self, seat: Seat, **changes: Any) -> None:
        with self._changed:
            seat.place = replace(seat.place, **changes)
            self._noted(self.places)

    def _again(
        self, questions: deque[Question], question: Question, failure: JudgeFailed, most: int
    ) -> None:
        question.failed += 1
        with self._changed:
            if question.failed < most and not self._over:
                questions.appendleft(question)
                self._changed.notify_all()
                return
        question.answer.set_exception(failure)

    def _others(self, seat: Seat) -> bool:
        return any(other is not seat and not other.closed for other in self._seats)

    def _leave(self, seat: Seat, error: Exception) -> None:
        """Go on without this seat, if there are others."""
        seat.close()
        self._note(seat, gone=str(error))
        if not self._others(seat):
            self._end(error)
            return
        with self._changed:
            self._changed.notify_all()
        if not self._over:
            self._told(f"a worker is gone, the others go on: {error}")

    def _end(self, why: Exception) -> None:
        with self._changed:
            self._over = self._over or why
            left = [*self._judging, *self._compiling]
            self._judging.clear()
            self._compiling.clear()
            self._changed.notify_all()
        for question in left:
            question.answer.set_exception(self._over)
