# SPDX-License-Identifier: Apache-2.0
"""Make `kernels.fatbin` from `kernels.cu`: ``python -m appliance.kernels.build``, for who changed the source.

The same nvcc gives the same bytes. An appliance needs none: what is made here is committed.
"""

from __future__ import annotations

import hashlib
import json
import re
import subprocess
import sys
from pathlib import Path

from cuda.pathfinder import find_nvidia_binary_utility

from appliance.kernels.signatures import FATBIN

SOURCE, MANIFEST = FATBIN.with_suffix(".cu"), FATBIN.with_suffix(".json")
# Ampere, Orin, Ada, Hopper, Blackwell, Thor, RTX and Spark. A cubin also runs on later minor versions of its major one.
ARCHITECTURES = (80, 86, 87, 89, 90, 100, 103, 110, 120, 121)
_FLAGS = ("-std=c++17", "-O3", "--fmad=false", "-Werror", "all-warnings")


def nvcc() -> tuple[str, str] | None:
    """Return the compiler of this environment (the wheel nvidia-cuda-nvcc) or this machine, and its version."""
    path = find_nvidia_binary_utility("nvcc")
    if path is None:
        return None
    said = subprocess.run([path, "--version"], capture_output=True, text=True, check=True).stdout
    found = re.search(r"V(\d+\.\d+\.\d+)", said)
    return (path, found[1]) if found else None


def compile_fatbin(compiler: str, out: Path, architectures: tuple[int, ...] = ARCHITECTURES) -> None:
    """Write `out`. Raises subprocess.CalledProcessError; the compiler's words are on stderr."""
    targets = [f"-gencode=arch=compute_{number},code=sm_{number}" for number in architectures]
    command = [compiler, "-fatbin", *_FLAGS, "--no-compress", *targets, "-o", str(out), SOURCE.name]
    subprocess.run(command, cwd=SOURCE.parent, check=True)


def manifest(version: str) -> dict[str, object]:
    """Return what is written beside the fatbin, so that a test can tell when it is stale."""
    return {
        "source_sha256": hashlib.sha256(SOURCE.read_bytes()).hexdigest(),
        "fatbin_sha256": hashlib.sha256(FATBIN.read_bytes()).hexdigest(),
        "nvcc": version,
        "flags": list(_FLAGS),
        "architectures": list(ARCHITECTURES),
    }


def main() -> int:
    """Compile and write both files."""
    compiler = nvcc()
    if compiler is None:
        print("build: no nvcc here; pip install the dev requirements, which bring it", file=sys.stderr)
        return 1
    compile_fatbin(compiler[0], FATBIN)
    MANIFEST.write_text(json.dumps(manifest(compiler[1]), indent=2) + "\n")
    print(f"{FATBIN.name}: {FATBIN.stat().st_size} bytes for {len(ARCHITECTURES)} architectures, nvcc {compiler[1]}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
