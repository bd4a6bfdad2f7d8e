# SPDX-License-Identifier: Apache-2.0
"""refusing.py NUMBERS CMD...: become CMD under a seccomp filter that answers these system calls with EPERM."""

import ctypes
import os
import struct
import sys

_PR_SET_SECCOMP, _PR_SET_NO_NEW_PRIVS = 22, 38
_LOAD_NUMBER, _IF_EQUAL, _RETURN = 0x20, 0x15, 0x06
_ALLOW, _EPERM = 0x7FFF0000, 0x50001


def _step(code: int, value: int, otherwise: int = 0) -> bytes:
    return struct.pack("HBBI", code, 0, otherwise, value)


refused = [int(word) for word in sys.argv[1].split(",")]
steps = [_step(_LOAD_NUMBER, 0)]
for number in refused:
    steps += [_step(_IF_EQUAL, number, 1), _step(_RETURN, _EPERM)]
steps.append(_step(_RETURN, _ALLOW))
text = ctypes.create_string_buffer(b"".join(steps))
program = ctypes.create_string_buffer(struct.pack("HxxxxxxQ", len(steps), ctypes.addressof(text)))
libc = ctypes.CDLL(None)
assert libc.prctl(_PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) == 0
assert libc.prctl(_PR_SET_SECCOMP, 2, program) == 0
os.execv(sys.argv[2], sys.argv[2:])
