"""The filter of system calls, by a reader of its language: no kernel of either kind is needed."""

from __future__ import annotations

import errno
import struct
from socket import AF_INET, AF_UNIX, SOCK_CLOEXEC, SOCK_DGRAM, SOCK_SEQPACKET, SOCK_STREAM

import pytest

from pytest_autokernel import seccomp

ALLOWED = 0
READ = {"x86_64": 0, "aarch64": 63}
KILL = {"x86_64": 62, "aarch64": 129}


def number(name: str, machine: str) -> int:
    tables = (seccomp.REFUSED, seccomp.ON_ITSELF, seccomp.UNKNOWN, seccomp.SPECIAL)
    rows = [row.split() for table in tables for row in table.split(",")]
    (row,) = [row for row in rows if row[0] == name]
    return int(row[1 + list(seccomp.AUDIT).index(machine)])


def verdict(
    machine: str,
    call: str | int,
    *arguments: int,
    gpu: bool = False,
    tcp: bool = False,
    audit: int | None = None,
) -> int:
    """The error that the filter gives a call, ALLOWED if none."""
    code = seccomp.program(machine, gpu, tcp)
    steps = [struct.unpack_from("=HBBI", code, at) for at in range(0, len(code), 8)]
    nr = call if isinstance(call, int) else number(call, machine)
    data = struct.pack("=IIQ", nr, seccomp.AUDIT[machine] if audit is None else audit, 0)
    data += b"".join(struct.pack("=Q", argument % 2**64) for argument in arguments)
    data = data.ljust(64, b"\0")
    at = value = 0
    while True:
        operation, if_true, if_false, operand = steps[at]
        at += 1
        match operation:
            case seccomp.LOAD:
                (value,) = struct.unpack_from("=I", data, operand)
            case seccomp.AND:
                value &= operand
            case seccomp.EQUAL:
                at += if_true if value == operand else if_false
            case seccomp.AT_LEAST:
                at += if_true if value >= operand else if_false
            case seccomp.RETURN:
                return ALLOWED if operand == 0x7FFF0000 else operand & 0xFFFF
            case _:
                pytest.fail(f"operation={operation}")


@pytest.fixture(params=seccomp.AUDIT)
def machine(request: pytest.FixtureRequest) -> str:
    return str(request.param)


def test_what_is_not_named_is_allowed(machine: str) -> None:
    assert verdict(machine, READ[machine], 1) == ALLOWED
    assert verdict(machine, KILL[machine], 1, 9) == ALLOWED


@pytest.mark.parametrize("name", ["ptrace", "process_vm_writev", "setpriority", "fchmod", "keyctl"])
def test_the_insides_of_others_are_refused(machine: str, name: str) -> None:
    assert verdict(machine, name, 0) == errno.EPERM


@pytest.mark.parametrize("name", ["sched_setaffinity", "sched_setattr", "prlimit64"])
def test_a_process_may_be_scheduled_by_itself_alone(machine: str, name: str) -> None:
    assert verdict(machine, name, 0, 8) == ALLOWED
    assert verdict(machine, name, 4711, 8) == errno.EPERM
    assert verdict(machine, name, -1, 8) == errno.EPERM


def test_threads_and_processes_are_made_but_no_namespace_of_users(machine: str) -> None:
    thread = 0x3D0F00
    assert verdict(machine, "clone", thread) == ALLOWED
    assert verdict(machine, "clone", thread | seccomp.CLONE_NEWUSER) == errno.EPERM
    assert verdict(machine, "clone3", 0, 88) == errno.ENOSYS
    assert verdict(machine, "unshare", seccomp.CLONE_NEWUSER) == errno.EPERM


def test_a_process_cannot_hide_from_its_user(machine: str) -> None:
    assert verdict(machine, "prctl", seccomp.PR_SET_DUMPABLE, 0) == errno.EPERM
    assert verdict(machine, "prctl", 15, 0) == ALLOWED


def test_no_socket_is_made_and_for_a_gpu_only_the_kind_that_cuda_makes(machine: str) -> None:
    for family, kind in ((AF_INET, SOCK_STREAM), (AF_UNIX, SOCK_STREAM), (AF_UNIX, SOCK_DGRAM)):
        for gpu in (False, True):
            assert verdict(machine, "socket", family, kind, gpu=gpu) == errno.EPERM
    cuda = SOCK_SEQPACKET | SOCK_CLOEXEC
    assert verdict(machine, "socket", AF_UNIX, cuda, gpu=True) == ALLOWED
    assert verdict(machine, "socket", AF_UNIX, cuda) == errno.EPERM
    assert verdict(machine, "socket", AF_INET, SOCK_SEQPACKET, gpu=True) == errno.EPERM


@pytest.mark.parametrize("gpu", [False, True])
def test_tcp_is_one_more_kind_where_it_is_asked_for(machine: str, gpu: bool) -> None:
    stream = SOCK_STREAM | SOCK_CLOEXEC
    assert verdict(machine, "socket", AF_INET, stream, gpu=gpu, tcp=True) == ALLOWED
    for family, kind in ((AF_INET, SOCK_DGRAM), (AF_UNIX, SOCK_STREAM), (AF_UNIX, SOCK_DGRAM)):
        assert verdict(machine, "socket", family, kind, gpu=gpu, tcp=True) == errno.EPERM
    cuda = errno.EPERM if not gpu else ALLOWED
    assert verdict(machine, "socket", AF_UNIX, SOCK_SEQPACKET, gpu=gpu, tcp=True) == cuda


def test_pairs_of_sockets_are_made_unless_they_could_send_elsewhere(machine: str) -> None:
    raw = 3  # the kernel makes it a datagram socket
    assert verdict(machine, "socketpair", AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC) == ALLOWED
    assert verdict(machine, "socketpair", AF_UNIX, SOCK_DGRAM) == errno.EPERM
    assert verdict(machine, "socketpair", AF_UNIX, raw) == errno.EPERM


def test_a_second_set_of_numbers_is_no_way_round(machine: str) -> None:
    assert verdict(machine, 0x40000000 + 59) == errno.EPERM
    assert verdict(machine, READ[machine], audit=0x40000003) == errno.EPERM


def test_it_fits_into_the_kernel_and_ends_in_a_return(machine: str) -> None:
    code = seccomp.program(machine, gpu=True)
    assert len(code) % 8 == 0
    assert len(code) // 8 <= 4096
    assert struct.unpack("=HBBI", code[-8:]) == seccomp.ALLOW
