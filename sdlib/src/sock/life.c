/* SPDX-License-Identifier: Apache-2.0
 *
 * life.c - offer, attach, switch, doorbell, back: everything that moves a connection between its states (sock.h).
 *
 * The protocols themselves, and why they are exact, are ring/switch.h and ring/bell.h. Here they meet the kernel socket: stream positions
 * are read from TCP_INFO, so nothing has to be counted before; doorbells are sent and eaten. Ringing and going back exclude each other
 * by marks (token.h, BELL), those who eat by the receiving token.
 */
#include "poll/poll.h"
#include "ring/cork.h"
#include "sock/far.h"
#include "sock/sock.h"

/* ------------------------------------------------------- stream positions */

static u32 get_int(int fd, int level, int name)
{
    i32 v = 0;
    u32 len = 4;

    SYS5(__NR_getsockopt, fd, level, name, &v, &len);
    return (u32)v;
}

static void set_int(int fd, int level, int name, i32 v)
{
    SYS5(__NR_setsockopt, fd, level, name, &v, 4);
}

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

/* A closed connection does not tell whether its bytes_received counts a FIN. But nothing arrives any more, so the place is known from the
 * other end: of the unread bytes one may be a doorbell, the others come before the switch, or behind the way back. */
static i64 closed_rx_pos(const struct sock *s, i32 unread)
{
    u64 bell = unread > 0 && sd_bell_due(&s->e), sw = load_acq(&s->e.rx->sw_ring); /* [S1] */

    if (load_rlx(&s->b->rx_mode) == SD_MODE_RING)
        return (i64)(load_rlx(&s->e.rx->sw_back) - 1 - bell);
    return sw ? (i64)(sw - 1 - ((u64)unread - bell)) : -1;
}

/* Bytes the program (or we) have read from the stream so far, -1: unknown. A received FIN counts as one in bytes_received. */
i64 sd_rx_pos(const struct sock *s, int fd)
{
    struct tcp_info_head a, z;
    i32 q;

    for (int i = 0; i < 100; i++) {
        if (!tcp_info(fd, &a) || SYS3(__NR_ioctl, fd, FIONREAD, &q) < 0 || !tcp_info(fd, &z))
            return -1;
        if (a.bytes_received != z.bytes_received || a.state != z.state)
            continue;
        if (a.state == TCP_CLOSE)
            return !s->seg ? -1 : sd_is_far(s) ? sd_far_closed_pos(a.bytes_received, q, fd) : closed_rx_pos(s, q);
        bool fin = a.state == TCP_CLOSE_WAIT || a.state == TCP_LAST_ACK || a.state == TCP_CLOSING || a.state == TCP_TIME_WAIT;
        return (i64)a.bytes_received - fin - q;
    }
    return -1;
}

/* ------------------------------------------------------------ offer, attach */

static void offer(struct sock *s, int fd)
{
    struct sd_block *b = s->b;
    long r;

    if (load_rlx(&b->users) > 1 || !cas_u32(&b->state, SD_BLOCK_TCP, SD_BLOCK_OFFERED))
        return;
    COUNT(offers);
    r = sd_hypercall(SD_HC_OFFER, (u64)fd, s->id);
    if (r == SD_OFFER_PAIRED) {
        store_rel(&b->state, SD_BLOCK_PAIRED);
    } else if (r != SD_OFFER_PENDING) {
        if (r == -ENOSYS)
            g.no_supervisor = 1;
        if (r < 0)
            b->reason = r == -ENOSYS ? SD_REASON_no_supervisor : SD_REASON_refused;
        else if (!b->reason)
            b->reason = SD_REASON_refused;
        store_rel(&b->state, SD_BLOCK_PINNED);
    }
}

#define BUF_LOCK_SND 1u /* SOCK_SNDBUF_LOCK: the program has set SO_SNDBUF */

/* A program that has chosen how much the kernel may take before it says "full" gets no megabyte from us: as much as its own buffer and the
 * peer's window hold. The kernel counts its overhead, too, and says twice what was asked for. */
void sd_tx_limit(struct sock *s, int fd)
{
    struct tcp_info_window w = {0};
    u32 len = sizeof w;
    u64 most = s->e.bytes;

    if (get_int(fd, SOL_SOCKET, SO_BUF_LOCK) & BUF_LOCK_SND) {
        SYS5(__NR_getsockopt, fd, SOL_TCP, TCP_INFO, &w, &len);
        most = min_u64(most, get_int(fd, SOL_SOCKET, SO_SNDBUF) / 2 + (u64)w.snd_wnd);
    }
    s->e.tx_bytes = most > SD_RING_MIN ? most : SD_RING_MIN;
    sd_tx_unplan(&s->e);
}

bool sd_map_segment(struct sock *s, int fd)
{
    struct sd_seg *seg;
    struct sd_end e = {0};
    u64 st[18]; /* struct stat: st_size is the seventh word */
    u32 len;
    long sfd, at;

    sfd = sd_hypercall_fd(SD_HC_ATTACH, 0, s->id);
    if (sfd < 0)
        return false;
    if (SYS2(__NR_fstat, sfd, st) < 0) {
        SYS1(__NR_close, sfd);
        return false;
    }
    at = SYS6(__NR_mmap, 0, st[6], PROT_READ | PROT_WRITE, MAP_SHARED, sfd, 0);
    SYS1(__NR_close, sfd);
    if (at < 0 && at > -4096)
        return false;
    seg = (struct sd_seg *)at;
    if (sd_end_open(&e, seg, st[6], s->b->side) < 0) {
        SYS2(__NR_munmap, at, st[6]);
        return false;
    }
    s->e = e;
    s->seg = seg;
    if (unlikely(g.cfg->without & SD_WITHOUT_window))
        s->e.tx_window = ~0ull;
    len = sizeof s->cookie;
    SYS5(__NR_getsockopt, fd, SOL_SOCKET, SO_COOKIE, &s->cookie, &len);
    sd_tx_limit(s, fd);
    return true;
}

static void announce(struct sock *s)
{
    sd_fence(); /* [A1] ATTACHED is set before rx_plain is read; a reader raises rx_plain before it reads the state */
    if (load_rlx(&s->b->rx_plain) == 0)
        sd_attached_say(s->seg, s->b->side);
    if (sd_is_far(s))
        sd_far_nudge(s);
}

/* Doorbells are single bytes, so the kernel's low-water mark has to be 1. */
static void lower_mark(struct sock *s, int fd)
{
    u32 lowat = get_int(fd, SOL_SOCKET, SO_RCVLOWAT);

    if (lowat > 1) {
        s->b->rcvlowat = lowat;
        set_int(fd, SOL_SOCKET, SO_RCVLOWAT, 1);
    }
}

/* Nobody but this process holds the socket, so threads only have to agree who does it; the others go on by TCP meanwhile. */
static void attach(struct sock *s, int fd)
{
    struct sd_block *b = s->b;
    bool done = false;

    if (!cas_u32(&s->attaching, 0, 1))
        return;
    if (load_acq(&b->state) == SD_BLOCK_PAIRED && load_rlx(&b->users) <= 1) {
        if (!sd_map_segment(s, fd)) {
            sd_reason(s, g.no_supervisor ? SD_REASON_no_supervisor : SD_REASON_no_memory);
        } else {
            COUNT(attaches);
            lower_mark(s, fd);
            store_rel(&b->state, SD_BLOCK_ATTACHED);
            announce(s);
            done = true;
        }
    }
    store_rel(&s->attaching, 0);
    if (done)
        sd_ep_changed(s);
}

void sd_tick(struct sock *s, int fd)
{
    struct sd_block *b = s->b;
    u32 state = load_acq(&b->state);
    const struct sd_config *c = g.cfg;

    if (likely(state == SD_BLOCK_ATTACHED)) {
        if (s->seg && unlikely(!sd_attached_said(s->seg, b->side)))
            announce(s);
        sd_fast_on(s, fd);
        return;
    }
    if (state == SD_BLOCK_TCP && c->accel && b->established && !g.no_supervisor) {
        u32 ops = load_rlx(&b->ops) + 1;
        store_rlx(&b->ops, ops);
        if (c->upgrade == SD_UPGRADE_EAGER || (c->upgrade == SD_UPGRADE_AFTER_OPS && ops >= c->upgrade_n) ||
            (c->upgrade == SD_UPGRADE_AFTER_BYTES && b->bytes_tcp >= c->upgrade_n))
            offer(s, fd);
        state = load_acq(&b->state);
    }
    if (state == SD_BLOCK_PAIRED)
        attach(s, fd);
}

void sd_born(struct sock *s, int fd)
{
    struct sd_block *b = s->b;

    if (g.cfg->upgrade == SD_UPGRADE_EAGER && g.cfg->accel && b->established && !g.no_supervisor && load_acq(&b->state) == SD_BLOCK_TCP)
        offer(s, fd);
}

bool sd_attached(const struct sock *s)
{
    return s->seg && load_rlx(&s->b->state) == SD_BLOCK_ATTACHED;
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

    return get_int(fd, SOL_TCP, TCP_CORK) && SYS3(__NR_ioctl, fd, SIOCOUTQNSD, &unsent) == 0 && unsent;
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
        b->opt_saved = (get_int(fd, SOL_TCP, TCP_NODELAY) ? SD_SAVED_NODELAY : 0) | (get_int(fd, SOL_TCP, TCP_CORK) ? SD_SAVED_CORK : 0) |
                       (1u << 31);
        /* Nagle with a delayed ACK would hold a doorbell for 40 ms. */
        set_int(fd, SOL_TCP, TCP_CORK, 0);
        set_int(fd, SOL_TCP, TCP_NODELAY, 1);
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
    if (b->tx_shut || sd_back_asked(&s->e) || sd_tx_over(s))
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

/* In a direction that is on the ring. */
static void send_bell(struct sock *s, int fd, struct sd_hold *h, u32 more)
{
    u8 byte = 0;
    long r;

    if (sd_is_far(s)) {
        sd_far_nudge(s);
        return;
    }
    if (!sd_bell_take(&s->e)) {
        sd_tx_unplan(&s->e); /* a sleeper that has not heard the last bell may be dead: see peer_left() */
        return;
    }
    r = sd_revocable(h, __NR_sendmsg, fd, &byte, 1, MSG_DONTWAIT | MSG_NOSIGNAL | more);
    if (r == 1) {
        COUNT(bells_tx);
        return;
    }
    /* EAGAIN: the peer has unread TCP bytes, is awake by them and will look at the ring. EINTR: thrown out. Others: it is gone. */
    sd_bell_give_back(&s->e);
    if (r != -EAGAIN && r != -EINTR)
        s->kcheck |= 1;
}

void sd_back_finish(struct sock *s, u64 tcp_pos)
{
    if (tcp_pos != UNKNOWN) /* else the connection is gone: the kernel will say so */
        sd_back_publish(&s->e, tcp_pos);
    cas_u32(&s->b->tx_mode, SD_MODE_RETIRE, SD_MODE_BACK);
}

/* Inside, with the ring retired. */
static void back_tx(struct sock *s, int fd, u32 reason, struct sd_hold *h)
{
    struct sd_block *b = s->b;
    bool ring, unsure = false;
    u8 byte = 0;
    i64 pos;
    u64 to;

    sd_cork_uncover(s->e.tx, s->e.bytes, s->e.bytes);
    ring = sd_back_announce(&s->e);
    if (h->word) {
        sd_membarrier(); /* no bell begins any more */
        unsure = sd_bells_out(s);
    }
    if (sd_is_far(s)) {
        unsure = false; /* [H2] our monitor's bells end there */
        if (!sd_far_back(s, fd, h)) {
            sd_drop(s, fd);
            return;
        }
    } else if (ring) {
        send_bell(s, fd, h, 0);
    }
    /* Of a bell that was thrown out nobody knows whether its byte was sent. A peer that has seen the word at 1 eats one byte: there has to be
     * one that is not the program's. One too many is eaten by position. */
    if (unsure) {
        sd_bell_take(&s->e);
        sd_revocable(h, __NR_sendmsg, fd, &byte, 1, MSG_DONTWAIT | MSG_NOSIGNAL);
    }
    pos = sd_tx_pos(s, fd);
    to = pos >= 0 ? (u64)pos : UNKNOWN;
    if (unlikely(load_rlx(&s->e.tx->go_back) == SD_GO_BACK_RESEND) && pos >= 0 && !sd_recall_resend(s, fd, h)) {
        sd_drop(s, fd);
        return;
    }
    if (!sd_commit_rare(h, to))
        return; /* thrown out: somebody else does it */
    set_int(fd, SOL_TCP, TCP_NODELAY, b->opt_saved & SD_SAVED_NODELAY ? 1 : 0);
    if (b->opt_saved & SD_SAVED_CORK)
        set_int(fd, SOL_TCP, TCP_CORK, 1);
    sd_back_finish(s, to);
    if (sd_is_far(s))
        reason = load_rlx(&s->seg->pumped) ? SD_REASON_link_lost : reason;
    reason = sd_back_why(s, reason);
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

/* More of them than were thrown out in the middle of ringing: no honest peer. */
#define STRAY_BELLS 64

/* Inside. Shared memory is faster than TCP: a bell may still be on its way, and must not reach the program. False: so it is. */
static bool back_rx(struct sock *s, int fd, struct sd_hold *h)
{
    u8 bells[STRAY_BELLS];
    i64 pos = sd_rx_pos(s, fd);
    u64 left = pos < 0 ? 0 : sd_back_left(&s->e, (u64)pos);

    if ((left > STRAY_BELLS && !sd_is_far(s)) || (pos < 0 && sd_is_far(s))) {
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
        set_int(fd, SOL_SOCKET, SO_RCVLOWAT, (i32)s->b->rcvlowat);
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

/* ----------------------------------------------------------------- doorbell */

static void ring_bell(struct sock *s, int fd, u32 more)
{
    struct sd_hold h;

    if (s->b->tx_shut)
        return; /* who waits for room knows that nobody can ring: sd_no_bells() */
    if (load_rlx(&s->b->tx_mode) == SD_MODE_TCP)
        sd_try_switch_tx(s, fd); /* a bell may only ring in a direction that has switched */
    if (!sd_bell_enter(s, &h))
        return;
    send_bell(s, fd, &h, more);
    sd_leave(&h);
}

void sd_ring_bell(struct sock *s, int fd) { ring_bell(s, fd, 0); }
void sd_ring_bell_late(struct sock *s, int fd) { ring_bell(s, fd, MSG_MORE); }

#define OFTEN_US 1000

/* The reader sleeps. If it does so often, it shall not need a membarrier for it [W3]. */
void sd_wake_reader(struct sock *s, int fd)
{
    u64 now = sd_tsc(), before = s->woken_tsc;

    s->woken_tsc = now;
    if (now - before < OFTEN_US * g.tsc_per_us && load_rlx(&s->b->users) <= 1 && sd_fence_begin(&s->e)) {
        if (g.mt)
            sd_membarrier_threads(); /* those that have not seen yet that they have to fence */
        sd_fence_say(&s->e);
        sd_fence();
        if (load_rlx(&s->b->users) > 1) /* somebody has come in who does not know */
            sd_fence_end(&s->e);
    }
    sd_ring_bell(s, fd);
}

void sd_latch_end(struct sock *s, int fd, u32 err)
{
    struct sd_block *b = s->b;
    bool own = !err && load_rlx(&b->rx_shut); /* the program's end, not the peer's */
    /* What the peer has sent by TCP since is answered with a reset, of which both ends are told. */
    bool answered = err == ECONNRESET && load_rlx(&b->rx_shut) && sd_back_published(&s->e);
    u32 said = err;

    if (!own && sd_is_far(s) && !sd_far_settle(s)) /* [H1] */
        err = err ? err : ECONNRESET;
    else if (!own && !answered)
        err = sd_end_error(&s->e, err);
    if (!own)
        sd_cork_uncover(s->e.rx, s->e.bytes, s->e.bytes); /* nothing is held behind its end */
    if (err && !said) /* dead, though its kernel could not know of the bytes in the ring: ours shall know that it is over */
        SYS2(__NR_shutdown, fd, SHUT_RDWR);
    if (err)
        store_rel(&b->rx_err, err);
    atomic_fetch_or(&b->latched, LATCH_FIN | POLLRDHUP | (err ? POLLERR | POLLHUP : 0));
}

/* Sleeps in the kernel until something arrives on the descriptor (doorbell, FIN, error): recv's value for one peeked byte. */
long sd_park(struct sock *s, int fd, u64 sleeper)
{
    struct pollfd p = {fd, POLLIN, 0};
    struct timespec64 ms = {0, 1000000};
    u8 byte;
    long r;

    COUNT(parks);
    COUNT(calls_kernel);
    if (sleeper != SD_NOT_PARKED && sd_bell_due(&s->e) && sd_sleepers(s)) {
        /* The bell is an old one, left for sleepers that it has woken but who have not run yet (or are stopped). It would wake us at once. */
        r = SYS5(__NR_ppoll, 0, 0, &ms, 0, 8);
        return r == -EINTR ? r : 1;
    }
    if (sleeper == SD_PARK_UNKNOWN || sd_cork_pending(&s->e)) { /* nobody knows that we sleep, so the bell may be eaten before we see it */
        r = SYS5(__NR_ppoll, &p, 1, &ms, 0, 8);
        return r < 0 ? r : 1;
    }
    return SYS6(__NR_recvfrom, fd, &byte, 1, MSG_PEEK, 0, 0);
}

/* Inside. What the kernel socket has: a doorbell (true: eaten), the end, or a byte that nobody needs. */
static bool look(struct sock *s, int fd, struct sd_hold *h)
{
    bool bell = sd_bell_due(&s->e) && !sd_is_far(s);
    u8 byte;
    long r;

    if (bell && sd_back_published(&s->e))
        bell = false; /* what is left to eat is told by its position then: sd_rx_back() */
    if (sd_is_far(s)) {
        r = sd_far_look(s, fd, h);
        bell = r == SD_FAR_BELL;
    } else {
        r = bell ? sd_revocable(h, __NR_recvmsg, fd, &byte, 1, MSG_DONTWAIT) : SYS6(__NR_recvfrom, fd, &byte, 1, MSG_DONTWAIT | MSG_PEEK, 0, 0);
        if (r == 1 && bell)
            sd_bell_eaten(&s->e);
        else if (r == 1 && !sd_back_published(&s->e) && !sd_bell_due(&s->e))
            sd_revocable(h, __NR_recvmsg, fd, &byte, 1, MSG_DONTWAIT); /* a bell whose word was given back, or no honest peer */
    }
    if (r > 0 && bell) {
        COUNT(bells_rx);
        s->kcheck |= 1; /* a FIN may stand behind it */
        return true;
    }
    if (r == 0)
        sd_latch_end(s, fd, 0);
    else if (r < 0 && r != -EAGAIN && r != -EINTR)
        sd_latch_end(s, fd, (u32)-r);
    return false;
}

void sd_look_at_kernel(struct sock *s, int fd)
{
    struct sd_hold h;
    bool eaten = false;

    /* A doorbell is for all who sleep here: whoever wakes up last eats it. Eaten earlier, the others would never see it. The end of the
     * stream, which stands behind it, wakes everybody by itself. */
    if (sd_bell_due(&s->e) && sd_shared(s) && sd_sleepers(s)) {
        struct pollfd p = {fd, POLLRDHUP, 0};
        struct timespec64 zero = {0, 0};
        if (SYS5(__NR_ppoll, &p, 1, &zero, 0, 8) <= 0)
            return;
    }
    s->kcheck &= ~1u;
    s->checked_tsc = sd_tsc();
    if ((load_rlx(&s->b->latched) & LATCH_FIN) || load_rlx(&s->b->rx_mode) != SD_MODE_RING)
        return;
    sd_take(s, SD_DIR_RX, SD_MARK_EAT, &h);
    if (load_rlx(&s->b->rx_mode) == SD_MODE_RING)
        eaten = look(s, fd, &h);
    sd_leave(&h);
    if (eaten && load_rlx(&s->b->tx_mode) == SD_MODE_RING && sd_back_asked(&s->e) && !sd_far_busy(s))
        sd_tx_back(s, fd, SD_REASON_call); /* a peer that is about to stop using rings waits for this */
    if (eaten && s->regs)
        sd_ep_touched(s); /* an epoll that slept on this bell has to look at the ring instead */
    if (unlikely(sd_back_asked(&s->e)) && load_rlx(&s->b->tx_mode) == SD_MODE_RING && !sd_far_busy(s))
        sd_tx_back(s, fd, SD_REASON_passed); /* the bell may have been for this */
}

void sd_drop(struct sock *s, int fd)
{
    struct sd_block *b = s->b;

    if (load_rlx(&b->latched) & POLLERR)
        return;
    COUNT(hostile_drops);
    g.proc->moved_back[SD_REASON_hostile]++;
    store_rel(&b->rx_err, ECONNRESET);
    atomic_fetch_or(&b->latched, LATCH_FIN | POLLRDHUP | POLLERR | POLLHUP);
    store_rel(&b->rx_mode, SD_MODE_RING);
    store_rel(&b->tx_mode, SD_MODE_BACK);
    SYS2(__NR_shutdown, fd, SHUT_RDWR);
}
