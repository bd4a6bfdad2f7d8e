/* SPDX-License-Identifier: Apache-2.0
 *
 * parts.c - participants (token.h): who they are, whether they live, on what they sleep.
 */
#include "base/task.h"
#include "sock/sock.h"

static SD_FORKED u64 own_pidns; /* inode + 1; 0: not asked yet, 1: unknown */

void sd_parts_forget(void) { own_pidns = 0; }

static u64 pidns(void)
{
    u64 st[18]; /* struct stat: st_ino is the second word */

    if (!own_pidns)
        own_pidns = SYS4(__NR_newfstatat, AT_FDCWD, "/proc/self/ns/pid", st, 0) < 0 ? 1 : st[1] + 1;
    return own_pidns - 1;
}

bool sd_part_gone(const struct sd_part *p)
{
    u32 tid = load_rlx(&p->tid);

    return !tid || (p->pidns && p->pidns == pidns() && SYS2(__NR_tkill, tid, 0) == -ESRCH);
}

static bool seize(struct sd_area *a, u32 i, u32 old, u32 tid)
{
    struct sd_part *p = &a->part[i];
    u32 top = load_rlx(&a->parts_top);

    if (!cas_u32(&p->tid, old, tid))
        return false;
    for (u32 l = 0; l < SD_PART_LEVELS; l++) { /* counts go on, so that who still looks at the last owner's mark is not misled */
        u64 m = load_rlx(&p->mark[l]);
        while (!atomic_compare_exchange_weak(&p->mark[l], &m, m & ~(SD_MARK_KEY | 7)))
            ;
    }
    store_rlx(&p->park, 0);
    p->pid = (u32)SYS0(__NR_getpid);
    p->pidns = pidns();
    while (top <= i && !atomic_compare_exchange_weak(&a->parts_top, &top, i + 1))
        ;
    return true;
}

static struct sd_part *take_part(struct sd_tcb *t, u32 i)
{
    t->part_number = i;
    return t->part = &g.area[0]->part[i];
}

static NOINLINE struct sd_part *claim(struct sd_tcb *t)
{
    struct sd_area *a = g.area[0];

    if (!a)
        return NULL;
    for (u32 i = 1; i < SD_AREA_PARTS; i++)
        if (!load_rlx(&a->part[i].tid) && seize(a, i, 0, t->tid))
            return take_part(t, i);
    for (u32 i = 1; i < SD_AREA_PARTS; i++) {
        u32 tid = load_rlx(&a->part[i].tid);
        if (sd_part_gone(&a->part[i]) && seize(a, i, tid, t->tid))
            return take_part(t, i);
    }
    return NULL;
}

struct sd_part *sd_part_of(struct sd_tcb *t)
{
    return likely(t->part != NULL) ? t->part : claim(t);
}

void sd_part_release(struct sd_tcb *t)
{
    struct sd_part *p = t->part;

    t->part = NULL;
    if (!p)
        return;
    for (u32 l = 0; l < SD_PART_LEVELS; l++)
        store_rlx(&p->mark[l], sd_mark_as(load_rlx(&p->mark[l]), SD_MARK_IDLE));
    store_rlx(&p->park, 0);
    store_rel(&p->tid, 0);
}

void sd_parts_before_fork(struct sd_tcb *t)
{
    struct sd_part *p = t->part;

    for (u32 l = 0; p && l + 1 < t->level && l < SD_PART_LEVELS; l++) {
        u64 m = load_rlx(&p->mark[l]);
        u32 state = sd_mark_state(m), area = m >> 16 & 0xf, block = m >> 4 & 0xfff;
        if (state != SD_MARK_OP && state != SD_MARK_EAT)
            continue;
        if (state == SD_MARK_OP && (m & 8) && g.area[area])
            cas_u32(&g.area[area]->block[block].tx_mode, SD_MODE_RING, SD_MODE_RETIRE);
        sd_mark_void(&p->mark[l], m);
    }
}

/* A fresh image: what its predecessor, whose threads are all gone, has left. */
void sd_parts_after_exec(void)
{
    struct sd_area *a = g.area[0];
    u32 top = a ? load_rlx(&a->parts_top) : 0;

    for (u32 i = 1; i < top && i < SD_AREA_PARTS; i++)
        if (a->part[i].pid == g.pid && a->part[i].pidns == pidns())
            store_rel(&a->part[i].tid, 0);
}

u32 sd_part_number(const struct sd_part *p) { return p ? (u32)(p - g.area[0]->part) : 0; }

struct sd_part *sd_part_at(u32 i)
{
    return i && i < SD_AREA_PARTS && g.area[0] ? &g.area[0]->part[i] : NULL;
}

/* What /proc says of a thread, 0: nothing. */
static char state_of(u32 tid)
{
    char text[64];
    long n = (long)sd_task_read(tid, "stat", text, sizeof text);

    for (long i = n - 3; i > 0; i--) /* "pid (name) S ...": the name may hold anything but ends at the last ) */
        if (text[i] == ')')
            return text[i + 2];
    return 0;
}

/* 't' or 'T' (stopped), 'Z', 'X': the thread is in no system call, and whatever it makes next it has still to read its arguments for. */
static bool is_stopped(u32 tid)
{
    char state = state_of(tid);

    return state == 'T' || state == 't' || state == 'Z' || state == 'X';
}

bool sd_task_runs(u32 tid) { return tid && state_of(tid) == 'R'; }

bool sd_part_stopped(const struct sd_part *p)
{
    return p->pidns && p->pidns == pidns() && is_stopped(load_rlx(&p->tid));
}

/* Our level, and the marks of levels that were left by siglongjmp. */
u32 sd_part_level(struct sd_tcb *t)
{
    u32 level = t->level ? t->level - 1 : 0;

    if (t->part && unlikely(t->marks > level + 1)) {
        for (u32 l = level + 1; l < SD_PART_LEVELS; l++)
            store_rlx(&t->part->mark[l], sd_mark_as(load_rlx(&t->part->mark[l]), SD_MARK_IDLE));
        store_rlx(&t->part->park, 0);
    }
    t->marks = level + 1;
    return level;
}

/* --------------------------------------------------------------- sleepers */

/* Before the membarrier that follows arming. The doorbell that wakes us must not be eaten before we have left. */
u64 sd_sleeper_enter(struct sock *s, u64 need)
{
    struct sd_tcb *t = sd_self();
    struct sd_part *p = t->part;
    u64 before;

    if (!sd_shared(s))
        return SD_NOT_PARKED;
    atomic_fetch_add(&s->parked, 1);
    p = p ? p : claim(t);
    if (!p)
        return SD_PARK_UNKNOWN; /* sd_park() looks again every millisecond then */
    before = sd_part_level(t) ? load_rlx(&p->park) : 0; /* of what a handler has interrupted */
    store_rlx(&p->need, need);
    store_rel(&p->park, 1 + (u64)s->id);
    return before;
}

void sd_sleeper_leave(struct sock *s, u64 before)
{
    struct sd_part *p = sd_self()->part;

    if (before == SD_NOT_PARKED)
        return;
    atomic_fetch_sub(&s->parked, 1);
    if (p && before != SD_PARK_UNKNOWN) {
        if (unlikely(before))
            store_rlx(&p->need, 0); /* nobody knows any more: for any */
        store_rel(&p->park, before);
    }
}

/* Somebody else sleeps on s, for whom so many unread bytes are enough, or has been woken and has not left yet. */
bool sd_sleepers(const struct sock *s, u64 unread)
{
    struct sd_area *a = g.area[0];
    const struct sd_part *own = sd_self()->part;
    u32 top;

    if (!a || (load_rlx(&s->b->users) <= 1 && !load_rlx(&s->parked)))
        return false; /* the count only rules out: who left by siglongjmp is still in it */
    top = load_acq(&a->parts_top);
    for (u32 i = 1; i < top && i < SD_AREA_PARTS; i++) {
        const struct sd_part *p = &a->part[i];
        if (p != own && load_acq(&p->park) == 1 + (u64)s->id && load_rlx(&p->need) <= unread && !sd_part_gone(p))
            return true;
    }
    return false;
}
