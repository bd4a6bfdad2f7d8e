/* SPDX-License-Identifier: Apache-2.0
 *
 * switch.h - one direction goes from TCP to the ring in mid-stream, and back.
 *
 *   [S1] sw_ring: the producer writes all TCP bytes up to its stream position N, publishes N, and stores the first byte in the ring only
 *        after that. The consumer reads TCP until its own position is N, then the ring. What comes on TCP behind N are doorbells (bell.h).
 *   [S2] sw_back: the producer notes in sw_back_at where its bytes in the ring end, publishes its TCP position (bells counted) in sw_back,
 *        and only then writes to TCP again. The consumer drains the ring up to there, reads TCP up to that position (only
 *        doorbells can be there), and goes on with TCP. Final: in a segment a direction switches up once and back once.
 *   [S3] attached: an end that has both rings mapped, and whose threads are all out of receives that know nothing of rings, says so. A
 *        direction switches only after both have: a doorbell that the receiver takes for a byte of the program would be one.
 *   [S4] leaving: once a direction is back it can ring no bells, and who waits for room in the other direction would sleep for ever. So
 *        the producer says that it leaves, and rings if somebody waits, while a bell still fits in front of that position. The waiter arms,
 *        then looks whether its bells are over. Both do so by a locked instruction and a load: one of them sees the other.
 *
 *   [S5] recall: a consumer whose socket goes to somebody who cannot see the ring stops reading (its head stands still) and asks for RESEND. The producer, or
 *        its supervisor while all its threads stand still, makes that TAKEN by a locked instruction, sends what lies between head and tail by TCP
 *        behind the position that it is about to publish, puts its tail back to head, and goes back by [S2]. A consumer that has waited for too
 *        long takes RESEND back, by a locked instruction, too: one of the two wins.
 *   [S6] recall in front of the ring: a consumer that has not read up to the switch cannot take out the doorbell that may stand there, behind bytes of the
 *        program. So as long as it has not arrived, a doorbell is no zero but the first byte in the ring, which the producer notes in bell_first. The
 *        consumer is on TCP for good and asks for UNREAD; the producer does as for RESEND, but begins behind the byte that its doorbell was.
 *
 * Positions are counted by the kernel and handed in by the caller; the words hold 1 + position, so that 0 means "not"; ring counters
 * wrap and have no such value to spare.
 */
#ifndef SD_SWITCH_H
#define SD_SWITCH_H

#include "ring/ring.h"

enum sd_sw {
    SD_SW_TCP,    /* not published: everything on TCP is the program's */
    SD_SW_DRAIN,  /* published: `left` bytes on TCP come first */
    SD_SW_RING,   /* now */
    SD_SW_BROKEN, /* we have read more than the peer says it has sent */
};

/* ---- both */

static inline void sd_attached_say(struct sd_seg *seg, u32 side)
{
    store_rel(&seg->attached[side & 1], 1); /* [S3] */
}

static inline bool sd_attached_said(const struct sd_seg *seg, u32 side)
{
    return load_acq(&seg->attached[side & 1]) != 0; /* [S3] */
}

/* ---- the producer; holding the direction's token, so that no other thread sends meanwhile */

void sd_sw_publish(const struct sd_end *e, u64 tcp_pos);
/* Comes first on the way back. True: the peer waits for room; ring before reading the position. */
bool sd_back_announce(const struct sd_end *e);
void sd_back_publish(const struct sd_end *e, u64 tcp_pos);

/* The consumer. Its membarrier follows, so that a producer either sees it or has published before. */
static inline void sd_back_ask(const struct sd_end *e)
{
    store_rel(&e->rx->go_back, 1);
}

/* [S5] The consumer, which has stopped reading. Its membarrier follows. */
static inline void sd_recall_ask(const struct sd_end *e)
{
    store_rel(&e->rx->go_back, SD_GO_BACK_RESEND);
}

/* [S5] True: it may read the ring again, nobody sends its bytes. */
static inline bool sd_recall_give_up(const struct sd_end *e)
{
    return cas_u32(&e->rx->go_back, SD_GO_BACK_RESEND, SD_GO_BACK_CALL);
}

/* [S6] The consumer, which will never come to the ring. Its membarrier follows. */
static inline void sd_unread_ask(const struct sd_end *e)
{
    store_rel(&e->rx->go_back, SD_GO_BACK_UNREAD);
}

/* [S6] True: nobody sends what is in the ring. */
static inline bool sd_unread_give_up(const struct sd_end *e)
{
    return cas_u32(&e->rx->go_back, SD_GO_BACK_UNREAD, SD_GO_BACK_CALL);
}

/* [S6] The consumer: bytes of the program that are in the ring alone. */
static inline bool sd_unread_lost(const struct sd_end *e)
{
    u64 left = load_acq(&e->rx->tail) - load_rlx(&e->rx->head);

    return left && !(left == 1 && load_rlx(&e->rx->bell_first) && load_rlx(&e->rx->bell));
}

/* [S5] [S6] The producer is asked to send its bytes again. */
static inline bool sd_recall_asked(const struct sd_end *e)
{
    u32 asked = load_rlx(&e->tx->go_back);

    return asked == SD_GO_BACK_RESEND || asked == SD_GO_BACK_UNREAD;
}

/* What the doorbell says that is to be sent now: [S6], else 0. */
u8 sd_bell_byte(const struct sd_end *e);

/* [S5] The producer: true: it has to send what is unread, which is *n bytes from e->tx->head on, and then to take them back. *unread: [S6]. */
bool sd_recall_claim(struct sd_dir *tx, u64 ring_bytes, u64 *n, bool *unread);
void sd_recall_sent(struct sd_dir *tx);
/* [S6] How many of them are on TCP already, before tcp_pos: 1, as the doorbell, or 0. -1: what stands there is no byte of the program. */
i64 sd_recall_rung(const struct sd_dir *tx, u64 n, u64 tcp_pos);

/* The consumer has asked for the way back. */
static inline bool sd_back_asked(const struct sd_end *e)
{
    return load_rlx(&e->tx->go_back) != 0;
}

/* ---- the consumer */

static inline bool sd_sw_published(const struct sd_end *e)
{
    return load_acq(&e->rx->sw_ring) != 0; /* [S1] */
}

/* What is to be done by a consumer that has read tcp_pos bytes of TCP; *left is set for SD_SW_DRAIN. */
enum sd_sw sd_sw_decide(const struct sd_end *e, u64 tcp_pos, u64 *left);

/* On the ring from now on: the armed count that the direction was born with goes. Once, by whoever moved rx_mode. */
static inline void sd_sw_arrive(const struct sd_end *e)
{
    store_rlx(&e->rx->arrived, 1);
    atomic_fetch_sub(&e->rx->rx_armed, 1);
    sd_fence(); /* [W1]: not armed any more before the ring is looked at */
}

static inline bool sd_back_published(const struct sd_end *e)
{
    return load_acq(&e->rx->sw_back) != 0; /* [S2] */
}

/* Nobody will ring when there is room: a waiter has to look from time to time. To be asked after arming. */
static inline bool sd_bells_over(const struct sd_end *e)
{
    return (load_acq(&e->rx->prod_hint) & SD_HINT_LEAVING) || sd_back_published(e); /* [S4]; the second: not every peer is honest */
}

/* Behind so many unread bytes comes what the peer has sent by TCP. */
static inline bool sd_back_behind(const struct sd_end *e, u64 unread)
{
    u64 to;

    if (likely(!load_acq(&e->rx->sw_back))) /* [S2] */
        return false;
    to = load_rlx(&e->rx->head) + unread;
    return to == load_rlx(&e->rx->sw_back_at) && to == load_rlx(&e->rx->tail);
}

/* The ring is read up to the way back. */
static inline bool sd_back_reached(const struct sd_end *e) { return sd_back_behind(e, 0); }

/* TCP bytes to throw away (doorbells) before the program's go on; only after one of these. */
u64 sd_back_left(const struct sd_end *e, u64 tcp_pos);

/* ---- end of life */

static inline void sd_hint_say(const struct sd_end *e, u32 hint)
{
    atomic_fetch_or(&e->tx->prod_hint, hint);
}

/* The program has shut its sending side. `deaf`: and its reading side, so what the peer sends from now on is answered with a reset. */
static inline void sd_hint_shut(const struct sd_end *e, bool deaf)
{
    sd_hint_say(e, SD_HINT_SHUT_WR | (deaf ? SD_HINT_CLOSED : 0));
}

/* The kernel says that the stream is over, with `err` (0: FIN). What the program is to be told once the ring is drained. */
u32 sd_end_error(const struct sd_end *e, u32 err);

#endif
