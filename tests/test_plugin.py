"""The plugin as a user meets it: in a repository of their own, through pytest's command line."""

from __future__ import annotations

import itertools
import json
import os
import shutil
import subprocess
import sys
from importlib.resources import files
from pathlib import Path

import git
import jsonschema
import pytest
import torch  # before pytester, which unloads what a test imports; numpy does not survive that

from pytest_autokernel.plan import STAGES
from pytest_autokernel.sandbox import probe
from tests.conftest import ROOT, WRONG, Commit

RIGHT = """
import torch

KERNEL_TYPE = "softmax"
SUPPORTS = {"dim"}


def kernel_fn(x, dim=-1):
    return torch.softmax(x.float(), dim).to(x.dtype)
"""
STRICT = "[tool.pytest.ini_options]\nfilterwarnings = ['error']\n"
Done = subprocess.CompletedProcess[str]
QUICK = (
    *("--autokernel", "--autokernel-effort=quick", "-p", "no:randomly"),
    *("--autokernel-allow=*", "--autokernel-cache=none"),
)


def kernel(pytester: pytest.Pytester, name: str, text: str = RIGHT) -> Path:
    path = pytester.path / "kernels" / f"{name}.py"
    path.write_text(text)
    return path


def test_without_the_flag_neither_torch_nor_triton_nor_hypothesis_is_imported(
    foreign: pytest.Pytester,
) -> None:
    foreign.makepyfile(
        """
        import sys

        def test_nothing_heavy_is_loaded(pytestconfig):
            assert pytestconfig.pluginmanager.hasplugin("autokernel")
            heavy = {"torch", "triton", "numpy", "rich", "git"} & set(sys.modules)
            assert not heavy
        """
    )
    # Hypothesis has a pytest plugin of its own, and so has pytest-randomly, which loads numpy.
    result = foreign.runpytest_subprocess("-p", "no:randomly", "-p", "no:hypothesispytest")
    result.assert_outcomes(passed=1)
    code = """
import sys, pytest_autokernel.plugin
sys.exit(bool({'torch', 'triton', 'hypothesis'} & set(sys.modules)))
"""
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_a_broken_kernel_costs_its_own_items_and_no_others(foreign: pytest.Pytester) -> None:
    for name in ("wrong_sum", "sleeps", "exits", "null", "exits_at_import"):
        shutil.copy(WRONG / f"softmax_{name}.py", foreign.path / "kernels")
    kernel(foreign, "broken", "KERNEL_TYPE = 'softmax'\ndef kernel_fn(x)\n    return x\n")
    kernel(foreign, "nameless", "def kernel_fn(x):\n    return x\n")
    kernel(foreign, "unknown", RIGHT.replace("softmax", "hardmax", 1))
    kernel(foreign, "zz_right")
    result = foreign.runpytest_subprocess(
        *QUICK, "-k", "smoke", "--autokernel-timeout=2", "--autokernel-json=out.json"
    )
    assert result.ret == pytest.ExitCode.TESTS_FAILED
    report = json.loads((foreign.path / "out.json").read_text())
    found = {Path(k["path"]).stem: (k["verdict"], k["reason"]) for k in report["kernels"]}
    expected = {
        "softmax_wrong_sum": ("FAIL", "got"),
        "softmax_sleeps": ("TIMEOUT", "no answer within 2 s"),
        "softmax_exits": ("CRASH", "exited by itself with code 0"),
        "softmax_exits_at_import": ("CRASH", "exited by itself with code 0"),
        "softmax_null": ("CRASH", "killed by SIGSEGV"),
        "broken": ("FAIL", "broken.py:2: syntax error"),
        "nameless": ("FAIL", 'expected KERNEL_TYPE = "<op>", found nothing'),
        "unknown": ("FAIL", "no op called 'hardmax'"),
    }
    for name, (verdict, words) in expected.items():
        assert found[name][0] == verdict, name
        assert words in found[name][1], name
    assert found["zz_right"] == ("PASS", None)


def test_a_judge_that_fails_in_one_check_says_so_and_goes_on(foreign: pytest.Pytester) -> None:
    own = (ROOT / "reference" / "softmax.py").read_text()
    head = "def deep(draw: Draw, dims: Dims) -> Tensors:\n"
    assert head in own
    dies = f"{head}    import os; os._exit(3)\n"
    foreign.mkdir("reference").joinpath("softmax.py").write_text(own.replace(head, dies))
    kernel(foreign, "right")
    chosen = "smoke or (numerical_stability and (deep or padded) and not long)"
    result = foreign.runpytest_subprocess(
        *("--autokernel", "--autokernel-allow=*", "--autokernel-cache=none", "-p", "no:randomly"),
        *("-k", chosen, "--autokernel-json=out.json"),
    )
    assert result.ret == pytest.ExitCode.INTERNAL_ERROR
    (found,) = json.loads((foreign.path / "out.json").read_text())["kernels"]
    assert found["verdict"] == "FAIL"
    assert "checks have no result: the judge itself failed: " in found["reason"]
    assert "the comparison process failed: exited by itself with code 3" in found["reason"]
    checks = {item["id"] for item in found["items"] if item["verdict"] == "PASS"}
    assert any("padded" in check for check in checks)  # which come before and after
    assert not any("deep" in check for check in checks)
    result.stdout.fnmatch_lines(["*the judge itself failed, which says nothing of the kernel: *"])


@pytest.fixture(scope="module")
def judged(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Done]:
    """A repository with a right kernel that has been judged whole, and what was printed."""
    folder = tmp_path_factory.mktemp("judged")
    (folder / "kernels").mkdir()
    (folder / "kernels" / "right.py").write_text(RIGHT)
    (folder / "pyproject.toml").write_text(STRICT)
    outputs = ("--autokernel-json=out.json", "--benchmark-json=bench.json", "--junitxml=junit.xml")
    command = [sys.executable, "-m", "pytest", *QUICK, *outputs, "--autokernel-compare=sdpa"]
    return folder, subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False)


def test_a_right_kernel_passes_all_stages_and_its_samples_are_benchmarks(
    judged: tuple[Path, Done],
) -> None:
    folder, done = judged
    assert done.returncode == 0
    printed = pytest.LineMatcher(done.stdout.splitlines())
    printed.fnmatch_lines(["autokernel: *seed*", "*kernels/right.py *PASS*eager*"])
    printed.fnmatch_lines(
        [
            "extension nd not claimed: kernels/right.py",
            "baseline sdpa: the op has none: kernels/right.py",
        ]
    )
    report = json.loads((folder / "out.json").read_text())
    schema = json.loads(files("pytest_autokernel").joinpath("report.schema.json").read_text())
    jsonschema.validate(report, schema)
    (found,) = report["kernels"]
    stages = {item["stage"] for item in found["items"]}
    assert stages == {*STAGES, "roofline"}
    (benchmark,) = json.loads((folder / "bench.json").read_text())["benchmarks"]
    (timing,) = found["timings"]
    assert benchmark["stats"]["median"] == pytest.approx(timing["time_us"] / 1e6)
    assert "roofline[large-fp32]" in (folder / "junit.xml").read_text()


def test_a_cuda_kernel_without_a_gpu_is_skipped_with_the_reason_and_has_not_passed(
    foreign: pytest.Pytester,
) -> None:
    kernel(foreign, "right", RIGHT + "from pytest_autokernel.cuda import compile_cuda\n")
    result = foreign.runpytest_subprocess(*QUICK, "--autokernel-json=out.json", "-rs")
    assert result.ret == 0
    result.stdout.fnmatch_lines(["*SKIP*no CUDA GPU here*"])
    result.stdout.fnmatch_lines(["*kernels/right.py *SKIP*0/*", "skipped: no CUDA GPU here*"])
    report = json.loads((foreign.path / "out.json").read_text())
    schema = json.loads(files("pytest_autokernel").joinpath("report.schema.json").read_text())
    jsonschema.validate(report, schema)
    (found,) = report["kernels"]
    assert (found["verdict"], found["reason"]) == ("SKIP", found["skipped"])
    assert {item["verdict"] for item in found["items"]} == {"SKIP"}


COMPILED = RIGHT.replace(
    "\n\ndef kernel_fn",
    """
from pytest_autokernel.compile import compile_cpp

compile_cpp('extern "C" int one() { return 1; }')


def kernel_fn""",
)
CLAIMS = """
from pytest_autokernel.compile import CompileError

raise CompileError("expected a C++ compiler (c++), found none on PATH='': install one")
"""


@pytest.mark.parametrize("lacking", ["PATH", "CXX"])
def test_a_cpp_kernel_without_a_compiler_is_skipped_with_the_reason_and_has_not_passed(
    foreign: pytest.Pytester, monkeypatch: pytest.MonkeyPatch, lacking: str
) -> None:
    kernel(foreign, "right", COMPILED)
    kernel(foreign, "triton", RIGHT)
    if lacking == "PATH":
        monkeypatch.delenv("CXX", raising=False)
        program = shutil.which("git")
        assert program is not None
        foreign.mkdir("bin").joinpath("git").symlink_to(program)
        monkeypatch.setenv("PATH", str(foreign.path / "bin"))
    else:
        monkeypatch.setenv("CXX", "no-such-compiler")
    result = foreign.runpytest_subprocess(
        *QUICK, "-k", "smoke or (right and roofline)", "--autokernel-json=out.json"
    )
    assert result.ret == 0
    result.stdout.fnmatch_lines(
        ["*kernels/right.py *SKIP*0/* - *", f"skipped: expected a C++ compiler*{lacking}=*"]
    )
    first, other = json.loads((foreign.path / "out.json").read_text())["kernels"]
    assert (first["verdict"], first["reason"]) == ("SKIP", first["skipped"])
    assert {item["verdict"] for item in first["items"]} == {"SKIP"}
    assert other["verdict"] == "PASS"


def test_a_kernel_that_says_by_itself_that_there_is_no_compiler_fails(
    foreign: pytest.Pytester,
) -> None:
    kernel(foreign, "right", COMPILED + CLAIMS)
    result = foreign.runpytest_subprocess(*QUICK, "-k", "smoke")
    assert result.ret == pytest.ExitCode.TESTS_FAILED
    result.stdout.fnmatch_lines(["*kernels/right.py *FAIL*"])


def test_saved_samples_are_compared_with_those_of_the_same_device_alone(
    judged: tuple[Path, Done], foreign: pytest.Pytester
) -> None:
    kernel(foreign, "right")
    timed = (*QUICK, "-k", "smoke or roofline", "--benchmark-compare=saved.json")
    saved = json.loads((judged[0] / "bench.json").read_text())
    ours = saved["machine_info"]["autokernel"]
    assert {"device", "gpu", "torch", "triton"} <= set(ours)
    (foreign.path / "saved.json").write_text(json.dumps(saved))
    result = foreign.runpytest_subprocess(*timed)
    assert result.ret == 0
    result.stdout.fnmatch_lines(["*roofline*large-fp32*(NOW)*"])
    ours["device"] = "another"
    (foreign.path / "saved.json").write_text(json.dumps(saved))
    result = foreign.runpytest_subprocess(*timed)
    assert result.ret == pytest.ExitCode.USAGE_ERROR
    result.stderr.fnmatch_lines(["*expected samples taken on *, got some of another*"])


def test_the_ids_are_pytests_own(foreign: pytest.Pytester) -> None:
    kernel(foreign, "right")
    result = foreign.runpytest_subprocess(
        *QUICK, "--collect-only", "-q", "kernels/right.py::shape_sweep", "-k", "tiny and bf16"
    )
    assert result.ret == 0
    result.stdout.fnmatch_lines(["kernels/right.py::shape_sweep[[]tiny-bf16[]]"])


def ids(result: pytest.RunResult) -> list[str]:
    return [line for line in result.outlines if "::" in line]


@pytest.mark.parametrize("shuffled_by", ["conftest", "randomly"])
def test_whoever_shuffles_tests_the_items_of_a_kernel_file_stay_in_order(
    foreign: pytest.Pytester, shuffled_by: str
) -> None:
    kernel(foreign, "a")
    kernel(foreign, "b", "no kernel")
    kernel(foreign, "c")
    foreign.makepyfile(test_own="".join(f"def test_{n}():\n    pass\n\n\n" for n in range(8)))
    words = ("--collect-only", "-q", "--autokernel", "--autokernel-effort=quick", "kernels", ".")
    planned = ids(foreign.runpytest_subprocess(*words, "-p", "no:randomly"))
    if shuffled_by == "conftest":
        foreign.makeconftest("""
            def pytest_collection_modifyitems(items):
                items.sort(key=lambda item: item.nodeid[::-1], reverse=True)
        """)
        shuffle = ["-p", "no:randomly"]
    else:
        pytest.importorskip("pytest_randomly")
        shuffle = ["--randomly-seed=3"]
    found = ids(foreign.runpytest_subprocess(*words, *shuffle))
    assert sorted(found) == sorted(planned)
    for file in ("kernels/a.py", "kernels/b.py", "kernels/c.py"):
        its = [name for name in found if name.startswith(file)]
        assert its == [name for name in planned if name.startswith(file)]
    kernels = [name.partition("::")[0] for name in found if name.startswith("kernels/")]
    assert len([*itertools.groupby(kernels)]) == 3
    own = [name for name in found if name.startswith("test_own")]
    assert own != sorted(own)
    if shuffled_by == "conftest":
        assert own == sorted(own, reverse=True)


def test_a_failure_can_be_replayed_by_the_line_that_it_prints(foreign: pytest.Pytester) -> None:
    shutil.copy(WRONG / "softmax_special_size.py", foreign.path / "kernels" / "k.py")
    first = foreign.runpytest_subprocess(*QUICK, "-k", "drawn")
    # Where CI is set, pytest's own summary prints it once more.
    line, *_ = [line for line in first.stdout.lines if line.startswith("replay: pytest")]
    words = [word.strip("'") for word in line.split()[2:]]
    again = foreign.runpytest_subprocess("-p", "no:randomly", *words)
    failures = [{x for x in run.stdout.lines if x.startswith("FAIL: ")} for run in (first, again)]
    assert failures[0]
    assert failures[0] == failures[1]


def test_the_report_has_the_verdict_and_the_reason_each_once(foreign: pytest.Pytester) -> None:
    shutil.copy(WRONG / "softmax_wrong_sum.py", foreign.path / "kernels" / "k.py")
    result = foreign.runpytest_subprocess(*QUICK, "-x", "--autokernel-json=out.json")
    (found,) = json.loads((foreign.path / "out.json").read_text())["kernels"]
    assert found["verdict"] == "FAIL"
    assert found["reason"].startswith("softmax ")
    assert f"FAIL: {found['reason']}" in result.stdout.lines


def test_a_users_own_test_judges_any_callable(foreign: pytest.Pytester) -> None:
    foreign.makepyfile(
        """
        import pytest, torch

        def test_ours(smoke, edge_cases):
            smoke(lambda x, dim=-1: torch.softmax(x, dim), op="softmax")
            edge_cases(lambda x, dim=-1: torch.softmax(x, dim), op="softmax")

        def test_wrong(shape_sweep):
            with pytest.raises(pytest.fail.Exception, match="expected"):
                shape_sweep(lambda x, dim=-1: x.clone(), op="softmax")

        def test_fast(roofline):
            seen = set()

            def ours(x, dim=-1):
                seen.add(torch.get_num_threads())
                return torch.softmax(x, dim)

            torch.set_num_threads(3)
            (timing,) = roofline(ours, op="softmax")
            assert timing.time_us > 0
            assert seen == {1}
            assert torch.get_num_threads() == 3
        """
    )
    result = foreign.runpytest_subprocess("--autokernel-effort=quick", "--autokernel-threads=1")
    result.assert_outcomes(passed=3)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (
            ["--autokernel-effort=much"],
            "autokernel_effort: expected one of quick, normal, thorough",
        ),
        (["--autokernel-timeout=-1"], "autokernel_timeout: expected a positive number"),
        (["--autokernel-device=cuda"], "no CUDA device was found"),
        (
            ["--autokernel-compare=liger,fastest"],
            "--autokernel-compare: expected all, or some of compile, eager, flag_gems, liger, "
            "quack, sdpa; got fastest",
        ),
        (
            ["--autokernel-baseline=nope"],
            "--autokernel-baseline: expected a kernel file or a git revision, got 'nope'",
        ),
    ],
)
def test_a_bad_option_is_one_clear_error(
    foreign: pytest.Pytester, arguments: list[str], words: str
) -> None:
    if "cuda" in arguments[0] and torch.cuda.is_available():
        pytest.skip("there is a CUDA GPU")
    result = foreign.runpytest_subprocess("--autokernel", *arguments)
    assert result.ret == pytest.ExitCode.USAGE_ERROR
    result.stderr.fnmatch_lines([f"*{words}*"])


@pytest.mark.parametrize("named", ["HEAD", "v1", "kernels/k.py"])
def test_a_baseline_is_a_file_or_a_revision_of_the_repository_that_the_kernels_are_in(
    commit: Commit, tmp_path: Path, named: str
) -> None:
    commit({"kernels/k.py": RIGHT})
    with git.Repo(tmp_path) as repo:
        repo.create_tag("v1")
    words = (*QUICK, "--collect-only", f"--autokernel-baseline={named}", "kernels/k.py::smoke")
    command = [sys.executable, "-m", "pytest", *words]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def test_without_kernels_there_is_one_clear_error(pytester: pytest.Pytester) -> None:
    result = pytester.runpytest_subprocess("--autokernel")
    assert result.ret == pytest.ExitCode.USAGE_ERROR
    result.stderr.fnmatch_lines(["*expected a folder kernels/ here, or paths*"])


def test_a_file_given_by_path_is_never_imported_however_little_it_looks_like_a_kernel(
    foreign: pytest.Pytester,
) -> None:
    (foreign.path / "anything.py").write_text("import os\nos._exit(0)\n")
    result = foreign.runpytest_subprocess("--autokernel", "anything.py")
    assert result.ret == pytest.ExitCode.TESTS_FAILED
    result.stdout.fnmatch_lines(["*expected KERNEL_TYPE*"])


def test_triton_runs_through_its_interpreter_and_says_why_there_is_no_roofline(
    pytester: pytest.Pytester,
) -> None:
    result = pytester.runpytest_subprocess(
        *QUICK,
        str(ROOT / "kernels/triton/softmax.py"),
        f"--rootdir={ROOT}",
        "--autokernel-device=cpu",
        "-k",
        "smoke or roofline",
    )
    result.assert_outcomes(passed=3, skipped=1)
    result.stdout.fnmatch_lines(["*roofline skipped: Triton's interpreter*"])


THOROUGH = ("--autokernel", "--autokernel-effort=thorough", "-p", "no:randomly")
TOOL = """#!{python}
import subprocess, sys
log, tool = (sys.argv[sys.argv.index(name) + 1] for name in ("--log-file", "--tool"))
subprocess.run(sys.argv[sys.argv.index({python!r}):], close_fds=False)
found = "Uninitialized __global__ memory read" if tool == "initcheck" else ""
with open(log, "w") as file:
    file.write("========= COMPUTE-SANITIZER\\n")
    file.write(f"========= {{found}}\\n========= ERROR SUMMARY: {{int(bool(found))}} error\\n"
               if found else "========= ERROR SUMMARY: 0 errors\\n")
"""


@pytest.fixture
def on_any_device(foreign: pytest.Pytester) -> pytest.Pytester:
    """A repository in which the tools of a GPU are asked for on a CPU too."""
    foreign.makeconftest("""
        from pytest_autokernel import plan
        plan.TOOLS_ON = frozenset({"cpu"})
    """)
    kernel(foreign, "k")
    return foreign


def test_without_compute_sanitizer_its_items_are_skipped_with_the_reason(
    on_any_device: pytest.Pytester, monkeypatch: pytest.MonkeyPatch
) -> None:
    if Path("/usr/local/cuda/bin/compute-sanitizer").exists():
        pytest.skip("compute-sanitizer is installed here")
    monkeypatch.delenv("CUDA_HOME", raising=False)
    result = on_any_device.runpytest_subprocess(
        *THOROUGH, "-k", "smoke or sanitizer", "--autokernel-allow=*", "--autokernel-device=cpu"
    )
    result.assert_outcomes(passed=3, skipped=3)
    result.stdout.fnmatch_lines(
        ["sanitizer skipped: compute-sanitizer is neither on PATH nor in*: kernels/k.py"]
    )


@pytest.mark.skipif(sys.platform != "linux", reason="the launcher is Linux's")
def test_each_tool_is_an_item_of_its_own_at_effort_thorough(
    on_any_device: pytest.Pytester, monkeypatch: pytest.MonkeyPatch
) -> None:
    if not probe().namespaces:
        pytest.skip("no user namespaces here")
    program = on_any_device.mkdir("bin") / "compute-sanitizer"
    program.write_text(TOOL.format(python=sys.executable))
    program.chmod(0o755)
    monkeypatch.setenv("PATH", f"{program.parent}{os.pathsep}{os.environ['PATH']}")
    result = on_any_device.runpytest_subprocess(
        *(*THOROUGH, "-k", "sanitizer", "--autokernel-allow=*", "--autokernel-device=cpu"),
        "--autokernel-json=out.json",
    )
    assert result.ret == pytest.ExitCode.TESTS_FAILED
    result.stdout.fnmatch_lines(["*FAIL: softmax *: initcheck: Uninitialized __global__ memory*"])
    report = json.loads((on_any_device.path / "out.json").read_text())
    schema = json.loads(files("pytest_autokernel").joinpath("report.schema.json").read_text())
    jsonschema.validate(report, schema)
    (judged,) = report["kernels"]
    found = {item["id"]: (item["stage"], item["verdict"]) for item in judged["items"]}
    assert found == {
        "kernels/k.py::sanitizer[memcheck]": ("sanitizer", "PASS"),
        "kernels/k.py::sanitizer[racecheck]": ("sanitizer", "PASS"),
        "kernels/k.py::sanitizer[initcheck]": ("sanitizer", "FAIL"),
    }
    assert all(item["completed"] > 3 for item in judged["items"])


@pytest.mark.parametrize(
    ("option", "words"),
    [
        (
            "--autokernel-json=none/report.json",
            "*report.json cannot be written: expected *",
        ),
        ("--autokernel-cache=/proc/none", "*autokernel_cache: /proc/none cannot be made: *"),
    ],
)
def test_a_place_that_cannot_be_written_to_is_refused_before_anything_is_judged(
    foreign: pytest.Pytester, option: str, words: str
) -> None:
    kernel(foreign, "k")
    result = foreign.runpytest_subprocess(*QUICK, option)
    assert result.ret == pytest.ExitCode.USAGE_ERROR
    result.stderr.fnmatch_lines([words])


def test_a_reference_that_raises_is_named(foreign: pytest.Pytester) -> None:
    kernel(foreign, "k", 'KERNEL_TYPE = "relu"\n\n\ndef kernel_fn(x):\n    return x\n')
    foreign.mkdir("reference").joinpath("relu.py").write_text("import nothing_there\n")
    result = foreign.runpytest_subprocess(*QUICK)
    result.assert_outcomes(failed=1)
    result.stdout.fnmatch_lines(["*relu.py: raised ModuleNotFoundError: *'nothing_there'"])


def test_an_unknown_op_of_a_callable_fails_in_one_line(foreign: pytest.Pytester) -> None:
    foreign.makepyfile("def test_ours(smoke):\n    smoke(len, op='softplus')\n")
    result = foreign.runpytest_subprocess("-p", "no:randomly")
    result.assert_outcomes(failed=1)
    result.stdout.fnmatch_lines(["no op called 'softplus': expected one of *"])
    result.stdout.no_fnmatch_line("*load_op*")


def test_every_check_of_a_kernel_that_cannot_be_loaded_gives_the_reason(
    foreign: pytest.Pytester,
) -> None:
    kernel(foreign, "k", "import nothing_there\n" + RIGHT)
    result = foreign.runpytest_subprocess(*QUICK, "-k", "smoke")
    assert result.ret == pytest.ExitCode.TESTS_FAILED
    result.stdout.no_fnmatch_line("*no kernel is loaded*")
    result.stdout.fnmatch_lines(["kernels/k.py *FAIL *0/3 * - *"])
    result.stdout.fnmatch_lines(["*raised ModuleNotFoundError: *nothing_there*"])
