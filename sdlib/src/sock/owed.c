/* SPDX-License-Identifier: Apache-2.0
 *
 * owed.c - counts that an operation raises when it begins and lowers when it ends, in words that processes share.
 *
 * Between the two it sleeps, and a handler may come in and fork. Then it ends twice, in the parent and in the child: both would lower what was raised once,
 * a sleeper would not be counted any more, and nobody would ring for it. (A receive with SA_RESTART even goes on sleeping in the child.) So each
 * thread notes for each nesting level what it has raised, and before a fork that is raised again for every level below the one that forks.
 *
 * What is raised is noted before, and until it is lowered; in the few instructions where only the note stands, a fork leaves a count too many: a bell more,
 * or a connection that is not upgraded. An operation that was left by siglongjmp leaves its note behind as it leaves its count: the next one of its level writes over it.
 */
#include "sock/sock.h"

/* NULL: handlers are nested too deep to be told apart. */
static struct sd_owed *own(struct sd_tcb *t)
{
    u32 level = t->level ? t->level - 1 : 0;

    return likely(level < SD_STACK_LEVELS) ? &t->owed[level] : NULL;
}

static void note(struct sock *s, u32 armed, u32 plain)
{
    struct sd_owed *o = own(sd_self());

    if (!o)
        return;
    *(struct sock *volatile *)&o->s = NULL; /* for a handler that comes in here */
    o->armed = armed;
    o->plain = plain;
    *(struct sock *volatile *)&o->s = s;
}

static void raise_again(struct sock *s, struct sd_block *b, const struct sd_owed *o)
{
    if (o->plain & SD_OWES_RX)
        atomic_fetch_add(&b->rx_plain, 1);
    if (o->plain & SD_OWES_TX)
        atomic_fetch_add(&b->tx_plain, 1);
    if (!s->seg || ((o->armed >> SD_ARM_EPOCH) ^ s->epoch) << SD_ARM_EPOCH)
        return;
    if (o->armed & 1)
        atomic_fetch_add(&s->e.rx->rx_armed, 1);
    if (o->armed & 2)
        sd_room_arm(&s->e);
}

void sd_owed_before_fork(struct sd_tcb *t)
{
    for (u32 l = 0; l + 1 < t->level && l < SD_STACK_LEVELS; l++) {
        const struct sd_owed *o = &t->owed[l];
        struct sock *s = o->s;
        if (s && s->b && (!g.mt || load_rlx(&t->use[l]) == s)) /* else it was left, and may be gone */
            raise_again(s, s->b, o);
    }
}

void sd_owe_plain(struct sock *s, u32 which)
{
    note(which ? s : NULL, 0, which);
    if (which)
        atomic_fetch_add(which == SD_OWES_RX ? &s->b->rx_plain : &s->b->tx_plain, 1); /* [A1] [K1] */
}

void sd_owed_plain(struct sock *s, u32 which)
{
    struct sd_owed *o = own(sd_self());
    bool counted = o ? o->s == s && o->plain == which : sd_shared(s);

    if (!counted)
        return;
    atomic_fetch_sub(which == SD_OWES_RX ? &s->b->rx_plain : &s->b->tx_plain, 1);
    note(NULL, 0, 0);
}

void sd_plain_leave(struct sock *s, u32 which, long r)
{
    struct sd_block *b = s->b;

    sd_owed_plain(s, which);
    COUNT(calls_kernel);
    if (r > 0) {
        b->bytes_tcp += (u64)r;
        b->established = 1;
    }
}

u32 sd_owe_armed(struct sock *s, u32 want)
{
    u32 armed, pid;

    do { /* a handler has forked before it was noted: only the parent is counted */
        pid = g.pid;
        if (want) {
            armed = sd_arm(s, want);
        } else {
            sd_room_arm(&s->e);
            armed = 2 | s->epoch << SD_ARM_EPOCH;
        }
        note(armed ? s : NULL, armed, 0);
    } while (unlikely(*(volatile u32 *)&g.pid != pid));
    return armed;
}

void sd_owed_armed(struct sock *s, u32 armed)
{
    sd_disarm(s, armed);
    if (armed)
        note(NULL, 0, 0);
}
