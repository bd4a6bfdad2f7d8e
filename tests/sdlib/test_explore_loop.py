# SPDX-License-Identifier: Apache-2.0
"""Model check of the monitor's loop in C (sdlib/src/verbs): every interleaving of its threads with a program, the
device, Python and another host, under x86-TSO (tests/hosted/loop.c).

Nobody sleeps who has something to do: a lost wake-up leaves bytes, completions or events behind.  That the explorer can
see it is shown with mutants.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType

import pytest

from tests.hostedbuild import EXPLORER, HOSTED, LOOP, LOOP_UNDER_TEST, SRC, build
from tests.sdlib.test_explore import EXPLORING, Mutant, Result, explore

SCENES = ("loop_scenes.c", "loop_scenes_ends.c")
DRIVERS = (*EXPLORING, "loop.c", "loop_system.c", "loop_wire.c", *SCENES)
NAMES = [name for scenes in SCENES
         for name in re.findall(r'^    {"([a-z-]+)"', (HOSTED / scenes).read_text(), re.MULTILINE)]
ASLEEP = "a lost wake-up"
OTHERS = "a sleeper would sleep on"
GONE = "memory is touched that is gone"

MUTANTS = [
    Mutant("loop-nudge", ASLEEP, "verbs/called.c", "        sd_py_membarrier(); /* [W1] [W2] */\n",
           "        (void)0;\n"),
    Mutant("loop-nudge", ASLEEP, "verbs/threads.c",
           "w[n++] = (struct waiter){0, (uintptr_t)&sd_out_of(t->called[i])->bell",
           "w[n++] = (struct waiter){1, (uintptr_t)&sd_out_of(t->called[i])->bell"),
    Mutant("loop-crowded", ASLEEP, "verbs/called.c", "    sd_py_membarrier();\n    if (load", "    if (load"),
    Mutant("loop-crowded", ASLEEP, "verbs/called.c", "    store_rel(direct(m), 0);\n", ""),
    Mutant("loop-held", "bytes are lost, doubled or still held back", "verbs/called.c",
           "            look_at(t, sd_mirrored_held(m, false));", "            if (m->lkey) look_at(t, 0);"),
    Mutant("loop-held", "bytes are lost, doubled or still held back", "verbs/threads.c", "bool forever = !t->pay_at;",
           "bool forever = t || until.tv_sec;"),
    Mutant("loop-room", ASLEEP, "verbs/say.c",
           "    return head == before || !sd_copy_credit(m->copy, m->side, head) || sd_say_sleeps(q, m);",
           "    sd_copy_credit(m->copy, m->side, head);\n    return true;"),
    Mutant("loop-arrive", ASLEEP, "py/copy.c", "    store_rel(&seg->moving, 0);\n    sd_fence();",
           "    store_rel(&seg->moving, 0);\n    (void)0;"),
    Mutant("loop-arrivals", ASLEEP, "verbs/called.c", "t->cq_armed = again = true;", "t->cq_armed = true;"),
    Mutant("loop-company", OTHERS, "sock/doorbell.c", "    return sd_shared(s) && (load_rlx(&s->b->users) > 1",
           "    return false && (load_rlx(&s->b->users) > 1"),
    Mutant("loop-company", OTHERS, "sock/doorbell.c", "    if (kept && !over && unseen(s)) {",
           "    if (kept && over) {"),
    Mutant("loop-company", OTHERS, "sock/far.c", "    if (!due && sd_bell_due(&s->e))\n        return SD_FAR_BYTES;\n",
           "    (void)due;\n"),
    Mutant("loop-company-exclusive", OTHERS, "sock/doorbell.c", " || s->b->exclusive);", ");"),
    Mutant("loop-python", "Python is not told", "verbs/threads.c", "        eventfd_write(t->news, 1);",
           "        (void)0;"),
    Mutant("loop-python", ASLEEP, "verbs/threads.c", "    bool kick = t->dirty || t->full;",
           "    bool kick = t->dirty;"),
    Mutant("loop-watched", "", "verbs/threads.c", "    bool kick = t->dirty || t->full;", "    bool kick = t->full;"),
    Mutant("loop-breaks", GONE, "verbs/carried.c", "        *at = q->next;", "        (void)at;"),
    Mutant("loop-breaks", ASLEEP, "verbs/carried.c", "        q->carried[i]->place = 0;", "        (void)i;"),
    Mutant("loop-breaks-news", "Python is not told", "verbs/carried.c", "    m->noted = 0;\n", ""),
    Mutant("loop-forgets", ASLEEP, "verbs/carried.c", "        sd_threads_uncall(q->carried[i]);", "        (void)i;"),
    Mutant("loop-connection-ends", ASLEEP, "verbs/carried.c",
           "    sd_queue_unwatch(q, q->carried[at]);\n", ""),
    Mutant("loop-ends", ASLEEP, "verbs/threads.c", "    t->stop = true;\n    sd_threads_wake_caller(t);",
           "    t->stop = true;"),
    Mutant("loop-ends", ASLEEP, "verbs/threads.c", "    eventfd_write(t->kick, 1);\n    pthread_cond",
           "    pthread_cond"),
    Mutant("loop-ends", ASLEEP, "verbs/threads.c", "        if (t->stop)\n            break;", "        (void)0;"),
    Mutant("loop-ends", ASLEEP, "verbs/threads.c", "        sd_threads_uncall(t->called[0]);", "        t->count--;"),
    Mutant("loop-ends", GONE, "verbs/threads.c", "        pthread_join(t->caller, NULL);", "        (void)t;"),
]


BUSY = (("d->moved - moved >= MUCH", "d->moved > moved"), ("row >= ROW", "row"), ("dozes = DOZES;", "dozes = 1;"))
"""In threads.c: the loop attends and dozes after a single byte, instead of when much goes by."""
BUSY_MUTANTS = [
    Mutant("loop-nudges", ASLEEP, "verbs/called.c",
           "                m->armed = !load_acq(&sd_out_of(m)->sw_ring) ? 2 : 0;\n", ""),
    Mutant("loop-nudges", ASLEEP, "verbs/threads.c", "dozes && dozes--)\n            away(t, DOZE_NS);",
           "dozes && dozes--)\n            return;"),
]


@pytest.fixture(scope="module")
def explorer(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build(tmp_path_factory.mktemp("loop"), DRIVERS, (*EXPLORER, *LOOP), under_test=LOOP_UNDER_TEST)


@pytest.mark.timeout(600)
@pytest.mark.parametrize("scenario", NAMES)
def test_every_interleaving(explorer: Path, scenario: str) -> None:
    result = explore(explorer, scenario)
    assert result.returncode == 0, result.stdout[:3000]
    found = re.search(r"(\d+) states, (\d+) ends, (\d+) parked", result.stdout)
    assert found and all(int(number) > 0 for number in found.groups()), result.stdout


@pytest.fixture(scope="module")
def busy(explorer: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One that attends to its connections and dozes."""
    return build(tmp_path_factory.mktemp("busy"), DRIVERS, (*EXPLORER, *LOOP), {"verbs/threads.c": _busy_threads()},
                 reuse=explorer.parent, under_test=LOOP_UNDER_TEST)


@pytest.mark.timeout(600)
@pytest.mark.parametrize("scenario", NAMES)
def test_every_interleaving_while_much_goes_by(busy: Path, scenario: str) -> None:
    result = explore(busy, scenario)
    assert result.returncode == 0, result.stdout[:3000]


@pytest.mark.timeout(600)
@pytest.mark.parametrize("mutant", BUSY_MUTANTS, ids=lambda mutant: f"{mutant.scenario}:{mutant.file}")
def test_a_missing_edge_is_found_while_much_goes_by(explorer: Path, tmp_path: Path, mutant: Mutant) -> None:
    result = _explored(explorer.parent, tmp_path, mutant, {"verbs/threads.c": _busy_threads()})
    assert result.returncode == 1 and mutant.why in result.stdout.splitlines()[0], result.stdout[:3000]


def _busy_threads() -> str:
    text = (SRC / "verbs/threads.c").read_text()
    for old, new in BUSY:
        assert text.count(old) == 1, f"threads.c has changed: {old}"
        text = text.replace(old, new)
    return text


@pytest.mark.timeout(600)
@pytest.mark.parametrize("mutant", MUTANTS, ids=lambda mutant: f"{mutant.scenario}:{mutant.file}")
def test_a_missing_edge_is_found(explorer: Path, tmp_path: Path, mutant: Mutant) -> None:
    result = _explored(explorer.parent, tmp_path, mutant)
    assert result.returncode == 1 and mutant.why in result.stdout.splitlines()[0], result.stdout[:3000]


def _explored(reuse: Path, folder: Path, mutant: Mutant, texts: Mapping[str, str] = MappingProxyType({})) -> Result:
    original = texts.get(mutant.file) or (SRC / mutant.file).read_text()
    assert original.count(mutant.old) == 1, f"{mutant.file} has changed: adapt the mutant"
    changed = {**texts, mutant.file: original.replace(mutant.old, mutant.new)}
    mutated = build(folder, DRIVERS, (*EXPLORER, *LOOP), changed, reuse=reuse, under_test=LOOP_UNDER_TEST)
    return explore(mutated, mutant.scenario)
