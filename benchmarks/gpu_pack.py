"""A folder with what a rented GPU machine without a package index may lack: ``make gpu-pack``.

    python benchmarks/gpu_pack.py --cuda 130
    # there, from the repository's root:
    PYTHONPATH=gpu_pack:. python3 benchmarks/gpu.py

Such a machine has torch, transformers, accelerate, scipy, statsmodels, matplotlib and their like. The folder holds the
other packages as they are installed here (nothing in them is compiled for one Python), without tests and large data;
of bitsandbytes only the library for one version of CUDA. At most 30 MB, or it is an error. reasoning-gym does not fit:
where it is missing, its block is skipped by name.
"""

from __future__ import annotations

import argparse
import shutil
import sys
from importlib.metadata import distribution
from pathlib import Path

import bitsandbytes

FOLDER = Path(__file__).resolve().parents[1] / "gpu_pack"
MOST = 30e6  # bytes
LARGE = 300_000  # bytes of a data file that stays behind
PACKAGES = (
    *("bitsandbytes", "peft", "math-verify", "latex2sympy2-extended", "antlr4-python3-runtime"),
    *("tyro", "docstring-parser", "typeguard"),
    *("trl", "datasets", "dill", "multiprocess"),
)


def wanted(path: Path, size: int, cuda: str) -> bool:
    """Is this file of a package one that a GPU machine needs?

    >>> [wanted(Path(f"libbitsandbytes_{name}.so"), 10**6, "130") for name in ("cuda130", "cuda128", "rocm64", "cpu")]
    [True, False, False, True]
    >>> [wanted(Path(name), 10**6, "130") for name in ("a/code.py", "a/words.txt", "a/tests/test_a.py", "../bin/a")]
    [True, False, False, False]
    """
    if {"__pycache__", "tests", ".."} & set(path.parts):
        return False
    if path.name.startswith("libbitsandbytes_"):
        return path.name in (f"libbitsandbytes_cuda{cuda}.so", "libbitsandbytes_cpu.so")
    return size <= LARGE or path.suffix in (".py", ".so")


def pack(folder: Path, cuda: str) -> int:
    """Fill the folder anew; returns its bytes."""
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    for package in map(distribution, PACKAGES):
        for file in package.files:
            source = Path(file.locate())
            if source.is_file() and wanted(Path(file), source.stat().st_size, cuda):
                target = folder / file
                target.parent.mkdir(parents=True, exist_ok=True)
                shutil.copyfile(source, target)
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cuda", default="130", help="version of that machine's CUDA, as bitsandbytes writes it")
    args = parser.parse_args()
    if not (Path(bitsandbytes.__file__).parent / f"libbitsandbytes_cuda{args.cuda}.so").exists():
        parser.error(f"--cuda {args.cuda}: bitsandbytes has no library for it; 130 is CUDA 13.0")
    size = pack(FOLDER, args.cuda)
    if size > MOST:
        sys.exit(f"{FOLDER}: {size / 1e6:.1f} MB, more than {MOST / 1e6:.0f}")
    print(f"{FOLDER.name}: {size / 1e6:.1f} MB; there: PYTHONPATH={FOLDER.name}:. python3 benchmarks/gpu.py")


if __name__ == "__main__":
    main()
