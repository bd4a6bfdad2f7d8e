# SPDX-License-Identifier: Apache-2.0
"""Compile the library's own ring and socket code with the surroundings of tests/hosted: the explorer and the fuzzer."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
SRC = ROOT / "sdlib/src"
HOSTED = ROOT / "tests/hosted"
UNDER_TEST = ("ring/bell.c", "ring/dates.c", "ring/ring.c", "ring/switch.c", "sock/again.c", "sock/back.c",
              "sock/cork.c",
              "sock/doorbell.c", "sock/far.c", "sock/fast.c", "sock/fast_shared.c", "sock/life.c", "sock/lives.c",
              "sock/switch.c",
              "sock/ready.c",
              "sock/recall.c", "sock/rx.c", "sock/rx_tcp.c", "sock/owed.c",
              "sock/parts.c", "sock/room.c",
              "sock/token.c", "sock/tx.c", "sock/tx_tcp.c", "poll/nap.c", "poll/poll.c", "poll/pollsleep.c",
              "poll/wait.c", "py/pump.c",
              *(f"poll/ep_{part}.c" for part in ("carry", "cool", "ctl", "find", "hooks", "hot", "kernel", "lock",
                                                 "order", "shared", "table", "told", "wait")))
"""For the programs alone; those of the monitor's loop have it beside them."""
LOOP_UNDER_TEST = (*UNDER_TEST, "py/copy.c", "verbs/called.c", "verbs/carried.c", "verbs/held.c", "verbs/loop.c",
                   "verbs/say.c", "verbs/threads.c")
WRAPPED = ("pthread_mutex_lock", "pthread_mutex_unlock", "pthread_mutex_init", "pthread_cond_wait", "pthread_cond_init",
           "pthread_cond_broadcast", "pthread_create", "pthread_join", "pthread_sigmask", "eventfd", "eventfd_read",
           "eventfd_write", "close", "free", "poll", "syscall", "nanosleep", "sched_yield", "clock_gettime")
# -Wno-unused-value: an atomic whose old value nobody wants is an expression here. No canaries: stacks are copied.
HASHES = "states.c"
"""Spends its time in hashes of the state, which are twice as fast with all that this CPU has; it runs nowhere else."""
FLAGS = ("-std=gnu11", "-Wall", "-Wextra", "-Werror", "-Wno-unused-value", "-Wno-missing-field-initializers",
         "-fno-strict-aliasing", "-DSD_HOSTED=1", "-DSD_INTERPOSE=1")
EXPLORER = ("-O2", "-DSPINS=1", "-DSD_RECALL_MS=2", "-DSD_FENCE_FOR=2", "-DSD_RING_WINDOW=2", "-DSD_SMALL=1u",
            "-DIDLE_ROUNDS=4", "-DWARM=4", "-DSD_SOON_US=0",
            "-fno-stack-protector", "-fcf-protection=none")
LOOP = ("-DHOSTED_THREADS=5", "-DSD_LOOP_QUEUE=5", "-DSD_LOOP_CALLED=1", "-DBATCH=2", "-DSD_VERBS_MESSAGE=16",
        *(f"-Wl,--wrap={name}" for name in WRAPPED))
SANITIZED = ("-O1", "-g", "-DSPINS=4", "-fsanitize=address,undefined", "-fno-sanitize=alignment",
             "-fno-sanitize-recover=all", "-fno-omit-frame-pointer")


FUNCTION = re.compile(r"^static [^\n;={}]*?\b(\w+)\([^;{}]*\)\s*(?:\{[^\n]*\}$|\{\n.*?^\})", re.MULTILINE | re.DOTALL)
MACRO = re.compile(r"^#define (\w+)(?:[^\n]*\\\n)*[^\n]*$", re.MULTILINE)


def _definitions(text: str) -> dict[str, str]:
    """Of a header: functions and macros."""
    return {found[1]: found[0] for pattern in (FUNCTION, MACRO) for found in pattern.finditer(text)}


def _users_of(mutated: Mapping[str, str]) -> re.Pattern[str] | None:
    """What a file that has to be compiled anew has in it: names of what has changed in headers, or uses that there.

    Functions of headers are inline, so nothing else comes of them. What is overlooked here leaves a mutant that nobody
    finds, which is a failure, and never one that is found by mistake.
    """
    headers = [name for name in mutated if name.endswith(".h")]
    if not headers:
        return None
    known = {path: path.read_text() for folder in (SRC, HOSTED) for path in folder.rglob("*.h")}
    names = set()
    for name in headers:
        before = _definitions((SRC / name).read_text())
        changed = {one for one, text in _definitions(mutated[name]).items() if before.get(one) != text}
        assert changed and set(before) == set(_definitions(mutated[name])), f"{name}: something else has changed"
        names |= changed
    everything = [one for text in known.values() for one in _definitions(text).items()]
    while more := {one for one, text in everything if one not in names and _any_of(names).search(text)}:
        names |= more
    return _any_of(names)


def _any_of(names: set[str]) -> re.Pattern[str]:
    return re.compile(rf"\b(?:{'|'.join(sorted(names))})\b")


def build(folder: Path, drivers: tuple[str, ...], options: tuple[str, ...], mutated: Mapping[str, str] | None = None,
          reuse: Path | None = None, under_test: tuple[str, ...] = UNDER_TEST) -> Path:
    """The program made of `drivers` (files of tests/hosted) and the code under test.

    `mutated`: texts that replace files under sdlib/src or tests/hosted. Objects of `reuse`, an earlier build of the
    same drivers without mutation, serve again where no mutated file can matter.
    """
    mutated = mutated or {}
    source, hosted = SRC, HOSTED
    if mutated:  # a whole tree: a header is looked for beside the file that includes it first
        source, hosted = folder / "src", folder / "hosted"
        shutil.copytree(SRC, source)
        shutil.copytree(HOSTED, hosted)
    for name, text in mutated.items():
        ((source if "/" in name else hosted) / name).write_text(text)
    users = _users_of(mutated)
    includes = [f"-I{place}" for place in (ROOT / "sdlib/include", source, hosted)]

    def compile_one(name: str) -> Path:
        object_name = f"{name.replace('/', '_')}.o"
        path = (hosted if name in drivers else source) / name
        if reuse and name not in mutated and not (users and users.search(path.read_text())):
            return reuse / object_name
        here = ("-march=native",) if name == HASHES else ()
        subprocess.run(["gcc", *FLAGS, *options, *here, *includes, "-c", "-o", folder / object_name, path], check=True)
        if name.startswith("poll/ep_") or name == "sock/life.c":  # what they have of their own is restored, too
            subprocess.run(["objcopy", "--rename-section", ".bss=hosted_state", folder / object_name], check=True)
        return folder / object_name

    with ThreadPoolExecutor(os.cpu_count()) as pool:
        objects = list(pool.map(compile_one, (*drivers, *under_test)))
    subprocess.run(["gcc", *options, "-o", folder / "program", *objects], check=True)
    return folder / "program"
