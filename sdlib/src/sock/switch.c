/* SPDX-License-Identifier: Apache-2.0
 *
 * switch.c - each direction of an attached connection moves to the ring, and back to TCP (sock.h).
 *
 * The protocol itself, and why it is exact, is ring/switch.h. Here it meets the kernel socket: stream positions are read from TCP_INFO, so
 * nothing has to be counted before. Ringing and going back exclude each other by marks (token.h, BELL).
 */
#include "ring/cork.h"
#include "sock/far.h"
#include "sock/rx.h"
#include "sock/sock.h"

/* ------------------------------------------------------- stream positions */

static bool tcp_info(int fd, struct tcp_info_head *ti)
{
    u32 len = sizeof *ti;

    return SYS5(__NR_getsockopt, fd, SOL_TCP, TCP_INFO, ti, &len) == 0 && len == sizeof *ti;
}

/* Bytes this end has written to the stream so far; -1 if the connection is in no state to tell. */
i64 sd_tx_pos(const struct sock *s, int fd)
{
    struct tcp_info_head a, z;
    i32 q;

    for (int i = 0; i < 100; i++) {
        if (!tcp_info(fd, &a) || (a.state != TCP_ESTABLISHED && a.state != TCP_CLOSE_WAIT))
            return -1;
        if (SYS3(__NR_ioctl, fd, TIOCOUTQ, &q) < 0 || !tcp_info(fd, &z))
            return -1;
        if (a.bytes_acked == z.bytes_acked) /* no ACK came between the two reads */
            return (i64)a.bytes_acked - (s->b->role == 1) + q;
    }
    return -1;
}

/* FIONREAD as if the program wanted urgent data inline, or did not: then it counts up to the mark. `is`: what it wants. */
static i32 unread_as(int fd, bool inlined, bool is)
{
    i32 q = -1;

    if (inlined != is)
        sd_set_int(fd, SOL_SOCKET, SO_OOBINLINE, inlined);
    SYS3(__NR_ioctl, fd, FIONREAD, &q);
    if (inlined != is)
        sd_set_int(fd, SOL_SOCKET, SO_OOBINLINE, is);
    return q;
}

static bool is_inlined(int fd) { return sd_get_int(fd, SOL_SOCKET, SO_OOBINLINE); }

static i32 unread_behind_mark(int fd) { return unread_as(fd, true, is_inlined(fd)); }

bool sd_has_mark(int fd)
{
    bool inlined = is_inlined(fd);
    i32 one, other;

    do {
        one = unread_as(fd, inlined, inlined);
        if (!inlined && one == 0 && !sd_at_mark(fd))
            return false;
        other = unread_as(fd, !inlined, inlined);
    } while (one != unread_as(fd, inlined, inlined)); /* more has come */
    return one != other;
}

/* What is unread by TCP, -1: cannot be told. A peer that was not attached when it sent urgent data has said nothing of it; it has taken its offer
 * back and sends by TCP only, but we may have been told of the pair before that. At the mark nothing would be left to read then, for ever. */
i32 sd_unread(const struct sock *s, int fd)
{
    i32 q = -1;

    if (s->seg && unlikely(load_rlx(&s->e.rx->prod_hint) & SD_HINT_URGENT))
        return unread_behind_mark(fd);
    SYS3(__NR_ioctl, fd, FIONREAD, &q);
    if (unlikely(q == 0) && s->seg && !sd_sw_published(&s->e) && sd_at_mark(fd))
        return unread_behind_mark(fd);
    return q;
}

/* The kernel has an error to tell; it still will have. */
bool sd_has_error(int fd)
{
    struct pollfd p = {fd, 0, 0};
    struct timespec64 zero = {0, 0};

    return SYS5(__NR_ppoll, &p, 1, &zero, 0, 8) > 0 && (p.revents & POLLERR);
}

/* Whether bytes_received of a closed connection counts a FIN, which a closed connection does not tell. It does if the connection ended in an
 * orderly way; one that was reset may have got its FIN before. Two of three cases are told by the positions that the other end has said:
 * nobody reads beyond the switch, and the stream does not end before the way back. In the third the kernel's error tells: EPIPE comes behind
 * a FIN. The kernel says it once, so it is kept for the program. */
static bool fin_counted(struct sock *s, int fd, i64 received, i32 unread, u64 sw, u64 back)
{
    i32 err;

    if (received - 1 < (i64)(back - 1))
        return false;
    if (received - unread > (i64)(sw - 1))
        return true;
    if (!sd_has_error(fd))
        return true;
    err = sd_get_int(fd, SOL_SOCKET, SO_ERROR);
    if (err > 0 && err != EPIPE)
        store_rel(&s->b->rx_err, (u32)err);
    return err == EPIPE;
}

/* Nothing arrives any more. On the ring, what is unread in front of the way back are doorbells. Before the switch, and with no way back behind it, all that is
 * unread but a doorbell comes before the switch. */
static i64 closed_rx_pos(struct sock *s, int fd, i64 received, i32 unread)
{
    u64 bell = unread > 0 ? min_u64((u64)unread, sd_bells_unread(s->e.rx)) : 0, sw = load_acq(&s->e.rx->sw_ring), back = load_acq(&s->e.rx->sw_back); /* [S1] [S2] */
    i64 pos;

    if (load_rlx(&s->b->rx_mode) == SD_MODE_RING)
        return back ? (i64)(back - 1 - bell) : -1;
    if (!sw)
        return -1;
    if (back)
        pos = received - unread - fin_counted(s, fd, received, unread, sw, back);
    else
        pos = (i64)(sw - 1 - ((u64)unread - bell));
    return pos < 0 ? SD_POS_LOST : pos;
}

/* Bytes the program (or we) have read from the stream so far, -1: unknown. A received FIN counts as one in bytes_received. */
i64 sd_rx_pos(struct sock *s, int fd)
{
    struct tcp_info_head a, z;
    i32 q;

    for (int i = 0; i < 100; i++) {
        if (!tcp_info(fd, &a) || (q = sd_unread(s, fd)) < 0 || !tcp_info(fd, &z))
            return -1;
        if (a.bytes_received != z.bytes_received || a.state != z.state)
            continue;
        if (a.state == TCP_CLOSE)
            return !s->seg ? -1 : sd_is_far(s) ? sd_far_closed_pos(a.bytes_received, q, fd) : closed_rx_pos(s, fd, (i64)a.bytes_received, q);
        bool fin = a.state == TCP_CLOSE_WAIT || a.state == TCP_LAST_ACK || a.state == TCP_CLOSING || a.state == TCP_TIME_WAIT;
        return (i64)a.bytes_received - fin - q;
    }
    return -1;
}

/* ------------------------------------------------------------------- switch */

#define UNKNOWN (~0ull) /* no stream position: the connection is in no state to tell */

void sd_switch_finish(struct sock *s, u32 mode, u64 tcp_pos)
{
    sd_sw_publish(&s->e, tcp_pos); /* [S1] */
    if (cas_u32(&s->b->tx_mode, mode, SD_MODE_RING))
        COUNT(switches_tx);
}

/* Bytes of a corked socket, which the switch would let go. */
static bool kernel_holds(int fd)
{
    i32 unsent = 0;

    return sd_get_int(fd, SOL_TCP, TCP_CORK) && SYS3(__NR_ioctl, fd, SIOCOUTQNSD, &unsent) == 0 && unsent;
}

/* Inside. Kernel sends of other threads raise tx_plain before they look at the mode [K1], so either we see them or they see SWITCH. */
static bool switch_tx(struct sock *s, int fd, struct sd_hold *h)
{
    struct sd_block *b = s->b;
    u32 mode = load_rlx(&b->tx_mode), mine = SD_MODE_SWITCH | (h->word ? (u32)(h->tok >> 20) << 8 : 0);
    i64 pos;

    if ((mode & 0xff) == SD_MODE_SWITCH) /* of somebody who was thrown out; we are in his place */
        cas_u32(&b->tx_mode, mode, SD_MODE_TCP);
    if (!cas_u32(&b->tx_mode, SD_MODE_TCP, mine)) /* [K1] */
        return false;
    if (load_acq(&b->tx_plain) == 0 && !kernel_holds(fd) && (pos = sd_tx_pos(s, fd)) >= 0) {
        b->opt_saved = (sd_get_int(fd, SOL_TCP, TCP_NODELAY) ? SD_SAVED_NODELAY : 0) | (sd_get_int(fd, SOL_TCP, TCP_CORK) ? SD_SAVED_CORK : 0) |
                       (b->opt_saved & SD_SAVED_INQ) | (1u << 31);
        /* Nagle with a delayed ACK would hold a doorbell for 40 ms. */
        sd_set_int(fd, SOL_TCP, TCP_CORK, 0);
        sd_set_int(fd, SOL_TCP, TCP_NODELAY, 1);
        if (sd_commit_rare(h, (u64)pos)) {
            sd_switch_finish(s, mine, (u64)pos);
            return true;
        }
    }
    cas_u32(&b->tx_mode, mine, SD_MODE_TCP);
    return false;
}

bool sd_try_switch_tx(struct sock *s, int fd)
{
    struct sd_block *b = s->b;
    struct sd_hold h;
    u32 mode = load_rlx(&b->tx_mode);
    bool done;

    if ((mode != SD_MODE_TCP && (mode & 0xff) != SD_MODE_SWITCH) || !sd_attached_said(s->seg, !b->side) || !sd_attached_said(s->seg, b->side))
        return false;
    if (b->tx_shut || b->reason || sd_back_asked(&s->e) || sd_tx_over(s))
        return false;
    sd_take(s, SD_DIR_TX, SD_MARK_OP, &h);
    done = switch_tx(s, fd, &h);
    sd_leave(&h);
    if (done)
        sd_ep_changed(s);
    return done;
}

bool sd_rx_poll_switch(struct sock *s, int fd)
{
    struct sd_block *b = s->b;
    u64 left;
    i64 pos;

    if (load_rlx(&b->rx_mode) != SD_MODE_TCP)
        return load_rlx(&b->rx_mode) == SD_MODE_RING;
    if (!sd_sw_published(&s->e))
        return false; /* the usual answer, without asking the kernel */
    pos = sd_rx_pos(s, fd);
    if (unlikely(pos == SD_POS_LOST)) {
        sd_drop(s, fd);
        return true;
    }
    if (pos < 0)
        return false;
    switch (sd_sw_decide(&s->e, (u64)pos, &left)) {
    case SD_SW_TCP:
    case SD_SW_DRAIN:
        return false;
    case SD_SW_BROKEN:
        if (load_acq(&b->rx_mode) == SD_MODE_TCP) /* else another reader has switched and eaten a bell since we looked */
            sd_drop(s, fd);
        return true;
    case SD_SW_RING:
        break;
    }
    if (sd_is_far(s) && !sd_far_greeted(s, fd)) /* [H3] */
        return load_rlx(&b->rx_mode) == SD_MODE_RING;
    if (!cas_u32(&b->rx_mode, SD_MODE_TCP, SD_MODE_RING))
        return true;
    b->opt_saved |= 1u << 31;
    sd_sw_arrive(&s->e);
    if (unlikely(g.cfg->without & SD_WITHOUT_arming))
        sd_rx_arm(&s->e);
    COUNT(switches_rx);
    sd_ep_changed(s);
    return true;
}

/* --------------------------------------------------------------------- back */

void sd_back_finish(struct sock *s, u64 tcp_pos)
{
    if (tcp_pos != UNKNOWN) /* else the connection is gone: the kernel will say so */
        sd_back_publish(&s->e, tcp_pos);
    sd_nap_end(s); /* what comes now comes by the kernel */
    cas_u32(&s->b->tx_mode, SD_MODE_RETIRE, SD_MODE_BACK);
}

/* Whoever brings a direction back may know no more than that this was asked for. Who has asked knows why: a policy, our supervisor (which says so first), or a peer
 * that wants its bytes once more, since its socket goes to somebody else. */
static u32 why_back(const struct sock *s, u32 reason)
{
    u32 asked = load_rlx(&s->e.tx->go_back), lost = sd_is_far(s) ? load_acq(&s->seg->lost) : SD_REASON_none;

    if (asked == SD_GO_BACK_POLICY)
        return SD_REASON_policy;
    if (lost)
        return lost;
    return reason == SD_REASON_call && asked > SD_GO_BACK_POLICY ? SD_REASON_passed : reason;
}

/* Inside, with the ring retired. */
static void back_tx(struct sock *s, int fd, u32 reason, struct sd_hold *h)
{
    struct sd_block *b = s->b;
    bool ring, unsure = false;
    i64 pos;
    u64 to;
    u8 byte;

    sd_cork_uncover(s->e.tx, s->e.bytes, s->e.bytes);
    ring = sd_back_announce(&s->e);
    if (h->word) {
        sd_membarrier(); /* no bell begins any more */
        unsure = sd_bells_out(s);
    }
    if (sd_is_far(s)) {
        unsure = false; /* [H2] our monitor's bells end there */
        if (!sd_far_back(s, fd, h)) {
            sd_break(s, fd, SD_REASON_link_lost);
            return;
        }
    } else if (ring) {
        sd_send_bell(s, fd, h, 0);
    }
    /* Of a bell that was thrown out nobody knows whether its byte was sent. A peer that has seen the word at 1 eats one byte: there has to be
     * one that is not the program's. One too many is eaten by position. */
    if (unsure) {
        sd_bell_take(&s->e);
        byte = sd_bell_byte(&s->e);
        sd_revocable(h, __NR_sendmsg, fd, &byte, 1, MSG_DONTWAIT | MSG_NOSIGNAL);
    }
    pos = sd_tx_pos(s, fd);
    to = pos >= 0 ? (u64)pos : UNKNOWN;
    if (unlikely(sd_recall_asked(&s->e)) && pos >= 0 && !sd_recall_resend(s, fd, h, to)) {
        sd_drop(s, fd);
        return;
    }
    if (!sd_commit_rare(h, to))
        return; /* thrown out: somebody else does it */
    sd_set_int(fd, SOL_TCP, TCP_NODELAY, b->opt_saved & SD_SAVED_NODELAY ? 1 : 0);
    if (b->opt_saved & SD_SAVED_CORK)
        sd_set_int(fd, SOL_TCP, TCP_CORK, 1);
    sd_back_finish(s, to);
    reason = why_back(s, reason);
    if (reason < SD_REASON_COUNT)
        g.proc->moved_back[reason]++;
}

void sd_tx_back(struct sock *s, int fd, u32 reason)
{
    struct sd_hold h;

    sd_take(s, SD_DIR_TX, SD_MARK_EAT, &h); /* it may send a byte */
    cas_u32(&s->b->tx_mode, SD_MODE_RING, SD_MODE_RETIRE);
    if (load_rlx(&s->b->tx_mode) == SD_MODE_RETIRE)
        back_tx(s, fd, reason, &h);
    sd_leave(&h);
    sd_ep_changed(s);
}

/* Inside. Shared memory is faster than TCP: a bell may still be on its way, and must not reach the program. False: so it is. */
static bool back_rx(struct sock *s, int fd, struct sd_hold *h)
{
    u8 bells[SD_STRAY_BELLS];
    i64 pos = sd_rx_pos(s, fd);
    u64 left = pos < 0 ? 0 : sd_back_left(&s->e, (u64)pos);

    if (pos < 0 && sd_is_far(s)) {
        sd_break(s, fd, SD_REASON_position);
        return false;
    }
    if (left > SD_STRAY_BELLS && !sd_is_far(s)) {
        sd_drop(s, fd);
        return false;
    }
    if (sd_is_far(s) && !sd_far_skip(s, fd, left, h))
        return false;
    if (!sd_is_far(s) && left && sd_revocable(h, __NR_recvmsg, fd, bells, left, MSG_DONTWAIT) != (long)left)
        return false;
    if (!sd_still_inside(h))
        return false;
    if (s->b->rcvlowat)
        sd_set_int(fd, SOL_SOCKET, SO_RCVLOWAT, (i32)s->b->rcvlowat);
    return cas_u32(&s->b->rx_mode, SD_MODE_RING, SD_MODE_BACK) || cas_u32(&s->b->rx_mode, SD_MODE_RETIRE, SD_MODE_BACK);
}

bool sd_rx_back(struct sock *s, int fd)
{
    struct sd_hold h;
    bool done;

    sd_take(s, SD_DIR_RX, SD_MARK_EAT, &h);
    u32 mode = load_rlx(&s->b->rx_mode);
    done = (mode != SD_MODE_RING && mode != SD_MODE_RETIRE) || back_rx(s, fd, &h); /* else another was faster */
    sd_leave(&h);
    if (done)
        sd_ep_changed(s);
    return done;
}
