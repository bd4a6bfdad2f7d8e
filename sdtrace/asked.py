# SPDX-License-Identifier: Apache-2.0
"""What others ask of a supervisor (requests.py), and the one request at a time that takes a while: attempts.py."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

from sdtrace import strangers
from sdtrace.areas import Area
from sdtrace.image import Image
from sdtrace.injector import Injector
from sdtrace.keepsake import Keepsake
from sdtrace.offers import Broker
from sdtrace.processes import Processes
from sdtrace.requests import ATTACH, ATTACH_ALONE, DETACH, DETACH_ALONE, LIBRARY, SET, STOP, Requests, answer
from sdtrace.strangers import Strangers

TYPE_CHECKING = False
if TYPE_CHECKING:
    import socket

    from sdtrace.attempts import Attempts


class Asked:
    """Of one supervisor."""

    def __init__(self, image: Image | str, keepsake: Keepsake, processes: Processes, broker: Broker, areas: list[Area],
                 filters: int, strangers: Strangers, injector: Injector, is_strict: Callable[[], bool]) -> None:
        self._image, self._keepsake, self._processes = image, keepsake, processes
        self._broker, self._areas, self._filters = broker, areas, filters
        self._strangers, self._injector, self._is_strict = strangers, injector, is_strict
        self._requests = Requests()
        self._trying: Attempts | None = None

    @property
    def given_back(self) -> bool:
        """The programs live on without us, or are about to."""
        return self._trying is not None and self._trying.whole

    @property
    def busy(self) -> bool:
        """Is something tried again and again?"""
        return self._trying is not None

    def open(self, watch: Callable[[int], None]) -> None:
        """Be there for requests, if there is a place for the socket."""
        self._requests.open()
        if self._requests.fileno() >= 0:
            watch(self._requests.fileno())

    def fileno(self) -> int:
        """Readable when somebody asks; -1: nobody can."""
        return self._requests.fileno()

    def close(self) -> None:
        """Be asked no more."""
        self._requests.close()

    def tick(self) -> None:
        """Try what takes a while."""
        if self._trying is not None:
            self._trying.tick()

    def settle(self, stays: Callable[[], None]) -> bool:
        """Is everything the programs' own again? What is over otherwise is forgotten.

        `stays` is called where the whole tree was meant, and is as it was.
        """
        if self._trying is None:
            return False
        done, whole = self._trying.done, self._trying.whole
        if self._trying.failed or (done and not whole):
            self._trying = None
            if whole:
                stays()
        return done and whole

    def take(self) -> None:
        """Answer a request, or begin with it."""
        request = self._requests.take()
        if request is None:
            return
        client, word, number = request
        if word in (DETACH, DETACH_ALONE):
            self._detach(client, number, children=word == DETACH)
        elif word in (ATTACH, ATTACH_ALONE):
            self._attach(client, number, children=word == ATTACH)
        elif word == LIBRARY:
            answer(client, self._injector.at_once(number))
        elif word == STOP:
            answer(client, strangers.have_it_stop(number, client))
        elif word == SET:
            self._strangers.request_set(number, partial(answer, client))
        else:
            self._strangers.request(number, partial(answer, client))

    def _free(self, client: socket.socket) -> Image | None:
        """The image, where a request can be begun with. None: `client` has been told why not."""
        if self._trying is None and not isinstance(self._image, str):
            return self._image
        answer(client, "somebody else has asked" if self._trying is not None else str(self._image))
        return None

    def _detach(self, client: socket.socket, pid: int, *, children: bool) -> None:
        from sdtrace.detach import Detachment  # what few need is not to delay the start
        from sdtrace.parting import Parting

        if self._is_strict():
            answer(client, "a policy denies something to its programs, which would be without it then")
        elif image := self._free(client):
            what = image, self._keepsake, self._processes, self._broker, self._areas, self._filters
            part = Parting(*what, pid, children=children, taken=self._strangers.note, answer=partial(answer, client))
            self._trying = part if part.remain() else Detachment(*what, partial(answer, client))

    def _attach(self, client: socket.socket, pid: int, *, children: bool) -> None:
        from sdtrace.rejoining import Rejoining

        if image := self._free(client):
            self._trying = Rejoining(image, self._processes, self._filters, pid, children=children,
                                     again=self._injector.again, answer=partial(answer, client))
