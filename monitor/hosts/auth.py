# SPDX-License-Identifier: Apache-2.0
"""Two monitors make sure of each other by a key that only the two have, and seal what they say from then on. No I/O.

    dialler                                         listener
       | CALL   magic, versions, name, nonce          |
       |--------------------------------------------->|
       |        magic, versions, name, nonce, proof   | ANSWER
       |<---------------------------------------------|
       | PROOF                                        |
       |--------------------------------------------->|

A proof is HMAC-SHA256, under the shared key, of who proves and of all that was said before: so it is of this
conversation alone, and one side's proof cannot be played back as the other's.  Each direction then has a key of its
own, and each frame ends in a MAC over its number and bytes: what is cut out, put in, doubled or changed ends the
conversation.  Nothing is encrypted: the programs' bytes would travel openly by TCP as well.
"""

from __future__ import annotations

import hashlib
import hmac
import os
from collections.abc import Callable, Iterator
from struct import Struct
from typing import Final

from monitor.hosts.frames import VERSION, BadPeer
from sdlib import abi

_MAGIC: Final = b"SDHOSTS\0"
_HELLO: Final = Struct("<8sII32s32s")  # magic, protocol, ABI, name, nonce
_FRAME: Final = Struct("<I")
_MAC_BYTES: Final = 16
PROOF_BYTES: Final = 32
FRAME_MAX: Final = 1 << 20
KEY_MIN: Final = 16


class Refused(BadPeer):
    """It is not who it says, or speaks another version."""


def _hello(name: str, nonce: bytes) -> bytes:
    return _HELLO.pack(_MAGIC, VERSION, abi.const.SD_ABI_VERSION, name.encode(), nonce)


def _read_hello(data: bytes) -> str:
    """The name; raises Refused."""
    magic, version, abi_version, name, _ = _HELLO.unpack(data)
    if magic != _MAGIC:
        raise Refused("not a monitor")
    if (version, abi_version) != (VERSION, abi.const.SD_ABI_VERSION):
        ours = f"{VERSION}.{abi.const.SD_ABI_VERSION}"
        raise Refused(f"speaks version {version}.{abi_version}, we {ours}; update the older one")
    text: str = name.rstrip(b"\0").decode("ascii", "replace")
    if not text.isprintable():
        raise Refused("unclean name")
    return text


def _mac(key: bytes, *parts: bytes) -> bytes:
    return hmac.digest(key, b"".join(parts), hashlib.sha256)


class Handshake:
    """One side of the above. Give it what arrives, send what it returns, until `sealer` is there."""

    def __init__(
        self, name: str, key_of: Callable[[str], bytes | None], dial: str | None, nonce: bytes | None = None
    ) -> None:
        """`dial`: the name of who is called, None for a listener. `key_of`: a peer's key, None for unknown ones."""
        self.peer = dial or ""
        self.sealer: Sealer | None = None
        self._key_of = key_of
        self._dial = dial is not None
        self._mine = _hello(name, nonce or os.urandom(32))
        self._theirs = b""
        self._read = bytearray()

    def begin(self) -> bytes:
        """What to send first."""
        return self._mine if self._dial else b""

    def feed(self, data: bytes) -> bytes:
        """What to send now; raises Refused. What comes behind the handshake stays, for `sealer`."""
        self._read += data
        out = b""
        if not self._theirs:
            if len(self._read) < _HELLO.size:
                return out
            self._theirs = bytes(self._read[:_HELLO.size])
            del self._read[:_HELLO.size]
            out = self._greeted(_read_hello(self._theirs))
        if len(self._read) >= PROOF_BYTES:
            proof = bytes(self._read[:PROOF_BYTES])
            del self._read[:PROOF_BYTES]
            out += self._proved(proof)
        return out

    def _greeted(self, name: str) -> bytes:
        if self._dial:
            if name != self.peer:
                raise Refused(f"calls itself {name!r}, not {self.peer!r}")
            return b""
        self.peer = name
        return self._mine + self._proof("listener")

    def _proved(self, proof: bytes) -> bytes:
        if not hmac.compare_digest(proof, self._proof("listener" if self._dial else "dialler")):
            raise Refused("has another key")
        keys = [_mac(self._key(), b"direction", who, self._said()) for who in (b"dialler", b"listener")]
        self.sealer = Sealer(keys[not self._dial], keys[self._dial], bytes(self._read))
        return self._proof("dialler") if self._dial else b""

    def _proof(self, who: str) -> bytes:
        return _mac(self._key(), b"proof", who.encode(), self._said())

    def _said(self) -> bytes:
        return self._mine + self._theirs if self._dial else self._theirs + self._mine

    def _key(self) -> bytes:
        key = self._key_of(self.peer)
        if key is None:
            raise Refused(f"{self.peer!r} is no peer of ours")
        return key


class Sealer:
    """Frames with a MAC, in both directions."""

    def __init__(self, out_key: bytes, in_key: bytes, left: bytes = b"") -> None:
        self._out_key, self._in_key = out_key, in_key
        self._sent = self._got = 0
        self._read = bytearray(left)

    def seal(self, body: bytes) -> bytes:
        """One frame."""
        number = self._sent.to_bytes(8, "little")
        self._sent += 1
        head = _FRAME.pack(len(body))
        return head + body + _mac(self._out_key, number, head, body)[:_MAC_BYTES]

    def open(self, data: bytes) -> Iterator[bytes]:
        """The bodies of frames that are complete now; raises BadPeer."""
        self._read += data
        while len(self._read) >= _FRAME.size:
            (size,) = _FRAME.unpack_from(self._read)
            if size > FRAME_MAX:
                raise BadPeer(f"frame of {size} bytes")
            end = _FRAME.size + size + _MAC_BYTES
            if len(self._read) < end:
                return
            frame = bytes(self._read[:end])
            del self._read[:end]
            number = self._got.to_bytes(8, "little")
            self._got += 1
            mac = _mac(self._in_key, number, frame[:-_MAC_BYTES])[:_MAC_BYTES]
            if not hmac.compare_digest(mac, frame[-_MAC_BYTES:]):
                raise BadPeer("a frame was changed on the way")
            yield frame[_FRAME.size:-_MAC_BYTES]
