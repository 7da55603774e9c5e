"""A pre-fork server: the parent accepts, and hands each connection to one of its workers.

No worker ever sees the listening socket, and the parent decides who gets what: here they take turns.
"""

from __future__ import annotations

import os
import socket
import tempfile

from fdpass_cffi import Channel

WORKERS, CLIENTS = 3, 9
HUNG = 60  # seconds


def work(channel: Channel) -> None:
    """A worker: answer each connection that comes, until the parent closes the channel."""
    for message in channel:
        with message, message.fds.pop().to_socket() as connection:
            request = connection.recv(100)
            connection.sendall(b"%d: %s" % (os.getpid(), request.upper()))


def start_worker(earlier: list[tuple[Channel, int]]) -> tuple[Channel, int]:
    """The parent's end of a channel to a new worker, and its process id."""
    ours, theirs = Channel.pair()
    pid = os.fork()
    if pid == 0:
        status = 1
        try:
            for channel, _ in [*earlier, (ours, 0)]:  # the parent's ends, or they would stay open after the parent
                channel.close()
            work(theirs)
            status = 0
        finally:
            os._exit(status)
    theirs.close()
    return ours, pid


def hand_out(listener: socket.socket, channels: list[Channel], count: int) -> None:
    """Accept `count` connections and give them to the workers in turn."""
    for turn in range(count):
        connection, _ = listener.accept()
        with connection:
            channels[turn % len(channels)].send(b"yours", [connection])


def main() -> None:
    """Start the workers, serve a few clients, and end."""
    workers: list[tuple[Channel, int]] = []
    for _ in range(WORKERS):
        workers.append(start_worker(workers))
    with tempfile.TemporaryDirectory() as folder, socket.socket(socket.AF_UNIX) as listener:
        listener.settimeout(HUNG)
        listener.bind(f"{folder}/socket")
        listener.listen()
        clients = [socket.socket(socket.AF_UNIX) for _ in range(CLIENTS)]
        for number, client in enumerate(clients):
            client.settimeout(HUNG)
            client.connect(f"{folder}/socket")
            client.sendall(b"hello %d" % number)
        hand_out(listener, [channel for channel, _ in workers], CLIENTS)
        for client in clients:
            with client:
                print(client.recv(100).decode())
    for channel, _ in workers:
        channel.close()
    failed = sum(os.waitpid(pid, 0)[1] != 0 for _, pid in workers)
    print(f"{CLIENTS} clients served by {WORKERS} workers, {failed} of which failed")


if __name__ == "__main__":
    main()
