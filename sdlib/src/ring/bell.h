/* SPDX-License-Identifier: Apache-2.0
 *
 * bell.h - sleeping and waking: who is armed, and the word that keeps doorbells one at a time.
 *
 * A waiter arms itself, issues membarrier(GLOBAL_EXPEDITED), looks once more and only then sleeps in the kernel on its own descriptor. A
 * poster publishes (tail or head), then loads the armed word; if it is not zero a doorbell byte goes out on the TCP stream.
 *
 *   [W1] data: consumer: rx_armed++, membarrier, load tail | producer: store tail, load rx_armed
 *   [W2] room: producer: tx_armed++, membarrier, load head | consumer: store head, load tx_armed
 *        On both, store and load of the poster stand in program order without a fence: the waiter's membarrier is a full barrier on
 *        every CPU that runs the poster, and falls either before its store (then the waiter sees it) or after it has left the store
 *        buffer, so before the load that has still to come (then the poster sees the waiter).
 *   [W3] A membarrier interrupts the other CPU, in a virtual machine for microseconds; too dear where a waiter sleeps at every message. So a
 *        producer that rings often fences for a while, and says so in prod_fenced: then the waiter's own rx_armed++ (a full barrier)
 *        is enough. On: first fence, then say so; what went before is in order because stores are. Off: say so, fence, then fence no more:
 *        who has read 1 has counted himself before, and is seen from here on. Only while one process alone uses this end.
 *   [W4] A set of connections is slept on as one, and one bell wakes it: then all of them are looked at, or armed anew. So the waiter names its sleep, by
 *        a number that never comes again, in `sleep` of each: rx_armed++, then `sleep`; `sleep` = 0, then rx_armed--. A poster that has rung in
 *        that sleep need not ring on its other connections. `sleep`, rx_armed, `sleep` again: the same sleep, and 1, so it was that waiter who
 *        was counted, and nobody else. It stands behind the store of tail as rx_armed does, and what it is of [W1] and [W3] holds of it: a waiter that has
 *        not seen the bytes is seen. Only of a process that has its connections for itself; another of its threads that takes the bell away ends the name
 *        first ([E5] of poll/epoll.h), which for sleepers in poll nobody could, so there only of one with a single thread. What
 *        a peer writes in `sleep` costs nobody's wake-up but its own: doorbell.c keeps what it has rung for by the peer's tree.
 *   [B1] bell: poster: exchange(1), and only who changed 0 to 1 sends the byte | receiver: eats the byte, exchange(0), looks at the ring.
 *        Two exchanges of one word: either the poster's comes later and sends a new byte, or it comes earlier, and then what it has
 *        published is seen by the receiver's look behind its own exchange.
 *   [B2] company: of several that sleep on one stream all wake up by one byte, and who runs first must not eat it before the others have seen what it was
 *        for. So it stays as long as there are bytes in the ring, or room in the other one that somebody waits for: the kernel's readiness is the ring's. Who finds none: word 1 -> 2, looks again, and eats
 *        only then; a poster that finds 2 sends another byte. Either its exchange comes before the claim, then the second look sees what it has
 *        published, or behind it.
 *   [B3] heard: a byte that stays wakes nobody who knows of it already and waits for more, by an edge, nor the next one of those that wait exclusively. So
 *        such a one says that it was heard, word 1 -> 3, and the next poster sends another byte: 3 -> 4. Both change the word by locked
 *        instructions: either the poster was first, and what it has published is seen by whoever looks behind 1 -> 3, or it rings. There are never
 *        more than two: 4 -> 3 by who has eaten one of them. Nobody needs to claim 3 before he looks for the last time, for at 3 posters ring anyhow.
 *   [B4] more: of those that wait exclusively each message wakes one, also while the first is on its way and has not heard. Who would ring then, and need not, counts itself
 *        in the upper bits of the word, if the consumer says that it has such waiters. Whoever hears takes that count, by the same instruction, and lets its own kernel wake as many
 *        (doorbell.c). So each poster is either counted by who hears, or rings.
 *
 * Because 1 is stored before the byte is sent and 0 only after it was eaten: while the word is 0 there is no doorbell on that stream, and
 * while it is 1 the next byte that arrives there behind the switch is one. A receiver that eats a byte only if it saw 1 *before* it
 * asked the kernel never eats a byte of the program. A poster that could not send puts back what was there; it is known to be ringing
 * from take to send, so that going back to TCP cannot come in between.
 *
 * Armed words are counts. A waiter that is killed leaves its count behind: bells more than needed, never one less.
 */
#ifndef SD_BELL_H
#define SD_BELL_H

#include "ring/ring.h"

/* ---- the waiter for data */

/* True: the caller's membarrier has to follow [W1]; false: the producer fences [W3]. */
static inline bool sd_rx_arm(const struct sd_end *e)
{
    atomic_fetch_add(&e->rx->rx_armed, 1);
    return load_rlx(&e->rx->prod_fenced) == 0;
}

/* [W4], after sd_rx_arm(). */
static inline void sd_rx_asleep(const struct sd_end *e, u64 sleep)
{
    store_rel(&e->rx->sleep, sleep);
}

static inline void sd_rx_awake(const struct sd_end *e)
{
    store_rel(&e->rx->sleep, 0);
}

static inline void sd_rx_disarm(const struct sd_end *e)
{
    atomic_fetch_sub(&e->rx->rx_armed, 1);
}

/* Not to be slept on: other bytes than the `had` that are known of. Also true of indices that no honest peer writes: reading finds out. A producer that goes back to TCP is
 * no news: what it sends there wakes by itself. */
static inline bool sd_rx_news(const struct sd_end *e, u64 had)
{
    /* In this order: another thread may consume in between, and an old tail less a new head would look like nothing. */
    u64 head = load_acq(&e->rx->head);

    return load_acq(&e->rx->tail) - head != had; /* [R1] [W1] */
}

/* At least so many bytes are unread. */
static inline bool sd_rx_news_of(const struct sd_end *e, u64 n)
{
    u64 head = load_acq(&e->rx->head);

    return load_acq(&e->rx->tail) - head >= n;
}

/* ---- the waiter for room. A sleeper counts itself. Who was told EAGAIN and waits in some poll later cannot: `waiting` is shared by all who use
 * this end, counts once, and whoever sees room takes it back (but not from others that may sleep: sd_posted() in sock/sock.h). */

static inline void sd_room_arm(const struct sd_end *e)
{
    atomic_fetch_add(&e->tx->tx_armed, 1); /* [W2]; the caller's membarrier follows */
}

static inline void sd_room_disarm(const struct sd_end *e)
{
    atomic_fetch_sub(&e->tx->tx_armed, 1);
}

static inline void sd_tx_arm(const struct sd_end *e, _Atomic u32 *waiting)
{
    if (atomic_exchange(waiting, 1) == 0)
        atomic_fetch_add(&e->tx->tx_armed, 1); /* [W2]; the caller's membarrier follows */
}

static inline void sd_tx_disarm(const struct sd_end *e, _Atomic u32 *waiting)
{
    if (load_rlx(waiting) && atomic_exchange(waiting, 0))
        atomic_fetch_sub(&e->tx->tx_armed, 1);
}

/* ---- the poster */

#define SD_FENCE_ENDS 0xffffffffu

bool sd_data_wanted_fenced(struct sd_end *e);
/* [W3] on: begin, membarrier of our threads, say. False: it is on already. */
static inline bool sd_fence_begin(struct sd_end *e)
{
    return load_rlx(&e->tx_fence) == 0 && cas_u32(&e->tx_fence, 0, SD_FENCE_FOR);
}
static inline void sd_fence_say(const struct sd_end *e)
{
    store_rel(&e->tx->prod_fenced, 1);
}
void sd_fence_end(struct sd_end *e);

/* After a commit: the peer sleeps, or is not yet on the ring. */
static inline bool sd_data_wanted(struct sd_end *e)
{
    if (unlikely(load_rlx(&e->tx_fence)))
        return sd_data_wanted_fenced(e);
    return load_rlx(&e->tx->rx_armed) != 0; /* [W1] */
}

/* [W4] The sleep of the only one who waits for our bytes; 0: none that has a name. */
static inline u64 sd_tx_sleep(const struct sd_end *e)
{
    u64 sleep = load_acq(&e->tx->sleep);

    return sleep && load_acq(&e->tx->rx_armed) == 1 && load_acq(&e->tx->sleep) == sleep ? sleep : 0;
}

/* After a commit of the consumer: the peer waits for room and half of what it may use is free, so that it is not woken for every byte. */
static inline bool sd_room_wanted(const struct sd_end *e)
{
    return unlikely(load_rlx(&e->rx->tx_armed)) && /* [W2] */
           (load_rlx(&e->rx->tail) - load_rlx(&e->rx->head)) * 2 <= sd_rx_most(e);
}

#define SD_BELL_TRIES 16 /* of a word that a hostile peer keeps changing */

static inline u32 sd_bell_state(u32 word) { return word & (SD_BELL_MORE - 1); }

/* [B4] The word with one that need not ring counted in. */
static inline u32 sd_bell_counted(const struct sd_dir *d, u32 word)
{
    return unlikely(load_rlx(&d->exclusive)) && word < 0u - SD_BELL_MORE ? word + SD_BELL_MORE : word;
}

/* True: this caller, and nobody else, has to send one byte now, or to give the word back. */
static inline bool sd_bell_take_of(struct sd_dir *d)
{
    for (u32 i = 0; i < SD_BELL_TRIES; i++) {
        u32 was = load_rlx(&d->bell), now = sd_bell_state(was) >= SD_BELL_HEARD ? SD_BELL_AGAIN : SD_BELL_RUNG;
        bool rings = sd_bell_state(was) != now;
        if (cas_u32(&d->bell, was, rings ? now : sd_bell_counted(d, was))) /* [B1] [B2] [B3]: also where nothing changes */
            return rings;
    }
    return sd_bell_state(atomic_exchange(&d->bell, SD_BELL_RUNG)) != SD_BELL_RUNG;
}

static inline bool sd_bell_take(const struct sd_end *e)
{
    return sd_bell_take_of(e->tx);
}

/* No byte was sent. */
static inline void sd_bell_give_back(const struct sd_end *e)
{
    u32 was = load_rlx(&e->tx->bell);

    for (u32 i = 0; i < SD_BELL_TRIES && sd_bell_state(was) == SD_BELL_AGAIN; i++)
        if (atomic_compare_exchange_strong(&e->tx->bell, &was, SD_BELL_HEARD))
            return;
    store_rel(&e->tx->bell, SD_BELL_NONE);
}

/* ---- the receiver of bells */

/* To be asked before the kernel is: then the next byte is a doorbell, if there is one. */
static inline bool sd_bell_due(const struct sd_end *e)
{
    return load_acq(&e->rx->bell) != SD_BELL_NONE;
}

/* How many are unread, once all have arrived. */
static inline u32 sd_bells_unread(const struct sd_dir *rx)
{
    u32 state = sd_bell_state(load_acq(&rx->bell));

    return state == SD_BELL_NONE ? 0 : state == SD_BELL_AGAIN ? 2 : 1;
}

/* From one state to another, with all that is counted beside it: *more is that count [B4]. False: it is another one. */
static inline bool sd_bell_move(const struct sd_end *e, u32 from, u32 to, u32 *more)
{
    u32 word = load_acq(&e->rx->bell);

    for (u32 i = 0; i < SD_BELL_TRIES && sd_bell_state(word) == from; i++) {
        *more = word / SD_BELL_MORE;
        if (atomic_compare_exchange_strong(&e->rx->bell, &word, to))
            return true;
    }
    *more = 0;
    return false;
}

/* [B2] With company. Look again, then eat it and call sd_bell_ate(), or sd_bell_leave(). Says by what it is held: HEARD, of which others may come to know
 * meanwhile, CLAIMED, also by one that has died, or 0: there are two. *more: [B4], for who leaves it. A full barrier, if need be. */
static inline u32 sd_bell_claim(const struct sd_end *e, u32 *more)
{
    u32 word;

    if (sd_bell_move(e, SD_BELL_RUNG, SD_BELL_CLAIMED, more))
        return SD_BELL_CLAIMED;
    word = load_acq(&e->rx->bell);
    return word == SD_BELL_HEARD || word == SD_BELL_CLAIMED ? word : 0;
}

/* Of two of them one was eaten. */
static inline bool sd_bell_one_less(const struct sd_end *e, u32 left, u32 *more)
{
    return sd_bell_move(e, SD_BELL_AGAIN, left, more);
}

/* Both fail, rightly, if there is a new one meanwhile. */
static inline void sd_bell_ate(const struct sd_end *e, u32 claimed)
{
    u32 more;

    if (!cas_u32(&e->rx->bell, claimed, SD_BELL_NONE) && claimed == SD_BELL_HEARD)
        sd_bell_one_less(e, SD_BELL_RUNG, &more);
}

static inline void sd_bell_leave(const struct sd_end *e)
{
    cas_u32(&e->rx->bell, SD_BELL_CLAIMED, SD_BELL_HEARD); /* 1 would take back what somebody has said meanwhile [B3] */
}

/* [B3] Whoever posts from here on rings. False: there are two already. */
static inline bool sd_bell_hear(const struct sd_end *e, u32 *more)
{
    return sd_bell_move(e, SD_BELL_RUNG, SD_BELL_HEARD, more) || sd_bell_state(load_acq(&e->rx->bell)) != SD_BELL_AGAIN;
}

/* After the byte was read. A full barrier: whoever looks at the ring next sees what the bell was for. */
static inline void sd_bell_eaten(const struct sd_end *e)
{
    u32 more;

    if (likely(!sd_bell_one_less(e, SD_BELL_RUNG, &more))) /* the other one is to be eaten, too */
        atomic_exchange(&e->rx->bell, SD_BELL_NONE); /* [B1] */
}

#endif
