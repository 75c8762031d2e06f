"""The system calls that a candidate's process may not make, as a filter for seccomp.

Refused is what reaches other processes, and what Landlock does not guard; not what is merely
unusual. Values in, values out: sandbox.py installs the filter.
"""

from __future__ import annotations

import struct
from errno import ENOSYS, EPERM
from socket import AF_INET, AF_UNIX, SOCK_SEQPACKET, SOCK_STREAM

# By name, with their numbers on x86_64 and aarch64. Outright: the insides and the priority of
# other processes, keys, traces, System V and POSIX queues, and modes of files.
REFUSED = """
ptrace 101 117, process_vm_readv 310 270, process_vm_writev 311 271, pidfd_getfd 438 438,
kcmp 312 272, setpriority 141 140, ioprio_set 251 30, perf_event_open 298 241, bpf 321 280,
userfaultfd 323 282, add_key 248 217, request_key 249 218, keyctl 250 219, unshare 272 97,
shmget 29 194, shmat 30 196, semget 64 190, msgget 68 186, mq_open 240 180,
fchmod 91 52, fchmodat 268 53, fchmodat2 452 452, chmod 90 53
"""
# The first argument of these is a process; here only 0, the caller. A candidate could otherwise
# hold back the process that it is timed against.
ON_ITSELF = """
sched_setaffinity 203 122, sched_setscheduler 144 119, sched_setparam 142 118,
sched_setattr 314 274, prlimit64 302 261
"""
# As on a kernel without them, so that the C library takes what the filter can look into.
UNKNOWN = "clone3 435 435, io_uring_setup 425 425"
SPECIAL = "prctl 157 167, clone 56 220, socket 41 198, socketpair 53 199"
AUDIT = {"x86_64": 0xC000003E, "aarch64": 0xC00000B7}  # what the kernel calls the two

PR_SET_DUMPABLE, CLONE_NEWUSER = 4, 0x10000000

# The classic BPF of linux/filter.h: operation, steps over if true, if false, operand.
Step = tuple[int, int, int, int]
LOAD, AND, EQUAL, AT_LEAST, RETURN = 0x20, 0x54, 0x15, 0x35, 0x06
ERRNO = 0x50000
ALLOW, REFUSE = (RETURN, 0, 0, 0x7FFF0000), (RETURN, 0, 0, ERRNO | EPERM)
NUMBER, ARCHITECTURE, ARGUMENTS = 0, 4, 16  # where they stand in struct seccomp_data


def program(machine: str, gpu: bool, tcp: bool = False) -> bytes:
    """The filter for a processor (`uname -m`), which must be one of AUDIT's. `tcp` is only for a
    process whose network has nothing in it but itself."""
    steps = [(LOAD, 0, 0, ARCHITECTURE), (EQUAL, 1, 0, AUDIT[machine]), REFUSE]
    steps += [(LOAD, 0, 0, NUMBER), (AT_LEAST, 0, 1, 0x40000000), REFUSE]  # x32's second numbers
    for number, body in _rules(machine, gpu, tcp).items():
        steps += [(EQUAL, 0, len(body), number), *body]
    return b"".join(struct.pack("=HBBI", *step) for step in [*steps, ALLOW])


def _rules(machine: str, gpu: bool, tcp: bool) -> dict[int, list[Step]]:
    """What is done with a system call, by its number; each ends in a return."""
    refused, on_itself, unknown, special = (
        _numbers(table, machine) for table in (REFUSED, ON_ITSELF, UNKNOWN, SPECIAL)
    )
    # CUDA's start binds a socket of this kind, and fails without. Services (D-Bus, Docker,
    # agents that hold keys) listen on the other kinds, which Landlock does not guard before ABI 9.
    socket = [*_only(0, AF_UNIX), *_only(1, SOCK_SEQPACKET, mask=0xF), ALLOW] if gpu else [REFUSE]
    if tcp:
        stream = [*_only(1, SOCK_STREAM, mask=0xF), ALLOW]
        socket = [(LOAD, 0, 0, ARGUMENTS), (EQUAL, 0, len(stream), AF_INET), *stream, *socket]
    return {
        **{number: [REFUSE] for number in refused.values()},
        **{number: [*_only(0, 0), ALLOW] for number in on_itself.values()},
        **{number: [(RETURN, 0, 0, ERRNO | ENOSYS)] for number in unknown.values()},
        special["socket"]: socket,
        # A datagram could be sent elsewhere than to the other of the pair.
        special["socketpair"]: [*_only(1, SOCK_STREAM, SOCK_SEQPACKET, mask=0xF), ALLOW],
        special["clone"]: [*_only(0, 0, mask=CLONE_NEWUSER), ALLOW],
        # A process that may not be dumped does not show its namespace: sandbox.kill_strays.
        special["prctl"]: [(LOAD, 0, 0, ARGUMENTS), (EQUAL, 0, 1, PR_SET_DUMPABLE), REFUSE, ALLOW],
    }


def _only(argument: int, *values: int, mask: int = 0xFFFFFFFF) -> list[Step]:
    """Refuse unless the lower half of an argument, under the mask, is one of the values."""
    over = [(EQUAL, len(values) - i, 0, value) for i, value in enumerate(values)]
    return [(LOAD, 0, 0, ARGUMENTS + 8 * argument), (AND, 0, 0, mask), *over, REFUSE]


def _numbers(table: str, machine: str) -> dict[str, int]:
    column = list(AUDIT).index(machine) + 1
    rows = (row.split() for row in table.split(","))
    return {row[0]: int(row[column]) for row in rows}
