"""The process that knows the answers: it makes the inputs, computes the expected values and
compares. No candidate ever runs here, and no candidate's process can read it.

Started as `python -I -m pytest_autokernel.comparison FD`.
"""

from __future__ import annotations

import os
import socket
import sys
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from pytest_autokernel import oracle
from pytest_autokernel.channel import (
    Channel,
    ChannelError,
    TensorMeta,
    anonymous_memory,
    mapped,
    snapshot,
    view,
)
from pytest_autokernel.gpu import describe_device
from pytest_autokernel.op import Case, Op, Tensors
from pytest_autokernel.ops import load_op

Reply = tuple[dict[str, Any], tuple[int, ...]]


@dataclass
class Call:
    """One call's inputs: as values, as the bytes that were handed over, and those bytes as
    the worker's side left them (shared memory)."""

    values: Tensors
    before: list[torch.Tensor]
    shared: list[torch.Tensor]


@dataclass
class Ticket:
    """A case in progress."""

    op: Op
    case: Case
    relation: str | None
    calls: list[Call]
    results: list[torch.Tensor] = field(default_factory=list)
    extra_units: int = 0


class Comparison:
    """Answers the judge's requests; see each method for its message."""

    def __init__(self, channel: Channel) -> None:
        self.channel = channel
        self.ops: dict[str, Op] = {}
        self.ticket: Ticket | None = None

    def serve(self) -> None:
        handlers = {
            "device": self.device,
            "make": self.make,
            "compare": self.compare,
            "ceilings": self.ceilings,
        }
        while True:
            try:
                message, fds = self.channel.receive()
            except ChannelError:
                return
            reply, out = handlers[message["do"]](message, fds)
            for fd in fds:
                os.close(fd)
            self.channel.send(reply, out)
            for fd in out:
                os.close(fd)

    def device(self, message: dict[str, Any], fds: Sequence[int]) -> Reply:
        """What this machine's accelerator is, or null."""
        return {"device": describe_device()}, ()

    def ceilings(self, message: dict[str, Any], fds: Sequence[int]) -> Reply:
        """What this device reaches on a working set of `nbytes`."""
        from pytest_autokernel.sampling import measure_ceilings

        return measure_ceilings(
            message["device"], message["nbytes"], message["dtype"], message["cpus"]
        ), ()

    def make(self, message: dict[str, Any], fds: Sequence[int]) -> Reply:
        """Make a case's inputs (for a relation: those of each of its calls) and hand them over.
        It replaces the case before."""
        self.ticket = None
        name, case, device = message["op"], Case.from_json(message["case"]), message["device"]
        if name not in self.ops:
            self.ops[name] = load_op(name, {name: Path(message["file"])})
        op = self.ops[name]
        inputs, draw = oracle.make_inputs(op, case, device)
        relation = message.get("relation")
        tuples = op.relations[relation].related(inputs, draw) if relation else [inputs]
        calls, metas, handed = [], [], []
        for values in tuples:
            layouts = [oracle.lay_out(t, case.layout) for t in values]
            out = [anonymous_memory(meta.nbytes) for meta in layouts]
            shared = [
                mapped(fd, meta.nbytes).fill_(0xFF) for fd, meta in zip(out, layouts, strict=True)
            ]
            for raw, meta, value in zip(shared, layouts, values, strict=True):
                view(raw, meta).copy_(value)
            calls.append(Call(values, [raw.clone() for raw in shared], shared))
            metas.append([meta.to_json() for meta in layouts])
            handed += out
        self.ticket = Ticket(op, case, relation, calls, extra_units=message["extra_units"])
        return {"calls": metas, "options": dict(op.variants[case.variant].options)}, tuple(handed)

    def compare(self, message: dict[str, Any], fds: Sequence[int]) -> Reply:
        """Judge one result. The last call of a relation brings the relation's verdict; a
        `repeat` must equal the first result bit for bit."""
        ticket = self.ticket
        assert ticket is not None
        try:
            judged = self._judge(ticket, message, fds)
        except (ChannelError, OSError) as error:  # the result's buffer is the candidate's
            judged = oracle.Judged(float("inf"), f"returned no well-formed result: {error}")
        return {"ok": judged.ok, "worst": judged.worst, "reason": judged.reason}, ()

    def _judge(self, ticket: Ticket, message: dict[str, Any], fds: Sequence[int]) -> oracle.Judged:
        number, meta = message["call"], TensorMeta.from_json(message["result"])
        call, op, case = ticket.calls[number], ticket.op, ticket.case
        fault = _contract(message, call) or oracle.describe_mismatch(
            meta, call.values, _shape(op, case, call), op
        )
        if fault:
            return oracle.Judged(float("inf"), fault)
        got = snapshot(fds[0], meta)
        if message.get("repeat"):
            return _same(got, ticket.results[0])
        ticket.results.append(got)
        if ticket.relation is None:
            return oracle.compare(got, op, case, call.values, ticket.extra_units)
        if len(ticket.results) < len(ticket.calls):
            return oracle.Judged(0.0)
        device = call.values[0].device
        results = [r.to(device) for r in ticket.results]
        return oracle.compare_relation(
            op.relations[ticket.relation],
            ticket.relation,
            results,
            ticket.calls[0].values,
            ticket.extra_units,
        )


def _shape(op: Op, case: Case, call: Call) -> list[int]:
    """The result's shape, by running the reference on tensors without data."""
    with torch.device("meta"):
        empty = tuple(torch.empty(t.shape, dtype=t.dtype) for t in call.values)
    return list(op.reference(*empty, **op.variants[case.variant].options).shape)


def _contract(message: dict[str, Any], call: Call) -> str | None:
    """What no call may do, whatever its values."""
    if message["aliases"]:
        return (
            "aliasing: the result shares memory with an input; kernel_fn must return a new tensor"
        )
    if message["device"] != call.values[0].device.type:
        return f"device: expected a result on {call.values[0].device.type}, got {message['device']}"
    for i, (before, after) in enumerate(zip(call.before, call.shared, strict=True)):
        if not torch.equal(before, after):
            where = (before != after).nonzero().flatten()
            first = int(where[0])
            inside = oracle.GUARD <= first < before.numel() - oracle.GUARD
            place = "input changed" if inside else "write outside the buffer"
            first -= oracle.GUARD
            return f"{place}: input {i}, {where.numel()} bytes, the first at byte {first}"
    return None


def _same(got: torch.Tensor, first: torch.Tensor) -> oracle.Judged:
    bits, before = (t.contiguous().view(-1).view(torch.uint8) for t in (got, first))
    if torch.equal(bits, before):
        return oracle.Judged(0.0)
    differ = (got != first) & ~(got.isnan() & first.isnan())
    return oracle.Judged(
        float("inf"),
        f"not deterministic: {int(differ.sum())} of {got.numel()} elements differ between runs",
    )


def main() -> None:
    # TF32 would spoil the trusted fp32 computation that tolerances lean on.
    torch.backends.cuda.matmul.allow_tf32 = False
    torch.backends.cudnn.allow_tf32 = False
    # On the CPU cases are small: a second thread gains little on a quiet machine, and on a busy
    # one each of a hundred parallel regions waits a scheduler's turn for it (0.8 s for 0.02).
    torch.set_num_threads(1)
    Comparison(Channel(socket.socket(fileno=int(sys.argv[1])))).serve()


if __name__ == "__main__":
    main()
