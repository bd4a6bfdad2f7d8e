/* SPDX-License-Identifier: Apache-2.0
 *
 * recall.c - unread bytes leave the ring for TCP: [S5] and [S6] of ring/switch.h, between two kernel sockets.
 *
 * The socket goes to a process that cannot see the ring (pass.c), so what the peer has put there has to be where that process reads. Only the peer can
 * put it there. It does so at once if it waits on this connection, for the bell wakes it, or at its next call; if it does neither, its supervisor
 * does it (sdtrace/recall.py), for which ours is asked. A peer that has gone can send nothing any more: what it has left in the ring is for us to read.
 */
#include "sock/far.h"
#include "sock/sock.h"

#ifndef SD_RECALL_MS
#define SD_RECALL_MS 1000
#endif
#define ASK_MS (SD_RECALL_MS > 3 ? 3 : 1)
#define PATIENCE_MS SD_RECALL_MS
#define TAKEN_MS (5 * SD_RECALL_MS)
#define FULL_MS 2000

static void nap(void) { sd_sleep_ns(1000000); }

/* ------------------------------------------------------------------ consumer */

/* From the inside of the token, so that no thread and no process of ours is reading the ring, or about to. False: another has moved it meanwhile. */
static bool receives_by(struct sock *s, u32 from, u32 to)
{
    struct sd_hold h;
    bool done;

    sd_take(s, SD_DIR_RX, SD_MARK_OP, &h);
    done = sd_still_inside(&h) && cas_u32(&s->b->rx_mode, from, to);
    sd_leave(&h);
    return done;
}

/* The peer sends nothing any more; it may still be there. Not what poll says, where the program has shut its own reading side. */
bool sd_ended(int fd)
{
    struct tcp_info_head ti;
    u32 len = sizeof ti;

    if (SYS5(__NR_getsockopt, fd, SOL_TCP, TCP_INFO, &ti, &len) < 0)
        return true;
    return ti.state != TCP_ESTABLISHED && ti.state != TCP_FIN_WAIT1 && ti.state != TCP_FIN_WAIT2;
}

static bool is_home(struct sock *s, int fd)
{
    if (!sd_back_reached(&s->e))
        return load_rlx(&s->b->rx_mode) == SD_MODE_BACK;
    s->e.rx_tail_seen = load_rlx(&s->e.rx->head); /* the tail has come back */
    return sd_rx_back(s, fd);
}

/* Any of ours may do this, so that none waits for one that was killed. */
bool sd_recall_wait(struct sock *s, int fd)
{
    bool asked = false;

    for (u32 i = 0; i < PATIENCE_MS + TAKEN_MS; i++) {
        if (is_home(s, fd))
            return true;
        if (sd_is_far(s)) {
            bool over = sd_ended(fd);
            if ((!sd_far_await(s, fd, SD_MODE_RETIRE) && over) || load_rlx(&s->b->rx_mode) == SD_MODE_RING)
                break;
            nap();
            continue;
        }
        if (i == ASK_MS)
            asked = sd_hypercall(SD_HC_NUDGE, sd_sock_name(s), 0) == 0;
        if ((i == PATIENCE_MS || (i > ASK_MS && !asked && i > PATIENCE_MS / 5) || sd_ended(fd)) && sd_recall_give_up(&s->e)) {
            cas_u32(&s->b->rx_mode, SD_MODE_RETIRE, SD_MODE_RING);
            return false;
        }
        nap();
    }
    if (sd_is_far(s)) {
        cas_u32(&s->b->rx_mode, SD_MODE_RETIRE, SD_MODE_RING);
        return false; /* its mark tells, whenever it comes ([H3]) */
    }
    sd_drop(s, fd); /* it has begun to send, and does not come to an end: nobody knows how much */
    return false;
}

/* [S6] TCP bytes in front of the ring are unread. What nobody sends any more is lost to the other program, which has to hear of it. */
static bool recall_unread(struct sock *s, int fd)
{
    bool asked = false;

    if (sd_ended(fd) || !receives_by(s, SD_MODE_TCP, SD_MODE_BACK))
        return false; /* the second: it has come to the ring */
    sd_unread_ask(&s->e);
    sd_membarrier(); /* whoever sends from here on sees it */
    sd_ring_bell(s, fd);
    for (u32 i = 0; !sd_back_published(&s->e); i++) {
        if (i == ASK_MS)
            asked = sd_hypercall(SD_HC_NUDGE, sd_sock_name(s), 0) == 0;
        bool over = sd_ended(fd);
        if ((over || i >= PATIENCE_MS || (i > ASK_MS && !asked && i > PATIENCE_MS / 5)) && sd_unread_give_up(&s->e)) {
            if (sd_unread_lost(&s->e) || (asked && !over)) /* the second: its supervisor could not, so it was stopped while it puts bytes there */
                sd_reset(s, fd, SD_REASON_unread_lost);
            break;
        }
        if (i > PATIENCE_MS + TAKEN_MS) {
            sd_reset(s, fd, SD_REASON_hostile); /* as in sd_recall_wait() */
            break;
        }
        nap();
    }
    return true;
}

bool sd_recall(struct sock *s, int fd, u32 why)
{
    sd_rx_poll_switch(s, fd); /* nobody may have read since the peer has switched */
    if (load_rlx(&s->b->rx_mode) == SD_MODE_TCP && sd_sw_published(&s->e) && !sd_back_published(&s->e) && !sd_is_far(s))
        return recall_unread(s, fd);
    if (sd_ended(fd) && !sd_is_far(s)) /* nobody answers a doorbell, but with a reset */
        return false;
    if (load_rlx(&s->b->rx_mode) != SD_MODE_RING || sd_back_published(&s->e) || !receives_by(s, SD_MODE_RING, SD_MODE_RETIRE))
        return false;
    if (sd_is_far(s)) {
        sd_far_leave(s, why); /* the other supervisor sends what we have not acknowledged */
    } else {
        sd_recall_ask(&s->e);
        sd_membarrier(); /* whoever sends from here on sees it */
        sd_ring_bell(s, fd);
    }
    return sd_recall_wait(s, fd);
}

/* --------------------------------------------------------- our own direction */

/* One that has never been on the ring does not come there any more: who has the socket then would not see it. */
void sd_recall_tx(struct sock *s, int fd, u32 reason)
{
    struct sd_hold h;
    u32 mode;

    sd_take(s, SD_DIR_TX, SD_MARK_OP, &h);
    mode = load_rlx(&s->b->tx_mode);
    if ((mode & 0xff) == SD_MODE_SWITCH) /* of somebody who was thrown out */
        cas_u32(&s->b->tx_mode, mode, SD_MODE_TCP);
    cas_u32(&s->b->tx_mode, SD_MODE_TCP, SD_MODE_BACK);
    sd_leave(&h);
    sd_tx_back(s, fd, reason);
}

/* [G2] of pass.c. The program's last descriptor goes. */
void sd_recall_over(const struct sock *s)
{
    u32 rx = load_rlx(&s->b->rx_mode);

    if ((load_rlx(&s->b->given) & ~SD_GIVEN_CAME) == SD_GIVEN_ONCE && load_rlx(&s->b->tx_mode) == SD_MODE_BACK &&
        (rx == SD_MODE_BACK || (rx == SD_MODE_TCP && !sd_sw_published(&s->e))))
        sd_hint_say(&s->e, SD_HINT_GIVEN);
}

/* ------------------------------------------------------------------ producer */

/* Inside, on the way back: sends again what the peer has asked for. False: the connection is of no use any more. */
bool sd_recall_resend(struct sock *s, int fd, struct sd_hold *h, u64 tcp_pos)
{
    struct sd_dir *tx = s->e.tx;
    u64 n, at, full = 0;
    i64 rung = 0;
    bool unread;
    long r;

    if (!sd_recall_claim(tx, s->e.bytes, &n, &unread))
        return true; /* it has changed its mind */
    if (unread && (rung = sd_recall_rung(tx, n, tcp_pos)) < 0) {
        sd_reset(s, fd, SD_REASON_hostile);
        return false;
    }
    at = load_rlx(&tx->head) - load_rlx(&tx->base) + (u64)rung;
    n -= (u64)rung;
    while (n) {
        u64 from = at & (s->e.bytes - 1);
        r = sd_revocable(h, __NR_sendmsg, fd, s->e.tx_ring + from, min_u64(n, s->e.bytes - from), MSG_DONTWAIT | MSG_NOSIGNAL);
        if (r == -EAGAIN && full++ < FULL_MS) {
            nap();
            continue;
        }
        if (r <= 0)
            return false;
        at += (u64)r;
        n -= (u64)r;
    }
    sd_recall_sent(tx);
    return true;
}
