"""Messages between processes: what arrives is what was sent, and what is no message is refused."""

from __future__ import annotations

import ast
import json
import os
import pickle
import socket
import threading
import time
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from pytest_autokernel import channel
from pytest_autokernel.channel import (
    HEADER,
    MAX_MESSAGE,
    Channel,
    ChannelError,
    TensorMeta,
    anonymous_memory,
    pack,
    snapshot,
    view,
)

JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(), inner, max_size=4),
    max_leaves=8,
)
DTYPES = [
    torch.float16,
    torch.bfloat16,
    torch.float32,
    torch.float64,
    torch.int64,
    torch.uint8,
    torch.bool,
]


class Ends:
    """Both ends of a channel: ours as the judge has it, and theirs as a bare socket too."""

    def __init__(self) -> None:
        mine, self.raw = socket.socketpair()
        self.ours, self.theirs = Channel(mine), Channel(self.raw)

    def close(self) -> None:
        self.ours.close()
        self.theirs.close()


@pytest.fixture
def ends() -> Iterator[Ends]:
    with closing(Ends()) as ends:
        yield ends


def framed(body: bytes) -> bytes:
    return HEADER.pack(len(body)) + body


@settings(deadline=None)
@given(st.dictionaries(st.text(), JSON, max_size=4))
def test_what_is_sent_arrives(message: dict[str, Any]) -> None:
    with closing(Ends()) as ends:
        ends.theirs.send(message)
        assert ends.ours.receive(5) == (message, ())


def test_messages_keep_their_order_and_each_its_descriptors(ends: Ends) -> None:
    files = [anonymous_memory(8) for _ in range(3)]
    for number, fd in enumerate(files):
        os.pwrite(fd, bytes([number]), 0)
    ends.theirs.send({"n": 1}, (files[1],))
    ends.theirs.send({"n": 20}, (files[2], files[0]))
    for expected in ([1], [2, 0]):
        _, fds = ends.ours.receive(5)
        assert [os.pread(fd, 1, 0)[0] for fd in fds] == expected
        files += fds
    for fd in files:
        os.close(fd)


def test_a_message_may_arrive_in_pieces(ends: Ends) -> None:
    for byte in framed(b'{"slow": true}'):
        ends.raw.send(bytes([byte]))
    assert ends.ours.receive(5) == ({"slow": True}, ())


@pytest.mark.parametrize(
    "body",
    [b"", b"{", b"no", b"\xff\xfe\xff", b'"text"', b"[1, 2]", b"3", b"null", b"9" * 5000],
    ids=lambda body: repr(body[:8]),
)
def test_what_is_no_object_is_refused(ends: Ends, body: bytes) -> None:
    ends.raw.sendall(framed(body))
    with pytest.raises(ChannelError):
        ends.ours.receive(5)


def test_an_oversized_message_is_refused_before_it_is_read(ends: Ends) -> None:
    ends.raw.sendall(HEADER.pack(MAX_MESSAGE + 1))
    with pytest.raises(ChannelError, match=f"more than {MAX_MESSAGE}"):
        ends.ours.receive(5)


@pytest.mark.parametrize("sent", [b"", b"\0\0", framed(b"{}")[:-1]])
def test_an_end_in_the_middle_of_a_message_is_refused(ends: Ends, sent: bytes) -> None:
    ends.raw.sendall(sent)
    ends.theirs.close()
    with pytest.raises(ChannelError, match="closed its end"):
        ends.ours.receive(5)


def test_sending_to_nobody_is_said(ends: Ends) -> None:
    ends.theirs.close()
    with pytest.raises(ChannelError, match="gone"):
        ends.ours.send({"do": "run"})


def test_silence_is_a_timeout_and_no_error_of_the_channel(ends: Ends) -> None:
    with pytest.raises(TimeoutError):
        ends.ours.receive(0.01)


class Bomb:
    """Makes a file when it is unpickled."""

    def __init__(self, mark: Path) -> None:
        self.mark = mark

    def __reduce__(self) -> tuple[Any, ...]:
        return Path.touch, (self.mark,)


def test_nothing_is_ever_unpickled(ends: Ends, tmp_path: Path) -> None:
    mark = tmp_path / "executed"
    bomb = pickle.dumps(Bomb(mark))
    ends.raw.sendall(framed(bomb))
    with pytest.raises(ChannelError):
        ends.ours.receive(5)
    fd = anonymous_memory(len(bomb))
    os.pwrite(fd, bomb, 0)
    assert snapshot(fd, TensorMeta("uint8", (len(bomb),), (1,), 0, len(bomb))).numel() == len(bomb)
    os.close(fd)
    assert not mark.exists()
    pickle.loads(bomb)  # the bomb is a live one
    assert mark.exists()
    tree = ast.parse(Path(channel.__file__).read_text(encoding="utf-8"))
    names = {n.id for n in ast.walk(tree) if isinstance(n, ast.Name)}
    names |= {a.name for n in ast.walk(tree) if isinstance(n, ast.Import) for a in n.names}
    assert names.isdisjoint({"pickle", "marshal", "shelve", "eval", "exec"})


tensors = st.builds(
    lambda shape, dtype, seed: torch.randint(
        0, 2, shape, generator=torch.Generator().manual_seed(seed)
    ).to(dtype),
    st.lists(st.integers(0, 5), max_size=3).map(tuple),
    st.sampled_from(DTYPES),
    st.integers(0, 99),
)


@settings(deadline=None)
@given(tensors)
def test_a_tensor_comes_back_as_it_was_packed(tensor: torch.Tensor) -> None:
    meta, fd = pack(tensor)
    back = snapshot(fd, TensorMeta.from_json(json.loads(json.dumps(meta.to_json()))))
    os.close(fd)
    assert back.dtype == tensor.dtype
    assert back.shape == tensor.shape
    assert torch.equal(back, tensor)


@pytest.mark.parametrize("special", [float("nan"), float("inf"), -0.0, 2.0**-149])
def test_every_bit_of_a_tensor_comes_back(special: float) -> None:
    tensor = torch.tensor([special, 1.0])
    meta, fd = pack(tensor)
    back = snapshot(fd, meta)
    os.close(fd)
    assert torch.equal(back.view(torch.int32), tensor.view(torch.int32))


def test_strides_are_told_and_values_are_packed_without_gaps() -> None:
    tensor = torch.arange(12.0).reshape(3, 4).t()[::2]
    meta, fd = pack(tensor)
    assert (meta.stride, meta.nbytes) == ((2, 4), 24)
    assert torch.equal(snapshot(fd, meta), tensor)
    os.close(fd)


def test_a_snapshot_is_out_of_the_senders_reach() -> None:
    meta, fd = pack(torch.ones(4))
    taken = snapshot(fd, meta)
    os.pwrite(fd, bytes(16), 0)
    assert torch.equal(taken, torch.ones(4))
    os.close(fd)


@pytest.mark.parametrize("left", [0, 1, 15])
def test_a_buffer_that_is_too_short_is_refused(left: int) -> None:
    meta, fd = pack(torch.ones(4))
    os.ftruncate(fd, left)
    with pytest.raises(ChannelError, match=f"{left} bytes where 16 were announced"):
        snapshot(fd, meta)
    os.close(fd)


@pytest.mark.parametrize("name", ["float7", "nn", "load", "__doc__"])
def test_only_a_dtype_is_taken_for_one(name: str) -> None:
    with pytest.raises(ChannelError, match="no dtype"):
        snapshot(-1, TensorMeta(name, (1,), (1,), 0, 4))


def test_a_view_is_where_its_meta_says() -> None:
    raw = torch.arange(32, dtype=torch.uint8)
    assert view(raw, TensorMeta("uint8", (2, 3), (10, 2), 4, 32)).tolist() == [
        [4, 6, 8],
        [14, 16, 18],
    ]


def test_a_time_limit_is_that_of_the_whole_message(ends: Ends) -> None:
    def drip() -> None:
        for byte in framed(b'{"dripping": 1}'):
            ends.raw.send(bytes([byte]))
            time.sleep(0.05)

    dripping = threading.Thread(target=drip)
    dripping.start()
    with pytest.raises(TimeoutError):
        ends.ours.receive(0.2)
    dripping.join()


def test_what_is_nested_too_deeply_is_refused(ends: Ends) -> None:
    sending = threading.Thread(target=ends.raw.sendall, args=[framed(b"[" * 100_000)])
    sending.start()
    with pytest.raises(ChannelError):
        ends.ours.receive(5)
    sending.join()


@pytest.mark.parametrize("body", [b"[]", b"{", b"\xff"])
def test_the_descriptors_of_a_refused_message_are_closed(ends: Ends, body: bytes) -> None:
    fd = anonymous_memory(8)
    before = len(list(Path("/proc/self/fd").iterdir()))
    socket.send_fds(ends.raw, [framed(body)], [fd] * 10)
    with pytest.raises(ChannelError):
        ends.ours.receive(5)
    assert len(list(Path("/proc/self/fd").iterdir())) == before
    os.close(fd)
