"""What a figure depends on besides the code: the interpreter, the machine, the C compiler."""

from __future__ import annotations

import datetime
import os
import platform
import shutil
import subprocess
import sys
from pathlib import Path

from .loading import api_is_built, package_folder
from .pinning import allowed, first_of

HERE = Path(__file__).resolve().parent


def compile_c(folder: str) -> tuple[str | None, str]:
    """Where the compiled roundtrip.c lies, if a compiler is here; and what to say about it."""
    compiler = shutil.which(os.environ.get("CC", "cc"))
    if compiler is None:
        return None, "none (no C compiler)"
    program = os.path.join(folder, "roundtrip")
    command = ["-O2", "-o", program, str(HERE / "roundtrip.c")]
    done = subprocess.run([compiler, *command], check=False, stderr=subprocess.PIPE)
    if done.returncode:
        return None, f"none (roundtrip.c did not compile: {done.stderr.decode().strip()[:200]})"
    version = subprocess.run([compiler, "--version"], check=False, stdout=subprocess.PIPE).stdout.decode().splitlines()
    return program, f"roundtrip.c, -O2, {version[0] if version else 'unknown compiler'}"


def run_c(program: str | None, arguments: tuple[str, ...], operations: int) -> tuple[float, float] | None:
    """Median and least nanoseconds per operation of the C program, if there is one."""
    if program is None or not arguments:
        return None
    done = subprocess.run([program, *arguments], check=False, stdout=subprocess.PIPE, timeout=120)
    if done.returncode:
        return None
    median, least = (float(word) / operations for word in done.stdout.split())
    return median, least


def package_version() -> str:
    """The version written in the package, read and not imported, and where the package lies."""
    folder = package_folder()
    lines = (folder / "__init__.py").read_text().splitlines()
    version = next((line.split('"')[1] for line in lines if line.startswith("__version__")), "unknown")
    return f"{version}, {'this checkout' if folder.parent == HERE.parent else 'installed'}{revision(folder)}"


def revision(folder: Path) -> str:
    """The git commit of the folder, and whether it was changed since; nothing outside a checkout."""
    git = shutil.which("git")
    if git is None:
        return ""
    commands = (["rev-parse", "--short=12", "HEAD"], ["status", "--porcelain", "--", str(folder)])
    git_here = [git, "-C", str(folder)]
    outputs = [subprocess.run([*git_here, *command], check=False, capture_output=True) for command in commands]
    if any(done.returncode for done in outputs):
        return ""
    return f", commit {outputs[0].stdout.decode().strip()}{' and changes' if outputs[1].stdout.strip() else ''}"


def cffi_version() -> str:
    """The version of cffi's run-time part."""
    try:
        import _cffi_backend
    except ImportError:
        return "none"
    return str(_cffi_backend.__version__)


def describe(arguments: list[str]) -> dict[str, str]:
    """Everything a reader needs to judge the figures, in the order it is printed; no path of this machine."""
    libc = " ".join(platform.libc_ver()).strip() or "unknown"
    return {
        "interpreter": f"{platform.python_implementation()} {' '.join(sys.version.split())}",
        "cffi": cffi_version(),
        "package": package_version(),
        "API backend": "built" if api_is_built() else "not built",
        "kernel": f"{platform.system()} {platform.release()} {platform.machine()}",
        "C library": libc,
        "processor": f"{os.cpu_count()} x {first_of('/proc/cpuinfo', 'model name') or 'unknown'}",
        "pinned": f"to the quietest of {len(allowed())} CPUs, chosen before each process" if allowed() else "no",
        "load before": " ".join(f"{load:.2f}" for load in os.getloadavg()),
        "date": datetime.datetime.now(datetime.timezone.utc).strftime("%Y-%m-%d %H:%M:%S UTC"),
        "command": " ".join(["python -m bench", *arguments]),
    }
