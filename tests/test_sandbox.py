"""What a confined process cannot do, tried by one; and what it still can."""

from __future__ import annotations

import contextlib
import os
import shutil
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from pytest_autokernel.sandbox import Confinement, probe
from tests.confined import (
    FILES,
    FILTER,
    NAMESPACES,
    NOTHING,
    SYSTEM,
    Confined,
    needs_files,
    needs_filter,
    needs_namespaces,
    needs_scopes,
)
from tests.conftest import ROOT

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="the sandbox is Linux's")


@pytest.fixture
def bystander() -> Iterator[subprocess.Popen[bytes]]:
    """A process of the user's that is none of the sandbox's business."""
    with subprocess.Popen(["sleep", "99"]) as process:
        yield process
        process.kill()


@needs_files
def test_nothing_outside_its_folder_is_written_or_removed(tmp_path: Path) -> None:
    kept = tmp_path / "kept"
    kept.write_text("all of it")
    body = """
        kept, new = outside / "kept", outside / "new"
        tell(refused=[
            refused(kept.write_text, "x"), refused(open, kept, "a"), refused(os.truncate, kept, 0),
            refused(kept.unlink), refused(kept.rename, folder / "mine"),
            refused(os.link, kept, folder / "mine"), refused(new.write_text, "x"),
            refused(new.mkdir), refused(new.symlink_to, kept),
            refused(Path("/tmp/autokernel-new").write_text, "x"),
            refused(Path("/dev/shm/autokernel-new").write_text, "x"),
            refused(Path(sys.prefix, "autokernel-new").write_text, "x"),
            refused((package / "new.py").write_text, "x"),
        ])
    """
    with Confined(tmp_path, body) as child:
        told = child.told()["refused"]
    assert all(told), told
    assert kept.read_text() == "all of it"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["inside", "kept"]


@needs_files
def test_its_folder_and_what_is_writable_are_its_own(tmp_path: Path) -> None:
    (tmp_path / "cache").mkdir()
    body = """
        Path("part").write_text("made here")
        Path("part").rename(outside / "cache" / "whole")
        (outside / "cache" / "folder").mkdir()
        os.chdir(outside / "cache")
        tell(read=Path("whole").read_text(), uid=os.getuid(), gid=os.getgid())
    """
    with Confined(tmp_path, body, options='writable=[outside / "cache"]') as child:
        told = child.told()
    assert told == {"read": "made here", "uid": os.getuid(), "gid": os.getgid()}
    assert (tmp_path / "cache" / "whole").stat().st_uid == os.getuid()


@needs_files
def test_nobody_elses_files_are_read(tmp_path: Path) -> None:
    (tmp_path / "secret").write_text("a token")
    body = f"""
        places = [Path({str(ROOT)!r}), Path.home(), Path("/tmp"), Path("/etc"), Path("/run")]
        files = [outside / "secret", Path({str(ROOT / "README.md")!r}), Path("/etc/shadow")]
        tell(refused=[*(refused(os.listdir, place) for place in places),
                      *(refused(open, file) for file in files),
                      refused(open, Path("/proc/self/root") / "etc/shadow")])
    """
    home = os.path.expanduser("~")  # noqa: PTH111 - where there is none, Path.home() raises
    with Confined(tmp_path, body.replace("Path.home()", f"Path({home!r})")) as child:
        told = child.told()["refused"]
    assert all(told), told


@needs_files
@pytest.mark.parametrize("system", [FILES, SYSTEM], ids=["files", "all"])
def test_of_another_process_nothing_is_read(tmp_path: Path, system: Confinement) -> None:
    body = """
        process = Path("/proc", str(os.getppid()))
        names = ["environ", "mem", "cmdline", "maps", "status", "stat", "fd", "task", "root"]
        links = [refused(os.readlink, process / name) for name in ("exe", "cwd", "fd/0")]
        look = lambda path: os.listdir(path) if path.is_dir() else path.read_bytes()
        tell(refused=links + [refused(look, process / name) for name in names],
             mine=Path("/proc/self/cmdline").read_bytes() != b"")
    """
    with Confined(tmp_path, body, system) as child:
        told = child.told()
    assert all(told["refused"]), told
    assert told["mine"]


REACH = """
def reach(family, kind, address):
    with socket.socket(getattr(socket, family), getattr(socket, kind)) as sock:
        sock.settimeout(5)
        sock.connect(tuple(address) if family == "AF_INET" else address)
        sock.send(b"x")

where = json.loads(sys.stdin.readline())
tell(refused=[name for name, place in where.items() if refused(reach, *place)])
"""
Place = tuple[str, str, tuple[str, int] | str]


@pytest.fixture
def services() -> Iterator[dict[str, Place]]:
    """Sockets on which somebody on this machine listens."""
    with contextlib.ExitStack() as stack:
        folder = stack.enter_context(tempfile.TemporaryDirectory())
        places: dict[str, Place] = {
            "tcp": ("AF_INET", "SOCK_STREAM", ("127.0.0.1", 0)),
            "udp": ("AF_INET", "SOCK_DGRAM", ("127.0.0.1", 0)),
            "abstract": ("AF_UNIX", "SOCK_STREAM", f"\0autokernel-{os.getpid()}"),
            "path": ("AF_UNIX", "SOCK_STREAM", f"{folder}/service"),
        }
        for name, (family, kind, address) in places.items():
            made = socket.socket(getattr(socket, family), getattr(socket, kind))
            sock = stack.enter_context(made)
            sock.bind(address)
            if kind == "SOCK_STREAM":
                sock.listen()
            if family == "AF_INET":
                places[name] = (family, kind, sock.getsockname())
        yield places


@pytest.mark.parametrize(
    ("system", "closed"),
    [
        pytest.param(NOTHING, set(), id="nothing"),
        pytest.param(FILES, {"tcp", "abstract"}, marks=needs_scopes, id="landlock"),
        pytest.param(
            NAMESPACES, {"tcp", "udp", "abstract"}, marks=needs_namespaces, id="namespaces"
        ),
        pytest.param(FILTER, {"tcp", "udp", "abstract", "path"}, marks=needs_filter, id="filter"),
    ],
)
def test_each_part_of_the_sandbox_closes_its_part_of_the_network(
    tmp_path: Path, services: dict[str, Place], system: Confinement, closed: set[str]
) -> None:
    if system.landlock >= 9:
        closed = closed | {"path"}
    with Confined(tmp_path, REACH, system) as child:
        child.say(services)
        assert set(child.told()["refused"]) == closed


@pytest.mark.parametrize("options", ["gpu=True", ""])
def test_no_network_and_no_service_is_reached_with_all_of_it(
    tmp_path: Path, services: dict[str, Place], options: str
) -> None:
    if not (SYSTEM.filter or (SYSTEM.namespaces and SYSTEM.landlock >= 9)):
        pytest.skip("; ".join(SYSTEM.missing))
    with Confined(tmp_path, REACH, options=options) as child:
        child.say(services)
        assert set(child.told()["refused"]) == set(services)


@needs_scopes
@pytest.mark.parametrize("system", [FILES, SYSTEM], ids=["landlock", "all"])
def test_nobody_elses_process_is_signalled(
    tmp_path: Path, system: Confinement, bystander: subprocess.Popen[bytes]
) -> None:
    body = f"""
        mine = subprocess.Popen(["sleep", "99"])
        tell(refused=[refused(os.kill, os.getppid(), 0),
                      refused(os.kill, {bystander.pid}, signal.SIGTERM)],
             mine=refused(os.kill, mine.pid, signal.SIGKILL), ended=mine.wait())
    """
    with Confined(tmp_path, body, system) as child:
        told = child.told()
    assert told == {"refused": ["PermissionError"] * 2, "mine": None, "ended": -9}
    assert bystander.poll() is None


@needs_filter
@pytest.mark.parametrize("system", [FILTER, SYSTEM], ids=["filter", "all"])
def test_nobody_elses_process_is_slowed_down_looked_into_or_limited(
    tmp_path: Path, system: Confinement, bystander: subprocess.Popen[bytes]
) -> None:
    body = f"""
        libc = ctypes.CDLL(None, use_errno=True)
        pid, everywhere = {bystander.pid}, os.sched_getaffinity(0)
        no_file = resource.RLIMIT_NOFILE, (9, 9)
        tell(others=[
                refused(os.sched_setaffinity, pid, {{min(everywhere)}}),
                refused(os.sched_setscheduler, pid, os.SCHED_IDLE, os.sched_param(0)),
                refused(os.setpriority, os.PRIO_PROCESS, pid, 19),
                refused(os.setpriority, os.PRIO_USER, 0, 19),
                refused(resource.prlimit, pid, *no_file)],
             attached=[libc.ptrace(0x4206, pid, 0, 0), libc.process_vm_readv(pid, 0, 0, 0, 0, 0)],
             itself=[refused(os.sched_setaffinity, 0, everywhere),
                     refused(resource.setrlimit, *no_file)])
    """
    with Confined(tmp_path, body, system) as child:
        told = child.told()
    assert told["others"] == ["PermissionError"] * 5
    assert told["attached"] == [-1, -1]
    assert told["itself"] == [None, None]
    assert os.sched_getaffinity(bystander.pid) == os.sched_getaffinity(0)


@needs_filter
@pytest.mark.parametrize(("options", "how"), [("gpu=True", None), ("", "PermissionError")])
def test_cudas_own_socket_is_made_where_there_is_a_gpu(
    tmp_path: Path, options: str, how: str | None
) -> None:
    body = """
        def listen():
            with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as sock:
                sock.bind(f"\\0cuda-uvmfd-{os.getpid()}")
                sock.listen()
        tell(how=refused(listen))
    """
    with Confined(tmp_path, body, options=options) as child:
        assert child.told() == {"how": how}


@needs_filter
def test_the_mode_of_a_file_stays_as_it_is(tmp_path: Path) -> None:
    (tmp_path / "file").touch(mode=0o600)
    with Confined(tmp_path, 'tell(how=refused((outside / "file").chmod, 0o777))') as child:
        assert child.told() == {"how": "PermissionError"}
    assert (tmp_path / "file").stat().st_mode & 0o777 == 0o600


@pytest.mark.parametrize(
    "system",
    [
        pytest.param(NAMESPACES, marks=needs_namespaces, id="namespaces"),
        pytest.param(FILTER, marks=needs_filter, id="filter"),
        pytest.param(SYSTEM, id="all"),
    ],
)
def test_it_has_no_capability_and_gets_none_in_a_namespace_of_its_own(
    tmp_path: Path, system: Confinement
) -> None:
    if system == NOTHING:
        pytest.skip("; ".join(SYSTEM.missing))
    body = """
        status = Path("/proc/self/status").read_text().splitlines()
        own = subprocess.run(["unshare", "--user", "true"], capture_output=True).returncode
        tell(capabilities=[line.split()[1] for line in status if line[:6] in ("CapPrm", "CapEff")],
             unshared=ctypes.CDLL(None).unshare(0x10000000), own=own != 0)
    """
    with Confined(tmp_path, body, system) as child:
        told = child.told()
    assert told == {"capabilities": ["0" * 16] * 2, "unshared": -1, "own": True}


def test_what_it_was_handed_open_works_on(tmp_path: Path) -> None:
    ours, theirs = socket.socketpair()
    memory = os.memfd_create("autokernel")
    os.ftruncate(memory, 4096)
    body = f"""
        import mmap
        given = mmap.mmap({memory}, 4096)
        given[:5] = b"whole"
        new = os.memfd_create("reply")
        os.write(new, b"made inside")
        sock = socket.socket(fileno={theirs.fileno()})
        socket.send_fds(sock, [sock.recv(9)], [new])
    """
    with ours, theirs, Confined(tmp_path, body, fds=(theirs.fileno(), memory)):
        ours.settimeout(30)
        ours.sendall(b"question")
        words, (reply,), _, _ = socket.recv_fds(ours, 9, 1)
    assert words == b"question"
    assert os.pread(reply, 99, 0) == b"made inside"
    assert os.pread(memory, 5, 0) == b"whole"
    os.close(reply)
    os.close(memory)


@pytest.mark.skipif(not shutil.which("g++"), reason="no g++ on this machine")
def test_cpp_is_compiled_and_runs_with_threads(tmp_path: Path) -> None:
    body = """
        Path("a.cpp").write_text('#include <thread>\\nextern "C" int f() '
            '{ int x = 0; std::thread([&] { x = 42; }).join(); return x; }')
        subprocess.run(["g++", "-O3", "-shared", "-fPIC", "-pthread", "a.cpp", "-o", "a.so"],
                       check=True)
        tell(answer=ctypes.CDLL("./a.so").f())
    """
    with Confined(tmp_path, body) as child:
        assert child.told() == {"answer": 42}


def test_torch_and_triton_are_imported_and_compute(tmp_path: Path) -> None:
    body = """
        import torch, triton
        tell(sum=(torch.ones(64, 64) @ torch.ones(64, 64)).sum().item())
    """
    pytest.importorskip("triton")
    with Confined(tmp_path, body) as child:
        assert child.told() == {"sum": 64.0**3}


@needs_namespaces
def test_a_promised_step_that_fails_is_an_error(tmp_path: Path) -> None:
    body = """
        threading.Thread(target=time.sleep, args=(99,), daemon=True).start()
        try:
            sandbox.confine(Confinement(namespaces=True), folder)
        except sandbox.SandboxError as error:
            tell(error=str(error))
    """
    with Confined(tmp_path, body, NOTHING) as child:
        assert "namespace" in child.told()["error"]


def test_looking_what_there_is_restricts_nobody_and_is_quick() -> None:
    def state() -> tuple[str, list[str]]:
        status = Path("/proc/self/status").read_text().splitlines()
        words = [x for x in status if x.startswith(("Cap", "NoNewPrivs", "Seccomp"))]
        return str(Path("/proc/self/ns/net").readlink()), words

    before = state()
    start = time.perf_counter()
    assert probe.__wrapped__() == SYSTEM
    assert time.perf_counter() - start < 2  # 0.04 s on an idle machine
    assert state() == before


def test_what_is_missing_is_said() -> None:
    assert Confinement(landlock=9, namespaces=True, filter=True).missing == ()
    assert Confinement(landlock=6, namespaces=True, filter=True).missing == ()
    words = Confinement().missing
    assert any("Landlock" in word for word in words)
    assert any("network" in word for word in words)
    (files, signals) = Confinement(landlock=2, namespaces=True, filter=True).missing
    assert "ABI 3" in files
    assert "ABI 6" in signals
