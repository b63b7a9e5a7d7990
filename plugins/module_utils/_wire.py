# Copyright (c) The labspan.vmnet authors
# SPDX-License-Identifier: GPL-3.0-or-later

"""The one socket to rtnetlink: dumps and batches of messages, as bytes.

What the bytes mean is the business of _netlink.py, and of the uplink's mover. Nothing but Python's standard library is
used: the mover's dead-man carries this file.

Note that this module util is **PRIVATE** to the collection. It can have breaking changes at any time.
"""

from __future__ import annotations

import dataclasses
import os
import socket
import struct
import typing as t

from ansible_collections.labspan.vmnet.plugins.module_utils._errors import SystemFailure

HEADER = struct.Struct("=IHHII")
ATTRIBUTE = struct.Struct("=HH")
NLA_TYPE_MASK = 0x3FFF

NLM_F_REPLACE = 0x100
NLM_F_EXCL = 0x200
NLM_F_CREATE = 0x400
NLM_F_APPEND = 0x800

_AF_NETLINK = 16
_SOL_NETLINK = 270
_NETLINK_CAP_ACK = 10
_NETLINK_EXT_ACK = 11
_NETLINK_GET_STRICT_CHK = 12
_SO_RCVBUFFORCE = 33
_NLMSG_ERROR = 2
_NLMSG_DONE = 3
_NLM_F_REQUEST = 0x1
_NLM_F_ACK = 0x4
_NLM_F_DUMP_INTR = 0x10
_NLM_F_DUMP = 0x300
_NLM_F_ACK_TLVS = 0x200
_NLMSGERR_ATTR_MSG = 1
_RECEIVE_SIZE = 1 << 18
#: Messages in one send. Their acknowledgements wait in our receive buffer, which must hold them all.
_BATCH = 256

Attributes = t.Dict[int, bytes]


class Message(t.NamedTuple):
    """A message without its header: what it is, how it is meant, and its body."""

    kind: int
    flags: int
    body: bytes


@dataclasses.dataclass(frozen=True)
class Refusal:
    """Why the kernel did not carry out a request."""

    code: int
    """An errno."""
    explanation: str
    """The kernel's own words, if it had any."""

    def __str__(self) -> str:
        words = os.strerror(self.code)
        return f"{words} ({self.explanation})" if self.explanation else words


def split_messages(received: bytes) -> t.Iterator[tuple[tuple[int, ...], bytes]]:
    """The messages in what one C(recv) brought: the header's fields, and the message with its header."""
    offset = 0
    while offset < len(received):
        header = HEADER.unpack_from(received, offset)
        yield header, received[offset : offset + header[0]]
        offset += (header[0] + 3) & ~3


def each_attribute(message: bytes, offset: int = 0) -> t.Iterator[tuple[int, bytes]]:
    """The attributes that begin at C(offset), each with its number, in order."""
    end = len(message)
    while offset + 4 <= end:
        length, kind = ATTRIBUTE.unpack_from(message, offset)
        if length < 4:
            break
        yield kind & NLA_TYPE_MASK, message[offset + 4 : offset + length]
        offset += (length + 3) & ~3


def parse_attributes(message: bytes, offset: int = 0) -> Attributes:
    """The attributes that begin at C(offset), by their number; the last of several with one number."""
    return dict(each_attribute(message, offset))


def pack_attributes(attributes: t.Iterable[tuple[int, bytes]]) -> bytes:
    """The attributes as they go over the wire."""
    packed = bytearray()
    for kind, value in attributes:
        packed += ATTRIBUTE.pack(len(value) + 4, kind) + value + bytes(-len(value) % 4)
    return bytes(packed)


class Wire:
    """A conversation with the kernel's rtnetlink in this network namespace; the socket opens with the first request."""

    def __init__(self) -> None:
        self._socket: t.Optional[socket.socket] = None
        self._sequence = 0

    def close(self) -> None:
        """Let go of the socket; the next request opens another."""
        if self._socket is not None:
            self._socket.close()
            self._socket = None

    def dump(self, what: str, kind: int, body: bytes) -> list[bytes]:
        """The replies to one dump request; asked again when the kernel says that the tables changed meanwhile."""
        connection = self._open()
        for _attempt in range(20):
            sequence = self._next_sequence()
            connection.send(_encode(Message(kind, _NLM_F_DUMP, body), sequence))
            replies, interrupted = self._collect(what, connection, sequence)
            if not interrupted:
                return replies
        raise SystemFailure(f"the {what} of this host change faster than they can be read. Run the task again.")

    def send(self, messages: t.Sequence[Message]) -> list[t.Optional[Refusal]]:
        """Send the messages with as few system calls as their acknowledgements allow; the answer to each, in order.

        The kernel goes on after a request that it refuses.
        """
        answers: list[t.Optional[Refusal]] = []
        for start in range(0, len(messages), _BATCH):
            answers += self._send_batch(messages[start : start + _BATCH])
        return answers

    def _send_batch(self, messages: t.Sequence[Message]) -> list[t.Optional[Refusal]]:
        connection = self._open()
        first = self._sequence + 1
        batch = bytearray()
        for message in messages:
            batch += _encode(message._replace(flags=message.flags | _NLM_F_ACK), self._next_sequence())
            batch += bytes(-len(batch) % 4)
        connection.send(batch)
        answers: dict[int, t.Optional[Refusal]] = {}
        while len(answers) < len(messages):
            for header, reply in split_messages(connection.recv(_RECEIVE_SIZE)):
                if header[1] == _NLMSG_ERROR and header[3] >= first:
                    answers[header[3]] = _refusal(header[2], reply)
        return [answers[number] for number in range(first, first + len(messages))]

    def _open(self) -> socket.socket:
        if self._socket is None:
            self._socket = socket.socket(_AF_NETLINK, socket.SOCK_RAW | socket.SOCK_CLOEXEC, 0)
            for option in (_NETLINK_CAP_ACK, _NETLINK_EXT_ACK, _NETLINK_GET_STRICT_CHK):
                self._socket.setsockopt(_SOL_NETLINK, option, 1)
            try:
                self._socket.setsockopt(socket.SOL_SOCKET, _SO_RCVBUFFORCE, 1 << 20)
            except PermissionError:  # reading needs no privilege, and no buffer either
                self._socket.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 1 << 20)
        return self._socket

    def _next_sequence(self) -> int:
        self._sequence += 1
        return self._sequence

    @staticmethod
    def _collect(what: str, connection: socket.socket, sequence: int) -> tuple[list[bytes], bool]:
        replies: list[bytes] = []
        interrupted = False
        while True:
            for header, message in split_messages(connection.recv(_RECEIVE_SIZE)):
                _length, kind, flags, number, _port = header
                if number != sequence:
                    continue
                interrupted = interrupted or bool(flags & _NLM_F_DUMP_INTR)
                if kind == _NLMSG_ERROR:
                    raise SystemFailure(
                        f"the kernel does not list the {what} of this host: {_refusal(flags, message)}."
                    )
                if kind == _NLMSG_DONE:
                    return replies, interrupted
                replies.append(message)


def _encode(message: Message, sequence: int) -> bytes:
    length = HEADER.size + len(message.body)
    return HEADER.pack(length, message.kind, message.flags | _NLM_F_REQUEST, sequence, 0) + message.body


def _refusal(flags: int, message: bytes) -> t.Optional[Refusal]:
    code = -struct.unpack_from("=i", message, HEADER.size)[0]
    if code == 0:
        return None
    explanation = ""
    if flags & _NLM_F_ACK_TLVS:
        said = parse_attributes(message, HEADER.size + 4 + HEADER.size).get(_NLMSGERR_ATTR_MSG, b"")
        explanation = said.rstrip(b"\0").decode("utf-8", "replace").rstrip(".")
    return Refusal(code, explanation)
