"""The `fdpass` command: arguments in, exit status out. What a subcommand does is in a module of its own.

Exit status: 0 all went well, 1 something did not (it was said on stderr), 2 wrong arguments, 130 interrupted
by Ctrl-C, 141 whoever read the output went away. A subcommand's module is imported when it is asked for.
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
    options = parser().parse_args(argv)
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
    return top


def demo(options: argparse.Namespace) -> int:
    """`fdpass demo`."""
    from .demo import run

    return run(options.files)


def info(options: argparse.Namespace) -> int:
    """`fdpass info`."""
    from .info import run

    return run()
