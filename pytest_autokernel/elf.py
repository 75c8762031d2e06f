"""What compiled code says of itself: a shared library's and a cubin's sections (ELF-64, little
endian), and what a cubin's kernels take of a GPU. Needs no GPU and no tool of NVIDIA's.

The attributes of `.nv.info` are documented nowhere: what is read of them here was compared with
what `ptxas -v` says, of CUDA 12.8 (in Triton 3.6 and 3.7) and 13.0 (NVRTC), from sm_80 to sm_120.
"""

from __future__ import annotations

import hashlib
import re
import struct
from collections.abc import Iterator
from dataclasses import dataclass
from typing import TypedDict

ALLOCATED = 2  # SHF_ALLOC: what is in memory once the file is loaded
NO_BITS = 8  # SHT_NOBITS: a size, and nothing in the file
# Where a line of source came from, and notes: a build's id, the assembler's command line.
PLACES = re.compile(r"(\.nv\.merc)?(\.rela?)?\.(nv_)?debug|\.note")
EIFMT_SVAL = 4
EIATTR_FRAME_SIZE, EIATTR_REGCOUNT = 0x11, 0x2F
# From sm_90 on a kernel's section holds what CUDA keeps for itself in each block.
RESERVED_FROM, RESERVED_SHARED = 90, 1024


class Resources(TypedDict):
    """What one kernel takes: registers and bytes of local memory (spills, and arrays that are not
    in registers) per thread, bytes of shared memory per block."""

    kernel: str
    registers: int
    local_bytes: int
    shared_bytes: int


@dataclass(frozen=True)
class Section:
    name: str
    kind: int
    flags: int
    address: int
    size: int
    data: bytes


def sections(code: bytes) -> Iterator[Section]:
    """Raises ValueError or struct.error for what is no ELF file of that kind."""
    if code[:6] != b"\x7fELF\x02\x01":
        raise ValueError(f"expected an ELF-64 file, little endian, it begins with {code[:6]!r}")
    (offset,) = struct.unpack_from("<Q", code, 0x28)
    length, count, names = struct.unpack_from("<HHH", code, 0x3A)
    headers = [struct.unpack_from("<IIQQQQ", code, offset + n * length) for n in range(count)]
    *_, start, size = headers[names]
    words = code[start : start + size]
    for at, kind, flags, address, start, size in headers:
        name = words[at : words.index(b"\0", at)].decode()
        data = b"" if kind == NO_BITS else code[start : start + size]
        yield Section(name, kind, flags, address, size, data)


def digest(code: bytes, cubin: bool) -> str:
    """A hash of what the processor gets to see. Of a library that is every section that is loaded,
    names of exported functions among them, but its build id; of a cubin all but where its lines
    were in the source."""
    found = hashlib.sha256()
    for section in sections(code):
        if PLACES.match(section.name) or not (cubin or section.flags & ALLOCATED):
            continue
        about = (section.name, section.kind, section.flags, section.address, section.size)
        found.update(repr(about).encode() + section.data)
    return found.hexdigest()


def resources(cubin: bytes, capability: int) -> dict[str, Resources]:
    """What the kernels of a cubin for sm_`capability` take, by their names."""
    found = {section.name: section for section in sections(cubin)}
    names = list(_symbols(found[".symtab"].data, found[".strtab"].data))
    attributes = dict(_attributes(found[".nv.info"].data))
    reserved = RESERVED_SHARED if capability >= RESERVED_FROM else 0
    kernels: dict[str, Resources] = {}
    for symbol, name in enumerate(names):
        if f".nv.info.{name}" not in found:
            continue
        own = found.get(f".nv.shared.{name}")
        kernels[name] = {
            "kernel": name,
            "registers": attributes.get((EIATTR_REGCOUNT, symbol), 0),
            "local_bytes": attributes.get((EIATTR_FRAME_SIZE, symbol), 0),
            "shared_bytes": max(0, own.size - reserved) if own else 0,
        }
    return kernels


def _symbols(table: bytes, names: bytes) -> Iterator[str]:
    for (at,) in struct.iter_unpack("<I20x", table):
        yield names[at : names.index(b"\0", at)].decode()


def _attributes(info: bytes) -> Iterator[tuple[tuple[int, int], int]]:
    """Of each function (a symbol's number) the attributes that are one number."""
    at = 0
    while at + 4 <= len(info):
        form, attribute, size = struct.unpack_from("<BBH", info, at)
        at += 4
        if form != EIFMT_SVAL:  # then the number itself stands in the place of a size
            continue
        if size == 8:
            symbol, value = struct.unpack_from("<II", info, at)
            yield (attribute, symbol), value
        at += size
