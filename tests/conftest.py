"""What every test gets: the package on each backend, and a check that no descriptor was left open.

The backend is chosen when the package is imported, so each backend is imported under a name of
its own (which works because imports inside the package are relative, as for a vendored copy).
"""

from __future__ import annotations

import gc
import importlib.util
import os
import pkgutil
import signal
import sys
from pathlib import Path

import pytest

PACKAGE = Path(importlib.util.find_spec("fdpass_cffi").origin).parent


def load(backend: str):
    """The whole package, imported anew on one backend as `fdpass_<backend>`."""
    name = f"fdpass_{backend}"
    if name in sys.modules:
        return sys.modules[name]
    old = os.environ.get("FDPASS_CFFI_BACKEND")
    os.environ["FDPASS_CFFI_BACKEND"] = backend
    try:
        spec = importlib.util.spec_from_file_location(
            name, PACKAGE / "__init__.py", submodule_search_locations=[str(PACKAGE)]
        )
        package = sys.modules[name] = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(package)
        for module in pkgutil.iter_modules([str(PACKAGE)]):
            if module.name not in {"__main__", "_api"}:
                importlib.import_module(f"{name}.{module.name}")
    finally:
        if old is None:
            del os.environ["FDPASS_CFFI_BACKEND"]
        else:
            os.environ["FDPASS_CFFI_BACKEND"] = old
    return package


def pytest_addoption(parser):
    parser.addoption(
        "--backend",
        action="append",
        choices=["abi", "api"],
        help="run on this backend, and fail if it is missing (default: abi, and api where it was built)",
    )


def pytest_configure(config):
    """Let Ctrl-C reach the tests' processes: a shell starts what it runs in the background with SIGINT ignored."""
    if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
        signal.signal(signal.SIGINT, signal.default_int_handler)


def backends(config) -> list[str]:
    asked = config.getoption("--backend")
    if asked:
        return asked
    built = importlib.util.find_spec("fdpass_cffi._api") is not None
    return ["abi", "api"] if built else ["abi"]


def pytest_report_header(config):
    return f"fdpass_cffi from {PACKAGE}, backends: {', '.join(backends(config))}"


def pytest_generate_tests(metafunc):
    if "backend" in metafunc.fixturenames:
        metafunc.parametrize("backend", backends(metafunc.config), scope="session")


@pytest.fixture(scope="session")
def fdpass(backend):
    """The package, loaded on the backend under test, its submodules as attributes."""
    return load(backend)


def open_fds() -> dict[int, str]:
    """Every open descriptor of this process and what it refers to."""
    found = {}
    for name in os.listdir("/proc/self/fd"):
        try:
            found[int(name)] = os.readlink(f"/proc/self/fd/{name}")
        except FileNotFoundError:  # the descriptor that listed the folder
            continue
    return found


@pytest.fixture(autouse=True)
def no_descriptor_left_open():
    """Fail a test after which a descriptor is open that was not open before it."""
    before = open_fds()
    yield
    for _ in range(3):  # what is garbage closes itself; PyPy finalizes late
        left = {fd: what for fd, what in open_fds().items() if fd not in before}
        if not left:
            return
        gc.collect()
    left = {fd: what for fd, what in open_fds().items() if fd not in before}
    assert {} == left
