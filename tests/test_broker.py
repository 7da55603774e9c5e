"""`fdpass serve`, `cat` and `exec`, run as a user runs them; the clients that misbehave are sockets of the test.

A broker is known to listen when it says so on stderr (--verbose), and known to be gone when it has been waited for.
Whatever a client did to it, at the end it must still serve another one.
"""

from __future__ import annotations

import errno
import json
import os
import signal
import socket
import stat
import struct
import subprocess
import sys
import textwrap
import threading
from contextlib import contextmanager, suppress
from pathlib import Path

import pytest
from conftest import PACKAGE

SECONDS = 120  # after which a run counts as hung
NOBODY = 65534


class Broker:
    """`fdpass serve` in a temporary directory, with a few files to serve; and its clients."""

    def __init__(self, backend: str, folder: Path) -> None:
        self.folder = folder
        self.path = str(folder / "socket")
        self.served = folder / "served"
        (self.served / "sub").mkdir(parents=True)
        (self.served / "a").write_text("content of a\n")
        (self.served / "sub" / "b").write_text("content of b\n")
        (folder / "secret").write_text("secret\n")
        path = os.pathsep.join(filter(None, [str(PACKAGE.parent), os.environ.get("PYTHONPATH")]))
        settings = {"FDPASS_CFFI_BACKEND": backend, "PYTHONPATH": path, "PYTHONIOENCODING": "utf-8"}
        self.env = {**os.environ, **settings, "LC_ALL": "C.UTF-8"}
        self.process = None

    def command(self, *arguments):
        return [sys.executable, "-W", "error", "-m", "fdpass_cffi", *arguments]

    def start(self, *options, limit=1000):
        """Start it with that RLIMIT_NOFILE, and wait until it listens."""
        command = ["sh", "-c", f'ulimit -n {limit} && exec "$@"', "sh"]
        command += self.command("serve", self.path, str(self.served), "--verbose", *options)
        null = subprocess.DEVNULL
        self.process = subprocess.Popen(command, env=self.env, stdin=null, stdout=null, stderr=subprocess.PIPE)
        line = self.process.stderr.readline()
        assert b"fdpass: serve: listening at " + self.path.encode() + b"\n" == line
        self.log = []
        self.reader = threading.Thread(target=self.log.extend, args=(self.process.stderr,))  # else the pipe fills up
        self.reader.start()
        return self

    def end(self):
        """SIGTERM; its exit status, and what it logged."""
        if self.process is None:
            return None
        process, self.process = self.process, None
        process.terminate()
        try:
            process.wait(SECONDS)
        finally:
            process.kill()
            process.wait()
            self.reader.join()
            process.stderr.close()
        return process.returncode, b"".join(self.log).decode()

    def run(self, *arguments, **settings):
        """Run `fdpass` to its end."""
        settings = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "timeout": SECONDS, **settings}
        settings = {"stdin": subprocess.DEVNULL, "env": self.env, **settings}
        return subprocess.run(self.command(*arguments), check=False, **settings)

    def cat(self, *names, **settings):
        return self.run("cat", self.path, *names, **settings)

    def exec(self, *arguments, **settings):
        return self.run("exec", self.path, *arguments, **settings)

    def connect(self):
        sock = socket.socket(socket.AF_UNIX)
        sock.settimeout(SECONDS)
        try:
            sock.connect(self.path)
        except OSError:
            sock.close()
            raise
        return sock

    def well(self):
        """It still serves, ends cleanly, and leaves no socket."""
        done = self.cat("a")
        assert (0, b"content of a\n", b"") == (done.returncode, done.stdout, done.stderr)
        status, log = self.end()
        assert (0, False) == (status, os.path.exists(self.path))
        assert "Traceback" not in log
        return log


@pytest.fixture
def broker(backend, tmp_path):
    made = Broker(backend, tmp_path)
    yield made
    made.end()


def frame(data: bytes) -> bytes:
    return struct.pack(">II", len(data), 0) + data


def until_closed(sock) -> bytes:
    """All that comes until the broker closes."""
    data = b""
    try:
        while True:
            piece = sock.recv(65536)
            if not piece:
                break
            data += piece
    except ConnectionResetError:
        pass
    return data


# cat


def test_cat(broker):
    """The files come out in the order in which they were asked for, and the broker tells of each."""
    broker.start()
    done = broker.cat("sub/b", "a", "./a", "sub//b")
    texts = b"content of b\ncontent of a\ncontent of a\ncontent of b\n"
    assert (0, texts, b"") == (done.returncode, done.stdout, done.stderr)
    log = broker.well()
    assert f"of uid {os.getuid()}: sub/b: sent\n" in log
    assert log.endswith("fdpass: serve: SIGTERM: ending\n")


def test_cat_large(broker):
    """A file of many reads arrives whole."""
    content = os.urandom(3_000_001)
    (broker.served / "large").write_bytes(content)
    broker.start()
    done = broker.cat("large")
    assert (0, b"") == (done.returncode, done.stderr)
    assert content == done.stdout
    broker.well()


def test_cat_missing(broker):
    """A name that cannot be opened is told with the broker's reason, the others are copied, and the status is 1."""
    broker.start()
    done = broker.cat("missing", "a", "\udcff\x1b[2J")
    assert (1, b"content of a\n") == (done.returncode, done.stdout)
    lines = ["fdpass: cat: missing: ENOENT: No such file or directory"]
    lines += [r"fdpass: cat: \xff\x1b[2J: ENOENT: No such file or directory"]
    assert lines == done.stderr.decode().splitlines()
    assert r"\xff\x1b[2J: No such file" in broker.well()


def test_names_of_any_bytes(broker):
    """A name that is no text is opened all the same."""
    (broker.served / "\udcff\udc80 \u00fc:").write_text("found")
    broker.start()
    assert b"found" == broker.cat("\udcff\udc80 \u00fc:").stdout
    broker.well()


def test_cat_in_a_pipeline(broker):
    """When its reader goes away, cat ends in silence, as a shell counts death by SIGPIPE."""
    (broker.served / "large").write_bytes(b"line\n" * 1_000_000)
    broker.start()
    command = broker.command("cat", broker.path, "large", "large")
    pipe = subprocess.PIPE
    with subprocess.Popen(command, env=broker.env, stdout=pipe, stderr=pipe) as cat:
        head = cat.stdout.readline()
        cat.stdout.close()
        complaint = cat.stderr.read()
        assert (b"line\n", b"", 141) == (head, complaint, cat.wait(SECONDS))
    broker.well()


def test_cat_to_a_full_device(broker):
    """What cannot be written is an error with a reason."""
    broker.start()
    with open("/dev/full", "wb") as full:
        done = broker.cat("a", stdout=full)
    assert (1, True) == (done.returncode, b"No space left" in done.stderr)
    broker.well()


@pytest.mark.parametrize("arguments", [["cat"], ["exec"]])
def test_no_broker(broker, arguments):
    """Without a broker, the client says so for each name, with status 1."""
    done = broker.run(*arguments, broker.path, "a", "--", "true")
    assert 1 == done.returncode
    assert f"fdpass: {arguments[0]}: a: {broker.path}: No such file or directory" in done.stderr.decode()


def test_more_names_than_requests(broker):
    """Where the broker ends a connection after some requests, cat goes on over another one."""
    broker.start("--requests", "3")
    done = broker.cat(*["a"] * 10)
    assert (0, b"content of a\n" * 10, b"") == (done.returncode, done.stdout, done.stderr)
    assert broker.well().count("has had all its requests") == 3


# exec

REPORT = """
import fcntl, json, os, sys
fds = {}
for fd in range(0, 64):
    try:
        mode = fcntl.fcntl(fd, fcntl.F_GETFL) & (os.O_WRONLY | os.O_RDWR)
        fds[fd] = [os.read(fd, 100).decode() if fd > 2 else "", mode]
    except OSError:
        pass
own = os.getpid() == int(os.environ["LISTEN_PID"])
listen = [os.environ[f"LISTEN_{name}"] for name in ("FDS", "FDNAMES")]
print(json.dumps([fds, own, listen, sys.argv[1:]]))
"""


def test_exec(broker):
    """The command has exactly the descriptors asked for, for reading, and is told of them; one it inherited is gone."""
    (broker.served / "c:d").write_text("content of c\n")
    broker.start()
    reading, writing = os.pipe()
    try:
        for fd in (reading, writing):
            os.set_inheritable(fd, True)
        script = broker.folder / "report.py"
        script.write_text(REPORT)
        command = [sys.executable, "-S", str(script), "{}", "x={}", "-", "--", "{}"]
        done = broker.exec("sub/b", "a", "c:d", "a", "--", *command, pass_fds=(reading, writing))
    finally:
        os.close(reading)
        os.close(writing)
    assert (0, b"") == (done.returncode, done.stderr)
    texts = ["content of b\n", "content of a\n", "content of c\n", "content of a\n"]
    report = json.loads(done.stdout)
    assert {str(fd): [text, os.O_RDONLY] for fd, text in enumerate(texts, 3)} == {
        fd: found for fd, found in report[0].items() if int(fd) > 2
    }
    assert {"0", "1", "2"} <= set(report[0])
    assert [True, ["4", "sub/b:a:c_d:a"]] == report[1:3]
    assert ["/dev/fd/3", "x=/dev/fd/4", "-", "--", "/dev/fd/5"] == report[3]
    broker.well()


def test_exec_with_nothing_open(broker):
    """Where 0, 1 and 2 were closed, the command gets its descriptors from 3 on all the same."""
    broker.start()
    target = broker.folder / "out"
    closed = "import os, sys\nos.closerange(0, 3)\nos.execv(sys.argv[1], sys.argv[1:])"
    arguments = broker.command("exec", broker.path, "a", "sub/b", "--", "sh", "-c", f"cat <&4 <&3 >{target}")
    subprocess.run([sys.executable, "-c", closed, *arguments], env=broker.env, check=True, timeout=SECONDS)
    assert "content of a\n" == target.read_text()
    broker.well()


def test_exec_signals(broker):
    """The command has SIGPIPE as a shell's commands have it."""
    broker.start()
    ignored = "grep SigIgn /proc/self/status"
    mask = int(broker.exec("a", "--", "sh", "-c", ignored).stdout.split()[1], 16)
    assert 0 == mask & 1 << signal.SIGPIPE - 1  # others may be ignored from before, as by nohup(1)
    broker.well()


def test_exec_status(broker):
    """Its exit status is the command's, or a shell's for a command that cannot be run."""
    broker.start()
    (broker.folder / "no-program").write_text("")
    assert 7 == broker.exec("a", "--", "sh", "-c", "exit 7").returncode
    done = broker.exec("a", "--", "no-such-command")
    assert (127, b"fdpass: exec: no-such-command: No such file or directory\n") == (done.returncode, done.stderr)
    assert 126 == broker.exec("a", "--", str(broker.folder / "no-program")).returncode
    broker.well()


def test_exec_missing(broker):
    """If any name cannot be opened the command is not run, each such name is told, and the status is 1."""
    broker.start()
    done = broker.exec("missing", "a", "../secret", "--", "echo", "ran")
    assert (1, b"") == (done.returncode, done.stdout)
    assert [b"fdpass: exec: missing: ENOENT", b"fdpass: exec: ../secret: EACCES"] == [
        b":".join(line.split(b":")[:4]) for line in done.stderr.splitlines()
    ]
    broker.well()


def test_exec_environment(fdpass, monkeypatch):
    """No LISTEN_ variable but the three is handed on, and of a long name the end, as sd_listen_fds(3) allows."""
    for name in ("LISTEN_PID", "LISTEN_PIDFDID", "LISTEN_OTHER"):
        monkeypatch.setenv(name, "7")
    environ = fdpass.client.environment(["x" * 300, "plain", "\u00e9:\n"])
    listen = {name: value for name, value in environ.items() if name.startswith("LISTEN_")}
    assert {"LISTEN_FDS": "3", "LISTEN_PID": str(os.getpid()), "LISTEN_FDNAMES": f"{'x' * 255}:plain:___"} == listen


@pytest.mark.parametrize("arguments", [["a"], ["a", "--"], ["--", "true"], ["a", "--", "echo", "{}", "{}"]])
def test_exec_wrong_arguments(broker, arguments):
    """Without names or a command, or with more {} than names, the status is 2 and the usage is shown."""
    done = broker.exec(*arguments)
    assert (2, True) == (done.returncode, b"usage: fdpass exec" in done.stderr)


# serve


def test_serve_socket(broker):
    """The socket is its owner's alone, a stale one is replaced, and a live one refused and left as it is."""
    with socket.socket(socket.AF_UNIX) as stale:
        stale.bind(broker.path)
    broker.start()
    assert 0o600 == stat.S_IMODE(os.stat(broker.path).st_mode)
    done = broker.run("serve", broker.path, str(broker.served))
    told = f"fdpass: serve: {broker.path}: {os.strerror(errno.EADDRINUSE)}\n"
    assert (1, told) == (done.returncode, done.stderr.decode())
    broker.well()


def test_serve_refuses_a_file(broker):
    """What is no socket is not removed."""
    Path(broker.path).write_text("precious")
    assert 1 == broker.run("serve", broker.path, str(broker.served)).returncode
    assert "precious" == Path(broker.path).read_text()


def test_serve_what_is_no_directory(broker):
    """A DIR that cannot be served is told at once."""
    done = broker.run("serve", broker.path, str(broker.served / "a"))
    assert (1, True) == (done.returncode, b"Not a directory" in done.stderr)


@pytest.mark.parametrize("name", ["SIGTERM", "SIGINT"])
def test_serve_ends(broker, name):
    """Either signal ends it with status 0, with clients connected, and removes the socket."""
    broker.start()
    with broker.connect() as idle, broker.connect() as half:
        half.sendall(frame(b"a")[:5])
        broker.process.send_signal(getattr(signal, name))
        assert (b"", b"") == (until_closed(idle), until_closed(half))
        assert 0 == broker.process.wait(SECONDS)
    assert False is os.path.exists(broker.path)


def test_serve_quiet(broker):
    """Without --verbose nothing is logged, whatever clients do."""
    command = broker.command("serve", broker.path, str(broker.served))
    with subprocess.Popen(command, env=broker.env, stderr=subprocess.PIPE) as process:
        try:
            while not os.path.exists(broker.path) and process.poll() is None:
                pass
            sock = None
            while sock is None:
                try:
                    sock = broker.connect()
                except ConnectionRefusedError:  # bound, and does not listen yet
                    continue
            with sock:
                sock.sendall(b"\xff" * 100)
                until_closed(sock)
            assert 1 == broker.cat("missing").returncode
        finally:
            process.terminate()
        assert (b"", 0) == (process.stderr.read(), process.wait(SECONDS))


@pytest.fixture
def unread():
    """A pipe that is full: (reading end, writing end)."""
    reading, writing = os.pipe()
    os.set_blocking(writing, False)
    try:
        with suppress(BlockingIOError):
            while True:
                os.write(writing, b"-" * 4096)
        os.set_blocking(writing, True)
        yield reading, writing
    finally:
        os.close(reading)
        os.close(writing)


@contextmanager
def silent(broker, writing, *options):
    """A broker that logs to there, and a connection to it; at the end it must end well."""
    command = broker.command("serve", broker.path, str(broker.served), "--verbose", *options)
    with subprocess.Popen(command, env=broker.env, stderr=writing) as process:
        try:
            sock = None
            while sock is None:
                try:
                    sock = broker.connect()
                except (FileNotFoundError, ConnectionRefusedError):  # not yet
                    assert process.poll() is None
            with sock:
                yield sock
            process.terminate()
            assert (0, False) == (process.wait(SECONDS), os.path.exists(broker.path))
        finally:
            process.kill()


def test_nobody_reads_the_log(broker, unread):
    """A full pipe at stderr, into which no line fits, stops no client, and no SIGTERM."""
    with silent(broker, unread[1]):
        assert b"content of a\n" == broker.cat("a").stdout


def test_what_the_log_lost(broker, unread):
    """Lines that found no room are counted in the log as soon as it is read again."""
    reading, writing = unread

    def ask():
        sock.sendall(frame(b"none"))
        assert b"ENOENT" == answers.read(struct.unpack(">II", answers.read(8))[0])[:6]

    with silent(broker, writing, "--requests", "1000000") as sock, sock.makefile("rb") as answers:
        for _ in range(1500):
            ask()
        log = b""
        while b" lines are missing here" not in log:
            log += os.read(reading, 4096)
            ask()


def test_serve_without_anyio(broker):
    """Without the extra it says what to install."""
    (broker.folder / "anyio.py").write_text("raise ModuleNotFoundError('No module', name='anyio')")
    env = {**broker.env, "PYTHONPATH": f"{broker.folder}{os.pathsep}{broker.env['PYTHONPATH']}"}
    done = broker.run("serve", broker.path, str(broker.served), env=env)
    assert (1, b"fdpass: serve needs anyio: pip install 'fdpass-cffi[async]'\n") == (done.returncode, done.stderr)
    broker.start()
    done = broker.cat("a", env=env)
    assert (0, b"content of a\n") == (done.returncode, done.stdout)
    broker.well()


def test_other_users(broker):
    """A client of another uid gets a refusal, though the socket is open to it, and its files once it is named."""
    if os.getuid() != 0:
        pytest.skip("only root can be another user")
    for options, expected in ((["--uid", "1"], "EACCES: uid 65534 is not served here"), (["--uid", "65534"], "ok 1")):
        broker.start(*options)
        assert 0o666 == stat.S_IMODE(os.stat(broker.path).st_mode)
        assert expected == as_nobody(broker)
        broker.well()
    broker.start()
    assert "[Errno 13] Permission denied" == as_nobody(broker)
    broker.well()


def as_nobody(broker) -> str:
    """What a client of uid nobody gets for the name `a`."""
    code = """
    import os, sys
    from fdpass_cffi import Channel
    folder = os.open(sys.argv[1], os.O_RDONLY)
    os.fchdir(folder)
    for channel in Channel.pair():  # imports it all
        channel.close()
    os.setgroups([])
    os.setgid(65534)
    os.setuid(65534)
    try:
        with Channel.connect("socket") as channel:
            try:
                channel.send(b"a")
            except BrokenPipeError:
                pass
            with channel.recv() as message:
                print(message.data.decode(), len(message.fds) or "", end="")
    except OSError as error:
        print(error, end="")
    """
    os.chmod(broker.folder, 0o711)
    command = [sys.executable, "-c", textwrap.dedent(code), str(broker.folder)]
    done = subprocess.run(command, env=broker.env, capture_output=True, timeout=SECONDS, check=True)
    return done.stdout.decode().strip()


# What the broker opens


def test_names_that_lead_out(broker):
    """Nothing outside of the directory is opened, whatever the way."""
    os.symlink("../secret", broker.served / "link")
    os.symlink("..", broker.served / "up")
    os.symlink("sub", broker.served / "inside")
    os.symlink("/etc", broker.served / "etc")
    os.symlink("link", broker.served / "chain")
    os.symlink("a", broker.served / "near")
    names = {
        "../secret": "EACCES",
        "../../etc/shadow": "EACCES",
        "sub/../../secret": "EACCES",
        "sub/../a": "EACCES",
        str(broker.folder / "secret"): "EACCES",
        "/etc/passwd": "EACCES",
        "link": "ELOOP",
        "up/secret": "ELOOP",
        "inside/b": "ELOOP",
        "etc/passwd": "ELOOP",
        "chain": "ELOOP",
        "near": "ELOOP",
    }
    broker.start()
    done = broker.cat(*names)
    assert (1, b"") == (done.returncode, done.stdout)
    assert names == {line.split(": ")[2]: line.split(": ")[3] for line in done.stderr.decode().splitlines()}
    broker.well()


def test_what_is_no_regular_file(broker):
    """Directories, FIFOs, sockets and devices are refused, and no FIFO keeps the broker waiting."""
    os.mkfifo(broker.served / "fifo")
    names = {"sub": "EISDIR", "sub/": "EISDIR", ".": "EISDIR", "a/": "EISDIR", "fifo": "EACCES", "sock": "EACCES"}
    if os.getuid() == 0:
        try:
            os.mknod(broker.served / "null", 0o666 | stat.S_IFCHR, os.makedev(1, 3))
            names["null"] = "EACCES"
        except OSError:  # a container may forbid it
            pass
    names.update({"a/b": "ENOTDIR", "": "ENOENT", "x" * 300: "ENAMETOOLONG", "x/" * 2047 + "x": "ENOENT"})
    names["x" * 5000] = "the name is too long"
    with socket.socket(socket.AF_UNIX) as sock:
        sock.bind(str(broker.served / "sock"))
    broker.start()
    done = broker.cat(*names)
    assert (1, b"") == (done.returncode, done.stdout)
    assert names == {line.split(": ")[2]: line.split(": ")[3] for line in done.stderr.decode().splitlines()}
    broker.well()


def test_unreadable(fdpass, tmp_path):
    """The rights of whoever runs the broker count: what he may not read, and what lies where he may not search."""
    root = os.geteuid() == 0
    for name in ("open/file", "closed/file", "open/secret"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text("content")
    (tmp_path / "open/secret").chmod(0)
    for folder, mode in ((".", 0o755), ("open", 0o755), ("closed", 0)):
        (tmp_path / folder).chmod(mode)
    folder = os.open(tmp_path, os.O_RDONLY)
    if root:
        os.seteuid(65534)
    try:
        for name in (b"closed/file", b"open/secret"):
            with pytest.raises(PermissionError):
                fdpass.broker.open_below(folder, name)
        fdpass.broker.open_below(folder, b"open/file").close()
    finally:
        if root:
            os.seteuid(0)
        os.close(folder)
        (tmp_path / "closed").chmod(0o700)


def test_what_is_opened_blocks(fdpass, broker):
    """The O_NONBLOCK that keeps the broker from waiting is gone from the client's file, which is close-on-exec."""
    folder = os.open(broker.served, os.O_RDONLY)
    try:
        with fdpass.broker.open_below(folder, b"a") as file:
            assert os.get_blocking(file.fileno())
            assert not os.get_inheritable(file.fileno())
    finally:
        os.close(folder)


def test_components(fdpass):
    """The rule for names, as a function of bytes."""
    assert [b"a"] == fdpass.broker.components(b"a")
    assert [b"a", b"..b", b"..."] == fdpass.broker.components(b"./a/./..b//...")
    expected = {
        b"": "ENOENT",
        b"/a": "EACCES",
        b"..": "EACCES",
        b"a/..": "EACCES",
        b"../a": "EACCES",
        b"a/../b": "EACCES",
    }
    expected.update({b"a\0b": "EINVAL", b"a/": "EISDIR", b".": "EISDIR", b"a/.": "EISDIR", b"x" * 4097: "ENAMETOOLONG"})
    for name, code in expected.items():
        with pytest.raises(OSError) as caught:
            fdpass.broker.components(name)
        assert code == errno.errorcode[caught.value.errno], name


def test_swapped_behind_its_back(fdpass, tmp_path, monkeypatch):
    """A file that becomes a FIFO or a link between the look and the open is refused, without waiting, and closed."""
    os.mkfifo(tmp_path / "fifo")
    os.symlink("fifo", tmp_path / "link")
    look, seen = fdpass.broker.only_regular, []
    monkeypatch.setattr(
        fdpass.broker, "only_regular", lambda mode: seen.append(mode) or (len(seen) == 2 and look(mode))
    )
    folder = os.open(tmp_path, os.O_RDONLY)
    try:
        with pytest.raises(OSError, match="not a regular file"):
            fdpass.broker.open_below(folder, b"fifo")
        with pytest.raises(OSError) as caught:
            fdpass.broker.open_below(folder, b"link")
        assert errno.ELOOP == caught.value.errno
        assert 3 == len(seen)
    finally:
        os.close(folder)


# Clients that misbehave


@pytest.mark.parametrize(
    "garbage",
    [
        b"\xff" * 1000,
        b"GET / HTTP/1.1\r\n\r\n",
        struct.pack(">II", 4097, 0),
        struct.pack(">II", 1, 2) + b"x",
        os.urandom(64),
    ],
    ids=["ones", "http", "too-long", "descriptors", "random"],
)
def test_garbage(broker, garbage):
    """Who breaks the protocol is cut off."""
    broker.start()
    with broker.connect() as sock:
        try:
            sock.sendall(garbage)
            sock.shutdown(socket.SHUT_WR)
        except OSError:  # EPIPE
            pass
        assert b"" == until_closed(sock)
    assert "broke the protocol" in broker.well()


def test_half_frames(broker):
    """A frame that ends in the middle ends the connection, and nothing else."""
    broker.start()
    for size in range(1, 9):
        with broker.connect() as sock:
            sock.sendall(frame(b"a")[:size])
            sock.shutdown(socket.SHUT_WR)
            until_closed(sock)
    assert 7 <= broker.well().count("broke the protocol")


def test_descriptors_that_come_uninvited(broker):
    """A client that sends descriptors along gets its file, and the broker keeps none of them."""
    broker.start()
    reading, writing = os.pipe()
    with broker.connect() as sock, os.fdopen(reading, "rb") as end:
        socket.send_fds(sock, [struct.pack(">II", 1, 1) + b"a"], [writing])
        os.close(writing)
        data, fds, *_ = socket.recv_fds(sock, 100, 10)
        for fd in fds:
            os.close(fd)
        assert (frame(b"ok")[:4] + b"\0\0\0\1ok", 1) == (data, len(fds))
        assert b"" == end.read()  # nobody has the other end any more
    broker.well()


def test_never_closes(broker):
    """Clients that stay and say nothing lose their connection when their time is over, and then others get in."""
    broker.start("--seconds", "0.5", "--clients", "3")
    socks = [broker.connect() for _ in range(7)]
    try:
        socks[0].sendall(frame(b"a")[:6])
        assert [b""] * 7 == [until_closed(sock) for sock in socks]
    finally:
        for sock in socks:
            sock.close()
    assert 7 <= broker.well().count("its time is over")


def test_never_reads(broker):
    """A client that asks and never reads is waited for no longer than its time, and others are served meanwhile."""
    broker.start("--seconds", "5")
    with broker.connect() as sock:
        sock.setblocking(False)
        sent = 0
        try:
            while sent < 1_000_000:
                sent += sock.send(frame(b"no") * 100)
        except BlockingIOError:
            pass
        done = broker.cat("a")
        assert (0, b"content of a\n") == (done.returncode, done.stdout)
        sock.settimeout(SECONDS)
        until_closed(sock)
    broker.well()


def test_a_million_names(broker):
    """Of any number of names on one connection only so many are answered."""
    broker.start("--requests", "50")
    with broker.connect() as sock:
        try:
            for _ in range(100):
                sock.sendall(frame(b"none") * 10_000)
        except OSError:  # EPIPE, ECONNRESET
            pass
        assert 50 == until_closed(sock).count(b"ENOENT: ")
    assert "has had all its requests" in broker.well()


def test_many_clients_at_once(broker):
    """Clients that are connected at the same time are all served, the last first."""
    broker.start()
    socks = [broker.connect() for _ in range(50)]
    try:
        for sock in reversed(socks):
            sock.sendall(frame(b"none"))
            assert b"ENOENT" in sock.recv(1000)
    finally:
        for sock in socks:
            sock.close()
    broker.well()


def test_the_brokers_table_is_full(broker):
    """A broker out of descriptors tells its clients so, and serves again when there are some."""
    broker.start("--requests", "1000000", limit=32)
    with broker.connect() as sock:
        idle = [broker.connect() for _ in range(40)]  # those that it cannot accept wait in the queue
        try:
            while True:  # until it has accepted all that it can
                sock.sendall(frame(b"a"))
                if b"EMFILE" in sock.recv(1000):
                    break
        finally:
            for each in idle:
                each.close()
    broker.well()
