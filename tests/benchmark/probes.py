# Copyright (c) The labspan.vmnet authors
# SPDX-License-Identifier: GPL-3.0-or-later

"""Asks again and again whether the network is there, and answers; run on a host and on its LAN with nothing around it.

C(probes.py echo ADDRESS...) answers on these addresses. C(probes.py probe ADDRESS... -- ADDRESS...) sends a datagram to
each of the first ones every two milliseconds, and plays ping-pong over a TCP connection with each of the others. It
says C(ready) when all have answered, and at SIGTERM what became of the probes since, as JSON.
"""

from __future__ import annotations

import contextlib
import json
import os
import selectors
import signal
import socket
import statistics
import struct
import sys
import time
import typing as t

PORT = 7
#: Seconds between two probes of one path, between a ball that came back and the next, and until an answer is too late.
INTERVAL, PAUSE, PATIENCE = 0.002, 0.01, 1.0
#: One probe in so many is a probe every ten milliseconds.
SPARSE = 5
#: Seconds of silence at the end that are more than one lost packet.
SILENCE = 0.5

_NUMBER = struct.Struct("=Q")


def family_of(address: str) -> socket.AddressFamily:
    """IPv4 or IPv6."""
    return socket.AF_INET6 if ":" in address else socket.AF_INET


class Path:
    """Datagrams to one address. None is tied to a source address: each finds its way anew."""

    def __init__(self, address: str) -> None:
        self.address = address
        self.socket = socket.socket(family_of(address), socket.SOCK_DGRAM)
        self.socket.setblocking(False)
        self.first = 0
        self.sent: list[float] = []
        self.answered: dict[int, float] = {}

    def forget(self) -> None:
        """Begin to count."""
        self.first += len(self.sent)
        self.sent, self.answered = [], {}

    def send(self, now: float) -> None:
        """The next probe; one that cannot even be sent is one that is lost."""
        number = self.first + len(self.sent)
        self.sent.append(now)
        with contextlib.suppress(OSError):
            self.socket.sendto(_NUMBER.pack(number), (self.address, PORT))

    def receive(self) -> None:
        """All answers that are there."""
        with contextlib.suppress(OSError):
            while True:
                (number,) = _NUMBER.unpack(self.socket.recv(64))
                if number >= self.first:
                    self.answered.setdefault(number - self.first, time.monotonic())

    def arrived(self, index: int) -> bool:
        """Whether this probe was answered in time."""
        return index in self.answered and self.answered[index] - self.sent[index] < PATIENCE

    def report(self, end: float) -> dict[str, t.Any]:
        """How many were lost, and the longest time between two that were not."""
        gap, begun, last = 0.0, 0, self.sent[0]
        for index, sent in enumerate(self.sent):
            if self.arrived(index):
                if begun < index:
                    gap = max(gap, sent - last)
                begun, last = index + 1, sent
        missing = end - last if begun < len(self.sent) else 0.0
        lost = [not self.arrived(index) for index in range(len(self.sent))]
        return {
            "sent": len(self.sent),
            "lost": sum(lost),
            # How many of probes every ten milliseconds it would have been, begun at the worst moment.
            "sparse": max(sum(lost[start::SPARSE]) for start in range(SPARSE)),
            "gap": max(gap, missing),
            "back": missing < SILENCE,
        }


class PingPong:
    """One byte there and back over one connection that is opened once."""

    def __init__(self, address: str) -> None:
        self.address = address
        self.socket = socket.create_connection((address, PORT), timeout=10)
        self.socket.setblocking(False)
        self.socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self.dead = False
        self.hit: t.Optional[float] = None
        self.due = 0.0
        self.forget()

    def forget(self) -> None:
        """Begin to count."""
        self.count, self.longest = 0, 0.0

    def send(self, now: float) -> None:
        """Play the ball if it is here."""
        if self.dead or self.hit is not None or now < self.due:
            return
        try:
            self.socket.send(b"x")
            self.hit = now
        except OSError:
            self.dead = True

    def receive(self) -> None:
        """The ball is back."""
        try:
            self.dead = not self.socket.recv(64)
        except BlockingIOError:
            return
        except OSError:
            self.dead = True
        if self.dead or self.hit is None:
            return
        now = time.monotonic()
        self.longest = max(self.longest, now - self.hit)
        self.count, self.hit, self.due = self.count + 1, None, now + PAUSE

    def report(self, end: float) -> dict[str, t.Any]:
        """How often the ball came back, and how long that took at most."""
        out = end - self.hit if self.hit is not None else 0.0
        return {"count": self.count, "gap": max(self.longest, out), "back": not self.dead and out < SILENCE}


def probe(addresses: t.Sequence[str], partners: t.Sequence[str]) -> None:
    """Ask until SIGTERM."""
    stop: list[int] = []
    signal.signal(signal.SIGTERM, lambda number, _frame: stop.append(number))
    paths = [Path(address) for address in addresses]
    games = [PingPong(address) for address in partners]
    selector = selectors.DefaultSelector()
    everything: list[t.Union[Path, PingPong]] = [*paths, *games]
    for each in everything:
        selector.register(each.socket, selectors.EVENT_READ, each)

    def listen(until: float) -> None:
        for key, _events in selector.select(max(0.0, until - time.monotonic())):
            key.data.receive()
            if isinstance(key.data, PingPong) and key.data.dead:
                selector.unregister(key.fileobj)

    ready = False
    due = time.monotonic()
    while not stop:
        listen(due)
        now = time.monotonic()
        if now < due:
            continue
        for each in everything:
            each.send(now)
        # A probe whose time has passed is not made up for: it would not say anything about that time.
        due = due + INTERVAL if due + INTERVAL > now else now + INTERVAL
        if not ready and all(path.answered for path in paths) and all(game.count for game in games):
            ready = True
            for each in everything:
                each.forget()
            print("ready", flush=True)
    end = time.monotonic()
    while time.monotonic() < end + PATIENCE and not all(path.arrived(len(path.sent) - 1) for path in paths):
        listen(end + PATIENCE)
    spaces = [later - earlier for earlier, later in zip(paths[0].sent, paths[0].sent[1:])]
    report = {
        "udp": {path.address: path.report(end) for path in paths},
        "tcp": {game.address: game.report(end) for game in games},
        "spaces": {"median": statistics.median(spaces), "longest": max(spaces)},
    }
    print(json.dumps(report), flush=True)


def echo(addresses: t.Sequence[str]) -> None:
    """Answer until killed."""
    selector = selectors.DefaultSelector()
    for address in addresses:
        datagrams = socket.socket(family_of(address), socket.SOCK_DGRAM)
        datagrams.bind((address, PORT))
        selector.register(datagrams, selectors.EVENT_READ, _answer)
        server = socket.create_server((address, PORT), family=family_of(address))
        selector.register(server, selectors.EVENT_READ, lambda made: _accept(selector, made))
    print("ready", flush=True)
    while True:
        for key, _events in selector.select():
            key.data(key.fileobj)


def _answer(datagrams: socket.socket) -> None:
    with contextlib.suppress(OSError):
        data, peer = datagrams.recvfrom(64)
        # Who asks from a link-local address has lost its own. No router passes that on.
        if not peer[0].startswith("fe80:"):
            datagrams.sendto(data, peer)


def _accept(selector: selectors.BaseSelector, server: socket.socket) -> None:
    peer, _address = server.accept()
    peer.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    selector.register(peer, selectors.EVENT_READ, lambda made: _return(selector, made))


def _return(selector: selectors.BaseSelector, peer: socket.socket) -> None:
    data = b""
    with contextlib.suppress(OSError):
        data = peer.recv(64)
        peer.sendall(data)
    if not data:
        selector.unregister(peer)
        peer.close()


def main() -> None:
    """Do what the arguments say."""
    verb, *addresses = sys.argv[1:]
    # A probe that waits for a processor says nothing about the network.
    with contextlib.suppress(OSError):
        os.nice(-10)
    if verb == "echo":
        echo(addresses)
    else:
        end = addresses.index("--")
        probe(addresses[:end], addresses[end + 1 :])


if __name__ == "__main__":
    main()
