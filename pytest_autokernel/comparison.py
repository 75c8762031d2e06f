"""The process that knows the answers: it makes the inputs, computes the expected values and
compares. No candidate ever runs here, and no candidate's process can read it.

Started by process.spawn, with a descriptor of its channel for argument.
"""

from __future__ import annotations

import functools
import math
import os
import socket
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch

from pytest_autokernel import operands, oracle
from pytest_autokernel.ceilings import event_floor_us, measure_ceilings
from pytest_autokernel.channel import Channel, ChannelError, TensorMeta, view
from pytest_autokernel.device_memory import OutOfDeviceMemory, Pool, can_share
from pytest_autokernel.gpu import describe_device
from pytest_autokernel.handover import POISON, Host, OnGpu
from pytest_autokernel.op import Case, Op, Tensors
from pytest_autokernel.ops import load_op
from pytest_autokernel.sampling import poked

MOST_CACHED = 8 * 2**30  # bytes of GPU memory that are kept from case to case
WAITS_S = (0.0, 1.0, 5.0)  # for GPU memory that others hold

Reply = tuple[dict[str, Any], tuple[int, ...]]


@dataclass
class Call:
    """One call's inputs: as they were made, as values by now, as the bytes that were handed over,
    and the memory in which the worker's side works."""

    made: Tensors
    values: Tensors
    before: list[torch.Tensor]
    memory: Host | OnGpu
    shape: list[int]  # of its result


@dataclass
class Ticket:
    """A case in progress."""

    op: Op
    case: Case
    relation: str | None
    calls: list[Call]
    results: dict[int, torch.Tensor] = field(default_factory=dict)  # by call
    extra_units: int = 0


class Comparison:
    """Answers the judge's requests; see each method for its message."""

    def __init__(self, channel: Channel) -> None:
        self.channel = channel
        self.ops: dict[str, Op] = {}
        self.ticket: Ticket | None = None
        self.pool = Pool()

    def serve(self) -> None:
        handlers = {
            "device": self.device,
            "make": self.make,
            "refill": self.refill,
            "poke": self.poke,
            "compare": self.compare,
            "ceilings": self.ceilings,
            "floor": self.floor,
            "memory": self.memory,
        }
        while True:
            try:
                message, fds = self.channel.receive()
            except ChannelError:
                return
            reply, out = self._answered(handlers[message["do"]], message, fds)
            for fd in fds:
                os.close(fd)
            self.channel.send(reply, out)
            for fd in out:
                os.close(fd)
            if message["do"] == "device":  # the first request, before pytest collects
                _import_ahead()

    def _answered(
        self, handler: Callable[..., Reply], message: dict[str, Any], fds: Sequence[int]
    ) -> Reply:
        """A GPU that others use too may be short of memory for a while: what is cached here is
        given back, and the request tried again some times."""
        short = ""
        for wait in WAITS_S:
            try:
                return handler(message, fds)
            except (torch.OutOfMemoryError, OutOfDeviceMemory) as error:
                short = str(error)  # not the error, whose frames hold tensors
            torch.cuda.empty_cache()
            time.sleep(wait)
        return {"failed": f"the comparison is short of GPU memory: {short}"}, ()

    @functools.cached_property
    def shares(self) -> bool:
        """Whether GPU memory can be shared with the worker."""
        return can_share()

    def device(self, message: dict[str, Any], fds: Sequence[int]) -> Reply:
        """What this machine's accelerator is, or null."""
        return {"device": describe_device(), "shares": self.shares}, ()

    def ceilings(self, message: dict[str, Any], fds: Sequence[int]) -> Reply:
        """What this device reaches on a working set of `nbytes`."""
        return measure_ceilings(
            message["device"], message["nbytes"], message["dtype"], message["cpus"]
        ), ()

    def floor(self, message: dict[str, Any], fds: Sequence[int]) -> Reply:
        """What two events around nothing read on this GPU."""
        return {"floor_us": event_floor_us(message["clear_bytes"])}, ()

    def memory(self, message: dict[str, Any], fds: Sequence[int]) -> Reply:
        """The share of the GPU's memory that is neither free nor this process's own."""
        torch.cuda.empty_cache()
        free, total = torch.cuda.mem_get_info()
        own = torch.cuda.memory_reserved() + self.pool.nbytes
        return {"others": max(0.0, (total - free - own) / total)}, ()

    def make(self, message: dict[str, Any], fds: Sequence[int]) -> Reply:
        """Make a case's inputs (for a relation: those of each of its calls) and hand them over.
        It replaces the case before."""
        self._forget()
        name, case, device = message["op"], Case.from_json(message["case"]), message["device"]
        if name not in self.ops:
            self.ops[name] = load_op(name, {name: Path(message["file"])})
        op = self.ops[name]
        inputs, draw = operands.make_inputs(op, case, device)
        relation = message.get("relation")
        tuples = op.relations[relation].related(inputs, draw) if relation else [inputs]
        share = self.shares and device == "cuda" and message["share"]
        calls: list[Call] = []
        told: list[dict[str, Any]] = []
        handed: list[int] = []
        self.ticket = Ticket(op, case, relation, calls, extra_units=message["extra_units"])
        for values in tuples:
            call = _handed_over(op, case, values, self.pool if share else None)
            words, given = call.memory.message()
            calls.append(call)
            told.append({"inputs": [m.to_json() for m in call.memory.metas], **words})
            handed += given
        return {"calls": told, "options": dict(op.variants[case.variant].options)}, tuple(handed)

    def refill(self, message: dict[str, Any], fds: Sequence[int]) -> Reply:
        """Put other contents into the memory of the case's one call: the same addresses, the
        same tensors on the worker's side."""
        ticket = self.ticket
        assert ticket is not None
        (call,) = ticket.calls
        case = replace(ticket.case, seed=message["seed"])
        values, _ = operands.make_inputs(ticket.op, case, call.values[0].device.type)
        ticket.case, ticket.results = case, {}
        call.made, call.before = _placed(values, call.memory.metas)
        call.values = call.made
        call.memory.fill(call.before)
        return {"ok": True}, ()

    def poke(self, message: dict[str, Any], fds: Sequence[int]) -> Reply:
        """Follow what all timed calls since the inputs were made, in bursts of [seed, calls] each,
        changed in the set `which` of `sets` that they took turns on."""
        assert self.ticket is not None
        (call,) = self.ticket.calls
        call.values = tuple(value.clone() for value in call.made)
        for seed, count in message["bursts"]:
            poked(call.values, seed, count, message["sets"], message["which"])
        return {"ok": True}, ()

    def compare(self, message: dict[str, Any], fds: Sequence[int]) -> Reply:
        """Judge one result. The last call of a relation brings the relation's verdict; a
        `repeat` must equal the first result bit for bit."""
        ticket = self.ticket
        assert ticket is not None
        try:
            judged = self._judge(ticket, message, fds)
        except (ChannelError, OSError) as error:  # the result's buffer is the candidate's
            judged = oracle.Judged(float("inf"), f"returned no well-formed result: {error}")
        ticket.calls[message["call"]].memory.spoil()
        return {"ok": judged.ok, "worst": judged.worst, "reason": judged.reason}, ()

    def _judge(self, ticket: Ticket, message: dict[str, Any], fds: Sequence[int]) -> oracle.Judged:
        number, meta = message["call"], TensorMeta.from_json(message["result"])
        call, op, case = ticket.calls[number], ticket.op, ticket.case
        fault = _contract(message, call, timed=message["timed"]) or oracle.describe_mismatch(
            meta, call.values, call.shape, op
        )
        if fault:
            return oracle.Judged(float("inf"), fault)
        got = call.memory.result(meta, fds)
        if message.get("repeat"):
            same = _same(got, ticket.results[0], message["repeat"])
            if same.ok or op.deterministic:
                return same
            return oracle.compare_runs(got, ticket.results[0], op, case, call.values)
        ticket.results[number] = got
        if ticket.relation is None:
            return oracle.compare(got, op, case, call.values, ticket.extra_units)
        if len(ticket.results) < len(ticket.calls):
            return oracle.Judged(0.0)
        device = call.values[0].device
        results = [ticket.results[n].to(device) for n in range(len(ticket.calls))]
        return oracle.compare_relation(
            op.relations[ticket.relation],
            ticket.relation,
            results,
            ticket.calls[0].values,
            ticket.extra_units,
        )

    def _forget(self) -> None:
        """Give back the memory of the case before."""
        if self.ticket is not None:
            for call in self.ticket.calls:
                call.memory.close()
        self.ticket = None
        if torch.cuda.is_initialized() and torch.cuda.memory_reserved() > MOST_CACHED:
            torch.cuda.empty_cache()


def _import_ahead() -> None:
    """torch imports what tensors without data need, sympy and all, with the first of them: 1 s."""
    with torch.device("meta"):
        torch.empty(1).softmax(-1)


def _handed_over(op: Op, case: Case, values: Tensors, pool: Pool | None) -> Call:
    layouts = operands.layouts(case, len(values))
    metas = [operands.lay_out(t, layout) for t, layout in zip(values, layouts, strict=True)]
    values, before = _placed(values, metas)
    shape = _shape(op, case, values)
    memory: Host | OnGpu
    if pool:
        widest = max(4, *(t.element_size() for t in values if t.is_floating_point()))
        memory = OnGpu(pool, metas, widest * math.prod(shape))
    else:
        memory = Host(metas)
    memory.fill(before)
    return Call(values, values, before, memory, shape)


def _placed(values: Tensors, metas: Sequence[TensorMeta]) -> tuple[Tensors, list[torch.Tensor]]:
    """The values as their places allow them (where a dim has no stride, the first is all there
    is), and what the buffers are to hold: these, and poison around them."""
    placed, contents = [], []
    for value, meta in zip(values, metas, strict=True):
        raw = torch.full((meta.nbytes,), POISON, dtype=torch.uint8, device=value.device)
        own = tuple(slice(None if step else 1) for step in meta.stride)
        view(raw, meta)[own].copy_(value[own])
        placed.append(value[own].expand_as(value))
        contents.append(raw)
    return tuple(placed), contents


def _shape(op: Op, case: Case, values: Tensors) -> list[int]:
    """The result's shape, by running the reference on tensors without data."""
    with torch.device("meta"):
        empty = tuple(torch.empty(t.shape, dtype=t.dtype) for t in values)
    return list(op.reference(*empty, **op.variants[case.variant].options).shape)


def _contract(message: dict[str, Any], call: Call, timed: bool = False) -> str | None:
    """What no call may do, whatever its values. Timed calls have inputs of their own."""
    if message["aliases"]:
        return (
            f"aliasing: the result shares memory with {message['aliases']}; kernel_fn must return "
            "a new tensor"
        )
    if message["device"] != call.values[0].device.type:
        return f"device: expected a result on {call.values[0].device.type}, got {message['device']}"
    places = [] if timed else call.memory.places
    for i, (before, after) in enumerate(zip(call.before, places, strict=not timed)):
        after = after.to(before.device)
        if not torch.equal(before, after):
            where = (before != after).nonzero().flatten()
            first = int(where[0])
            inside = operands.GUARD <= first < before.numel() - operands.GUARD
            place = "input changed" if inside else "write outside the buffer"
            first -= operands.GUARD
            return f"{place}: input {i}, {where.numel()} bytes, the first at byte {first}"
    return None


def _same(got: torch.Tensor, first: torch.Tensor, what: str) -> oracle.Judged:
    """Whether two results have the same bits; `what` says what it means if they have not."""
    bits, before = (t.contiguous().view(-1).view(torch.uint8) for t in (got, first))
    if torch.equal(bits, before):
        return oracle.Judged(0.0)
    differ = (got != first) & ~(got.isnan() & first.isnan())
    return oracle.Judged(
        float("inf"), f"{what}: {int(differ.sum())} of {got.numel()} elements differ"
    )


def main() -> None:
    # TF32, and partial sums in fp16 or bf16, would spoil the trusted computation that tolerances
    # lean on.
    torch.backends.cuda.matmul.allow_tf32 = False
    torch.backends.cudnn.allow_tf32 = False
    torch.backends.cuda.matmul.allow_fp16_reduced_precision_reduction = False
    torch.backends.cuda.matmul.allow_bf16_reduced_precision_reduction = False
    # On the CPU cases are small: a second thread gains little on a quiet machine, and on a busy
    # one each of a hundred parallel regions waits a scheduler's turn for it (0.8 s for 0.02).
    torch.set_num_threads(1)
    Comparison(Channel(socket.socket(fileno=int(sys.argv[1])))).serve()


if __name__ == "__main__":
    main()
