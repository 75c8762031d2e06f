"""The gate of a merge: which kernels it looks at, what it says, and with which exit code."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import pytest

import gate
from gate import Exit, Finding
from kernel_changes import Change, changes, same_code, same_python
from tests.conftest import Commit

KERNEL = 'KERNEL_TYPE = "{op}"\n\n\ndef kernel_fn(x):\n    return {value}\n'


def a_kernel(value: str, op: str = "softmax") -> str:
    return KERNEL.format(op=op, value=value)


def test_the_kernels_of_a_change_are_found_and_what_became_of_them(commit: Commit) -> None:
    many = "\n".join(f"# line {n}" for n in range(20))
    base = commit(
        {
            "kernels/changed.py": a_kernel("x"),
            "kernels/gone.py": a_kernel("x + 1"),
            "kernels/deep/old.py": a_kernel("x + 2") + many,
            "kernels/same.py": a_kernel("x + 3"),
            "kernels/_helper.py": "a = 1",
            "kernels/conftest.py": "a = 1",
            "elsewhere.py": "a = 1",
        }
    )
    head = commit(
        {
            "kernels/changed.py": a_kernel("x * 2"),
            "kernels/gone.py": None,
            "kernels/deep/old.py": None,
            "kernels/deep/new.py": a_kernel("x + 2") + many + "\n# more",
            "kernels/added.py": a_kernel("x + 4", "reduce"),
            "kernels/_helper.py": "a = 2",
            "kernels/conftest.py": "a = 2",
            "elsewhere.py": "a = 2",
        }
    )
    assert changes(base, head) == [
        Change("kernels/added.py", "added"),
        Change("kernels/changed.py", "changed", "kernels/changed.py"),
        Change("kernels/deep/new.py", "renamed", "kernels/deep/old.py"),
        Change("kernels/gone.py", "deleted"),
    ]
    assert str(changes(base, head)[2]) == "renamed from kernels/deep/old.py"
    assert changes(head, head) == []


def test_a_changed_reference_has_all_kernels_of_its_op_judged(commit: Commit) -> None:
    files = {"kernels/a.py": a_kernel("x"), "kernels/b.py": a_kernel("x", "reduce")}
    base = commit({**files, "kernels/broken.py": "KERNEL_TYPE =", "reference/softmax.py": "1"})
    head = commit({"reference/softmax.py": "2", "tests/reference/reduce.py": "3"})
    assert changes(base, head) == [Change("kernels/a.py", "reference changed")]


@pytest.mark.parametrize(
    ("other", "same"),
    [
        ('"""Words."""\na = 1  # why\n\n\nb  =  2\n', True),
        ('"""Other words, which may be a kernel\'s source."""\na = 1\nb = 2\n', False),
        ('"""Words."""\na = 1\nb = 3\n', False),
        ("a = (\n", False),
    ],
)
def test_code_is_the_same_where_comments_and_blanks_alone_differ(other: str, same: bool) -> None:
    assert same_code('"""Words."""\na = 1\nb = 2\n', other) is same


@pytest.mark.parametrize(
    ("cpp", "same"),
    [
        ("#include <cmath>  // a reason\n\nint f() { /* why */ return 1; }\n", True),
        ("#include <cmath>\nint f() { return 2; }\n", False),
        ('#include <cmath>\nint f() { return 1; } const char* s = "// 1";\n', False),
        ("#include <math>\nint f() { return 1; }\n", False),
    ],
)
def test_comments_of_cpp_make_no_other_code(cpp: str, same: bool) -> None:
    base = "#include <cmath>\nint f() { return 1; }\n"
    assert same_code(f"SOURCE = {base!r}\n", f"SOURCE = {cpp!r}\n") is same


@pytest.mark.parametrize(
    ("other", "same"),
    [
        (
            "SOURCE = 'c++'\n\n\n@triton.jit\ndef f(x, B):\n    y = x; return y\n\n\na = f[1]\n",
            True,
        ),
        ("SOURCE = ''\n\n\n@triton.jit\ndef f(x, B):\n    return x\n\n\na = f[2]\n", False),
        ("SOURCE = ''\n\n\n@triton.jit\ndef f(x, B=2):\n    return x\n\n\na = f[1]\n", False),
        ("SOURCE = ''\n\n\n@lie\n@triton.jit\ndef f(x, B):\n    return x\n\n\na = f[1]\n", False),
        ("SOURCE = lie()\n\n\n@triton.jit\ndef f(x, B):\n    return x\n\n\na = f[1]\n", False),
        ("a = (\n", False),
    ],
)
def test_python_is_the_same_where_what_is_compiled_alone_differs(other: str, same: bool) -> None:
    base = "SOURCE = ''\n\n\n@triton.jit\ndef f(x, B):\n    return x\n\n\na = f[1]\n"
    assert same_python(base, other) is same
    called = [text.replace("triton.jit", "triton.jit(debug=True)") for text in (base, other)]
    assert same_python(*called) is same


def a_report(
    decision: str | None = "SAME", roofline: str = "PASS", smoke: str = "PASS"
) -> dict[str, Any]:
    """The judge's report on one kernel, as far as the gate reads it."""
    compared = {"ratio": 0.95, "low": 0.94, "high": 0.96, "decision": decision}
    timing = {"case": "4x4 fp32", "time_us": 5.0}
    items = [
        {"stage": "smoke", "verdict": smoke, "reason": "off by | one"},
        {"stage": "roofline", "verdict": roofline, "reason": "why not"},
    ]
    wrong = "FAIL" in (roofline, smoke)
    comparisons = {"eager": compared} | ({"baseline": compared} if decision else {})
    return {
        "seed": 7,
        "environment": {"device": "a CPU", "torch": "2", "triton": None},
        "kernels": [
            {
                "path": "kernels/a.py",
                "verdict": "FAIL" if wrong else "PASS",
                "reason": "why" if wrong else None,
                "items": items,
                "timings": [{**timing, "comparisons": comparisons}],
                "overall": compared if decision else None,
            }
        ],
    }


CHANGED = Change("kernels/a.py", "changed", "kernels/a.py")
ADDED = Change("kernels/a.py", "added")


@pytest.mark.parametrize(
    ("change", "report", "same", "outcome", "code"),
    [
        (CHANGED, a_report("SAME"), "", "SAME", 0),
        (CHANGED, a_report("FASTER"), "", "FASTER", 0),
        (CHANGED, a_report("UNDECIDED"), "", "UNDECIDED", 0),
        (CHANGED, a_report("SLOWER", roofline="FAIL"), "", "SLOWER", 1),
        (CHANGED, a_report("SAME", roofline="FAIL"), "", "NOT MEASURED", 2),
        (CHANGED, a_report(None, roofline="SKIP"), "", "NOT MEASURED", 2),
        (CHANGED, a_report(None), "", "NOT MEASURED", 2),
        (CHANGED, a_report("KEEP"), "", "NOT MEASURED", 2),
        (CHANGED, a_report("SAME", smoke="FAIL"), "", "WRONG", 1),
        (CHANGED, a_report("SLOWER", smoke="CRASH"), "", "WRONG", 1),
        (CHANGED, a_report(None), "code", "RIGHT", 0),
        (CHANGED, a_report(None, smoke="FAIL"), "code", "WRONG", 1),
        (ADDED, a_report(None), "", "RIGHT", 0),
        (ADDED, a_report(None, roofline="SKIP"), "", "RIGHT", 0),
        (ADDED, a_report(None, roofline="FAIL"), "", "NOT MEASURED", 2),
        (Change("kernels/b.py", "added"), a_report(), "", "NOT MEASURED", 2),
    ],
)
def test_what_a_report_means_for_a_merge(
    change: Change, report: Mapping[str, Any], same: str, outcome: str, code: int
) -> None:
    found = gate.finding(change, report, same)
    assert (found.outcome, found.exit) == (outcome, code)


def test_a_failure_outweighs_what_could_not_be_measured_and_that_a_pass() -> None:
    passed, failed, unmeasured = (
        Finding(CHANGED, outcome) for outcome in ("FASTER", "SLOWER", "NOT MEASURED")
    )
    assert gate.exit_code([]) == Exit.PASSED
    assert gate.exit_code([passed, passed]) == Exit.PASSED
    assert gate.exit_code([passed, unmeasured]) == Exit.NOT_MEASURED
    assert gate.exit_code([unmeasured, failed, passed]) == Exit.FAILED


def test_the_summary_has_the_figures_and_explains_its_words() -> None:
    slower = gate.finding(CHANGED, a_report("SLOWER", roofline="FAIL"))
    wrong = gate.finding(ADDED, a_report(smoke="FAIL"))
    lines = gate.summary("a" * 40, "b" * 40, [slower, wrong]).splitlines()
    assert lines[0] == "### Kernels, aaaaaaaaaaaa..bbbbbbbbbbbb: failed"
    assert "| `kernels/a.py` | changed | SLOWER | 0.950x [0.940, 0.960] 4x4 fp32, 5.0 us |" in lines
    assert "| `kernels/a.py` | added | WRONG | smoke: FAIL: off by \\| one |" in lines
    assert "- **SLOWER**: shown to be slower, and confirmed by fresh samples" in lines
    assert "none was touched" in gate.summary("a" * 40, "b" * 40, [])
