"""GPUs: which is recognised as what, what is known of it, and how near a kernel comes to it."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from dataclasses import replace
from itertools import combinations
from pathlib import Path

import jsonschema
import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from pytest_autokernel.gpu import (
    Ceilings,
    Device,
    GpuSpecError,
    beyond_roof,
    describe_device,
    find_spec,
    load_specs,
    no_spec,
    roofline,
    to_yaml,
)
from pytest_autokernel.judge import Judge

SHIPPED = Path(__file__).parents[1] / "gpu_specs"
SPECS = load_specs([SHIPPED])
FIGURES = {"capability", "memory_gb", "sms", "l2_mb", "bandwidth_gb_s", "tflops"}
MIB = 2**20
PRO = "NVIDIA RTX PRO 6000 Blackwell "

# (name as the driver reports it, capability, MiB, multiprocessors), and the spec's file
RECOGNISED = [
    ("NVIDIA H100 80GB HBM3", "9.0", 81081, 132, "h100-sxm"),
    ("NVIDIA H100 PCIe", "9.0", 81008, 114, "h100-pcie"),
    ("NVIDIA H100 NVL", "9.0", 94849, 132, "h100-nvl"),
    ("NVIDIA H200", "9.0", 143156, 132, "h200"),
    ("NVIDIA H200 NVL", "9.0", 143156, 132, "h200-nvl"),
    ("NVIDIA GH200 480GB", "9.0", 96768, 132, "gh200-96gb"),
    ("NVIDIA GH200 144G HBM3e", "9.0", 146831, 132, "gh200-144gb"),
    ("NVIDIA B200", "10.0", 182631, 148, "b200"),
    ("NVIDIA B300 SXM6 AC", "10.3", 275040, 148, "b300"),
    ("NVIDIA GB200", "10.0", 189471, 152, "gb200"),
    ("NVIDIA A100-SXM4-40GB", "8.0", 40536, 108, "a100-sxm-40gb"),
    ("A100-SXM4-40GB", "8.0", 40536, 108, "a100-sxm-40gb"),
    ("NVIDIA A100-SXM4-80GB", "8.0", 81050, 108, "a100-sxm-80gb"),
    ("NVIDIA A100-PCIE-40GB", "8.0", 40376, 108, "a100-pcie-40gb"),
    ("NVIDIA A100 80GB PCIe", "8.0", 81050, 108, "a100-pcie-80gb"),
    ("NVIDIA A10", "8.6", 22587, 72, "a10"),
    ("NVIDIA A10G", "8.6", 22587, 80, "a10g"),
    ("NVIDIA A30", "8.0", 24060, 56, "a30"),
    ("NVIDIA A40", "8.6", 45416, 84, "a40"),
    ("NVIDIA L4", "8.9", 22478, 58, "l4"),
    ("NVIDIA L40", "8.9", 45373, 142, "l40"),
    ("NVIDIA L40S", "8.9", 45589, 142, "l40s"),
    ("Tesla T4", "7.5", 15102, 40, "t4"),
    ("Tesla V100-SXM2-16GB", "7.0", 16160, 80, "v100-sxm-16gb"),
    ("Tesla V100-SXM2-32GB", "7.0", 32510, 80, "v100-sxm-32gb"),
    ("Tesla V100-PCIE-16GB", "7.0", 16160, 80, "v100-pcie-16gb"),
    ("Tesla V100-PCIE-32GB", "7.0", 32510, 80, "v100-pcie-32gb"),
    ("NVIDIA GeForce RTX 3080", "8.6", 10015, 68, "rtx-3080"),
    ("NVIDIA GeForce RTX 3090", "8.6", 24268, 82, "rtx-3090"),
    ("GeForce RTX 3090", "8.6", 24268, 82, "rtx-3090"),
    ("NVIDIA GeForce RTX 4080", "8.9", 16049, 76, "rtx-4080"),
    ("NVIDIA GeForce RTX 4090", "8.9", 24210, 128, "rtx-4090"),
    ("NVIDIA GeForce RTX 5080", "12.0", 16302, 84, "rtx-5080"),
    ("NVIDIA GeForce RTX 5090", "12.0", 32110, 170, "rtx-5090"),
    ("NVIDIA RTX 6000 Ada Generation", "8.9", 48520, 142, "rtx-6000-ada"),
    (PRO + "Workstation Edition", "12.0", 97250, 188, "rtx-pro-6000-blackwell-workstation"),
    (PRO + "Max-Q Workstation Edition", "12.0", 97250, 188, "rtx-pro-6000-blackwell-max-q"),
    (PRO + "Server Edition", "12.0", 97250, 188, "rtx-pro-6000-blackwell-server"),
    ("AMD Instinct MI210", "gfx90a", 65520, 104, "mi210"),
    ("AMD Instinct MI250X", "gfx90a", 65520, 110, "mi250x"),
    ("AMD Instinct MI250X / MI250", "gfx90a", 65520, 110, "mi250x"),
    ("AMD Instinct MI300X", "gfx942", 196592, 304, "mi300x"),
    ("AMD Instinct MI325X", "gfx942", 262128, 304, "mi325x"),
    ("AMD Instinct MI350X", "gfx950", 294896, 256, "mi350x"),
    ("AMD Instinct MI355X", "gfx950", 294896, 256, "mi355x"),
]

# The same, of devices that have no spec: near names, slices, partitions, namesakes
UNKNOWN = [
    ("NVIDIA H300", "11.0", 204800, 160),
    ("NVIDIA H100", "9.0", 81081, 132),
    ("NVIDIA H800", "9.0", 81081, 132),
    ("NVIDIA A800-SXM4-80GB", "8.0", 81050, 108),
    ("NVIDIA L20", "8.9", 45589, 92),
    ("NVIDIA RTX A1000", "8.6", 8188, 18),
    ("NVIDIA RTX A6000", "8.6", 48570, 84),
    ("NVIDIA RTX 6000", "8.9", 48520, 142),
    ("Quadro RTX 6000", "7.5", 24190, 72),
    ("Tesla V100S-PCIE-32GB", "7.0", 32510, 80),
    ("NVIDIA GeForce RTX 3080", "8.6", 12036, 70),  # the one with 12 GB
    ("NVIDIA GeForce RTX 3080 Ti", "8.6", 12036, 80),
    ("NVIDIA GeForce RTX 3080 Laptop GPU", "8.6", 16117, 48),
    ("NVIDIA GeForce RTX 4080 SUPER", "8.9", 16049, 80),
    ("NVIDIA GeForce RTX 4090 D", "8.9", 24210, 114),
    ("NVIDIA GeForce RTX 5090 D", "12.0", 32110, 170),
    ("NVIDIA H100 80GB HBM3 MIG 1g.10gb", "9.0", 9856, 16),
    ("NVIDIA H200 MIG 3g.71gb", "9.0", 71168, 60),
    ("NVIDIA A100 80GB PCIe MIG 1g.10gb", "8.0", 9728, 14),
    ("NVIDIA A100-SXM4-40GB MIG 7g.40gb", "8.0", 40192, 98),
    ("NVIDIA A10-24Q", "8.6", 24576, 72),
    ("GRID A100D-80C", "8.0", 81050, 108),
    ("AMD Instinct MI300X", "gfx942", 24574, 38),  # one of eight partitions
    ("AMD Instinct MI300A", "gfx942", 131056, 228),
    ("AMD Instinct MI308X", "gfx942", 196592, 80),
    ("AMD Instinct MI250X / MI250", "gfx90a", 65520, 104),  # an MI250
    ("", "9.0", 81081, 132),
]


def device(name: str, capability: str, mib: int, sms: int) -> Device:
    return Device(name, capability, mib * MIB, sms, 50 * MIB)


@pytest.mark.parametrize(("name", "capability", "mib", "sms", "file"), RECOGNISED)
def test_a_gpu_is_recognised_as_itself(
    name: str, capability: str, mib: int, sms: int, file: str
) -> None:
    assert find_spec(device(name, capability, mib, sms), SPECS) is SPECS[file]


@pytest.mark.parametrize(("name", "capability", "mib", "sms"), UNKNOWN)
def test_a_gpu_is_never_taken_for_another(name: str, capability: str, mib: int, sms: int) -> None:
    assert find_spec(device(name, capability, mib, sms), SPECS) is None


@pytest.mark.parametrize(("name", "capability", "mib", "sms", "file"), RECOGNISED)
def test_a_name_alone_is_not_enough(
    name: str, capability: str, mib: int, sms: int, file: str
) -> None:
    found = device(name, capability, mib, sms)
    for other in (
        replace(found, capability="1.0"),
        replace(found, memory_bytes=found.memory_bytes // 2),
        replace(found, memory_bytes=found.memory_bytes * 2),
        replace(found, sms=sms - 2),
        replace(found, name=name + " D"),
        replace(found, name=name.lower()),
    ):
        assert find_spec(other, SPECS) is None


class TestTheShippedSpecs:
    def test_are_each_recognised(self) -> None:
        assert {file for *_, file in RECOGNISED} == set(SPECS)

    def test_never_fit_the_same_device(self) -> None:
        for one, other in combinations(SPECS.values(), 2):
            same_name = set(one.device_names) & set(other.device_names)
            assert not same_name, f"{one.name} and {other.name}: {same_name}"

    @pytest.mark.parametrize("file", sorted(SPECS))
    def test_have_a_source_for_every_figure(self, file: str) -> None:
        spec = SPECS[file]
        assert {f for source in spec.sources for f in source["figures"]} == FIGURES | {"power_w"}
        for source in spec.sources:
            assert source["checked"] in {"text", "elsewhere", "none"}
            if {"bandwidth_gb_s", "tflops", "memory_gb", "power_w"} & set(source["figures"]):
                assert source["url"]

    @pytest.mark.parametrize("file", sorted(SPECS))
    def test_have_dense_peaks(self, file: str) -> None:
        """A figure with sparsity would break the ratios that every tensor core has."""
        peaks = SPECS[file].tflops
        if "bf16" in peaks:
            assert peaks["bf16"] == peaks["fp16"]
        if "tf32" in peaks:
            assert peaks["fp16"] / peaks["tf32"] == pytest.approx(2, rel=0.02)
        for narrow in {"fp8", "int8"} & set(peaks) - ({"int8"} if file == "b300" else set()):
            ratio = peaks[narrow] / peaks["fp16"]
            assert any(ratio == pytest.approx(n, rel=0.02) for n in (1, 2, 4))
        assert peaks["fp32"] <= peaks.get("tf32", peaks["fp16"])

    def test_agree_with_a_schema_that_is_one(self) -> None:
        schema = json.loads((SHIPPED / "schema.json").read_text())
        jsonschema.Draft202012Validator.check_schema(schema)


class TestAUsersSpecs:
    @pytest.fixture
    def folder(self, tmp_path: Path) -> Path:
        return tmp_path

    def test_replace_the_shipped_one_of_the_same_file_name(self, folder: Path) -> None:
        text = (SHIPPED / "h200.yaml").read_text().replace("4800", "4700")
        (folder / "h200.yaml").write_text(text)
        found = find_spec(device("NVIDIA H200", "9.0", 143156, 132), load_specs([SHIPPED, folder]))
        assert found
        assert found.bandwidth_gb_s == 4700

    def test_come_first_under_any_file_name(self, folder: Path) -> None:
        shutil.copy(SHIPPED / "h200.yaml", folder / "zz.yaml")
        specs = load_specs([SHIPPED, folder])
        assert find_spec(device("NVIDIA H200", "9.0", 143156, 132), specs) is specs["zz"]

    @pytest.mark.parametrize(
        ("text", "message"),
        [
            ("name: [", "h300.yaml: expected YAML"),
            ("name: H300", "h300.yaml: .*'device_names' is a required property"),
            ("- 1", "h300.yaml: .*is not of type 'object'"),
        ],
    )
    def test_that_are_malformed_are_named(self, folder: Path, text: str, message: str) -> None:
        (folder / "h300.yaml").write_text(text)
        with pytest.raises(GpuSpecError, match=message):
            load_specs([SHIPPED, folder])

    def test_that_a_measurement_printed_are_recognised(self, folder: Path) -> None:
        unknown = Device("NVIDIA H300", "11.0", 190 * 2**30 + 7, 160, 130 * MIB)
        measured = [
            Ceilings(7000.0, 7400.0, {"bf16": 2000.0}, "measured"),
            Ceilings(6900.0, 7300.0, {"fp32": 90.0}, "measured"),
        ]
        text = to_yaml(unknown, measured)
        assert text.startswith("# gpu_specs/h300.yaml\n")
        (folder / "h300.yaml").write_text(text)
        found = find_spec(unknown, load_specs([SHIPPED, folder]))
        assert found
        assert (found.bandwidth_gb_s, dict(found.tflops)) == (7400, {"bf16": 2000.0, "fp32": 90.0})
        assert found.ceilings().source == "measured"
        assert yaml.safe_load(text)["memory_gb"] == 191


def test_an_unknown_gpu_is_measured_once_and_kept(
    judge: Judge, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def ceilings(place: str, nbytes: int, dtype: str) -> Ceilings:
        return Ceilings(7000.0, 7400.0, {dtype: 100.0}, "measured")

    unknown = device("NVIDIA H300", "11.0", 190 * 1024, 160)
    monkeypatch.setattr(judge.hardware, "ceilings", ceilings)
    monkeypatch.setattr(judge.hardware, "measured_spec", None)
    found = judge.hardware._measured_spec(unknown, tmp_path / "kept")
    assert found is not None
    assert found.measured
    assert found.bandwidth_gb_s == 7400
    assert set(found.tflops) == {"fp64", "fp32", "tf32", "bf16", "fp16"}
    assert [file.name for file in (tmp_path / "kept").iterdir()] == ["h300.yaml"]
    assert find_spec(unknown, load_specs([SHIPPED, tmp_path / "kept"])) == found
    assert judge.hardware.measured_spec == (tmp_path / "kept" / "h300.yaml").read_text()


def test_an_unknown_gpu_is_described_with_what_to_do() -> None:
    message = no_spec(device("NVIDIA GeForce RTX 6090 Ti", "13.0", 49152, 200))
    assert "no spec for GPU 'NVIDIA GeForce RTX 6090 Ti' (capability=13.0, sms=200" in message
    assert "add gpu_specs/rtx-6090-ti.yaml" in message


class TestARoofline:
    H200 = Ceilings(4300.0, 4600.0, {"fp32": 67.0, "tf32": 494.7, "bf16": 989.4}, "data sheet")

    def test_of_a_copy_is_its_bandwidth_over_the_copy_rate(self) -> None:
        found = roofline(1e6, 4300e3, "copy", "bf16", 2.0, self.H200)  # 1 us at best
        assert found.pct == pytest.approx(50)
        assert found.gb_s == pytest.approx(2150)
        assert found.bound == "memory"

    def test_of_a_reduction_is_against_the_read_rate(self) -> None:
        assert roofline(0, 4600e3, "read", "bf16", 1.0, self.H200).pct == pytest.approx(100)

    def test_of_a_product_is_against_the_peak_of_its_dtype(self) -> None:
        flops = 2 * 8192.0**3
        found = roofline(flops, 3 * 2 * 8192.0**2, "math", "bf16", 1391.0, self.H200)
        assert found.tflops == pytest.approx(790, rel=0.01)
        assert found.pct == pytest.approx(100 * 790 / 989.4, rel=0.01)
        assert found.bound == "compute"

    def test_of_fp32_is_without_tensor_cores_unless_tf32_is_allowed(self) -> None:
        plain = roofline(67e6, 1, "math", "fp32", 1.0, self.H200)
        loose = roofline(67e6, 1, "math", "fp32", 1.0, self.H200, tf32=True)
        assert plain.pct == pytest.approx(100)
        assert loose.pct == pytest.approx(100 * 67 / 494.7)

    def test_of_a_dtype_without_units_of_its_own_is_that_of_fp32(self) -> None:
        v100 = SPECS["v100-sxm-16gb"].ceilings()
        assert roofline(15.7e6, 1, "math", "bf16", 1.0, v100).pct == pytest.approx(100)
        assert roofline(125e6, 1, "math", "fp16", 1.0, v100).pct == pytest.approx(100)

    def test_needs_some_peak(self) -> None:
        with pytest.raises(ValueError, match="no peak for dtype=bf16: the measured has fp16"):
            roofline(1, 1, "math", "bf16", 1.0, Ceilings(1, 1, {"fp16": 1.0}, "measured"))

    @given(
        st.floats(1, 1e15), st.floats(1, 1e12), st.sampled_from(["copy", "read", "math"]),
        st.floats(0.1, 1e6),
    )  # fmt: skip
    def test_is_at_most_100_percent_for_what_is_possible(
        self, flops: float, nbytes: float, roof: str, slower: float
    ) -> None:
        bandwidth = 4600e3 if roof == "read" else 4300e3  # bytes per microsecond
        best_us = max(nbytes / bandwidth, flops / 989.4e6)
        found = roofline(flops, nbytes, roof, "bf16", best_us + slower, self.H200)  # type: ignore[arg-type]
        assert 0 < found.pct <= 100
        assert beyond_roof(found, self.H200) is None

    def test_beyond_the_data_sheet_is_an_error_and_beyond_a_measurement_is_not(self) -> None:
        found = roofline(0, 4300e3, "copy", "bf16", 0.8, self.H200)
        assert "125 % of the data sheet's roof (memory)" in (beyond_roof(found, self.H200) or "")
        assert beyond_roof(found, replace(self.H200, source="measured")) is None


def test_importing_it_imports_no_torch() -> None:
    code = "import sys, pytest_autokernel.gpu; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_the_query_describes_a_device_or_says_none() -> None:
    found = describe_device()
    assert found is None or Device(**found).memory_bytes > 0
