# Copyright (c) The labspan.vmnet authors
# SPDX-License-Identifier: GPL-3.0-or-later

"""A stand-in for the serial console of a guest: a program on a terminal behind a unix socket, as QEMU has it.

One client at a time; the program stays when a client goes, and what it says while there is none is lost.

Run as a program: C(fake_console.py SOCKET COMMAND...) serves until it is ended.
"""

from __future__ import annotations

import contextlib
import os
import pathlib
import pty
import selectors
import signal
import socket
import sys
import threading
import typing as t

#: Asks who is there, as a getty and a login do, and has a shell for root with the password "right".
GETTY = r"""
while :; do
    printf '\r\nvm1 login: '; read -r name || exit
    case $name in '') continue;; esac
    stty -echo; printf 'Password: '; read -r password; stty echo; echo
    if [ "$name $password" = "root right" ]; then
        echo 'Last login: never, login: of nobody'
        printf '\033[?2004hvm1'; PS1='# ' ENV= sh -i; exit
    fi
    sleep 0.3; printf '\r\nLogin incorrect\r\n'
done
"""
SHELL = "PS1='# ' ENV= exec sh -i"


class FakeConsole:
    """Use as a context manager; what the program said is in C(said)."""

    def __init__(self, path: pathlib.Path, *command: str) -> None:
        self.said = b""
        self._listener = socket.socket(socket.AF_UNIX)
        self._listener.bind(str(path))
        self._listener.listen(8)
        self._pid, self._terminal = pty.fork()
        if self._pid == 0:
            os.execvp(command[0], command)
        self._thread = threading.Thread(target=self._serve_quietly, daemon=True)

    def __enter__(self) -> FakeConsole:
        self._thread.start()
        return self

    def __exit__(self, *_exception: object) -> None:
        for kill in (os.killpg, os.kill):  # it may be killed before it leads a group
            with contextlib.suppress(ProcessLookupError):
                kill(self._pid, signal.SIGKILL)
        os.waitpid(self._pid, 0)
        self._listener.shutdown(socket.SHUT_RDWR)
        self._thread.join(60)
        self._listener.close()
        os.close(self._terminal)

    def _serve_quietly(self) -> None:
        with contextlib.suppress(OSError, ValueError, KeyError):  # the end of the listener
            self.serve()

    def serve(self) -> None:
        client: t.Optional[socket.socket] = None
        with selectors.DefaultSelector() as selector:
            selector.register(self._terminal, selectors.EVENT_READ)
            selector.register(self._listener, selectors.EVENT_READ)
            while True:
                for key, _events in selector.select():
                    try:
                        if key.fileobj is self._listener:
                            client, _address = self._listener.accept()
                            selector.unregister(self._listener)
                            selector.register(client, selectors.EVENT_READ)
                        elif key.fileobj is client and client is not None:
                            if not self._hear(client):
                                selector.unregister(client)
                                client.close()
                                client = None
                                selector.register(self._listener, selectors.EVENT_READ)
                        elif not self._say(client):
                            return
                    except OSError:
                        return

    def _hear(self, client: socket.socket) -> bool:
        try:
            data = client.recv(512)
        except ConnectionError:
            return False
        while data:
            data = data[os.write(self._terminal, data) :]
            if not data:
                return True
        return False

    def _say(self, client: t.Optional[socket.socket]) -> bool:
        data = os.read(self._terminal, 4096)
        self.said += data
        if client is not None:
            with contextlib.suppress(OSError):
                client.sendall(data)
        return bool(data)


if __name__ == "__main__":
    PATH = pathlib.Path(sys.argv[1])
    PATH.unlink(missing_ok=True)
    FakeConsole(PATH, *sys.argv[2:]).serve()
