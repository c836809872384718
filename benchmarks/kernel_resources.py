"""What the CUDA kernels take of a multiprocessor, and how many blocks that lets share it.

Compiles with NVRTC (``pip install nvidia-cuda-nvrtc``); needs no GPU. One line for each function
of each specialisation that a half-sweep can launch: registers of a thread, bytes spilled to local
memory, shared memory of a block, then the blocks that registers, shared memory and threads let
share one multiprocessor, and the share of its warps that the fewest of them are.

    python benchmarks/kernel_resources.py [--architectures 90] [--factors 64 128 256] [--variants]
        [--nvrtc 13.0]
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path
from typing import Any

sys.path.append(str(Path(__file__).parents[1] / "tests"))

import nvrtc

from gpu_als.backends.cupy.launch import DeviceLimits, Launch

# Warps and blocks of a multiprocessor at most, from the CUDA C++ Programming Guide.
RESIDENT = {
    75: (32, 16), 80: (64, 32), 86: (48, 16), 89: (48, 24), 90: (64, 32), 100: (64, 32),
    120: (48, 24),
}  # fmt: skip
VARIANTS = {"SIGNED", "STORED_HALF"}


def occupancy(
    launch: Launch, registers: int, shared_bytes: int, limits: DeviceLimits
) -> dict[str, int]:
    """Return the blocks that share a multiprocessor, by what limits them, and their warps' share.

    Each quarter of a multiprocessor has 16,384 registers, of which a warp gets a multiple of 256.
    From compute capability 8.0 on every block takes 1 KB of shared memory besides its own.
    """
    warps, (most_warps, most_blocks) = launch.block // 32, RESIDENT[limits.architecture]
    own_bytes = shared_bytes + (1024 if limits.architecture >= 80 else 0)
    blocks = {
        "by_registers": 4 * (16384 // (32 * (registers + -registers % 8))) // warps,
        "by_shared": limits.shared_per_multiprocessor // own_bytes,
        "by_threads": min(most_warps // warps, most_blocks),
    }
    return {**blocks, "percent": 100 * warps * min(blocks.values()) // most_warps}


def measure(
    launches: list[Launch], limits: DeviceLimits, version: nvrtc.Version
) -> list[dict[str, Any]]:
    """Compile; return a row of the table for each function."""
    rows = []
    builds = nvrtc.build_all(launches, limits.architecture, version)
    for launch, build in zip(launches, builds, strict=True):
        for function, found in build.functions.items():
            shared_bytes = dict(launch.functions).get(function, launch.shared_bytes)
            rows.append(
                {
                    "architecture": limits.architecture,
                    "function": function,
                    "macros": dict(launch.macros),
                    "block": launch.block,
                    "registers": found.registers,
                    "spill_bytes": found.spill_bytes,
                    "shared_bytes": shared_bytes,
                    **occupancy(launch, found.registers, shared_bytes, limits),
                }
            )
    return rows


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument(
        "--architectures", nargs="+", type=int, choices=sorted(nvrtc.DEVICES), default=[90]
    )
    parser.add_argument("--factors", nargs="+", type=int, default=[64, 128, 256])
    parser.add_argument(
        "--variants", action="store_true", help="also negative weights and float16 storage"
    )
    versions = {"{}.{}".format(*version): version for version in nvrtc.versions()}
    parser.add_argument("--nvrtc", choices=versions, default=[*versions][-1])
    parser.add_argument("--json", type=Path, metavar="PATH", help="write the table")
    arguments = parser.parse_args()
    rows = []
    print(f"NVRTC {arguments.nvrtc}")
    for architecture in arguments.architectures:
        limits = nvrtc.DEVICES[architecture]
        for k in arguments.factors:
            launches = [
                launch
                for launch in nvrtc.specialisations(limits, [k]).values()
                if arguments.variants or not VARIANTS & dict(launch.macros).keys()
            ]
            print(
                f"\nsm_{architecture}, {k} factors\n"
                "function       registers  spilled  shared KB | blocks by registers  shared  "
                "threads | warps"
            )
            for row in measure(launches, limits, versions[arguments.nvrtc]):
                rows.append({"factors": k, **row})
                macros = " ".join(f"{name}={value}" for name, value in row["macros"].items())
                print(
                    f"{row['function']:12} {row['registers']:11} {row['spill_bytes']:8} "
                    f"{row['shared_bytes'] / 1024:10.1f} | {row['by_registers']:19} "
                    f"{row['by_shared']:7} {row['by_threads']:8} | {row['percent']:3} %  {macros}",
                    flush=True,
                )
    spilled = sum(row["spill_bytes"] > 0 for row in rows)
    print(f"\n{spilled} of {len(rows)} functions spill")
    if arguments.json:
        results = {"nvrtc": arguments.nvrtc, "rows": rows}
        arguments.json.write_text(json.dumps(results, indent=2) + "\n")
        print(f"written to {arguments.json}")


if __name__ == "__main__":
    main()
