"""What is measured: this package, once per backend, each copy under a name of its own beside `socket`.

A backend is chosen when the package is imported, so one process can hold both only as two
packages; imports inside the package are relative, which makes that possible.
"""

from __future__ import annotations

import importlib
import importlib.machinery
import importlib.util
import os
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

NAME = "fdpass_cffi"
BACKENDS = ("abi", "api")


class NotHere(Exception):
    """A contender cannot take part here; the text says why and goes into the table."""


def package_folder() -> Path:
    """The folder `import fdpass_cffi` would take, found without importing it."""
    spec = importlib.util.find_spec(NAME)
    if spec is None or spec.origin is None:
        raise SystemExit(f"{NAME} is neither here nor installed: run `python -m bench` in the checkout")
    return Path(spec.origin).parent


def api_is_built() -> bool:
    """Whether a compiled backend for this interpreter lies in the package."""
    return any((package_folder() / f"_api{suffix}").exists() for suffix in importlib.machinery.EXTENSION_SUFFIXES)


def load(backend: str, submodule: str = "") -> ModuleType:
    """The package, or one of its submodules, imported on `backend` as `fdpass_<backend>`."""
    name = f"fdpass_{backend}"
    if backend == "api" and not api_is_built():
        raise NotHere("not built")
    if name not in sys.modules:
        _load_anew(backend, name)
    if not submodule:
        return sys.modules[name]
    if importlib.util.find_spec(f"{name}.{submodule}") is None:
        raise NotHere("not in this version")
    return importlib.import_module(f"{name}.{submodule}")


def _load_anew(backend: str, name: str) -> None:
    folder = package_folder()
    os.environ["FDPASS_CFFI_BACKEND"] = backend
    spec = importlib.util.spec_from_file_location(
        name, folder / "__init__.py", submodule_search_locations=[str(folder)]
    )
    if spec is None or spec.loader is None:
        raise ImportError(f"no loader for {folder}")
    package = sys.modules[name] = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(package)
    used = getattr(package, "BACKEND", backend)
    if used != backend:
        raise RuntimeError(f"asked for the {backend} backend, got {used}")


def take(backend: str, *names: str, submodule: str = "") -> tuple[Any, ...]:
    """The named objects of the package on `backend`; NotHere if this version lacks one."""
    module = load(backend, submodule)
    missing = [name for name in names if not hasattr(module, name)]
    if missing:
        raise NotHere("not in this version")
    return tuple(getattr(module, name) for name in names)
