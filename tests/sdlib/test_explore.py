# SPDX-License-Identifier: Apache-2.0
"""Model check of the library's own code: every interleaving of two or three threads under x86-TSO (tests/hosted).

Arming against publishing, the switch up and back with doorbells in the stream, other rings in the place of those of a
lost link, epoll sets that are waited in and changed, and tokens changing hands between threads that go on, are
stopped or are killed. That the explorer can see what it looks for is shown with mutants: each takes one edge away,
and one scenario must fail for it.
"""

from __future__ import annotations

import os
import re
import subprocess
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any, NamedTuple

import pytest

from tests.hostedbuild import EXPLORER, HOSTED, SRC, build

SCENES = sorted(path.name for path in HOSTED.glob("scenes_*.c"))
EXPLORING = ("explore.c", "tso.c", "states.c", "touched.c", "scene.c", "kernel.c", "kernel_epoll.c", "around.c")
DRIVERS = (*EXPLORING, "all_scenes.c", *SCENES)
NAMES = [name for scenes in SCENES
         for name in re.findall(r'^    {"([a-z-]+)"', (HOSTED / scenes).read_text(), re.MULTILINE)]


SILENT = ("epoll-level-up", "epoll-edge-up", "epoll-two-oneshot-there", "epoll-replace-noted", "nap-and-close",
          "polled-and-closed", "back-far")
"""Nobody sends, or sleeps, or what wakes is there from the start, or a byte of the program before a reader has come."""


class Mutant(NamedTuple):
    """One edge less, and the scenario that must notice."""

    scenario: str
    why: str
    file: str
    old: str
    new: str


MUTANTS = [
    Mutant("wake-up", "a lost wake-up", "sock/rx.c", "        sd_membarrier();\n", "        (void)0;\n"),
    Mutant("wake-up-fenced", "a lost wake-up", "ring/bell.c", "cas_u32(&e->tx_fence, left, left - 1);",
           "store_rlx(&e->tx_fence, left - 1);"),
    Mutant("wake-up-fence-ends", "a lost wake-up", "ring/bell.c", "    sd_fence(); /* [W3] */\n    store_rel(",
           "    store_rel("),
    Mutant("wake-up-poll", "a lost wake-up", "ring/bell.h", "    return load_rlx(&e->rx->prod_fenced) == 0;",
           "    return false;"),
    Mutant("wake-up", "a lost wake-up", "sock/rx.c", "more(s, w) ? SD_NEWS : park(", "park("),
    Mutant("wake-up", "taken back its count", "ring/bell.h", "atomic_fetch_add(&e->rx->rx_armed, 1);", "(void)e;"),
    Mutant("wake-up", "a second doorbell", "ring/bell.h", "            return rings;", "            return true;"),
    Mutant("wake-up", "a second doorbell", "sock/doorbell.c",
           "    bool bell = sd_bell_due(&s->e), kept;",
           "    bool bell = sd_bell_due(&s->e), kept; if (bell) sd_bell_eaten(&s->e);"),
    Mutant("wake-up-poll", "a lost wake-up", "poll/pollsleep.c", "        sd_membarrier();\n", "        (void)0;\n"),
    Mutant("wake-up-poll", "a lost wake-up", "poll/pollsleep.c",
           "bool ready = sd_pollset_ready(p);", "bool ready = false;"),
    Mutant("half-close-poll", "a lost wake-up", "poll/pollsleep.c",
           "            *timer |= sd_needs_timer(p->item[i].s, sd_bits_fold(p->item[i].want));\n",
           "            *timer |= false;\n"),
    Mutant("wake-up-nap", "a lost wake-up", "poll/nap.c", "        sd_membarrier();\n", "        (void)0;\n"),
    Mutant("wake-up-nap-fenced", "a lost wake-up", "poll/nap.c", "        sd_fence();\n", "        (void)0;\n"),
    Mutant("wake-up-nap", "a lost wake-up", "poll/nap.c", "if (alone && all_quiet(set, n)) {",
           "if (alone && (all_quiet(set, n) || n)) {"),
    Mutant("wake-up-nap", "has not taken back its count", "poll/nap.c", "        sd_disarm(set[i], p->armed[i]);",
           "        (void)pid;"),
    Mutant("wake-up-nap-set", "a lost wake-up", "poll/nap.c", "? s : sd_sock_enter_numbered((u32)at);", "? s : s;"),
    Mutant("wake-up-nap-set", "a lost wake-up", "poll/nap.c", "&home->e.tx->nap, 0) == 1)",
           "&home->e.tx->nap, 0) > 1)"),
    Mutant("nap-beside-sleeper", "a lost wake-up", "poll/nap.c", "    return alone;\n}\n",
           "    (void)alone;\n    return load_acq(&d->rx_armed) == 1;\n}\n"),
    Mutant("nap-and-close", "a file is closed under a napper", "poll/nap.c",
           "        atomic_fetch_add(&set[i]->napping, 1); /* [N3] */", "        (void)set;"),
    Mutant("nap-and-close", "a lost wake-up", "poll/nap.c", "            sd_nap_disturb(s);\n",
           "            (void)s;\n"),
    Mutant("wake-up-poll", "has not taken back its count", "poll/pollsleep.c", "if (it->armed && likely(pid == g.pid))",
           "if (it->armed && pid != g.pid)"),
    Mutant("wake-up", "has not taken back its count", "sock/rx.c", "    sd_owed_armed(s, armed);\n",
           "    (void)armed;\n"),
    Mutant("room", "has not taken back its count", "sock/room.c", "    sd_owed_armed(s, armed);\n",
           "    (void)armed;\n"),
    Mutant("wake-up-named", "a lost wake-up", "scenes_bells.c", "++prog.plain[0]", "1"),
    Mutant("wake-up-named", "a lost wake-up", "sock/doorbell.c", "return load_acq(place_of(as)) == as;",
           "return as != 0;"),
    Mutant("two-trees", "another's name has kept it asleep", "sock/doorbell.c",
           "sd_mix(sleep ^ g.secret) + s->b->peer_tree", "sd_mix(sleep ^ g.secret) + 0 * s->b->peer_tree"),
    Mutant("room", "a lost wake-up", "sock/room.c", "    sd_membarrier();\n    r = room_now", "    r = room_now"),
    Mutant("room", "a lost wake-up", "sock/room.c", "room_now(s, need) ? 0 : sleep", "need == 0 ? 0 : sleep"),
    Mutant("room", "has failed", "ring/ring.c",
           "    return used < e->tx_bytes ? (i64)(e->tx_bytes - used) : 0;", "    return (i64)e->tx_bytes;"),
    Mutant("switch", "lost, doubled", "sock/rx_tcp.c", "return q > 0 ? (u64)q : 0;", "return 8;"),
    Mutant("switch-poll", "a lost wake-up", "sock/ready.c", "load_rlx(&b->rx_mode) != SD_MODE_BACK && (want",
           "load_rlx(&b->rx_mode) == SD_MODE_RING && (want"),
    Mutant("back", "has reached the program", "sock/switch.c", "bells, left, MSG_DONTWAIT) != (long)left",
           "bells, left, MSG_DONTWAIT) > (long)left"),
    Mutant("token", "two have taken", "sock/token.c", "        barrier(s); /* R2 */\n", ""),
    Mutant("token", "two have taken", "sock/token.c", "            see_out(s, p, l, key, h->dir);",
           "            (void)see_out;"),
    Mutant("token", "two have taken", "sock/token.h", "(i64)(to - now) > 0", "to != now"),
    Mutant("token", "the index has", "sock/token.c", "sd_tok_cas(index, from, to); /* C3",
           "sd_cas_local(index, from, to); /*"),
    Mutant("two-senders", "bytes are lost", "sock/fast_shared.c", "sd_take(s, SD_DIR_TX, SD_MARK_OP, &h);",
           "h = (struct sd_hold){.word = &b->token[SD_DIR_TX]};"),
    Mutant("two-readers", "bytes are lost", "sock/fast_shared.c", "sd_take(s, SD_DIR_RX, SD_MARK_OP, &h);",
           "h = (struct sd_hold){.word = &b->token[SD_DIR_RX]};"),
    Mutant("two-readers-stopped", "bytes are lost", "sock/fast_shared.c",
           "        got = sd_commit_index(&h, &d->head, head, head + n); /* [R2] */",
           "        store_rlx(&d->head, head + n);\n        got = true;"),
    Mutant("switch-full", "a lost wake-up", "sock/doorbell.c",
           "    sd_bell_give_back(&s->e);\n    if (r != -EAGAIN", "    if (r != -EAGAIN"),
    Mutant("back-while-other-waits", "a lost wake-up", "sock/switch.c", "    ring = sd_back_announce(&s->e);",
           "    ring = sd_back_announce(&s->e) && false;"),
    Mutant("recall", "", "ring/switch.c", "    store_rel(&tx->tail, load_rlx(&tx->head)); /* [S5]", "    /*"),
    Mutant("recall", "", "ring/switch.h", "    return cas_u32(&e->rx->go_back, SD_GO_BACK_RESEND, SD_GO_BACK_CALL);",
           "    store_rlx(&e->rx->go_back, SD_GO_BACK_CALL);\n    return true;"),
    Mutant("recall-unread", "", "sock/recall.c", "    n -= (u64)rung;\n", ""),
    Mutant("given-young", "", "sock/again.c",
           "    return mode == SD_MODE_BACK || (mode == SD_MODE_TCP && !sd_sw_published(&s->e));",
           "    return mode == SD_MODE_BACK || mode == SD_MODE_TCP;"),
    Mutant("sleepers", "a lost wake-up", "sock/rx.c", "more(s, w) ? SD_NEWS : park(", "park("),
    Mutant("sleepers-poll", "a lost wake-up", "poll/pollsleep.c",
           "                atomic_fetch_add(&it->s->parked, 1);", "                ;"),
    Mutant("polled-and-closed", "memory is touched that is gone", "poll/poll.c",
           "        if (!s || !g.mt)\n", "        if (!s || g.mt)\n"),
    Mutant("polled-and-closed", "memory is touched that is gone", "poll/poll.c",
           "        if (likely(sd_is_still(s, fd)))", "        if (likely(s != NULL))"),
    Mutant("polled-and-closed", "it is not freed", "poll/poll.c",
           "    long r = wait_loop(p, d, m);\n    let_go(p);\n", "    long r = wait_loop(p, d, m);\n"),
    Mutant("company", "a sleeper would sleep on", "sock/doorbell.c",
           "    return sd_shared(s) && (load_rlx(&s->b->users) > 1",
           "    return false && (load_rlx(&s->b->users) > 1"),
    Mutant("company-exclusive", "a sleeper would sleep on", "sock/doorbell.c", " || s->b->exclusive);", ");"),
    Mutant("company-exclusive-two", "a lost wake-up", "sock/doorbell.c", "    wake_more(s, fd, more);\n}\n\n/* Inside",
           "    (void)wake_more;\n}\n\n/* Inside"),
    Mutant("company-exclusive-two", "a lost wake-up", "ring/bell.h", "was, rings ? now : sd_bell_counted(d, was))",
           "was, now)"),
    Mutant("company-exclusive-two", "a lost wake-up", "ring/bell.h",
           "    for (u32 i = 0; i < SD_BELL_TRIES && sd_bell_state(word) == from; i++) {\n"
           "        *more = word / SD_BELL_MORE;\n",
           "    *more = word / SD_BELL_MORE;\n"
           "    for (u32 i = 0; i < SD_BELL_TRIES && sd_bell_state(word) == from; i++) {\n"),
    Mutant("company-edge", "a lost wake-up", "ring/bell.h",
           "sd_bell_move(e, SD_BELL_RUNG, SD_BELL_HEARD, more) ||",
           "(*more = 0, sd_bell_state(load_acq(&e->rx->bell)) == SD_BELL_RUNG) ||"),
    Mutant("company-edge", "a lost wake-up", "sock/doorbell.c", "    return SYS6(__NR_recvfrom, fd, two",
           "    return false && SYS6(__NR_recvfrom, fd, two"),
    Mutant("company-late", "a sleeper would sleep on", "sock/doorbell.c",
           "    if (kept && !over && unseen(s)) {",
           "    if (kept && over) {"),
    Mutant("company-room", "a sleeper would sleep on", "sock/doorbell.c",
           "    return (n && sd_sleepers(s, n)) || room_for_others(s);",
           "    (void)room_for_others;\n    return false;"),
    Mutant("company-room-late", "a sleeper would sleep on", "sock/doorbell.c",
           "    if (kept && !over && unseen(s)) {",
           "    if (kept && over) {"),
    Mutant("company-late", "a sleeper would sleep on", "ring/bell.h",
           "            return rings;", "            return was == SD_BELL_NONE;"),
    Mutant("back-far", "a wrong reason", "sock/switch.c", "    if (lost)\n",
           "    if (lost && load_acq(&s->seg->pumped))\n"),
    Mutant("back-far", "a wrong reason", "py/pump.c",
           "    cas_u32(&out_of(segment, side)->go_back, 0, SD_GO_BACK_CALL);\n",
           "    store_rel(&seg->lost, 0);\n    cas_u32(&out_of(segment, side)->go_back, 0, SD_GO_BACK_CALL);\n"
           "    store_rel(&seg->lost, why);\n"),
    Mutant("again", "", "sock/again.c", "        if (t != me && !apart(t, s))\n            return false;\n",
           "        if (t != me && !apart(t, s))\n            continue;\n"),
    Mutant("again", "", "sock/again.c", "    sd_membarrier_threads();\n", ""),
    Mutant("attach-shared", "", "sock/life.c", "    sd_fence(); /* [A1]", "    /* [A1]"),
    Mutant("attach-shared", "", "sock/rx_tcp.c", "SD_MODE_BACK || !s->seg)\n        return true;",
           "SD_MODE_BACK || !s->seg || !sd_attached_said(s->seg, b->side))\n        return true;"),
    Mutant("epoll-level", "a lost wake-up", "poll/ep_cool.c",
           "    if (barrier)\n        sd_membarrier();\n", "    (void)barrier;\n"),
    Mutant("epoll-level", "a lost wake-up", "poll/ep_cool.c", "        if (reg_due(r)) {\n            reg_disarm(r);",
           "        if (!r) {\n            reg_disarm(r);"),
    Mutant("epoll-level", "has not taken back its count", "poll/ep_hot.c",
           "    if (armed && likely(r->ep->pid == g.pid)) /*", "    if (armed && r->ep->pid != g.pid) /*"),
    Mutant("epoll-edge", "a lost wake-up", "poll/ep_hot.c", "(tail != r->seen_tail && (r->want",
           "(tail == r->seen_tail && (r->want"),
    Mutant("epoll-oneshot", "a lost wake-up", "poll/ep_ctl.c", "    r->off = r->ghost = false;",
           "    r->ghost = false;"),
    Mutant("epoll-polled", "a lost wake-up", "poll/ep_hooks.c", "    ep_chill_all(ep); /* [E1] */\n", ""),
    Mutant("epoll-add", "a lost wake-up", "poll/ep_hot.c",
           "    if (ep_slept_on(ep))\n        ep_chill_all(ep); /* [E1] */\n", ""),
    Mutant("epoll-add", "a lost wake-up", "poll/ep_wait.c",
           "            atomic_fetch_add(&ep->parked, 1); /* [E1] before the lock is free */\n"
           "        ep_leave(ep, w->t);",
           "            ep_leave(ep, w->t), atomic_fetch_add(&ep->parked, 1);\n"
           "        else\n            ep_leave(ep, w->t);"),
    Mutant("epoll-mod", "a lost wake-up", "poll/ep_kernel.c", "~EPOLLET) | POLLOUT;", "~EPOLLET);"),
    Mutant("epoll-looked-at", "a lost wake-up", "poll/ep_hooks.c", "!r->hot || load_rlx(&r->armed) ||", "!r->hot ||"),
    Mutant("epoll-looked-at", "a lost wake-up", "poll/ep_hooks.c", "!r->hot || load_rlx(&r->armed) ||", ""),
    Mutant("epoll-looked-at-fenced", "a lost wake-up", "poll/ep_cool.c",
           "    store_rlx(&r->armed, SD_ARM_BARRIER);", "    if (!r)\n        store_rlx(&r->armed, 0);"),
    Mutant("epoll-two-wait", "a lost wake-up", "poll/ep_wait.c", "        ep_chill_all(ep); /* [E1] others sleep on",
           "        /*"),
    Mutant("epoll-mod-noted", "a lost wake-up", "poll/ep_ctl.c",
           "        ep_settle(r, PEND_TOUCH, t);\n        return ret;",
           "        push_pending(r, PEND_TOUCH);\n        return ret;"),
    Mutant("epoll-replace-noted", "a lost wake-up", "poll/ep_ctl.c",
           "        ep_settle(r, PEND_TOUCH, t);\n        return true;",
           "        push_pending(r, PEND_TOUCH);\n        return true;"),
    Mutant("epoll-mod-noted", "a lost wake-up", "poll/ep_lock.c", "load_acq(&ep->pending) != NULL) && ep_lock(ep, t))",
           "load_acq(&ep->pending) != NULL) && !t)"),
    Mutant("epoll-replace", "epoll_ctl has failed", "poll/ep_ctl.c", "    if (likely(ret != -EEXIST))\n", ""),
    Mutant("epoll-replace-late", "has not taken back its count", "poll/ep_table.c",
           "    if (!ep_lock(ep, t)) {",
           "    reg_disarm(r);\n    store_rlx(&r->armed, 0);\n    if (!ep_lock(ep, t)) {"),
    Mutant("epoll-closed-noted", "is not freed", "poll/ep_table.c", "        ep_settle(r, PEND_DROP, t);\n", ""),
    Mutant("cork-alone", "a lost wake-up", "sock/cork.c", "        sd_ring_bell_late(s, fd);", "        (void)fd;"),
    Mutant("cork-back", "", "sock/switch.c", "    sd_cork_uncover(s->e.tx, s->e.bytes, s->e.bytes);\n", ""),
]


Result = subprocess.CompletedProcess[str]


def explore(program: Path, scenario: str) -> Result:
    return subprocess.run(["nice", program, scenario], stdout=subprocess.PIPE, text=True, timeout=600, check=False)


def explore_mutant(folder: Path, reuse: Path, mutant: Mutant) -> Result:
    original = ((SRC if "/" in mutant.file else HOSTED) / mutant.file).read_text()
    assert original.count(mutant.old) == 1, f"{mutant.file} has changed: adapt the mutant"
    text = original.replace(mutant.old, mutant.new)
    return explore(build(folder, DRIVERS, EXPLORER, {mutant.file: text}, reuse=reuse), mutant.scenario)


@pytest.fixture(scope="module")
def results(request: pytest.FixtureRequest,
            tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[Any, Future[Result]]]:
    """Of what is selected, by scenario or mutant. The explorer has one thread: each CPU runs another."""
    folder = tmp_path_factory.mktemp("explorer")
    program = build(folder, DRIVERS, EXPLORER)
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        futures: dict[Any, Future[Result]] = {}
        for item in request.session.items:
            if isinstance(item, pytest.Function) and item.path == request.path:
                [what] = item.callspec.params.values()
                if isinstance(what, Mutant):
                    futures[what] = pool.submit(explore_mutant, folder / f"mutant-{len(futures)}", folder, what)
                else:
                    futures[what] = pool.submit(explore, program, str(what))
        yield futures
        pool.shutdown(cancel_futures=True)


@pytest.mark.timeout(600)
@pytest.mark.parametrize("scenario", NAMES)
def test_every_interleaving(results: dict[Any, Future[Result]], scenario: str) -> None:
    result = results[scenario].result()
    assert result.returncode == 0, result.stdout[:3000]
    numbers = re.search(r"(\d+) states, (\d+) ends, (\d+) parked, (\d+) bells, \d+ back, (\d+) again",
                        result.stdout)
    assert numbers
    states, _ends, parked, bells, again = map(int, numbers.groups())
    assert states > 1000
    assert (again > 0) == scenario.startswith(("given", "attach", "again"))
    assert (parked > 0 and bells > 0) or scenario.startswith(("token", "two-", "company", "attach", "again", *SILENT))


@pytest.mark.timeout(600)
@pytest.mark.parametrize("mutant", MUTANTS, ids=lambda mutant: f"{mutant.scenario}:{mutant.file}")
def test_a_missing_edge_is_found(results: dict[Any, Future[Result]], mutant: Mutant) -> None:
    result = results[mutant].result()
    assert result.returncode == 1 and mutant.why in result.stdout.splitlines()[0], result.stdout[:3000]
