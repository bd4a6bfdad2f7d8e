# SPDX-License-Identifier: Apache-2.0
"""sdrun --attach: what it does not take over, each with one line that says why; the program is as it was."""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest

from sdtrace import attach
from tests.e2e.test_attach import refused
from tests.harness import SDRUN, Program, Runner

PREPARE = """
import ctypes, os, resource, struct, sys, time
libc = ctypes.CDLL(None, use_errno=True)
libc.mmap.restype = ctypes.c_void_p
libc.syscall.restype = ctypes.c_long
def number(*words): return libc.syscall(*(ctypes.c_long(word) for word in words))
exec(sys.argv[1])
print("ready", flush=True)
time.sleep(120)
"""
PREPARED = {
    "undumpable": ("assert libc.prctl(4, 0) == 0", "out of reach"),
    "own filter": (
        "allow = ctypes.create_string_buffer(struct.pack('HBBI', 6, 0, 0, 0x7fff0000)); "
        "program = ctypes.create_string_buffer(struct.pack('HxxxxxxQ', 1, ctypes.addressof(allow))); "
        "assert libc.prctl(38, 1, 0, 0, 0) == 0 and libc.prctl(22, 2, program) == 0",
        "seccomp filter of its own"),
    "gs": ("assert number(158, 0x1001, id(libc)) == 0", "gs register"),
    "our address": (
        "assert libc.mmap(ctypes.c_void_p(0x551000000000), ctypes.c_size_t(4096), 3, 0x100022, -1, ctypes.c_long(0))"
        " == 0x551000000000", "something else is mapped"),
    "descriptors": (
        "resource.setrlimit(resource.RLIMIT_NOFILE, (20, 20)); last = 0\n"
        "while last < 19: last = os.dup(0)", "no free descriptor"),
}


def prepared(runner: Runner, how: str) -> Program:
    """A Python that has done that to itself, and sleeps."""
    program = runner.start(sys.executable, "-c", PREPARE, how)
    program.until(lambda: program.stdout == b"ready\n", "ready")
    return program


def looks(pid: int) -> tuple[str, str]:
    """What an attempt could have left: mappings and filters."""
    status = Path(f"/proc/{pid}/status").read_text()
    return Path(f"/proc/{pid}/maps").read_text(), status.partition("Seccomp_filters:")[2].partition("\n")[0]


@pytest.mark.parametrize("what", PREPARED)
def test_program_in_the_way(what: str, native: Runner, tmp_path: Path) -> None:
    how, why = PREPARED[what]
    program = prepared(native, how)
    before = looks(program.pid)
    refused(program.pid, tmp_path, native.env, why)
    assert looks(program.pid) == before
    assert program.process.poll() is None


def test_io_uring(native: Runner, tmp_path: Path) -> None:
    how = "params = ctypes.create_string_buffer(120); ring = number(425, 4, ctypes.addressof(params)); assert ring >= 0"
    probe = subprocess.run([sys.executable, "-c", PREPARE.replace("time.sleep(120)", ""), how], check=False)
    if probe.returncode:
        pytest.skip("this kernel gives out no io_uring")
    refused(prepared(native, how).pid, tmp_path, native.env, "io_uring")


def test_program_of_32_bit(native: Runner, tmp_path: Path) -> None:
    """Made by hand, since there need be no C library for it."""
    source, program = tmp_path / "wait.S", tmp_path / "wait"
    source.write_text(".globl _start\n_start: mov $29, %eax\nint $0x80\njmp _start\n")  # pause
    subprocess.run(["gcc", "-m32", "-nostdlib", "-static", "-o", program, source], check=True)
    waits = native.start(program)
    waits.until(lambda: os.readlink(f"/proc/{waits.pid}/exe") == str(program), "execve")
    refused(waits.pid, tmp_path, native.env, "32 bit")


def test_thread(native: Runner, tmp_path: Path) -> None:
    program = prepared(native, "import threading; threading.Thread(target=time.sleep, args=(60,)).start()")
    (thread,) = {int(name) for name in os.listdir(f"/proc/{program.pid}/task")} - {program.pid}
    refused(thread, tmp_path, native.env, "that is a thread")


@pytest.mark.skipif(os.geteuid() != 0, reason="needs root to become somebody else")
def test_not_ours_to_trace(native: Runner) -> None:
    """Another user's; and one of the same user that may do more than he may."""
    with tempfile.TemporaryDirectory(prefix="sdref-", dir="/tmp") as name:
        os.chown(name, 65534, 65534)
        who = ["setpriv", "--reuid=65534", "--regid=65534", "--clear-groups"]
        env = {**native.env, "XDG_RUNTIME_DIR": name}
        stronger = native.start(*who, "--inh-caps=+net_raw", "--ambient-caps=+net_raw", "--", "sleep", "60")
        stronger.until(lambda: Path(f"/proc/{stronger.pid}/comm").read_text() == "sleep\n", "execve")
        for pid, why in ((os.getpid(), "belongs to user 0"), (stronger.pid, "may do more")):
            result = subprocess.run([*who, "--", SDRUN, "--attach", str(pid)], env=env, capture_output=True, text=True,
                                    stdin=subprocess.DEVNULL, timeout=60, check=False)
            assert result.returncode == 125 and result.stderr.count("\n") == 1 and why in result.stderr, result


@pytest.mark.parametrize("scope", ["1", "2", "3"])
def test_yama_is_named(scope: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Only the text: kernels with Yama are elsewhere."""
    (tmp_path / "scope").write_text(f"{scope}\n")
    monkeypatch.setattr(attach, "_YAMA", tmp_path / "scope")
    monkeypatch.setattr(os, "geteuid", lambda: 1000)
    assert f"kernel.yama.ptrace_scope is {scope}" in attach._ptrace_refused(os.getpid())
