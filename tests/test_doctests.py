"""Every public name has an example in its docstring, and every example in the package does what it says."""

from __future__ import annotations

import doctest
import inspect
import pkgutil
import re
import types

import pytest
from conftest import PACKAGE, load
from kernel import has_peer_pidfd, takes

MODULES = sorted(module.name for module in pkgutil.iter_modules([str(PACKAGE)]) if not module.name.startswith("__"))
OLD = {  # what an older kernel lacks, by the object whose example needs it
    "creds.peer_pidfd": not has_peer_pidfd(),
    "creds.pass_pidfd": not takes("SO_PASSPIDFD"),
    "creds.pass_rights": not takes("SO_PASSRIGHTS"),
}


# What is still without: a name goes when its docstring has an example.
WITHOUT = {
    "Channel.connect", "Channel.close", "sendmsg_afalg",
}  # fmt: skip


def examples(fdpass, name):
    """The examples of one module, which know every public name."""
    module = getattr(fdpass, name)
    finder = doctest.DocTestFinder(exclude_empty=False)
    names = {public: getattr(fdpass, public) for public in fdpass.__all__}
    found = finder.find(module, name, module=module, globs={**names, **vars(module)})
    return [test for test in found if test.examples and not OLD.get(test.name)]


@pytest.mark.parametrize("name", [name for name in MODULES if name not in {"_api", "_abi"}])
def test_the_examples_of_a_module_run(fdpass, name):
    """Each line gives what the docstring shows, on each backend."""
    runner = doctest.DocTestRunner(verbose=False, optionflags=doctest.NORMALIZE_WHITESPACE)
    report = []
    for test in examples(fdpass, name):
        runner.run(test, out=report.append)
    assert "" == "".join(report)
    assert 0 == runner.failures


def public_objects():
    """(name, object) of all that the package exports and can have a docstring, and of the methods of its classes."""
    fdpass = load("abi")
    for name in fdpass.__all__:
        value = getattr(fdpass, name)
        if isinstance(value, (type, types.FunctionType)):
            yield name, value
        if isinstance(value, type) and not issubclass(value, tuple):  # whose fields are properties on PyPy
            for method, member in vars(value).items():
                if not method.startswith("_") and (inspect.isroutine(member) or isinstance(member, property)):
                    yield f"{name}.{method}", member


def shows(name, value, above):
    """Whether an object has an example, or its class shows it in use."""
    text = inspect.getdoc(value) or ""
    used = rf"(>>>|\.\.\.) .*\.{name.partition('.')[2]}\b"
    return ">>>" in text or (above is not None and re.search(used, inspect.getdoc(above) or "") is not None)


@pytest.mark.parametrize("name", [name for name, _ in public_objects()])
def test_a_public_name_has_an_example(name):
    """Its docstring shows it in use; a method's may be in its class's."""
    named = dict(public_objects())
    owner, _, method = name.partition(".")
    assert (name not in WITHOUT) is shows(name, named[name], named[owner] if method else None)


def test_an_example_that_is_wrong_is_found(fdpass, monkeypatch):
    """The check can fail."""
    monkeypatch.setattr(fdpass.creds.peer_credentials, "__doc__", ">>> 1 + 1\n3\n")
    with pytest.raises(AssertionError):
        test_the_examples_of_a_module_run(fdpass, "creds")
