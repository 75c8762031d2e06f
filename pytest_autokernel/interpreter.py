"""Triton's interpreter (3.4, 3.6, 3.7.1), put right where it would have right kernels refused.

It holds bf16 as 16-bit integers, and computes with these: products and sums of bf16 are noise, and
casts to it drop bits. Here they are computed in fp32 and rounded to nearest even. It has no driver
to time the configurations of `@triton.autotune` by: the first is taken. And before 3.7 it takes a
loop's bounds for what NumPy 2.4 no longer makes an integer of.

Not covered: reductions and atomics of bf16, inline assembly, libdevice.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import triton.language as tl
from triton.runtime import interpreter
from triton.runtime.autotuner import Autotuner
from triton.runtime.interpreter import InterpreterBuilder, TensorHandle

COMPUTING = (
    *("fadd", "fsub", "fmul", "fdiv", "frem", "precise_divf", "fma", "clampf", "dot"),
    *("minimumf", "minnumf", "maximumf", "maxnumf"),
    *(f"fcmp{order}{how}" for order in "OU" for how in ("LT", "GT", "LE", "GE", "EQ", "NE")),
    *("exp", "exp2", "log", "log2", "sin", "cos", "sqrt", "precise_sqrt", "rsqrt", "erf"),
    *("floor", "ceil"),
)


def mend() -> None:
    """Before any kernel is read, in the process that workers are forked from."""
    Autotuner._bench = lambda self, *args, config, **meta: [0.0, 0.0, 0.0]
    for method in (f"create_{name}" for name in COMPUTING):
        if hasattr(InterpreterBuilder, method):  # not all of them in each version
            setattr(InterpreterBuilder, method, _in_fp32(getattr(InterpreterBuilder, method)))
    # Which Triton's frontend asks for where a kernel names a constant of bf16.
    InterpreterBuilder.get_bf16 = lambda self, value: _narrowed(self.get_fp32(value))
    InterpreterBuilder.cast_impl = _casting(InterpreterBuilder.cast_impl)
    interpreter._patch_lang_tensor = _indexing(interpreter._patch_lang_tensor)


def _in_fp32(method: Callable[..., Any]) -> Callable[..., Any]:
    """The same for operands that may be bf16. What has the result's dtype is the last of them."""

    def computed(self: Any, *args: Any, **options: Any) -> Any:
        handles = [value for value in args if isinstance(value, TensorHandle)]
        if not any(_is_bf16(value) for value in handles):
            return method(self, *args, **options)
        widened = [_widened(v) if isinstance(v, TensorHandle) else v for v in args]
        result = method(self, *widened, **options)
        if not _is_bf16(handles[-1]) or result.data.dtype == np.bool_:
            return result
        return _narrowed(result)

    return computed


def _casting(method: Callable[..., Any]) -> Callable[..., Any]:
    def cast(self: Any, src: Any, dst_type: Any) -> Any:
        if dst_type.scalar != tl.bfloat16:
            return method(self, _widened(src), dst_type)
        return src if _is_bf16(src) else _narrowed(method(self, src, tl.float32))

    return cast


def _indexing(patch: Callable[..., None]) -> Callable[..., None]:
    def patched(tensor: Any, *scope: Any) -> None:
        patch(tensor, *scope)
        tensor.__index__ = lambda self: int(self.handle.data.squeeze())

    return patched


def _is_bf16(value: Any) -> bool:
    return bool(value.dtype == tl.bfloat16)


def _widened(value: Any) -> Any:
    if not _is_bf16(value):
        return value
    bits = value.data.astype(np.uint32) << np.uint32(16)
    return TensorHandle(bits.view(np.float32), tl.float32)


def _narrowed(value: Any) -> Any:
    """Rounded to nearest, ties to even; a NaN stays one."""
    bits = np.ascontiguousarray(value.data, dtype=np.float32).view(np.uint32)
    rounded = (bits + np.uint32(0x7FFF) + (bits >> np.uint32(16) & np.uint32(1))) >> np.uint32(16)
    rounded = np.where(np.isnan(value.data), np.uint32(0x7FC0), rounded)
    return TensorHandle(rounded.astype(np.uint16), tl.bfloat16)
