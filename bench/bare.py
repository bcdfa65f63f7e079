"""The least that a program in Python can do and still check what it passes on: a limit.

It fetches from nginx's ``/static/``, or one blob by a path of its own, and has neither HTTP to
speak of, nor a login, a tag, a second client or a second process. The kernel moves the bytes from
the socket into a file (splice(2)) and from the file to the client (sendfile(2)), and one thread
hashes them; the last byte waits for the digest, as in every cache that never ends a wrong blob
well.
"""

from __future__ import annotations

import fcntl
import hashlib
import os
import socket
import sys
import threading
from pathlib import Path

BLOCK = 1 << 20


class Growing:
    """A file that grows: how far it is written, and whether it is what it should be."""

    def __init__(self, file: int, size: int) -> None:
        self.file, self.size = file, size
        self._written, self._right = 0, False
        self._changed = threading.Condition()

    def advance(self, written: int, *, right: bool = False) -> None:
        """Say how much is there."""
        with self._changed:
            self._written, self._right = written, right
            self._changed.notify_all()

    def past(self, offset: int, *, held_back: bool) -> int:
        """Wait for more than ``offset`` bytes, return how many there are."""
        with self._changed:
            while True:
                last = 1 if held_back and not self._right else 0
                if min(self._written, self.size - last) > offset:
                    return min(self._written, self.size - last)
                self._changed.wait()


def main(port: int, upstream: int, directory: Path, path: str | None = None) -> None:
    """Serve on ``port`` what ``upstream`` has, every blob at ``path`` if that is given."""
    sys.setswitchinterval(0.0005)
    with socket.create_server(("127.0.0.1", port)) as listening:
        while True:
            client, _ = listening.accept()
            threading.Thread(target=_serve, args=(client, upstream, directory, path)).start()


def _serve(client: socket.socket, upstream: int, directory: Path, path: str | None) -> None:
    with client, socket.create_connection(("127.0.0.1", upstream)) as far:
        asked = _head(client)[0].split()[1].decode()
        hexadecimal = asked.rpartition(":")[2]
        wanted = path or f"/static/{hexadecimal}"
        # With a Host: an object store's addresses are signed for it.
        far.sendall(f"GET {wanted} HTTP/1.0\r\nHost: 127.0.0.1:{upstream}\r\n\r\n".encode())
        answer, start = _head(far)
        fields = dict(line.lower().split(b": ", 1) for line in answer.split(b"\r\n")[1:])
        if asked == hexadecimal or not answer.startswith(b"HTTP/1.1 200"):
            client.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n")
            return
        size = int(fields[b"content-length"])
        client.sendall(f"HTTP/1.1 200 OK\r\nContent-Length: {size}\r\n\r\n".encode())
        kept = directory / hexadecimal
        file = os.open(kept, os.O_RDWR | os.O_CREAT | os.O_TRUNC)
        os.write(file, start)
        growing = Growing(file, size)
        growing.advance(len(start))
        threads = [
            threading.Thread(target=_check, args=(growing, hexadecimal)),
            threading.Thread(target=_send, args=(growing, client)),
        ]
        for each in threads:
            each.start()
        _receive(growing, far, len(start))
        for each in threads:
            each.join()
        os.close(file)
        kept.unlink()


def _head(connection: socket.socket) -> tuple[bytes, bytes]:
    head = b""
    while b"\r\n\r\n" not in head:
        head += connection.recv(1 << 16)
    start, _, rest = head.partition(b"\r\n\r\n")
    return start, rest


def _receive(growing: Growing, far: socket.socket, offset: int) -> None:
    reading, writing = os.pipe()
    fcntl.fcntl(writing, fcntl.F_SETPIPE_SZ, BLOCK)
    while offset < growing.size:
        left = os.splice(far.fileno(), writing, BLOCK)
        while left:
            moved = os.splice(reading, growing.file, left, offset_dst=offset)
            offset, left = offset + moved, left - moved
        growing.advance(offset)
    os.close(reading)
    os.close(writing)


def _check(growing: Growing, hexadecimal: str) -> None:
    hasher, block = hashlib.sha256(), memoryview(bytearray(BLOCK))
    done = 0
    while done < growing.size:
        there = growing.past(done, held_back=False)
        while done < there:
            got = os.preadv(growing.file, [block[: there - done]], done)
            hasher.update(block[:got])
            done += got
    if hasher.hexdigest() != hexadecimal:
        raise SystemExit("wrong content")
    growing.advance(done, right=True)


def _send(growing: Growing, client: socket.socket) -> None:
    offset = 0
    while offset < growing.size:
        there = growing.past(offset, held_back=True)
        while offset < there:
            offset += os.sendfile(client.fileno(), growing.file, offset, there - offset)


if __name__ == "__main__":
    main(int(sys.argv[1]), int(sys.argv[2]), Path(sys.argv[3]), *sys.argv[4:])
