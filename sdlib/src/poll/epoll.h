/* SPDX-License-Identifier: Apache-2.0
 *
 * epoll.h - inside of ep_*.c: epoll descriptors that watch sockets of ours.
 *
 * Theory of operation
 * -------------------
 * A registration has two halves. The program's half is `want` and `data`. The kernel's half is what the kernel has been told of the same
 * descriptor: `kmask`, `tagged`. Until a socket is attached both are the same. From then on the kernel is given a tag instead of the
 * program's data, and a mask that covers what sd_kernel_want() asks for; edge triggers, one-shots and the program's mask are applied here.
 *
 * Once both directions are on the ring the kernel only matters when somebody sleeps, so the kernel's half is allowed to lag behind:
 *   - EPOLL_CTL_DEL leaves a *ghost*: the program has no registration, the kernel still has one. An ADD of the same descriptor wakes the
 *     ghost up without a system call. An event that the kernel reports for a ghost ends it.
 *   - a mask is only handed to the kernel when it lacks a bit that we need; what it reports in excess is ignored, and after the second
 *     time in vain taken away.
 *
 * On the ring, a registration is *hot* while its ring is looked at with each wait, and *cold* when it is armed, so that a doorbell makes the
 * kernel report it. Cost follows the hot ones.
 *
 * Invariants (live: neither ghost nor dead)
 *   [E1] While a thread sleeps in the kernel on an epoll (`parked`), and always while the epoll is watched by another one or by poll
 *        (`watched`), every live registration on the ring is cold and the kernel's half covers it. Whoever makes one hot meanwhile (another
 *        thread's epoll_ctl, a switch, a bell eaten) arms it at once, looks again, and if it is due *kicks*: it asks the kernel for EPOLLOUT
 *        on it, which is always true of a socket that carries nothing but doorbells, so a sleeper wakes up.
 *        Who looks at a watched one from the outside asks the kernel alone, so that may not say more than is true either: with the last byte that is read its doorbell goes, and a
 *        kick (sd_ep_emptied()), for which its sockets have no short way; and there are no ghosts.
 *   [E2] A ghost is neither hot nor armed.
 *   [E3] Hot list, edge-trigger state and `parked` belong to whoever holds ep->owner. It is never held while parked. Who finds it taken by a
 *        frame below itself (a signal handler), by somebody who has left by siglongjmp, or for too long, pushes to ep->pending, which takes no lock, and
 *        whoever gives the owner word back looks at ep->pending afterwards. Who has pushed tries once more: it may have been given back just before.
 *   [E5] A sleep has a name ([W4], bell.h) where no other process can eat its bells. Whatever is armed by that name is hot or lies in `slept`, and is looked at as soon as the
 *        sleep is over, however it has ended: before the program gets an answer, or, where the lock was taken, in its next wait.
 *        Another thread may take the bell away that the whole set was to wake up by: eat it, close the connection, change the kernel's half of it, wait on the same set,
 *        share the connection with a process. Each of these ends with the lock taken, or with a note for who has it, and whoever takes the lock or a note while
 *        a named sleep is under way ends the name (ep_anonymous): no ring has it any more, membarrier, look again, kick what is due. `named` is set before the first
 *        ring has the name, so who has got a bell that was rung for it knows.
 *   [E6] Edges are the kernel's as long as a direction is on TCP, so the kernel's half of an edge-triggered registration is never renewed without need: that would tell once
 *        more what is told already. It has our tag, and a mask that does for the ring, too, from the beginning; the kernel wakes up for the bits that this has in excess when it
 *        does for POLLIN, so nothing more comes of it. Only who waits for no bytes has to be asked anew when the ring comes, since doorbells are bytes: then an
 *        event with POLLIN in it tells of room only if room was lacking (tx_full).
 *   [E7] Told while TCP was in front of the switch, and bytes of TCP have come since: that is an edge of its own, and the kernel's comes too late if the program has read across
 *        the switch meanwhile. So what TCP had received is remembered with such a report, and if that is less than the position of the switch, what is on the ring is news.
 *        (nginx goes by it: what it reads beyond FIONREAD has come since, so the set will tell of the rest.)
 *   [E4] `structure` guards s->regs and the tables; it is held with all signals blocked, so nothing can interrupt it on its own thread.
 */
#ifndef SD_EPOLL_H
#define SD_EPOLL_H

#include "base/user.h"
#include "poll/poll.h"

#define PRIVATE_BITS (EPOLLET | EPOLLONESHOT | EPOLLEXCLUSIVE | EPOLLWAKEUP)
#define ALWAYS ((u32)(POLLERR | POLLHUP))
#define BYTES_COME ((u32)(POLLIN | POLLRDNORM | POLLPRI | POLLRDBAND)) /* bytes wake up whoever waits for one of these */
#ifndef IDLE_ROUNDS /* tests/hosted has smaller ones */
#define IDLE_ROUNDS 64
#define WARM 128              /* so many stay hot over a park, if they had an event in the last NAPS of them */
#endif
#define TIMER_NS 1000000ull
#define NAPS 4
#define ANONYMOUS 64          /* sleeps without a name after one that had to end its own */
#define REGS_SEEN (1u << 20)  /* bound of a walk over s->regs that runs without the lock, and may be led astray: more than any socket has */

enum { PEND_TOUCH = 1, PEND_SYNC = 2, PEND_DROP = 4 };

/* Memory of a struct reg is only ever used for another struct reg, so a stale pointer is harmless. */
struct reg {
    /* what a scan reads */
    struct sock *s;
    struct reg *hot_next, *hot_prev;
    u64 seen_tail, stamp;
    u64 seen_tcp;               /* 1 + what TCP had received when it was told of outside of the kernel's turn ([E6]); 0: it was not */
    u64 told_tcp;               /* 1 + what TCP had received when it was last told of in front of the switch ([E7]); 0: nothing to remember */
    u32 want;                   /* the program's, flags included */
    u32 latched;                /* of the block, at the last report */
    u32 told_end;               /* of what will be latched: the kernel has told of it already, in front of the switch */
    u32 idle, naps;             /* scans since the last event; parks since the last report */
    bool hot, fresh, off, tx_full;
    bool ghost, dead;
    bool queued, again;         /* on what would be the kernel's list, since `place` (ep_order.c); since it was reported */
    /* the rest */
    u64 place, since;           /* tsc: of its turn; when it was registered or modified */
    struct reg *due_next;
    bool tagged, kicked;        /* kernel's half: with our tag, asked for OUT to wake a sleeper */
    bool renewed;               /* modified by ourselves: what the kernel tells next may be no news ([E6]) */
    u32 kmask;                  /* the kernel's */
    struct ep *ep;
    struct reg *next;           /* in s->regs, or in the free list */
    struct reg *pend_next;
    _Atomic u32 pending;        /* PEND_*: in ep->pending */
    _Atomic u32 armed;          /* as sd_arm gave it */
    u64 data;                   /* the program's */
    int fd, live;               /* key in the kernel; a descriptor that still leads to the socket */
    u32 index, gen, useless;
};

struct ep {
    _Atomic u32 owner, waits;   /* waits: calls that are in there */
    u32 owner_level, vain, vain_seq, seq;
    int fd;                     /* the descriptor that was used last */
    _Atomic u32 parked;         /* threads that sleep in the kernel; changed up under owner */
    bool sated;                 /* the last wait was asked for no more than the kernel alone had to tell, first */
    bool watched;               /* another epoll has this one in its set, or poll or select has looked at it */
    bool given;                 /* another process has it, by SCM_RIGHTS, pidfd_getfd or a fork, who does not know our tags: what is in it is TCP's for good */
    bool inherited;             /* a fork has shared it: others may wait on it who know no tag of a later registration */
    bool registers;             /* and we have registered something since (ep_shared.c) */
    u32 name;                   /* its number in the area, once a fork has shared it; 0: none */
    struct reg **tab;
    u32 cap, used, tagged;
    u32 pid;                    /* who used it last: a forked child shares the kernel half and must not change it */
    _Atomic(struct reg *) pending;
    struct reg *hot;            /* circular */
    u32 nhot, nidle, calls;
    struct reg *slept[WARM];    /* cooled by the last park: a busy set wakes up as one, without a doorbell each */
    u32 nslept;
    u32 anonymous;              /* so many sleeps are to have no name: others come in while it sleeps */
    _Atomic u32 named;          /* some of `slept` are armed by the name of a sleep ([E5]) */
    _Atomic u64 round;
    u64 checked_tsc;
    u64 others;                 /* tsc: when the kernel told of what is not on a ring (nap.c) */
    const struct reg *other;    /* what that was, to be compared only; NULL: none of ours */
    u64 mixed_until;            /* tsc: connections of it may be moving until then (ep_order.c) */
    struct sd_learn learn;
    u32 number;                 /* in the table of descriptors, for good */
    struct ep *next;
};

/* ep_lock.c */
void ep_structure_lock(u64 *old);
void ep_structure_unlock(const u64 *old);
void ep_structure_open(void);  /* to others for a moment, signals stay blocked: */
void ep_structure_close(void); /* what was found before may have changed */
bool ep_lock(struct ep *ep, struct sd_tcb *t);  /* false: see [E3] */
bool ep_enter(struct ep *ep, struct sd_tcb *t); /* ep_lock, and takes over what other parts have noted */
void ep_leave(struct ep *ep, struct sd_tcb *t);

bool ep_is_one(int fd); /* ep_find.c: is it an epoll descriptor? */

/* ep_kernel.c */
struct reg *reg_of_tag(const struct ep *ep, u64 data);
bool is_tag(const struct ep *ep, u64 data);
u32 reg_next_gen(void);
bool on_ring(const struct sock *s);
bool fully_on_ring(const struct sock *s);
bool translated(const struct sock *s);
u32 reg_wanted(const struct reg *r);
bool reg_covered(const struct reg *r, u32 want); /* the kernel's half will do for `want` as it is */
bool reg_edges(u32 want);                         /* [E6] of bytes, among others */
bool reg_tags_early(const struct ep *ep, u32 want); /* while it is on TCP: a one-shot, of which we must know whether it has fired when it attaches later, and [E6] */
u64 reg_tag(const struct reg *r);
u32 reg_mask(const struct reg *r);
long reg_sync(struct reg *r, bool force);
void reg_kick(struct reg *r);
bool reg_hand_back(struct reg *r);
u32 reg_other_half(const struct reg *r, u32 lacking); /* bits that are true, too, in a direction that is not on the ring */

/* ep_hot.c; ep->owner is held, except where it says otherwise */
void hot_add(struct ep *ep, struct reg *r);
void hot_del(struct ep *ep, struct reg *r);
void reg_disarm(struct reg *r);
void ep_inherit(struct ep *ep);              /* without the lock; see ep_used() */
void push_pending(struct reg *r, u32 why); /* without the lock */
void ep_drain(struct ep *ep);
void ep_warm_up(struct ep *ep, u32 naps);
void ep_rise(struct ep *ep, struct sd_tcb *t); /* without the lock: a sleep is over [E5] */
void ep_anonymous(struct ep *ep);              /* [E5] */
bool reg_due(struct reg *r);
u32 reg_report(struct reg *r, u32 kev);    /* without the lock too */
struct sd_turn {
    struct reg *r; /* NULL: of no registration of ours */
    u64 place;     /* when its turn came */
};
int ep_scan(struct ep *ep, struct epoll_event *e, int max, u64 round, bool age, struct sd_turn *turn); /* turn: NULL, or has room */
void ep_settle(struct reg *r, u32 why, struct sd_tcb *t); /* without the lock: note it, and do it now if possible */

/* ep_cool.c; ep->owner is held */
enum cool { COOL_IDLE, COOL_ALL, COOL_SLEEP }; /* those that were idle for long; all; all, and one thread is about to sleep on them */
bool ep_cool(struct ep *ep, enum cool how, bool *timer);
void ep_chill_all(struct ep *ep);          /* [E1] on the way out of a wait while others sleep */
void reg_heat(struct ep *ep, struct reg *r); /* looked at from now on, or armed at once: [E1] */
/* All connections on the ring that are in the set, if only data is waited for and every one of them may be napped on. They are hot then, and held. */
u32 ep_to_nap_on(struct ep *ep, struct sock **set);

/* One wait in a set: ep_wait.c */
#define TURNS 32              /* of the kernel and of rings together, that are told in the order in which they came */
struct epwait {
    struct ep *ep;
    struct sd_tcb *t;
    struct epoll_event *e;
    int max, epfd;
    u64 round;
    u64 began, rung; /* tsc: of spinning and sleeping; of the doorbell that has ended it */
    struct sd_deadline d;
    struct sd_mask m;
    bool precise; /* epoll_pwait2: nanoseconds */
    bool called;
    bool spinning;
    bool owed;    /* the kernel is to be asked, unless we come to sleep there */
    bool parked;  /* counted in ep->parked */
    struct sd_turn *turn; /* TURNS of them: of the kernel's events */
};
/* ep_told.c. k events of the kernel -> what the program is told, in place. */
int ep_told(struct epwait *w, struct epoll_event *e, int k);

/* ep_order.c; ep->owner is held */
void reg_ask_dates(const struct reg *r);
void ep_ask_dates(const struct ep *ep);   /* structure is held: it is not alone any more */
u64 reg_queue(struct reg *r, bool by_kernel, u64 *now); /* it is due: its turn, if it has none yet. *now: tsc, 0: not read yet */
void reg_renewed(struct reg *r);          /* before it is modified, or registered again */
void reg_reported(struct reg *r, u64 now);
struct reg *ep_in_order(struct reg *due);
void ep_mixes(struct ep *ep);             /* one comes in, or moves */
bool ep_is_mixed(struct ep *ep);
bool ep_has_due(struct ep *ep);
void ep_interleave(struct epoll_event *e, struct sd_turn *turn, u32 kernel, u32 n);

/* Is there an order to keep? Also between one on the ring and one on TCP: that may move later, and then have been the first. */
static inline bool ep_in_company(const struct ep *ep) { return ep->used > 1; }

/* ep_table.c; structure is held, except for the first and the last */
struct reg *reg_find(const struct sock *s, const struct ep *ep, int fd); /* the live one or its ghost */
struct reg *reg_new(struct ep *ep);
void reg_drop(struct reg *r, struct sd_tcb *t, bool tell_kernel);
struct ep *ep_new(int epfd, struct sd_tcb *t);
void reg_end(struct reg *r, struct sd_tcb *t); /* a ghost that the kernel has reported */
void ep_end_ghosts(struct ep *ep, struct sd_tcb *t); /* others will see what the kernel has of it; without the lock */

/* ep_shared.c */
void ep_name(struct ep *ep); /* a fork follows */
void ep_use_shared(struct ep *ep, int epfd, bool registers);

/* A set that a fork has shared is about to be waited on, or something to be registered there. Nothing is held. */
static inline void ep_use(struct ep *ep, int epfd, bool registers)
{
    if (unlikely(ep->name) && !ep->given)
        ep_use_shared(ep, epfd, registers);
}

void ep_watch(struct ep *ep); /* ep_hooks.c, structure is held: it is watched, and nothing in it is on a ring yet (else: sd_ep_watch()) */

/* Before anything is armed or told the kernel. A forked child finds what its parent had armed, which is no sleep of its own: it is looked at again. */
static inline void ep_used(struct ep *ep)
{
    if (unlikely(ep->pid != g.pid))
        ep_inherit(ep);
}

/* [E1]: nothing may be hot. */
static inline bool ep_slept_on(const struct ep *ep)
{
    return unlikely(load_rlx(&ep->parked) || ep->watched);
}

/* Has the lock: is it a sleeper's, who goes by the name of its sleep? */
static inline bool ep_sleeps_by_name(const struct ep *ep)
{
    return unlikely(load_rlx(&ep->named)) && load_rlx(&ep->parked) && ep->pid == g.pid;
}

/* Can event n of a report be written? Looked at before the registration is taken to have been reported; once a page. */
static inline bool ep_has_room(struct epoll_event *e, int n)
{
    struct epoll_event *at = e + n;

    return (n && !(((u64)at ^ (u64)(at + 1)) >> 12)) || sd_touch_all(at, sizeof *at);
}

static inline void ep_put(struct epoll_event *e, u32 events, u64 data)
{
    e->events = events;
    e->data = data;
}

#endif
