"""The `fdpass` command, run as a user runs it: what it prints, its exit status, and what it leaves behind.

Each run has a temporary directory of its own, which must be empty afterwards, and warnings as errors. A process
is known to be gone when the pipe that it writes to has come to its end.
"""

from __future__ import annotations

import errno
import os
import re
import resource
import signal
import socket
import subprocess
import sys
from pathlib import Path

import pytest
from conftest import PACKAGE
from kernel import room_for

SECONDS = 120  # after which a run counts as hung; an emulated machine is slow
ROW = re.compile(
    r"(?P<name>\S+) +(?P<server>\d+) +(?P<client>\d+) +(?P<there>\d+:\d+/\d+) +(?P<here>\d+:\d+/\d+) +(?P<text>.+)"
)


class Command:
    """`fdpass` on one backend, in a temporary directory of its own."""

    def __init__(self, backend: str, folder: Path) -> None:
        self.tmp = folder / "tmp"
        self.tmp.mkdir()
        path = os.pathsep.join(filter(None, [str(PACKAGE.parent), os.environ.get("PYTHONPATH")]))
        self.settings = {
            "env": {**os.environ, "FDPASS_CFFI_BACKEND": backend, "PYTHONPATH": path, "TMPDIR": str(self.tmp)},
            "cwd": folder,
            "text": True,
            "encoding": "utf-8",
            "stdin": subprocess.DEVNULL,
        }
        self.settings["env"].update({"PYTHONIOENCODING": "utf-8", "LC_ALL": "C.UTF-8"})
        self.python = [sys.executable, "-W", "error"]

    def __call__(self, *arguments, **settings):
        """Run it to its end."""
        settings = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "timeout": SECONDS, **settings}
        settings = {**self.settings, **settings}
        return subprocess.run([*self.python, "-m", "fdpass_cffi", *arguments], check=False, **settings)

    def start(self, patch: str, *arguments, **settings):
        """Start it with something replaced in it: `patch` sees the modules demo, os, signal."""
        code = f"import os, signal, sys\nfrom fdpass_cffi import cli, demo\n{patch}\nsys.exit(cli.main({arguments!r}))"
        settings = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, **settings}
        return subprocess.Popen([*self.python, "-c", code], **{**self.settings, **settings})

    def left(self):
        """What is left in the temporary directory."""
        return sorted(os.listdir(self.tmp))


@pytest.fixture
def command(backend, tmp_path):
    return Command(backend, tmp_path)


def rows(output: str):
    """The table's rows, by file name."""
    return {row["name"]: row for row in map(ROW.fullmatch, output.splitlines()) if row}


def identity(path) -> str:
    """The device and inode of a file as the table shows them, asked by name."""
    status = os.stat(path)
    return f"{os.major(status.st_dev)}:{os.minor(status.st_dev)}/{status.st_ino}"


def process_ids(output: str):
    return {who: int(pid) for who, pid in re.findall(r"^(client|server): process (\d+)", output, re.MULTILINE)}


def test_demo_alone(command, backend):
    """Without arguments it makes three files, and shows each descriptor's numbers, file and first line."""
    done = command("demo")
    assert (0, "") == (done.returncode, done.stderr)
    table = rows(done.stdout)
    assert ["numbers.txt", "poem.txt", "umlauts.txt"] == sorted(os.path.basename(name) for name in table)
    assert all(row["there"] == row["here"] for row in table.values())
    texts = {"The descriptor is passed,", "1 1 2 3 5 8 13 21 34", "Grüße aus dem anderen Prozess"}
    assert texts == {row["text"] for row in table.values()}
    assert f"backend {backend}\n" in done.stdout
    assert "\nserver: opened 3 of 3\n" in done.stdout
    assert [] == command.left()


def test_demo_is_two_processes(command):
    """Client and server are two processes, and the descriptor has a number of its own in each."""
    done = command("demo")
    assert 2 == len(set(process_ids(done.stdout).values()))
    assert any(row["server"] != row["client"] for row in rows(done.stdout).values())


def test_demo_socket_is_private(command):
    """The socket lies in a new folder that only its owner may enter."""
    patch = """if True:
        client = demo.client
        demo.client = lambda sock, path, *rest: (
            print(oct(os.stat(os.path.dirname(path)).st_mode)) or client(sock, path, *rest)
        )
    """
    child = command.start(patch, "demo")
    output, _ = child.communicate(timeout=SECONDS)
    assert "0o40700" == output.splitlines()[0]


def test_demo_with_files(command, tmp_path):
    """The files given as arguments arrive, and are what the file system has under these names."""
    for i in range(3):
        (tmp_path / f"file{i}").write_text(f"line {i}\nmore\n")
    absolute = str(tmp_path / "file1")
    done = command("demo", "file0", absolute, f"../{tmp_path.name}/file2", "file0")
    table = rows(done.stdout)
    for i, name in enumerate(("file0", f"...{absolute[-37:]}", f"../{tmp_path.name}/file2")):
        file = identity(tmp_path / f"file{i}")
        assert (file, file, f"line {i}") == table[name].group("there", "here", "text")
    assert (0, "") == (done.returncode, done.stderr)


def test_demo_long_name(command, tmp_path):
    """Of a long name the table shows the end."""
    name = "x" * 100 + "-the-end"
    (tmp_path / name).write_text("content")
    assert [f"...{name[-37:]}"] == list(rows(command("demo", name).stdout))


def test_demo_missing_files(command, tmp_path):
    """Each file that cannot be opened is named with the reason, the others arrive, and the status is 1."""
    (tmp_path / "here").write_text("I am here")
    with socket.socket(socket.AF_UNIX) as sock:
        sock.bind(str(tmp_path / "sock"))
    done = command("demo", "missing", "here", "", "here/below", "sock", "loop" * 2000)
    assert 1 == done.returncode
    reasons = [("missing", errno.ENOENT), ("''", errno.ENOENT), ("here/below", errno.ENOTDIR), ("sock", errno.ENXIO)]
    reasons.append(("loop" * 2000, errno.ENAMETOOLONG))
    assert [f"fdpass: demo: {name}: {os.strerror(code)}" for name, code in reasons] == done.stderr.splitlines()
    assert ["here"] == list(rows(done.stdout))
    assert "server: opened 1 of 6" in done.stdout


def test_demo_nothing_opens(command):
    """If none of the files can be opened, no descriptor passes, and that is no other error."""
    done = command("demo", "missing")
    assert (1, "fdpass: demo: missing: No such file or directory\n") == (done.returncode, done.stderr)


def test_demo_many_files(command, tmp_path):
    """More files than one message can carry arrive, each the right one."""
    names = [f"f{i:03}" for i in range(600)]
    for name in names:
        (tmp_path / name).write_text(f"this is {name}")
    done = command("demo", *names)
    table = rows(done.stdout)
    assert 0 == done.returncode
    assert {name: f"this is {name}" for name in names} == {name: row["text"] for name, row in table.items()}
    assert {name: identity(tmp_path / name) for name in names} == {name: row["here"] for name, row in table.items()}
    assert done.stdout.count("\nserver: opened ") > 1


def test_demo_few_descriptors(command, tmp_path):
    """With hardly any descriptors allowed, they go in smaller messages."""
    names = [f"f{i}" for i in range(100)]
    for name in names:
        (tmp_path / name).write_text(name)

    def limited():
        resource.setrlimit(resource.RLIMIT_NOFILE, (32, 32))

    done = command("demo", *names, preexec_fn=limited)
    assert (0, "") == (done.returncode, done.stderr)
    assert set(names) == rows(done.stdout).keys()


def test_demo_special_files(command, tmp_path):
    """What is no plain file passes as well, and nobody waits for it."""
    os.mkfifo(tmp_path / "fifo")
    (tmp_path / "folder").mkdir()
    (tmp_path / "empty").touch()
    done = command("demo", "fifo", "folder", "empty", "/dev/null", "/dev/zero")
    texts = {name: row["text"] for name, row in rows(done.stdout).items()}
    assert "\\x00" * 14 + "\\..." == texts.pop("/dev/zero")
    expected = {"fifo": "(empty)", "folder": "(directory)", "empty": "(empty)", "/dev/null": "(empty)"}
    assert expected == texts
    assert 0 == done.returncode


def test_demo_fifo_with_a_silent_writer(command, tmp_path):
    """A FIFO that somebody has open for writing, and writes nothing to, is not waited for."""
    os.mkfifo(tmp_path / "fifo")
    writer = os.open(tmp_path / "fifo", os.O_RDWR)
    try:
        done = command("demo", "fifo")
    finally:
        os.close(writer)
    assert "(nothing to read yet)" == rows(done.stdout)["fifo"]["text"]


def test_demo_hostile_text(command, tmp_path):
    """Control characters, half characters and long lines in contents and names do not reach the terminal."""
    (tmp_path / "content").write_bytes(b"\x1b[31mred\x07\xff\xe2\x80\xae" + "ü".encode() * 100)
    name = os.fsdecode(b"na\xff\x1bme")
    (tmp_path / name).write_text("x")
    done = command("demo", "content", name, "lost\nline")
    table = rows(done.stdout)
    text = r"\x1b[31mred\x07\xff\u202e" + "ü" * 100
    assert f"{text[:57]}..." == table["content"]["text"]
    assert "x" == table[r"na\xff\x1bme"]["text"]
    assert r"fdpass: demo: lost\nline: No such file or directory" == done.stderr.strip()


def test_demo_ascii_terminal(command, tmp_path):
    """Where the terminal has no letter for it, an escape is printed."""
    (tmp_path / "file").write_text("größer", encoding="utf-8")
    command.settings["env"]["PYTHONIOENCODING"] = "ascii"
    assert r"gr\xf6\xdfer" == rows(command("demo", "file").stdout)["file"]["text"]


def test_demo_long_temporary_directory(command, tmp_path):
    """A temporary directory whose path is too long for a socket is passed over."""
    long = tmp_path / ("d" * 100)
    long.mkdir()
    command.settings["env"]["TMPDIR"] = str(long)
    done = command("demo")
    assert (0, "") == (done.returncode, done.stderr)
    assert [] == os.listdir(long)


def test_demo_server_killed(command):
    """A server that is killed in the middle is reported, and nothing is left."""
    child = command.start("demo.open_one = lambda *_: os.kill(os.getpid(), signal.SIGKILL)", "demo")
    _, errors = child.communicate(timeout=SECONDS)
    assert (1, "fdpass: demo: the server ended before it had answered\n") == (child.returncode, errors)
    assert [] == command.left()


def test_demo_server_fails(command):
    """A server that fails says why, and nothing is left."""
    child = command.start("def open_one(*_): raise RuntimeError('no luck')\ndemo.open_one = open_one", "demo")
    _, errors = child.communicate(timeout=SECONDS)
    assert 1 == child.returncode
    assert "fdpass: demo: server: no luck" == errors.splitlines()[0]
    assert [] == command.left()


def test_demo_server_hangs(command):
    """A server that never answers is waited for until patience ends, and then ended."""
    patch = "demo.open_one = lambda *_: os.kill(os.getpid(), signal.SIGSTOP)\ndemo.run.__defaults__ = (0.2,)"
    child = command.start(patch, "demo")
    _, errors = child.communicate(timeout=SECONDS)
    assert (1, "fdpass: demo: the server did not answer within 0.2 s\n") == (child.returncode, errors)
    assert [] == command.left()


def test_demo_client_killed(command):
    """When the client is killed, the server ends, and it is the server that cleans up."""
    child = command.start("demo.take = lambda *_: os.kill(os.getpid(), signal.SIGKILL)", "demo")
    child.communicate(timeout=SECONDS)
    assert -signal.SIGKILL == child.returncode
    assert [] == command.left()


def test_demo_client_never_comes(command):
    """When no client connects, the server's patience ends too, and it cleans up."""
    patch = "demo.client = lambda *_: os.kill(os.getpid(), signal.SIGKILL)\ndemo.run.__defaults__ = (0.2,)"
    child = command.start(patch, "demo")
    _, errors = child.communicate(timeout=SECONDS)
    assert "fdpass: demo: server: timed out\n" == errors
    assert [] == command.left()


@pytest.mark.parametrize("where", ["the server", "the client"])
def test_demo_interrupted(command, where):
    """Ctrl-C, which both processes get, ends them at once: status 130, no traceback, nothing left."""
    stuck = "lambda *_: os.kill(os.getpid(), signal.SIGSTOP)" if where == "the server" else "lambda *_: signal.pause()"
    patch = f"demo.{'open_one' if where == 'the server' else 'take'} = {stuck}"
    child = command.start(patch, "demo", start_new_session=True)
    while not child.stdout.readline().startswith("server: process"):
        assert child.poll() is None
    os.killpg(child.pid, signal.SIGINT)
    _, errors = child.communicate(timeout=SECONDS)
    assert (130, "") == (child.returncode, errors)
    assert [] == command.left()


def test_demo_interrupted_early(command):
    """Ctrl-C while the server is being started waits until it is known who is to be stopped."""
    patch = "start = demo.start\ndemo.start = lambda *rest: (start(*rest), os.kill(os.getpid(), signal.SIGINT))[0]"
    child = command.start(patch, "demo")
    output, errors = child.communicate(timeout=SECONDS)
    assert (130, "", "") == (child.returncode, output, errors)
    assert [] == command.left()


def test_demo_ignored_children(command):
    """It works where SIGCHLD is ignored, so that nobody can wait for the server's status."""
    child = command.start("signal.signal(signal.SIGCHLD, signal.SIG_IGN)", "demo")
    _, errors = child.communicate(timeout=SECONDS)
    assert (0, "") == (child.returncode, errors)
    assert [] == command.left()


def test_output_unread(command):
    """When the reader of its output has gone, it ends without a traceback, as `fdpass demo | true` does."""
    reading, writing = os.pipe()
    os.close(reading)
    done = command("demo", stdout=writing)
    os.close(writing)
    assert (141, "") == (done.returncode, done.stderr)
    assert [] == command.left()


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="needs the device /dev/full, which Linux has")
def test_output_full(command):
    """Output that cannot be written is an error that says why."""
    with open("/dev/full", "w") as full:
        done = command("info", stdout=full)
    assert (1, f"fdpass: [Errno {errno.ENOSPC}] {os.strerror(errno.ENOSPC)}\n") == (done.returncode, done.stderr)


def test_output_closed(command):
    """Started with all three standard streams closed, it still does its work."""

    def closed():
        os.closerange(0, 3)

    assert 0 == command("demo", preexec_fn=closed).returncode


def test_wrong_arguments(command):
    """No command, or an unknown one, is status 2 and the usage."""
    serve = "serve", "socket", "folder"
    for arguments in (
        (), ("dance",), ("demo", "--fast"), ("info", "x"), (*serve, "--clients", "0"), (*serve, "--requests", "0"),
        (*serve, "--uid", "-1"), (*serve, "--seconds", "-1"), (*serve, "--seconds", "nan"),
    ):  # fmt: skip
        done = command(*arguments)
        assert (2, "") == (done.returncode, done.stdout)
        assert "usage: fdpass" in done.stderr


def test_version(command, fdpass):
    """--version prints the package's."""
    assert f"fdpass_cffi {fdpass.__version__}\n" == command("--version").stdout


def test_script(fdpass):
    """The installed `fdpass` is the function that `python -m` calls."""
    text = (Path(__file__).parent.parent / "pyproject.toml").read_text(encoding="utf-8")
    assert 'fdpass = "fdpass_cffi.cli:main"' in text
    assert callable(fdpass.cli.main)


def test_wrong_file_arrives(fdpass, tmp_path):
    """A descriptor of another file than the server opened is an error, not a row like the others."""
    (tmp_path / "one").touch()
    (tmp_path / "other").touch()
    outcome = fdpass.demo.Outcome()
    with fdpass.OwnedFd(os.open(tmp_path / "one", os.O_RDONLY)) as one:
        fdpass.demo.take(["other"], [{"fd": 9, "identity": identity(tmp_path / "other")}], [one], outcome)
    assert [("other", "another file arrived in its place")] == outcome.missing


def test_wrong_number_arrives(fdpass):
    """Fewer descriptors, or fewer records, than the names ask for end the exchange."""
    owned = fdpass.OwnedFd(os.dup(0))
    for records, fds in (([{"fd": 9}], []), ([], []), ([{"error": "no"}], [owned])):
        with pytest.raises(fdpass.demo.DemoError, match="for 1 names"):
            fdpass.demo.take(["name"], records, fds, fdpass.demo.Outcome())
    owned.close()


def test_line_in_pieces(fdpass):
    """A line that arrives in pieces, its descriptors too, is put together in order."""
    a, b = socket.socketpair()
    fds = []
    with a, b, open(os.devnull) as null:
        fdpass.send_fds(a, [b"[1,"], [null, a])
        fdpass.send_fds(a, [b"2]\n"], [b])
        assert [1, 2] == fdpass.demo.receive_line(b, 3, fds)
        assert list(map(file_of, (null, a, b))) == list(map(file_of, fds))
    for owned in fds:
        owned.close()


def file_of(item):
    return os.fstat(item.fileno()).st_ino


def test_line_with_too_many_descriptors(fdpass):
    """More descriptors than asked for end the exchange, and are closed."""
    a, b = socket.socketpair()
    with a, b:
        fdpass.send_fds(a, [b"[]\n"], [0, 0, 0])
        with pytest.raises(fdpass.TruncatedError):
            fdpass.demo.receive_line(b, 2, [])


def test_line_cut_short(fdpass):
    """A connection that ends in the middle of a line ends the exchange; between lines it is the end."""
    a, b = socket.socketpair()
    with b:
        with a:
            a.sendall(b"[1]\n")
            assert [1] == fdpass.demo.receive_line(b, 0, [])
            a.sendall(b"[1")
        with pytest.raises(fdpass.demo.DemoError, match="in the middle"):
            fdpass.demo.receive_line(b, 0, [])
        assert None is fdpass.demo.receive_line(b, 0, [])


def test_line_too_long(fdpass, monkeypatch):
    """A line without end is not believed."""
    monkeypatch.setattr(fdpass.demo, "LONGEST_LINE", 10)
    a, b = socket.socketpair()
    with a, b:
        a.sendall(b"x" * 11)
        with pytest.raises(fdpass.demo.DemoError, match="longer than 10 bytes"):
            fdpass.demo.receive_line(b, 0, [])


def test_info_command(command, fdpass, backend):
    """`info` prints every section with the version and the backend."""
    done = command("info")
    assert (0, "") == (done.returncode, done.stderr)
    assert re.search(rf"^  fdpass_cffi +{re.escape(fdpass.__version__)}, backend {backend}$", done.stdout, re.MULTILINE)
    titles = re.findall(r"^(\w+).*:$", done.stdout, re.MULTILINE)
    assert ["software", "layout", "limits", "kernel"] == titles


def test_info_leaves_nothing(fdpass):
    """Trying what the kernel can do leaves no descriptor open and the limits as they were."""
    before = resource.getrlimit(resource.RLIMIT_NOFILE)
    fdpass.info.sections()
    assert before == resource.getrlimit(resource.RLIMIT_NOFILE)


def test_info_layout(fdpass):
    """The structs it describes have the kernel's fields, and the macros' values are those of `socket`."""
    layout = fdpass.info.layout()
    fields = dict(re.findall(r"(\w+) (\d+):\d+", layout["struct msghdr"]))
    names = ["msg_name", "msg_namelen", "msg_iov", "msg_iovlen", "msg_control", "msg_controllen", "msg_flags"]
    assert names == list(fields)
    assert sorted(fields.values(), key=int) == list(fields.values())
    expected = f"CMSG_LEN {socket.CMSG_LEN(4)}, CMSG_SPACE {socket.CMSG_SPACE(4)}"
    assert expected == layout["1 descriptor"]


def test_info_limits(fdpass):
    """The number of descriptors a message takes is the last one that `socket` can send."""
    limits = fdpass.info.limits()
    most = int(re.match(r"\d+", limits["descriptors a message"])[0])
    a, b = socket.socketpair()
    with a, b:
        assert 1 == socket.send_fds(a, [b"x"], [0] * most)
        b.recv(1)
        with pytest.raises(OSError):
            socket.send_fds(a, [b"x"], [0] * (most + 1))
    soft = resource.getrlimit(resource.RLIMIT_NOFILE)[0]
    assert f"soft {soft}," in limits["RLIMIT_NOFILE"]


def test_info_in_flight(fdpass, monkeypatch):
    """Where the kernel refuses descriptors in flight, the limit is named; another error is not mistaken for it."""

    def refuse(code):
        def send_fds(*_):
            raise OSError(code, os.strerror(code))

        monkeypatch.setattr(fdpass.info, "send_fds", send_fds)
        return fdpass.info.in_flight()

    soft = resource.getrlimit(resource.RLIMIT_NOFILE)[0]
    assert refuse(errno.ETOOMANYREFS).startswith(f"about {soft},")
    assert "unknown (EPERM)" == refuse(errno.EPERM)


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can give its privileges up")
def test_info_in_flight_unprivileged(command):
    """A user without privileges is told that RLIMIT_NOFILE bounds the descriptors in flight."""
    if sys.platform != "linux":
        pytest.skip("only Linux counts descriptors in flight for each user")

    patch = """if True:
        from fdpass_cffi import info
        in_flight = info.in_flight
        info.in_flight = lambda: (os.setgroups([]), os.setgid(65534), os.setuid(65534)) and in_flight()
    """  # only then, since nobody else may be allowed to read the interpreter's own modules
    done, _ = command.start(patch, "info").communicate(timeout=SECONDS)
    assert "(then ETOOMANYREFS), for all of this user" in done


def test_info_kernel_without(fdpass, monkeypatch):
    """An option that the kernel or the platform lacks is told as such, with the reason."""
    monkeypatch.setitem(fdpass.info.CONSTANTS, "SO_PASSRIGHTS", 9999)
    monkeypatch.delitem(fdpass.info.CONSTANTS, "SO_PASSCRED", raising=False)
    monkeypatch.setitem(fdpass.info.CONSTANTS, "MSG_CMSG_CLOEXEC", 0)
    kernel = fdpass.info.kernel()
    assert f"no: ENOPROTOOPT, {os.strerror(errno.ENOPROTOOPT)}" == kernel["SO_PASSRIGHTS"]
    assert "no: this platform has no SO_PASSCRED" == kernel["SO_PASSCRED"]
    assert "no: the flag was taken, and ignored" == kernel["MSG_CMSG_CLOEXEC"]


@pytest.mark.parametrize("free", range(4))
def test_info_full_table(fdpass, free):
    """With next to no descriptor left it tells all that it can; what cannot be tried then is unknown, not missing."""
    whole = fdpass.info.sections()
    with room_for(free):
        some = fdpass.info.sections()
    assert {title: list(section) for title, section in whole.items()} == {title: list(some[title]) for title in some}
    assert whole["software"] == some["software"]
    for name, value in some["kernel"].items():
        assert value == whole["kernel"][name] or value.startswith("unknown: EMFILE, "), name
    if free < 2:
        assert some["limits"]["descriptors a message"].startswith("unknown: EMFILE, ")


@pytest.mark.skipif(sys.platform != "linux", reason="asks Linux for what it has")
def test_info_kernel(fdpass):
    """What every Linux has is found, and pidfds where the interpreter can open one."""
    kernel = fdpass.info.kernel()
    assert ("yes", "yes") == (kernel["SO_PASSCRED"], kernel["MSG_CMSG_CLOEXEC"])
    assert hasattr(os, "pidfd_open") == ("unknown" not in kernel["pidfd"])
