# SPDX-License-Identifier: Apache-2.0
"""Takes records out of shared memory all the time, in a thread of the supervisor, and gives them to sinks.

A channel holds ten milliseconds of the fastest program; the thread looks every two. What finds no room is counted by
the program that wrote it, and said in the stream.
"""

from __future__ import annotations

import os
import subprocess
import sys
import syslog
import threading
import time
import traceback
from collections import deque
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Final, Protocol

from sdlib import abi
from sdtrace import procfs
from sdtrace.trace import stream
from sdtrace.trace.memory import Memory
from sdtrace.trace.spool import SpoolSink
from sdtrace.trace.stream import Kind

_BUSY_S: Final = 0.002
_IDLE_S: Final = 0.005
_SWEEP_S: Final = 1.0
_CLOCKS_APART_S: Final = 0.01
_BACKLOG_MAX: Final = 256 << 20
_SINK_PATIENCE_S: Final = 60.0
MEMORIES_MAX: Final = 512
RECORDS_SUFFIX: Final = ".sdtrace"
"""Of a file that shall have the records themselves."""


class Sink(Protocol):
    """Where the stream goes."""

    def write(self, data: bytes) -> None:
        """Take a chunk; never wait for long."""

    def flush(self) -> None:
        """What was given is on its way to where others find it."""

    def settle(self) -> None:
        """Wait until it is there, if that can be known; not for long."""

    def close(self) -> None:
        """No more comes; wait until all has arrived."""


class FileSink:
    """A file for `sdtrace`."""

    def __init__(self, path: Path) -> None:
        """OSError when it cannot be made."""
        self._file = path.open("wb")

    def write(self, data: bytes) -> None:
        """Buffered."""
        self._file.write(data)

    def flush(self) -> None:
        """For readers."""
        self._file.flush()

    settle = flush

    def close(self) -> None:
        """Done."""
        self._file.close()


class ProcessSink:
    """A process that reads the stream from its standard input, behind a queue with a bound."""

    def __init__(self, *words: str) -> None:
        """`words`: of `python -m sdtrace.trace`."""
        self._child = subprocess.Popen([sys.executable, "-I", "-m", "sdtrace.trace", *words], stdin=subprocess.PIPE)
        self._queue: deque[bytes] = deque()
        self._bytes = self._left_out = 0
        self._changed = threading.Condition()
        self._over = False
        self._thread = threading.Thread(target=self._pass_on, daemon=True)
        self._thread.start()

    def write(self, data: bytes) -> None:
        """Beyond the bound it is left out, and counted."""
        with self._changed:
            if self._bytes + len(data) > _BACKLOG_MAX:
                self._left_out += max(len(data) // stream.RECORD.size, 1)
                return
            if self._left_out:
                self._queue.append(stream.lost(0, self._left_out))
                self._left_out = 0
            self._queue.append(data)
            self._bytes += len(data)
            self._changed.notify()

    def _pass_on(self) -> None:
        pipe = self._child.stdin
        assert pipe is not None
        with suppress(OSError), pipe:  # it has ended: nobody wants to see any more
            while True:
                with self._changed:
                    self._changed.wait_for(lambda: self._queue or self._over)
                    if not self._queue:
                        break
                    data = self._queue.popleft()
                    self._bytes -= len(data)
                pipe.write(data)
                if not self._queue:
                    pipe.flush()

    def flush(self) -> None:
        """The queue is on its way already."""

    settle = flush

    def close(self) -> None:
        """Wait for its end, which is soon after it has written everything."""
        with self._changed:
            if self._left_out:
                self._queue.append(stream.lost(0, self._left_out))
            self._over = True
            self._changed.notify()
        self._thread.join(_SINK_PATIENCE_S)
        try:
            self._child.wait(_SINK_PATIENCE_S)
        except subprocess.TimeoutExpired:
            syslog.syslog(syslog.LOG_ERR, "a trace was not written to its end within a minute")
            self._child.kill()
            self._child.wait()


class Drain:
    """All memories of a tree."""

    def __init__(self, sinks: list[Sink], what: int) -> None:
        """The thread runs from the first memory on. `what`: SD_TRACE_CALLS, SD_TRACE_BYTES."""
        self.what = what
        self._sinks = sinks
        self._memories: list[Memory] = []
        self._lock = threading.Lock()
        self._over = threading.Event()
        self._thread: threading.Thread | None = None
        self._programs: dict[int, str] = {}
        self._closed = False
        self._write(stream.MAGIC)
        self._tell_time()

    def _write(self, data: bytes) -> None:
        for sink in self._sinks:
            self._attempt(sink, lambda sink=sink: sink.write(data))  # type: ignore[misc]

    def _flush(self) -> None:
        for sink in self._sinks:
            self._attempt(sink, sink.flush)

    def _attempt(self, sink: Sink, action: Callable[[], None]) -> None:
        """The disk may be full: then this sink gets no more, and what is there has no end."""
        try:
            action()
        except OSError as error:
            syslog.syslog(syslog.LOG_ERR, f"the trace ends here: {error}")
            self._sinks = [other for other in self._sinks if other is not sink]

    def _tell_time(self) -> None:
        self._write(stream.clock(abi.lib.sd_py_tsc(), time.time_ns()))

    # --------------------------------------------- asked by the supervisor's thread

    def memory(self, pid: int, exe: str, *, host_pids: bool) -> int:
        """A descriptor of new memory for a process; OSError. It stays ours."""
        with self._lock:
            if self._closed:
                raise OSError(28, os.strerror(28))
            if len(self._memories) >= MEMORIES_MAX:
                self._write(stream.lost(0, 1))
                raise OSError(28, os.strerror(28))
            memory = Memory(pid, host_pids=host_pids)
            self._memories.append(memory)
            self._tell_program(pid, exe)
            if self._thread is None:
                time.sleep(_CLOCKS_APART_S)
                self._tell_time()  # the second: from now on there is a rate
                self._thread = threading.Thread(target=self._run, daemon=True, name="drain")
                self._thread.start()
            return memory.fd

    def _tell_program(self, pid: int, exe: str) -> None:
        if self._programs.get(pid) != exe:
            self._programs[pid] = exe
            self._write(stream.program(pid, exe))

    def new_image(self, pid: int) -> None:
        """The process runs another program: its threads are no more."""
        with self._lock:
            for memory in self._memories:
                memory.drain(self._write)
                for number, owner, _ in memory.owners():
                    if memory.host_pids and owner == pid:
                        memory.free(number)

    def flush(self) -> None:
        """Everything that was recorded until now is where others find it."""
        with self._lock:
            self._round()
            for _ in range(2):  # readers keep what is not older than the one before
                self._tell_time()
            for sink in self._sinks:
                self._attempt(sink, sink.settle)

    def finish(self) -> None:
        """The tree has ended. Once is enough."""
        if self._closed:
            return
        self._over.set()
        if self._thread is not None:
            self._thread.join()
        with self._lock:
            self._closed = True
            self._round()
            self._tell_time()
            self._write(stream.chunk(Kind.END, 0))
            for sink in self._sinks:
                self._attempt(sink, sink.close)

    # --------------------------------------------------------------- its own thread

    def _run(self) -> None:
        next_sweep = time.monotonic() + _SWEEP_S
        wait = _BUSY_S
        while not self._over.wait(wait):
            try:
                with self._lock:
                    wait = _BUSY_S if self._round() else _IDLE_S
                    if time.monotonic() >= next_sweep:
                        next_sweep = time.monotonic() + _SWEEP_S
                        self._sweep()
            except Exception:
                syslog.syslog(syslog.LOG_ERR, traceback.format_exc())
                return

    def _round(self) -> bool:
        if not any(memory.has_news() for memory in self._memories):
            return False
        self._tell_time()
        for memory in self._memories:
            memory.drain(self._write)
        return True

    def _sweep(self) -> None:
        """Channels and memory of who is gone."""
        self._tell_time()
        self._flush()
        for memory in list(self._memories):
            if not memory.host_pids:
                continue
            for number, _, tid in memory.owners():
                if not procfs.running(tid):
                    memory.free(number)
            if not procfs.running(memory.pid) and memory.unused():
                memory.drain(self._write)
                self._memories.remove(memory)
                memory.close()


def _trace_sink(trace: str) -> Sink:
    """Lines on standard error, the records as they are, or lines in a file."""
    if not trace:
        return ProcessSink("lines")
    return FileSink(Path(trace)) if trace.endswith(RECORDS_SUFFIX) else SpoolSink(Path(trace), "text")


def from_options(trace: str | None, pcap: Path | None) -> Drain | None:
    """What `--trace` and `--pcap` ask for; None: nothing. A file that cannot be made is said in the log."""
    sinks: list[Sink] = []
    what = 0
    try:
        if trace is not None:
            sinks.append(_trace_sink(trace))
            what |= abi.const.SD_TRACE_CALLS
        if pcap is not None:
            sinks.append(ProcessSink("pcap", str(pcap)))
            what |= abi.const.SD_TRACE_BYTES
    except OSError as error:
        syslog.syslog(syslog.LOG_ERR, f"no trace: {error}")
    return Drain(sinks, what) if sinks else None
