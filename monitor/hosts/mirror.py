# SPDX-License-Identifier: Apache-2.0
"""One connection between two hosts, as one of the two monitors sees it. No I/O but to the copy's memory.

A program's byte goes through four counters, each behind the one before it, and the ring holds what lies between the
first and the last:

    tail        the program has written it                     its own copy
    sent        handed to the transport                        here
    landed      stands in the other copy, its reader knows     the other monitor
    credited    read by the other program, may be forgotten    its own copy (head)

`sent` is the only one that lives nowhere else, and it is worth nothing: after any failure the other side says how far
its bytes have `landed` (RESUME) and sending goes on from there, for what has not been credited is still in the ring.
Everything else that one monitor tells the other (WORDS) is the whole state of a few words, so that the last one said
is enough.

Bytes come before the words that were said behind them, in the transport and in the copy: the answer to `settle_ask`
is told only when all that the program has written has been sent.  The way back to TCP is not told here: it stands in
the programs' own TCP stream (sdlib/src/sock/far.h, [H3]).

Doorbells: `bells_asked` counts those that this side has asked for, each after it took the bell word of its copy; the
other side rings when that has grown past its own `bells_rung`.  What is said is always the number, so that it does not
matter how often: a device may repeat itself.  Both counts stand in the copies, so that a monitor that is started anew
neither forgets nor repeats one.  The loop in C asks for one by itself (BELL); and where it knows the program's socket,
it rings by itself as well.  It says by itself how far the program has read, too (CREDIT); later words say no less.

What makes a doorbell be lost all the same costs time and no more: one that was not heard for AGAIN_S while its program
waits is asked for once more, and then after twice as long, each time (`ring_again`).  One too many is eaten as any.

`watched`: somebody looks at it in every pass; else it is `armed`, and its program says when there is news (vigil.py).
`behind`: there was something to send, and no room.  `holds`: its program holds bytes back (TCP_CORK); nothing is held
back behind the end of its stream.
"""

from __future__ import annotations

from typing import Final, Protocol

from monitor.hosts.copy import Copy, Program
from monitor.hosts.frames import DATA_MAX, BadPeer, Resume, Words
from sdlib import abi

AGAIN_S: Final = 1.0
"""For so long a doorbell may be on its way before it is taken for lost."""
_U64: Final = (1 << 64) - 1
_U32: Final = (1 << 32) - 1
BELLS_MOST: Final = abi.const.SD_BELLS_MOST
_HINTS: Final = (
    abi.const.SD_HINT_SHUT_WR | abi.const.SD_HINT_ABORT | abi.const.SD_HINT_CLOSED | abi.const.SD_HINT_LEAVING
    | abi.const.SD_HINT_URGENT
)


class Transport(Protocol):
    """In order and without loss until it breaks; then nothing of what it was given is known to have arrived."""

    def room(self) -> bool:
        """Whether it takes one more write or record now."""

    def write(self, mirror: Mirror, at: int, base: int, size: int) -> None:
        """Carry bytes of the program's ring, from counter `at`, into the other copy."""

    def send(self, record: Words) -> None:
        """Carry a record, behind what was written before."""


class Broken(Exception):
    """The program has written indices into its own copy that leave the ring. Only its own connection suffers."""


class _Word:
    """A counter that stands where C finds it, too (sdlib/include/sd_verbs.h)."""

    def __set_name__(self, owner: type, name: str) -> None:
        self._name = name

    def __get__(self, mirror: Mirror, owner: type) -> int:
        return int(getattr(mirror.state, self._name))

    def __set__(self, mirror: Mirror, value: int) -> None:
        setattr(mirror.state, self._name, value)


class Mirror:
    """See above. `slot`: our name for it, `far_slot`: theirs."""

    sent, landed, bytes_out, bytes_in = _Word(), _Word(), _Word(), _Word()
    slot, far_slot, far_address, far_rkey = _Word(), _Word(), _Word(), _Word()
    asked, wanted, rung, ringing = _Word(), _Word(), _Word(), _Word()

    def __init__(self, far_id: bytes, copy: Copy, slot: int) -> None:
        self.far_id = far_id
        self.copy = copy
        self.state: abi.CData = abi.ffi.new("struct sd_mirrored *")
        state: abi.CData = self.state
        state.copy, state.ring_bytes, state.side = copy.pointer, copy.ring_bytes, copy.side
        self.slot = slot
        self.linked = self.broken = self.dead = False
        self.ends = self.owes = False
        """Its program has closed it, so nothing more comes after. Credit was untold when we last went to sleep."""
        self.armed = self.behind = self.said_something = self.holds = False
        self.quiet = self._counted = 0
        """Looks without news, in a row; bytes that `moved` has told of."""
        self.sent = copy.credited()
        self.landed = copy.landed()
        self.asked, self.rung = copy.bells()
        self.wanted = self.rung
        self._unheard: tuple[int, float, float] | None = None
        """How many had been asked for, since when nothing was heard of the last, and for how long that is usual."""
        self.theirs: Words | None = None
        self._told: Words | None = None
        self._answer = self._question = 0
        self._head = self.resumes = 0

    # ------------------------------------------------------------------ linking

    def resume(self, reply: int, address: int = 0, rkey: int = 0) -> Resume:
        """What to say of it at the beginning of a conversation."""
        return Resume(self.far_id, self.slot, self.copy.ring_bytes, reply, self.landed, address, rkey)

    def on_resume(self, said: Resume) -> None:
        """The other side has it, too. Raises BadPeer."""
        if said.ring_bytes != self.copy.ring_bytes:
            raise BadPeer(f"ring of {said.ring_bytes} bytes instead of {self.copy.ring_bytes}")
        words = self.copy.read()
        credited = self.copy.credited()
        # More than we have ever sent, or less than was read already: no copy of ours.
        if (said.landed - credited) & _U64 > (words.tail - credited) & _U64:
            raise BadPeer("resumes where we have never been")
        if not 0 < said.slot < abi.const.SD_MIRRORED_MOST:
            raise BadPeer(f"calls it {said.slot}")
        self.sent = said.landed
        self.far_slot, self.far_address, self.far_rkey = said.slot, said.address, said.rkey
        self.linked = True
        self.resumes += 1
        self._told = None
        self.state.worded = 0
        self._judge()

    def unlink(self) -> None:
        """The conversation is over."""
        self.linked = self.behind = False
        self._judge()

    def stop(self) -> None:
        """Nothing more is sent."""
        self.dead = True
        self._judge()

    def on_broken(self) -> None:
        """Our program has written what no honest one can."""
        self.broken = True
        self._judge()

    def _judge(self) -> None:
        """Whether C may carry its bytes."""
        abi.lib.sd_mirrored_live(self.state, self.linked and not self.dead and not self.broken)

    # ------------------------------------------------------------------ sending

    def pump(self, transport: Transport, *, idle: bool) -> bool:
        """Send what is new; `idle`: small credits go out, too, for which nobody waits. True: something was."""
        if not self.linked or self.dead:
            return False
        rest = abi.lib.sd_mirrored_rest(self.state)
        self.holds = self._held(over=self.ends or self._question != self._answer)
        words = self.copy.read()
        if (self.landed - words.head) & _U64 > self.copy.ring_bytes:
            raise Broken("a head that leaves the ring")  # the other side would take it for our lie, and hang up
        self._head = words.head
        busy = self._send_bytes(words, transport)
        self.said_something = False
        self.behind = self.sent != words.tail or not transport.room()
        if not self.behind:
            now = self._words(words)
            told = self._heard()
            if now != told and (idle or self.ends or self._urgent(now, told)):
                if now.sw_ring:
                    self.copy.told()
                transport.send(now)
                self._told, busy, self.said_something = now, True, True
                self.state.head_said, self.state.asked_said, self.state.worded = now.head, now.bells_asked, 1
            self.state.rest_said = rest
        return busy

    def _held(self, *, over: bool) -> bool:
        """Whether the program holds bytes back, and goes on doing so."""
        return bool(abi.lib.sd_mirrored_held(self.state, over))

    def news(self) -> bool:
        """Whether `pump` would find something that somebody waits for."""
        return self.linked and not self.dead and abi.lib.sd_mirrored_news(self.state)

    def _heard(self) -> Words | None:
        """What the other side knows of our words: those that it was sent, and what C has said since."""
        told, state = self._told, self.state
        if told is not None and (told.bells_asked, told.head) != (state.asked_said, state.head_said):
            told = self._told = told._replace(bells_asked=int(state.asked_said), head=int(state.head_said))
        return told

    def moved(self) -> int:
        """Bytes in both directions since it was asked last."""
        before, self._counted = self._counted, self.bytes_out + self.bytes_in
        return self._counted - before

    def _send_bytes(self, words: Program, transport: Transport) -> bool:
        left = (words.tail - self.sent) & _U64
        most = self.copy.ring_bytes
        if self.broken or (words.tail - self.copy.credited()) & _U64 > most or left > most:
            raise Broken("a tail that leaves the ring")
        busy = False
        while left and transport.room():
            size = self.copy.contiguous(self.sent, words.base, min(left, DATA_MAX))
            transport.write(self, self.sent, words.base, size)
            self.sent = (self.sent + size) & _U64
            self.bytes_out += size
            left -= size
            busy = True
        return busy

    def _words(self, words: Program) -> Words:
        self._answer = self._question
        return Words(
            self.far_slot, words.hint & _HINTS, words.go_back & 3, int(words.attached != 0), words.settle_ask,
            self._answer, self.asked, words.head, words.sw_ring, int(words.heard),
        )  # fmt: skip

    def _urgent(self, now: Words, told: Words | None) -> bool:
        if told is None or now._replace(head=told.head) != told:
            return True
        return (now.head - told.head) & _U64 >= self.copy.ring_bytes // 4

    # ---------------------------------------------------------------- receiving

    def on_data(self, at: int, data: bytes | memoryview) -> None:
        """Bytes that came by TCP. Raises BadPeer."""
        if at != self.landed or len(data) > self.copy.ring_bytes - (at & (self.copy.ring_bytes - 1)):
            raise BadPeer("bytes for another place")
        self._check_room(len(data))
        self.copy.put(at, data)
        self._land(len(data))

    def on_landed(self, size: int) -> None:
        """Bytes stand in our copy behind those that are known. Raises BadPeer."""
        self._check_room(size)
        self._land(size)

    def _land(self, size: int) -> None:
        self.landed = (self.landed + size) & _U64
        self.bytes_in += size
        if self.copy.land(self.landed):
            self.ring()

    def _check_room(self, size: int) -> None:
        unread = (self.landed - self.copy.head()) & _U64
        if unread > self.copy.ring_bytes:
            self.on_broken()  # our own program's lie: the other side is not to blame
        elif unread + size > self.copy.ring_bytes:
            raise BadPeer("more bytes than the ring holds")

    def on_words(self, said: Words) -> None:
        """The other program's words. Raises BadPeer."""
        credited = self.copy.credited()
        if (said.head - credited) & _U64 > (self.sent - credited) & _U64:
            raise BadPeer("has read what was never sent")
        self.on_bell(said.bells_asked)
        before = self.theirs or said._replace(sw_ring=0, go_back=0)
        news = said.go_back != before.go_back
        switched = said.sw_ring != before.sw_ring
        self.theirs = said
        waits = self.copy.credit(said.head) if said.head != credited or switched else False
        self.copy.tell(sw_ring=said.sw_ring, hint=said.hint & _HINTS, go_back=said.go_back & 3,
                       attached=said.attached, heard=said.heard)
        if said.settle_answer:
            self.copy.settle(said.settle_answer)
        self._question = said.settle_ask
        if switched:  # what came before could not be seen, and nobody was rung for
            waits |= self.copy.land(self.landed)
        if waits or news:
            self.ring()

    def on_credit(self, head: int) -> None:
        """Up to here the other program has read. Raises BadPeer."""
        credited = self.copy.credited()
        if (head - credited) & _U64 > (self.sent - credited) & _U64:
            raise BadPeer("has read what was never sent")
        if self.copy.credit(head):
            self.ring()

    # ---------------------------------------------------------------- doorbells

    def on_bell(self, asked: int) -> None:
        """The other side asks for one, which makes so many.

        Two may be unread ([B3] of ring/bell.h), each a byte of its own, for the bell word says how many; and one more
        eaten before we know that it was sent. What is asked for beyond that, for whatever reason, is done with.
        """
        if 0 < (asked - self.wanted) & _U32 < 1 << 31:
            self.wanted = asked
            if (asked - self.rung) & _U32 > BELLS_MOST:
                self.rung = (asked - BELLS_MOST) & _U32

    def ring(self) -> None:
        """Our program sleeps: the other side is to send a byte, in a direction that has switched and not gone back."""
        said = self.theirs
        if said is None or not said.sw_ring or self.copy.is_back:
            return  # it sleeps on TCP, or looks by itself
        if self.copy.take_bell():
            self._ask()

    def _ask(self) -> None:
        self.asked = (self.asked + 1) & _U32
        self.copy.set_asked(self.asked)

    def ring_again(self, now: float) -> bool:
        """To be asked now and then: whether the last doorbell seems to be lost, so that one more was asked for."""
        if not self.linked or self.dead or self.ends or self.copy.is_back or not self.copy.unheard:
            self._unheard = None  # (a program that was killed in its sleep waits no more, whatever its words say)
            return False
        asked, since, usual = self._unheard or (self.asked, now, AGAIN_S)
        late = asked == self.asked and now - since >= usual
        if late:
            self._ask()
            since, usual = now, 2 * usual
        elif asked != self.asked:
            since, usual = now, AGAIN_S
        self._unheard = (self.asked, since, usual)
        return late

    @property
    def owes_bell(self) -> bool:
        """The other side has asked for one that was not sent yet."""
        return self.wanted != self.rung

    def place(self, tid: int, fd: int, cookie: int) -> None:
        """Where C finds our program's socket; `tid` 0: its supervisor looks for it."""
        self.state.tid, self.state.fd, self.state.cookie = tid, fd, cookie

    def rang(self, number: int) -> None:
        """That one was sent, or need not be. The supervisor counts them, in the copy: it may outlive us."""
        if 0 < (number - self.rung) & _U32 < 1 << 31:
            self.rung = number

    @property
    def next_bell(self) -> int:
        """The number of the one that is owed."""
        return (self.rung + 1) & _U32

    def sleep(self) -> None:
        """We are about to sleep: the program has to say when there is news.

        That it has read something is news only if the other one may soon wait for room, or as long as the program has
        not switched: it is to do so at its first receive.
        """
        said = int(self.state.head_said)
        used = (self.landed - said) & _U64
        self.owes = self.linked and self.copy.head() != said
        self.armed = True
        self._arm(data=True, room=not self.copy.switched or used > self.copy.ring_bytes // 2)

    def awake(self) -> None:
        """We look by ourselves."""
        self.armed = False
        self._arm(data=False, room=not self.copy.switched)

    def _arm(self, *, data: bool, room: bool) -> None:
        self.state.armed = data | room << 1  # as C does it, which may have it next
        self.copy.arm(data=data, room=room)

    @property
    def carried(self) -> bool:
        """By a queue pair of the loop in C."""
        return bool(self.state.queue)

    @property
    def tells(self) -> bool:
        """Its program says when there is news."""
        return bool(self.state.armed & 1)

    @property
    def used(self) -> bool:
        """Both programs have come to their rings."""
        return self.theirs is not None and bool(self.theirs.attached) and self.copy.attached

    def watch(self, watched: bool) -> None:
        """Whether C is to look at it in every turn."""
        abi.lib.sd_mirrored_watch(self.state, watched)

    @property
    def untold(self) -> bool:
        """Its program may read what has landed, and that would have to be said."""
        return self.linked and self.landed != int(self.state.head_said)

    # ------------------------------------------------------------------ its end

    def all_told(self) -> bool:
        """The other side knows everything that our program has ever said."""
        self._held(over=True)
        words = self.copy.read()
        return self.sent == words.tail and self._told is not None and self._heard() == self._words(words)

    def settle_alone(self) -> None:
        """The other side has told everything and forgotten the connection."""
        self.copy.settle(self.copy.read().settle_ask)

    def unread(self) -> int:
        """Bytes of our program that the other one has not read."""
        return (self.sent - self.copy.credited()) & _U64

    def lose(self) -> None:
        """The other host does not come back."""
        self.copy.lose()
