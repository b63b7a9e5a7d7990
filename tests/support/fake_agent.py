# Copyright (c) The labspan.vmnet authors
# SPDX-License-Identifier: GPL-3.0-or-later

"""A stand-in for the agent in a guest, which can also misbehave as a hostile or a sick one would.

Run as a program: C(fake_agent.py SOCKET MANNER...) serves until it is ended.
"""

from __future__ import annotations

import base64
import itertools
import json
import pathlib
import socket
import subprocess
import sys
import threading
import typing as t

#: As often as the agent says of a program that it still runs.
QUESTIONS = 3
ADDRESSES = [
    {"name": "lo", "hardware-address": "00:00:00:00:00:00", "ip-addresses": [{"ip-address": "127.0.0.1", "prefix": 8}]},
    {
        "name": "enp0s2",
        "hardware-address": "52:54:00:00:00:01",
        "ip-addresses": [
            {"ip-address-type": "ipv4", "ip-address": "10.5.0.7", "prefix": 24},
            {"ip-address-type": "ipv6", "ip-address": "fe80::1%enp0s2", "prefix": 64},
            {"ip-address-type": "ipv4", "ip-address": "no address at all", "prefix": "x"},
        ],
    },
]


class FakeAgent:
    """One at a time, as QEMU's socket is. C(manners) are words that say how it misbehaves."""

    def __init__(self, path: pathlib.Path, manners: t.Collection[str] = ()) -> None:
        self._manners = manners
        self._frozen = False
        self._runs: dict[int, tuple[t.Iterator[int], dict[str, t.Any]]] = {}
        self.asked: list[str] = []
        self._listener = socket.socket(socket.AF_UNIX)
        self._listener.bind(str(path))
        self._listener.listen(8)

    def __enter__(self) -> FakeAgent:
        threading.Thread(target=self.serve, daemon=True).start()
        return self

    def __exit__(self, *_exception: object) -> None:
        self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()

    def serve(self) -> None:
        while True:
            try:
                client, _address = self._listener.accept()
            except OSError:
                return
            with client:
                try:
                    self._talk(client)
                except OSError:
                    continue

    def _talk(self, client: socket.socket) -> None:
        if "stale" in self._manners:
            client.sendall(b'{"return": 77}\n\xff{"return": 78}\nhalf a li')
        if "chatter" in self._manners:
            while True:
                client.sendall(b"x" * 65536)
        received = b""
        while True:
            chunk = client.recv(65536)
            if not chunk:
                return
            received += chunk
            while b"\n" in received:
                line, _newline, received = received.partition(b"\n")
                if "silent" not in self._manners:
                    self._answer(client, json.loads(line.rpartition(b"\xff")[2]))

    def _answer(self, client: socket.socket, request: dict[str, t.Any]) -> None:
        command, arguments = request["execute"], request.get("arguments", {})
        self.asked.append(command)
        sys.stdout.write(f"{command}\n")
        sys.stdout.flush()
        if f"silent-{command}" in self._manners:
            if command == "guest-fsfreeze-freeze":
                self._frozen = True
            return
        answer = self._reply(command, arguments)
        data = json.dumps(answer).encode() + b"\n"
        if command == "guest-sync-delimited":
            data = b"\xff" + data
        if f"garbage-{command}" in self._manners:
            data = b"\x00\x01 what?\n"
        if f"endless-{command}" in self._manners:
            while True:
                client.sendall(b"x" * 65536)
        if "slices" in self._manners:
            for byte in data:
                client.sendall(bytes([byte]))
        else:
            client.sendall(data)

    def _reply(self, command: str, arguments: dict[str, t.Any]) -> dict[str, t.Any]:
        if self._frozen and command in ("guest-exec", "guest-network-get-interfaces"):
            return _error("CommandNotFound", f"Command {command} has been disabled: the agent is in frozen state")
        if f"forbidden-{command}" in self._manners:
            return _error("CommandNotFound", f"Command {command} has been disabled")
        if command == "guest-sync-delimited":
            return {"return": arguments["id"]}
        if command == "guest-info":
            return {"return": {"version": "7.2.22", "supported_commands": []}}
        if command == "guest-fsfreeze-status":
            if "cannot-freeze" in self._manners:
                return _error("CommandNotFound", "The command guest-fsfreeze-status has not been found")
            return {"return": "frozen" if self._frozen else "thawed"}
        if command in ("guest-fsfreeze-freeze", "guest-fsfreeze-thaw"):
            self._frozen = command == "guest-fsfreeze-freeze"
            return {"return": 2}
        if command == "guest-network-get-interfaces":
            return {"return": ADDRESSES}
        if command == "guest-exec":
            return self._execute(arguments)
        if command == "guest-exec-status":
            questions, answer = self._runs[arguments["pid"]]
            return {"return": answer if next(questions, None) is None else {"exited": False}}
        return _error("CommandNotFound", f"The command {command} has not been found")

    def _execute(self, arguments: dict[str, t.Any]) -> dict[str, t.Any]:
        argv = [arguments["path"], *arguments["arg"]]
        try:
            done = subprocess.run(
                argv, input=base64.b64decode(arguments.get("input-data", "")), capture_output=True, check=False
            )
        except OSError as error:
            return _error("GenericError", f"Guest agent command failed, error was 'Failed to execute ({error})'")
        answer: dict[str, t.Any] = {"exited": True}
        if done.returncode < 0:
            answer["signal"] = -done.returncode
        else:
            answer["exitcode"] = done.returncode
        for key, output in (("out-data", done.stdout), ("err-data", done.stderr)):
            if output:
                answer[key] = base64.b64encode(output).decode()
        pid = 1000 + len(self._runs)
        self._runs[pid] = (itertools.count() if "endless-exec" in self._manners else iter(range(QUESTIONS)), answer)
        return {"return": {"pid": pid}}


def _error(kind: str, text: str) -> dict[str, t.Any]:
    return {"error": {"class": kind, "desc": text}}


if __name__ == "__main__":
    SOCKET = pathlib.Path(sys.argv[1])
    SOCKET.unlink(missing_ok=True)
    FakeAgent(SOCKET, sys.argv[2:]).serve()
