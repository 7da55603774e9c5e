"""The package as its users get it: wheels, source archive, a vendored folder, a zip; each built and used here.

Nothing is asked of a network: cffi is lent to the new environments from the interpreter that runs the tests, and
nothing else is, no compiler either. That pip finds cffi by itself is shown where README.md's commands are run.
"""

from __future__ import annotations

import email
import importlib.util
import os
import runpy
import shutil
import subprocess
import sys
import sysconfig
import tarfile
import zipfile
from pathlib import Path
from types import SimpleNamespace

import pytest
from conftest import PACKAGE

pytest.importorskip("pip", reason="building wheels takes pip")
pytest.importorskip("hatchling", reason="building wheels takes hatchling")

ROOT = Path(__file__).resolve().parent.parent
build_ffi = SimpleNamespace(**runpy.run_path(str(ROOT / "build_ffi.py")))
IGNORED = (".git", ".venv*", ".*_cache", ".hypothesis", "__pycache__", "build", "dist", "_api.*", "*.egg-info")
MODULES = sorted(f"fdpass_cffi/{path.name}" for path in (ROOT / "fdpass_cffi").glob("*.py"))
SECONDS = 900  # after which a command counts as hung; building is slow on an emulated machine


def run(*command, **settings):
    """What a command printed on stdout; if it failed, all it printed is in the error."""
    command = list(map(str, command))
    done = subprocess.run(command, text=True, capture_output=True, timeout=SECONDS, check=False, **settings)
    assert 0 == done.returncode, f"{command}\n{done.stdout}{done.stderr}"  # a build tool may have warnings of its own
    return done.stdout


def environment(**more):
    """This process's environment without what steers Python, pip and the package."""
    kept = {
        name: value for name, value in os.environ.items() if not name.startswith(("PYTHON", "FDPASS", "HATCH", "PIP"))
    }
    return {**kept, **more}


def pip(*arguments, **more):
    """Run this interpreter's pip, without network, cache or isolation."""
    path = os.environ.get("PYTHONPATH", "")
    settings = {"PIP_NO_INDEX": "1", "PIP_NO_CACHE_DIR": "1", "PIP_DISABLE_PIP_VERSION_CHECK": "1", "PYTHONPATH": path}
    return run(sys.executable, "-m", "pip", "-q", *arguments, env=environment(**settings, **more), cwd=ROOT.anchor)


def wheel(source, folder, **more):
    """Build the wheel of a source folder or archive; its path."""
    pip("wheel", "--no-deps", "--no-build-isolation", "-w", folder, source, **more)
    (built,) = folder.glob("*.whl")
    return built


def contents(archive):
    """The names and checksums of what is in a wheel, but for the list of them that it has itself."""
    with zipfile.ZipFile(archive) as opened:
        return {item.filename: item.CRC for item in opened.infolist() if not item.filename.endswith("/RECORD")}


@pytest.fixture(scope="session")
def source(tmp_path_factory):
    """A copy of the checkout, in which somebody has built the API module for another interpreter and run Python."""
    copy = tmp_path_factory.mktemp("source") / "checkout"
    shutil.copytree(ROOT, copy, ignore=shutil.ignore_patterns(*IGNORED))
    (copy / "fdpass_cffi" / "_api.abi3.so").write_bytes(b"not for this wheel")
    (copy / "fdpass_cffi" / "__pycache__").mkdir()
    (copy / "fdpass_cffi" / "__pycache__" / "msg.cpython-39.pyc").write_bytes(b"nor this")
    return copy


@pytest.fixture(scope="session")
def pure(source, tmp_path_factory):
    """The wheel that `pip wheel .` builds."""
    return wheel(source, tmp_path_factory.mktemp("pure"))


@pytest.fixture(scope="session")
def sdist(source, tmp_path_factory):
    """The source archive."""
    code = "import sys; from hatchling.build import build_sdist; build_sdist(sys.argv[1])"
    folder = tmp_path_factory.mktemp("sdist")
    run(sys.executable, "-c", code, folder, cwd=source)
    (built,) = folder.glob("*.tar.gz")
    return built


@pytest.fixture(scope="session")
def compiled(sdist, tmp_path_factory):
    """The wheel that `pip wheel` builds of the source archive when it is told to compile."""
    why = build_ffi.hindrance()
    if why or not Path(sysconfig.get_path("include"), "Python.h").exists():
        pytest.skip(why or "there is no Python.h here")
    for module in ("cffi", "setuptools"):  # not imported: setuptools changes what `import distutils` means
        if importlib.util.find_spec(module) is None:
            pytest.skip(f"compiling takes {module}")
    return wheel(sdist, tmp_path_factory.mktemp("compiled"), HATCH_BUILD_HOOK_ENABLE_CUSTOM="1")


@pytest.fixture(scope="session")
def cffi(tmp_path_factory):
    """A folder with cffi's compiled half alone, which is all that the package needs; empty on PyPy, which has it."""
    folder = tmp_path_factory.mktemp("cffi")
    origin = getattr(sys.modules.get("_cffi_backend") or __import__("_cffi_backend"), "__file__", None)
    if origin is not None:
        (folder / Path(origin).name).symlink_to(origin)
        for libraries in Path(origin).parent.glob("cffi*.libs"):
            (folder / libraries.name).symlink_to(libraries)
    return folder


def installed(archive, cffi, folder):
    """A new virtual environment with a wheel and cffi in it; its folder of programs."""
    run(sys.executable, "-m", "venv", "--without-pip", folder)
    python = folder / "bin" / "python"
    pip("--python", python, "install", "--no-deps", "--ignore-installed", archive)
    code = "import sysconfig; print(sysconfig.get_path('purelib'))"
    Path(run(python, "-c", code, env=environment()).strip(), "cffi.pth").write_text(f"{cffi}\n")
    return folder / "bin"


def no_compiler(programs, tmp):
    """An environment in which nothing but these programs is on PATH."""
    tmp.mkdir()
    return environment(PATH=str(programs), TMPDIR=str(tmp))


def demo_of(output):
    """The backend that a demo ran on, and how many files arrived."""
    return output.split(", backend ")[1].split()[0], output.count(".txt ")


def test_pure_wheel(pure):
    """`pip wheel .` gives one wheel for all, of Python files and py.typed alone, whatever else lies in the folder."""
    assert "fdpass_cffi-0.1.0-py3-none-any.whl" == pure.name
    meta = [
        f"fdpass_cffi-0.1.0.dist-info/{name}" for name in ("METADATA", "WHEEL", "entry_points.txt", "licenses/LICENSE")
    ]
    assert sorted([*MODULES, "fdpass_cffi/py.typed", *meta]) == sorted(contents(pure))
    assert "fdpass_cffi/_abi.py" in MODULES


def test_requirements(pure):
    """It asks for Python 3.9, and for cffi everywhere but on PyPy, which has it built in."""
    markers = pytest.importorskip("packaging.requirements", reason="comes with hatchling")
    with zipfile.ZipFile(pure) as opened:
        metadata = email.message_from_bytes(opened.read("fdpass_cffi-0.1.0.dist-info/METADATA"))
    assert ">=3.9" == metadata["Requires-Python"]
    needed = {}
    for implementation in ("CPython", "PyPy"):
        place = {"platform_python_implementation": implementation, "extra": ""}
        requirements = map(markers.Requirement, metadata.get_all("Requires-Dist"))
        needed[implementation] = [r.name for r in requirements if not r.marker or r.marker.evaluate(place)]
    assert {"CPython": ["cffi"], "PyPy": []} == needed


def test_source_archive(sdist, pure, source, tmp_path):
    """The source archive holds all that is needed to build and to test, and builds the very same wheel."""
    with tarfile.open(sdist) as opened:
        names = {name.split("/", 1)[1] for name in opened.getnames()}
    needed = {"build_ffi.py", "pyproject.toml", "README.md", "LICENSE", "tests/conftest.py", "tests/test_packaging.py"}
    assert needed | set(MODULES) <= names
    assert set() == {name for name in names if "_api." in name or "__pycache__" in name}
    assert contents(pure) == contents(wheel(sdist, tmp_path))


def test_compiled_wheel(compiled, pure):
    """Told to compile, it builds a wheel with one module more, for this platform: of every CPython, or of this PyPy."""
    more = contents(compiled).keys() - contents(pure).keys()
    suffix = ".abi3.so" if build_ffi.stable_abi() else sysconfig.get_config_var("EXT_SUFFIX")
    assert {f"fdpass_cffi/_api{suffix}"} == more
    tags = compiled.name.split("-", 2)[2]
    if build_ffi.stable_abi():
        assert tags.startswith("cp39-abi3-")
    else:
        assert tags.startswith("pp" if sys.implementation.name == "pypy" else "cp")
    assert "any" not in tags


def test_install_without_compiler(pure, cffi, tmp_path):
    """In an environment with no compiler and nothing but cffi, the wheel installs and the demo runs."""
    programs = installed(pure, cffi, tmp_path / "venv")
    place = no_compiler(programs, tmp_path / "tmp")
    assert ("abi", 3) == demo_of(run(programs / "fdpass", "demo", env=place))
    assert [] == os.listdir(place["TMPDIR"])
    where = run(programs / "python", "-I", "-c", "import fdpass_cffi; print(fdpass_cffi.__file__)", env=place)
    assert str(tmp_path / "venv") in where


def test_install_compiled(compiled, cffi, tmp_path):
    """The compiled wheel installs where it was built for, and uses what it compiled, unless told otherwise."""
    programs = installed(compiled, cffi, tmp_path / "venv")
    place = no_compiler(programs, tmp_path / "tmp")
    assert ("api", 3) == demo_of(run(programs / "fdpass", "demo", env=place))
    assert ("abi", 3) == demo_of(run(programs / "fdpass", "demo", env={**place, "FDPASS_CFFI_BACKEND": "abi"}))


def test_vendored(backend, cffi, tmp_path):
    """The folder copied into another package, under another name, works there, alone and as a command."""
    copy = tmp_path / "app" / "vendor" / "passing"
    shutil.copytree(
        PACKAGE, copy, ignore=shutil.ignore_patterns("__pycache__", *(() if backend == "api" else ("_api.*",)))
    )
    for folder in (copy.parent, copy.parent.parent):
        (folder / "__init__.py").touch()
    place = environment(PYTHONPATH=f"{tmp_path}{os.pathsep}{cffi}", FDPASS_CFFI_BACKEND=backend)
    code = """if True:
        import os, socket, sys
        from app.vendor.passing import BACKEND, recv_message, sendall_fds
        a, b = socket.socketpair()
        sendall_fds(a, b"x", [a])
        with recv_message(b, 1, 1) as message:
            print(BACKEND, os.path.sameopenfile(message.fds[0].fileno(), a.fileno()), "fdpass_cffi" in sys.modules)
    """
    assert f"{backend} True False" == run(sys.executable, "-c", code, cwd=tmp_path, env=place).strip()
    assert (backend, 3) == demo_of(run(sys.executable, "-m", "app.vendor.passing", "demo", cwd=tmp_path, env=place))


def test_from_zip(pure, cffi, tmp_path):
    """The wheel works without being installed or unpacked, from the zip file that it is."""
    place = environment(PYTHONPATH=f"{pure}{os.pathsep}{cffi}")
    where = run(sys.executable, "-c", "import fdpass_cffi; print(fdpass_cffi.__file__)", cwd=tmp_path, env=place)
    assert f"{pure}/fdpass_cffi/__init__.py" == where.strip()
    assert ("abi", 3) == demo_of(run(sys.executable, "-m", "fdpass_cffi", "demo", cwd=tmp_path, env=place))
