"""Compiles the kernels into a wheel or an editable install, by the C compiler inside ziglang.

So nobody needs a compiler of their own. Where there is none for a platform, or where it fails, the
package is built without them, and torch computes what they would have.
"""

from __future__ import annotations

import platform
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any, NamedTuple

from hatchling.builders.hooks.plugin.interface import BuildHookInterface

KERNELS = Path("src/spectrim/kernels")
BUILT = KERNELS / "built"
FLAGS = (
    "-O3", "-std=gnu11", "-ffp-contract=off", "-fvisibility=hidden", "-fno-sanitize=all",
    "-Wall", "-Wextra", "-Wno-unused-function",
)  # fmt: skip
X86 = {
    "plain": "-mcpu=x86_64",
    "avx2": "-mcpu=x86_64_v3",
    "avx512": "-mcpu=x86_64_v4+avx512vnni+avx512vbmi",
}
ARM = {"neon": "-mcpu=generic", "dotprod": "-mcpu=generic+dotprod"}


class Target(NamedTuple):
    """What is compiled for: zig's name of the platform, that of wheels, file, instruction sets."""

    zig: str
    tag: str
    file: str
    sets: dict[str, str]


# The oldest C library and the oldest macOS on which the newest torch runs are newer than these.
TARGETS = {
    ("linux", "x86_64"): Target(
        "x86_64-linux-gnu.2.17", "manylinux_2_17_x86_64", "libspectrim.so", X86
    ),
    ("linux", "aarch64"): Target(
        "aarch64-linux-gnu.2.17", "manylinux_2_17_aarch64", "libspectrim.so", ARM
    ),
    ("darwin", "arm64"): Target(
        "aarch64-macos.11.0", "macosx_11_0_arm64", "libspectrim.dylib", ARM
    ),
    ("darwin", "x86_64"): Target(
        "x86_64-macos.11.0", "macosx_11_0_x86_64", "libspectrim.dylib", X86
    ),
    ("win32", "AMD64"): Target("x86_64-windows-gnu", "win_amd64", "libspectrim.dll", X86),
}


def build(root: Path, target: Target, to: Path) -> None:
    """Compile the sources below ``root`` once for each instruction set, and link them into ``to``.

    Raises CalledProcessError where the compiler fails, FileNotFoundError where there is none.
    """
    zig = [sys.executable, "-m", "ziglang", "cc", "-target", target.zig]
    zig += [] if target.file.endswith(".dll") else ["-fPIC"]
    source = root / KERNELS / "source"
    with tempfile.TemporaryDirectory() as room:
        objects = []
        for name, cpu in {**target.sets, "": next(iter(target.sets.values()))}.items():
            file = source / ("kernels.c" if name else "library.c")
            objects.append(f"{room}/{name or 'library'}.o")
            isa = [f"-DISA={name}"] if name else []
            run([*zig, cpu, *FLAGS, *isa, "-c", str(file), "-o", objects[-1]])
        libraries = ["-lm", "-ldl"] if "linux" in target.zig else []
        run([*zig, "-shared", "-s", *objects, *libraries, "-o", f"{room}/{target.file}"])
        to.write_bytes(Path(room, target.file).read_bytes())


def run(command: list[str]) -> None:
    """Run a command and raise what it wrote where it fails."""
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        raise RuntimeError(f"{' '.join(command)}\n{done.stderr}")


class Kernels(BuildHookInterface):
    """Puts the library where kernels/library.py looks for it; names the wheel's platform."""

    PLUGIN_NAME = "custom"

    def initialize(self, version: str, build_data: dict[str, Any]) -> None:
        """Compile, and add the file to what is packed."""
        target = TARGETS.get((sys.platform, platform.machine()))
        musl = sys.platform == "linux" and platform.libc_ver()[0] != "glibc"
        if self.target_name != "wheel" or target is None or musl:
            return
        root = Path(self.root)
        file = root / BUILT / target.file
        file.parent.mkdir(exist_ok=True)
        try:
            build(root, target, file)
        except (OSError, RuntimeError) as error:
            self.app.display_warning(f"built without kernels, products are torch's: {error}")
            file.unlink(missing_ok=True)
            return
        build_data["artifacts"].append(str(BUILT / target.file))
        build_data["pure_python"] = False
        build_data["tag"] = f"py3-none-{target.tag}"
