"""What a user's own callable is timed under, in pytest's own process."""

from __future__ import annotations

import os
import threading
import time
from pathlib import Path

import pytest
import torch

from pytest_autokernel.conditions import of_a_worker

PAUSES = 20


def affinities() -> dict[str, set[int]]:
    """Of each thread. Those that are told to end are given the time for it."""
    time.sleep(0.1)
    tasks = [task.name for task in Path("/proc/self/task").iterdir()]
    return {task: os.sched_getaffinity(int(task)) for task in tasks}


def waiting_s() -> float:
    """The processors' time that OpenMP's threads take in pauses of the work."""
    wide = torch.ones(2**20)
    taken = 0.0
    for _ in range(PAUSES):
        wide.exp_()
        before = time.process_time()
        time.sleep(0.01)
        taken += time.process_time() - before
    return taken


def test_all_threads_have_a_workers_processors_and_then_their_own_again() -> None:
    waiting_s()  # OpenMP's threads are there from now on
    threads, before = torch.get_num_threads(), affinities()
    (one, *_) = sorted(os.sched_getaffinity(0))
    with of_a_worker({one}):
        assert torch.get_num_threads() == 1
        inside = affinities()
        assert all(inside[task] == {one} for task in before)
    assert torch.get_num_threads() == threads
    assert before.items() <= affinities().items()


def test_threads_sleep_where_they_wait_and_spin_again_afterwards() -> None:
    cpus = os.sched_getaffinity(0)
    spinning = waiting_s()
    if spinning < PAUSES * 0.0005:
        pytest.skip("threads do not spin here: one processor, or another OpenMP than libgomp")
    with of_a_worker(cpus):
        assert waiting_s() < spinning / 4
    assert waiting_s() > spinning / 4


def test_a_thread_that_begins_there_and_stays_is_not_bound_afterwards() -> None:
    over = threading.Event()
    with of_a_worker({min(os.sched_getaffinity(0))}):
        staying = threading.Thread(target=over.wait)
        staying.start()
    found = affinities()[str(staying.native_id)]
    over.set()
    staying.join()
    assert found == os.sched_getaffinity(0)


def test_an_exception_leaves_all_as_it_was() -> None:
    threads, before = torch.get_num_threads(), affinities()
    with pytest.raises(ZeroDivisionError), of_a_worker({min(os.sched_getaffinity(0))}):
        raise ZeroDivisionError
    assert torch.get_num_threads() == threads
    assert before.items() <= affinities().items()  # torch may have started more
