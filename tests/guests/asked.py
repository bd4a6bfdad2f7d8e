# SPDX-License-Identifier: Apache-2.0
"""Does what files say: asked.py FOLDER. `ask-N` (N = 0, 1, ...) has a line of Python; its value goes to `answer-N`.

The lines have this module's names: `tried` runs something and returns what became of it, `later` does so in a thread.
"""

import errno
import os
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable


def tried(action: Callable[[], object]) -> str:
    try:
        action()
    except OSError as error:
        return errno.errorcode[error.errno or 0]
    return "ok"


def connect(port: int) -> str:
    return tried(lambda: socket.create_connection(("127.0.0.1", port)).close())


class Later:
    """A call in a thread."""

    def __init__(self, action: Callable[[], object]) -> None:
        self.value = ""
        self.thread = threading.Thread(target=self._run, args=(action,), daemon=True)
        self.thread.start()

    def _run(self, action: Callable[[], object]) -> None:
        try:
            self.value = str(action())
        except OSError as error:
            self.value = errno.errorcode[error.errno or 0]

    def result(self) -> str:
        self.thread.join(30)
        return self.value


def main(folder: str) -> None:
    names: dict[str, object] = {"socket": socket, "subprocess": subprocess, "sys": sys, "tried": tried, "os": os,
                                "connect": connect, "Later": Later}  # fmt: skip
    number = 0
    while True:
        try:
            with open(f"{folder}/ask-{number}") as file:
                line = file.read()
        except FileNotFoundError:
            time.sleep(0.01)
            continue
        answer = eval(line, names)
        with open(f"{folder}/answer-{number}.new", "w") as reply:
            reply.write(str(answer))
        os.rename(f"{folder}/answer-{number}.new", f"{folder}/answer-{number}")
        number += 1


main(sys.argv[1])
