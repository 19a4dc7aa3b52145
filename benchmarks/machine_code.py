"""CUDA kernels read back from machine code: what each asks of the hardware, architecture by architecture."""

from __future__ import annotations

import importlib.util
import os
import re
import shutil
import struct
import subprocess
import tempfile
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

ROOT = Path(__file__).resolve().parents[1]


class Limits(NamedTuple):
    """What one multiprocessor holds (CUDA C++ Programming Guide, "Technical Specifications")."""

    warps: int
    blocks: int
    shared_kib: int


LIMITS = {
    "sm_75": Limits(32, 16, 64),
    "sm_80": Limits(64, 32, 164),
    "sm_86": Limits(48, 16, 100),
    "sm_87": Limits(48, 16, 164),
    "sm_89": Limits(48, 24, 100),
    "sm_90": Limits(64, 32, 228),
    "sm_100": Limits(64, 32, 228),
    "sm_103": Limits(64, 32, 228),
    "sm_110": Limits(48, 24, 228),
    "sm_120": Limits(48, 24, 100),
    "sm_121": Limits(48, 24, 100),
}
REGISTERS_PER_SM = 65536


@dataclass(frozen=True)
class Kernel:
    operator: str  # folder under csrc/; empty for code that is not from there
    name: str
    architecture: str
    threads: int  # a block's, by the launch bound
    registers: int
    stack_bytes: int
    local_accesses: int  # instructions that load from or store to local memory: spills, indexed arrays
    shared_bytes: int  # static
    warps_per_sm: int | None  # as far as threads, registers and static shared memory decide
    load_bits: int  # widest load from global memory, one lane; 0: none
    wide_loads: int  # instructions that load 128 bits or more
    loads_in_flight: int  # most loads from global memory that are issued before one's result is used
    reduce_bits: int  # widest sum into global memory
    generic_accesses: int  # instructions for which the compiler did not know that the memory is global
    instructions: int


def find_tool(name: str, *packages: Path) -> str | None:
    """The first of: PATH, the CUDA toolkit, NVIDIA's wheels here or in `packages`, the copy inside triton."""
    homes = [Path(os.environ.get(home, "/usr/local/cuda")) for home in ("CUDA_HOME", "CUDA_PATH")]
    folders = [home / inside for home in homes for inside in ("bin", "compute-sanitizer")]
    for package, pattern in (("nvidia", "*/bin"), ("triton", "backends/nvidia/bin")):
        spec = importlib.util.find_spec(package)
        places = [*((spec and spec.submodule_search_locations) or ()), *(site / package for site in packages)]
        folders += [folder for place in places for folder in sorted(Path(place).glob(pattern))]
    return shutil.which(name) or shutil.which(name, path=os.pathsep.join(map(str, folders)))


def read_kernels(binary: Path) -> list[Kernel]:
    """All kernels in a shared library, an object file or a cubin, once for each architecture."""
    with tempfile.TemporaryDirectory() as folder, ThreadPoolExecutor(os.cpu_count()) as pool:
        kernels = [
            kernel for found in pool.map(_read_cubin, _cubins(binary, Path(folder))) for kernel in found
        ]
    return sorted(kernels, key=lambda kernel: (kernel.operator, kernel.name, int(kernel.architecture[3:])))


def describe_build(binary: Path) -> dict[str, Any]:
    """Sizes in bytes, the architectures with machine code and those with PTX."""
    elf = _cuobjdump("--list-elf", str(binary))
    ptx = _cuobjdump("--list-ptx", str(binary))
    device_code = [len(data) for name, data in _sections(binary.read_bytes()) if name == ".nv_fatbin"]
    return {
        "file": binary.name,
        "bytes": binary.stat().st_size,
        "device_code_bytes": sum(device_code),
        "machine_code": _architectures(elf),
        "ptx": _architectures(ptx),
    }


def resident_warps(architecture: str, threads: int, registers: int, shared_bytes: int) -> int | None:
    """Warps that one multiprocessor can hold of blocks like this; None for an unknown architecture."""
    limits = LIMITS.get(architecture)
    if limits is None or not threads:
        return None
    warps = -(-threads // 32)
    # Registers are given out to warps in units of 256, from four partitions.
    by_registers = REGISTERS_PER_SM // 4 // (-(-registers * 32 // 256) * 256) * 4 // warps
    reserved = 1024 if int(architecture[3:]) >= 80 else 0
    shared = -(-shared_bytes // 128) * 128 + reserved
    by_shared = limits.shared_kib * 1024 // shared if shared else limits.blocks
    return min(limits.blocks, limits.warps // warps, by_registers, by_shared) * warps


def _cuobjdump(*arguments: str, folder: Path | None = None) -> str:
    tool = find_tool("cuobjdump")
    if tool is None:
        raise FileNotFoundError("cuobjdump is neither on PATH nor in a CUDA toolkit nor in triton's package")
    done = subprocess.run([tool, *arguments], cwd=folder, capture_output=True, text=True, check=False)
    if done.returncode and "does not contain device code" not in done.stderr + done.stdout:
        raise RuntimeError(f"cuobjdump {' '.join(arguments)}: {done.stderr or done.stdout}")
    return done.stdout


def _architectures(listing: str) -> list[str]:
    return sorted(set(re.findall(r"\.(sm_\d+)[a-z]?\.", listing)), key=lambda name: int(name[3:]))


def _cubins(binary: Path, folder: Path) -> Iterator[Path]:
    """Extracts each compiled source by itself: cuobjdump gives sources of one name the same file."""
    for number, source in enumerate(_fat_binaries(binary.read_bytes())):
        place = folder / str(number)
        place.mkdir()
        (place / "source.fatbin").write_bytes(source)
        listing = _cuobjdump("-xelf", "all", "source.fatbin", folder=place)
        cubins = sorted(place.glob("*.cubin"))
        if listing.count("Extracting ELF") != len(cubins):
            raise RuntimeError(f"cuobjdump wrote {len(cubins)} files, but listed\n{listing}")
        yield from cubins


def _fat_binaries(elf: bytes) -> Iterator[bytes]:
    """The device code of each source of a host binary; a cubin is its own."""
    sections = [data for name, data in _sections(elf) if name == ".nv_fatbin"]
    if not sections and any(name.startswith(".nv.info") for name, _ in _sections(elf)):
        yield elf
    for section in sections:
        position = 0
        while (position := section.find(b"\x50\xed\x55\xba", position)) >= 0:
            header, size = struct.unpack_from("<6xHQ", section, position)
            yield section[position : position + header + size]
            position += header + size


def _read_cubin(cubin: Path) -> list[Kernel]:
    architecture = re.findall(r"(sm_\d+)", cubin.name)[-1]
    threads = {
        name.removeprefix(".nv.info."): _launch_bound(data)
        for name, data in _sections(cubin.read_bytes())
        if name.startswith(".nv.info.")
    }
    listing = _cuobjdump("-res-usage", "-sass", str(cubin))
    usage = re.findall(r"Function (\S+):\s+REG:(\d+) STACK:(\d+) SHARED:(\d+) LOCAL:(\d+)", listing)
    code = dict(re.findall(r"Function : (\S+)\n(.*?)(?=Function : |\Z)", listing, re.DOTALL))
    kernels = []
    for (symbol, *counts), name in zip(usage, _demangled([row[0] for row in usage]), strict=True):
        registers, stack, shared, local = map(int, counts)
        # From sm_90 on the listing counts the part of a block's shared memory that the system keeps.
        shared -= min(shared, 1024 if int(architecture[3:]) >= 90 else 0)
        opcodes = re.findall(r"^\s+/\*[0-9a-f]+\*/\s+(?:@!?\w+ +)?(\w[\w.]*)", code[symbol], re.MULTILINE)
        loads = [_bits(opcode) for opcode in opcodes if opcode.startswith("LDG.")]
        kernels.append(
            Kernel(
                operator=operators_of_kernels().get(name.split("<")[0], ""),
                name=name,
                architecture=architecture,
                threads=threads[symbol],
                registers=registers,
                stack_bytes=stack + local,
                local_accesses=sum(opcode.startswith(("LDL", "STL")) for opcode in opcodes),
                shared_bytes=shared,
                warps_per_sm=resident_warps(architecture, threads[symbol], registers, shared),
                load_bits=max(loads, default=0),
                wide_loads=sum(bits >= 128 for bits in loads),
                loads_in_flight=_loads_in_flight(code[symbol]),
                reduce_bits=max((_bits(o) for o in opcodes if o.startswith(("RED.", "REDG."))), default=0),
                generic_accesses=sum(opcode.startswith(("LD.", "ST.", "ATOM.")) for opcode in opcodes),
                instructions=len(opcodes),
            )
        )
    return kernels


def _loads_in_flight(code: str) -> int:
    """By the order of instructions alone; nothing is on its way across a jump."""
    most, waiting = 0, set[str]()
    for opcode, operands in re.findall(
        r"^\s+/\*[0-9a-f]+\*/\s+(?:@!?\w+ +)?(\w[\w.]*)(.*?);", code, re.MULTILINE
    ):
        registers = re.findall(r"\bU?R\d+", operands)
        if opcode.startswith(("BRA", "BSYNC", "BAR", "EXIT", "RET", "CALL")) or waiting & set(registers[1:]):
            waiting = set()
        if opcode.startswith("LDG."):
            waiting.add(registers[0])
            most = max(most, len(waiting))
    return most


def _bits(opcode: str) -> int:
    """Width of a memory access: `LDG.E.128.CONSTANT` 128, `LDG.E.U16` 16, `REDG.E.ADD.F32x4` 128."""
    bits = 32
    for part in opcode.split(".")[1:]:
        if vector := re.fullmatch(r"F(\d+)x(\d)", part):
            bits = int(vector[1]) * int(vector[2])
        elif width := re.fullmatch(r"[SU]?(8|16|64|128|256)", part):
            bits = int(width[1])
    return bits


def _sections(elf: bytes) -> Iterator[tuple[str, bytes]]:
    """Names and contents of the sections of a 64-bit little-endian ELF file."""
    (table_start,) = struct.unpack_from("<Q", elf, 0x28)
    entry, count, names_index = struct.unpack_from("<HHH", elf, 0x3A)
    headers = [struct.unpack_from("<IIQQQQ", elf, table_start + i * entry) for i in range(count)]
    names = headers[names_index][4]
    for name, kind, _, _, offset, size in headers:
        text = elf[names + name : elf.index(b"\0", names + name)].decode()
        yield text, b"" if kind == 8 else elf[offset : offset + size]  # 8: takes no space in the file


def _launch_bound(info: bytes) -> int:
    """Threads of a block by __launch_bounds__: attribute MAX_THREADS of a kernel's .nv.info; 0 without."""
    position = 0
    while position < len(info):
        form, attribute, size = struct.unpack_from("<BBH", info, position)
        position += 4
        if form == 4:  # a value of `size` bytes follows
            if attribute == 5:
                x, y, z = struct.unpack_from("<III", info, position)
                return x * y * z
            position += size
    return 0


def _demangled(symbols: list[str]) -> list[str]:
    """`fast_kernel<float, 32>`; the symbols themselves where c++filt is missing."""
    tool = shutil.which("c++filt")
    if tool is None or not symbols:
        return symbols
    done = subprocess.run([tool], input="\n".join(symbols), capture_output=True, text=True, check=True)
    return [_short(name) for name in done.stdout.splitlines()]


def _short(name: str) -> str:
    name = re.sub(r"\(anonymous namespace\)::|\b\w+::|^void ", "", name)
    depth = 0
    for i, letter in enumerate(name):
        depth += (letter == "<") - (letter == ">")
        if letter == "(" and depth == 0:
            return name[:i]
    return name


@cache
def operators_of_kernels() -> dict[str, str]:
    """The folder under csrc/ of each kernel that is defined there."""
    definition = re.compile(r"^(?:SIMT_KERNEL\(.*\)|__global__)\s+void\s+(\w+)\(", re.MULTILINE)
    sources = [*ROOT.glob("csrc/*/*.h"), *ROOT.glob("csrc/*/*.cu")]
    return {name: path.parent.name for path in sources for name in definition.findall(path.read_text())}
