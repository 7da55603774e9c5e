"""Hot restart: a new version of a server takes the listening sockets over from the old one, and no client notices.

The sockets never close: who connects meanwhile waits in their queue. A few clients connect all the time, and count.
"""

from __future__ import annotations

import os
import select
import socket
import subprocess
import sys
import tempfile
import threading
from collections import Counter
from concurrent.futures import ThreadPoolExecutor

from fdpass_cffi import Channel

VERSIONS, CLIENTS = 4, 4


def serve(version: str, folder: str) -> None:
    """One version of the server: take over from the one before, and serve until the next one comes."""
    if version == "1":
        handover, service = socket.socket(socket.AF_UNIX), socket.socket(socket.AF_UNIX)
        for sock, name in (handover, "handover"), (service, "service"):
            sock.bind(f"{folder}/{name}")
            sock.listen(128)
    else:
        with Channel.connect(f"{folder}/handover") as old, old.recv() as message:
            handover, service = (owned.to_socket() for owned in message.fds)
    os.close(1)  # whoever started it waits for this
    with handover, service:
        while True:
            ready = select.select([handover, service], (), ())[0][0]
            connection, _ = ready.accept()
            if ready is handover:
                with Channel(connection) as new:
                    new.send(b"these are yours", [handover, service])
                return
            with connection:
                connection.sendall(version.encode() + connection.recv(100))


def client(path: str, stop: threading.Event, least: int) -> Counter[str]:
    """Connect again and again, until `stop`, `least` times or more, and count which version answered."""
    count: Counter[str] = Counter()
    while not stop.is_set() or sum(count.values()) < least:
        try:
            with socket.socket(socket.AF_UNIX) as sock:
                sock.connect(path)
                sock.sendall(b" says hello")
                answer = sock.recv(100).decode()
        except OSError:
            answer = ""
        count[answer[0] if answer[1:] == " says hello" else "failed"] += 1
    return count


def main(least: str = "1000") -> None:
    """Replace the server several times under load, `least` connections or more."""
    stop, clients, servers = threading.Event(), [], []
    with tempfile.TemporaryDirectory() as folder, ThreadPoolExecutor() as threads:
        for version in range(1, VERSIONS + 1):
            servers.append(subprocess.Popen([sys.executable, __file__, str(version), folder], stdout=subprocess.PIPE))  # noqa: S603
            with servers[-1].stdout as output:
                output.read()  # to its end: it serves now
            while len(clients) < CLIENTS:
                clients.append(threads.submit(client, f"{folder}/service", stop, int(least) // CLIENTS))
        stop.set()
        total = sum((each.result() for each in clients), client(f"{folder}/service", stop, 1))
        with Channel.connect(f"{folder}/handover") as last, last.recv():
            statuses = [server.wait() for server in servers]  # the last one too, as it has handed over
    print(f"{sum(total.values())} connections, {total['failed']} failed, servers ended with {statuses}, {dict(total)}")


if __name__ == "__main__":
    (main if len(sys.argv) < 3 else serve)(*sys.argv[1:])
