"""CUDA C++ kernels on a CUDA GPU: skipped, with the reason, where there is none."""

from __future__ import annotations

import json
from typing import Any

import pytest

from tests.conftest import ROOT

pytestmark = pytest.mark.gpu

STARTER = (ROOT / "kernels" / "cuda" / "softmax.py").read_text()
LAUNCH = "    launch(x, y)\n"
ELSEWHERE = """    with torch.cuda.stream(torch.cuda.Stream()):
        launch(x, y)
"""


def judged(pytester: pytest.Pytester, text: str, *arguments: str) -> dict[str, Any]:
    """What the report says of a kernel file."""
    path = pytester.mkdir("kernels") / "softmax.py"
    path.write_text(text)
    pytester.runpytest_subprocess(
        *("--autokernel", "--autokernel-device=cuda", "--autokernel-effort=quick"),
        *("-p", "no:randomly", "--autokernel-json=o", *arguments),
    )
    (found,) = json.loads((pytester.path / "o").read_text())["kernels"]
    return dict(found)


def test_the_cuda_starter_passes_and_tells_its_resources(pytester: pytest.Pytester) -> None:
    found = judged(pytester, STARTER)
    assert (found["verdict"], found["reason"]) == ("PASS", None)
    (timing,) = found["timings"]
    assert timing["captured"]
    (resources,) = timing["resources"]
    assert resources["kernel"] == "softmax_held"
    assert 16 <= resources["registers"] <= 128
    assert resources["local_bytes"] == 0
    assert resources["shared_bytes"] > 0


def test_a_launch_on_a_stream_of_its_own_is_found(pytester: pytest.Pytester) -> None:
    assert LAUNCH in STARTER
    found = judged(pytester, STARTER.replace(LAUNCH, ELSEWHERE), "-k", "not roofline")
    assert found["verdict"] == "FAIL"


def test_a_kernel_that_the_file_does_not_define_is_found(pytester: pytest.Pytester) -> None:
    hidden = STARTER.replace(
        "SOURCE, defines", "SOURCE.replace('softmax_', 'an' 'other_'), defines"
    )
    hidden = hidden.replace("library.softmax_held", "getattr(library, 'an' 'other_held')")
    found = judged(pytester, hidden, "-k", "smoke or roofline")
    assert "launches another_held, which softmax.py does not define" in found["reason"]


def test_an_error_of_the_compiler_names_the_line(pytester: pytest.Pytester) -> None:
    found = judged(pytester, STARTER.replace("    Partial p;", "    Partiel p;"), "-k", "smoke")
    line = 1 + STARTER[: STARTER.index("    Partial p;")].count("\n")
    assert f"softmax.py({line}): error" in found["reason"]
    assert f"(softmax.py:{line})" in found["reason"]
