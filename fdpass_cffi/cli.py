"""The `fdpass` command: arguments in, exit status out. What a subcommand does is in a module of its own.

Exit status: 0 all went well, 1 something did not (it was said on stderr), 2 wrong arguments, 130 interrupted
by Ctrl-C, 141 whoever read the output went away; of exec the command's own, 126 if it cannot run, 127 if there is none.
A subcommand's module is imported when it is asked for.
"""

from __future__ import annotations

import argparse
import os
import sys

from . import __version__

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Sequence

FAILED, INTERRUPTED, UNREAD = 1, 130, 141  # the last two as a shell counts death by SIGINT and SIGPIPE


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line `argv` (sys.argv's by default); the exit status. Wrong arguments are SystemExit(2)."""
    argv, command = split(sys.argv[1:] if argv is None else argv)
    options = parser().parse_args(argv)
    options.command = command
    try:
        status: int = options.run(options)
        if sys.stdout is not None:  # started without one
            sys.stdout.flush()
    except KeyboardInterrupt:
        return INTERRUPTED
    except BrokenPipeError:
        unread()
        return UNREAD
    except OSError as error:
        print(f"fdpass: {error}", file=sys.stderr)
        unread()
        return FAILED
    return status


def split(argv: Sequence[str]) -> tuple[Sequence[str], Sequence[str]]:
    """The arguments before and after exec's `--`, which argparse treats in a way of its own in each version."""
    if "exec" not in argv[:1] or "--" not in argv:
        return argv, ()
    at = list(argv).index("--")
    return argv[:at], argv[at + 1 :]


def unread() -> None:
    """Let the interpreter flush at its end what nobody takes: into the null device."""
    try:
        out = sys.stdout.fileno()
    except (AttributeError, OSError, ValueError):
        return
    null = os.open(os.devnull, os.O_WRONLY)
    os.dup2(null, out)
    os.close(null)


def parser() -> argparse.ArgumentParser:
    """All the subcommands and their arguments; `run` is the function that a subcommand calls."""
    top = argparse.ArgumentParser(
        prog="fdpass", description="Pass open file descriptors between processes over AF_UNIX sockets."
    )
    top.add_argument("--version", action="version", version=f"fdpass_cffi {__version__}")
    commands = top.add_subparsers(metavar="COMMAND", required=True)

    text = "two processes, three files, real descriptors: print what went over and what came out"
    command = commands.add_parser("demo", help=text, description=text)
    command.add_argument("files", nargs="*", metavar="FILE", help="what the server opens (default: three of its own)")
    command.set_defaults(run=demo)

    text = "print version, backend, layout, limits and what this kernel offers"
    command = commands.add_parser("info", help=text, description=text)
    command.set_defaults(run=info)
    add_broker(commands)
    return top


def add_broker(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """The subcommands of the broker and of its clients."""
    text = "open files below DIR for local clients and send them the descriptors, until SIGTERM or SIGINT"
    command = commands.add_parser("serve", help=text, description=text)
    command.add_argument("socket", metavar="SOCKET", help="where to listen; a stale socket is replaced")
    command.add_argument("folder", metavar="DIR", help="what is served: the regular files below it, for reading")
    command.add_argument("--uid", type=whole, action="append", default=[], help="serve this user id as well as our own")
    command.add_argument("--seconds", type=seconds, default=60, help="time that a client has (default: %(default)s)")
    command.add_argument("--requests", type=positive, default=1000, help="names for each client (default: %(default)s)")
    command.add_argument("--clients", type=positive, default=100, help="clients at once (default: %(default)s)")
    command.add_argument("--verbose", action="store_true", help="log to stderr")
    command.set_defaults(run=serve)

    text = "copy files from a broker to stdout"
    command = commands.add_parser("cat", help=text, description=text)
    command.add_argument("socket", metavar="SOCKET", help="where the broker listens")
    command.add_argument("names", metavar="NAME", nargs="+", help="a file, as seen from the broker's directory")
    command.set_defaults(run=cat)

    text = "run a command with files from a broker as descriptors 3, 4, ..."
    more = "Each {} in CMD and its arguments is the path of the next descriptor; LISTEN_FDS tells how many there are."
    usage = "fdpass exec [-h] SOCKET NAME [NAME ...] -- CMD [ARGUMENT ...]"
    command = commands.add_parser("exec", help=text, description=f"{text[0].upper()}{text[1:]}. {more}", usage=usage)
    command.add_argument("socket", metavar="SOCKET", help="where the broker listens")
    command.add_argument("names", metavar="NAME", nargs="+", help="a file, as seen from the broker's directory")
    command.set_defaults(run=execute, wrong=command.error)


def whole(text: str) -> int:
    """An argument that is a whole number, not negative."""
    number = int(text)
    if number < 0:
        raise ValueError
    return number


def positive(text: str) -> int:
    """An argument that is a whole number from 1 on."""
    number = int(text)
    if number < 1:
        raise ValueError
    return number


def seconds(text: str) -> float:
    """An argument that is a time in seconds, not negative."""
    number = float(text)
    if not number >= 0:
        raise ValueError
    return number


def demo(options: argparse.Namespace) -> int:
    """`fdpass demo`."""
    from .demo import run

    return run(options.files)


def info(options: argparse.Namespace) -> int:
    """`fdpass info`."""
    from .info import run

    return run()


def serve(options: argparse.Namespace) -> int:
    """`fdpass serve`."""
    try:
        from .serving import Limits, run
    except ModuleNotFoundError as error:
        if error.name != "anyio":
            raise
        print("fdpass: serve needs anyio: pip install 'fdpass-cffi[async]'", file=sys.stderr)
        return FAILED

    limits = Limits(options.seconds, options.requests, options.clients)
    return run(options.socket, options.folder, options.uid, limits, verbose=options.verbose)


def cat(options: argparse.Namespace) -> int:
    """`fdpass cat`."""
    from .client import cat

    return cat(options.socket, options.names)


def execute(options: argparse.Namespace) -> int:
    """`fdpass exec`; does not come back if all goes well."""
    from .client import execute

    if not options.command:
        options.wrong("the names must be followed by -- and a command")
    try:
        return execute(options.socket, options.names, options.command)
    except ValueError as error:
        options.wrong(str(error))
        raise
