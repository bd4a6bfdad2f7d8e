/* SPDX-License-Identifier: Apache-2.0
 *
 * life.c - offer and attach: how a connection gets its rings (sock.h). What follows is switch.c.
 */
#include "poll/poll.h"
#include "sock/far.h"
#include "sock/rx.h"
#include "sock/sock.h"

#define LATER_MOST 17u /* 2^16 operations from one question to the next */

/* Of one that came in a message: is it time to ask whether we are alone with it? */
static inline bool is_time(const struct sd_block *b, u32 ops)
{
    u32 n = load_rlx(&b->given) & SD_GIVEN_CAME;

    return likely(!n) || ops >= 1u << (n - 1);
}

static void later(struct sd_block *b)
{
    if ((load_rlx(&b->given) & SD_GIVEN_CAME) < LATER_MOST)
        atomic_fetch_add(&b->given, 1);
    store_rlx(&b->ops, 0);
    cas_u32(&b->state, SD_BLOCK_OFFERED, SD_BLOCK_TCP);
}

/* Of processes that share it only one would map the rings, and the others go on by TCP not knowing. So it waits until one has it alone; meanwhile, and at the
 * end, that is why it is on TCP. */
static bool is_shared(struct sd_block *b)
{
    bool shared = load_rlx(&b->users) > 1;

    if (shared && b->reason == SD_REASON_none)
        b->reason = SD_REASON_shared;
    else if (!shared && b->reason == SD_REASON_shared)
        b->reason = SD_REASON_none;
    return shared;
}

/* TCP_FASTOPEN_CONNECT: connect has said that it is done, and nothing was sent yet. Next time. */
static bool is_unborn(int fd)
{
    struct tcp_info_head ti = {0};
    u32 len = sizeof ti;

    return SYS5(__NR_getsockopt, fd, SOL_TCP, TCP_INFO, &ti, &len) == 0 && (ti.state == TCP_SYN_SENT || ti.state == TCP_CLOSE);
}

static void offer(struct sock *s, int fd)
{
    struct sd_block *b = s->b;
    u64 was;
    long r;

    if (is_shared(b) || is_unborn(fd))
        return;
    if (unlikely(sd_option_keeps(fd))) {
        sd_reason(s, SD_REASON_option);
        return;
    }
    if (unlikely(g.faulted)) {
        sd_reason(s, SD_REASON_fault_inside);
        return;
    }
    if (!cas_u32(&b->state, SD_BLOCK_TCP, SD_BLOCK_OFFERED))
        return;
    COUNT(offers);
    /* A handler that comes meanwhile would end the request, or have it made anew, which takes back what was offered: a timer that ticks faster than the
     * supervisor answers kept connections on TCP. It runs behind it. */
    was = sd_signals_block();
    r = sd_hypercall(SD_HC_OFFER, (u64)fd, sd_sock_name(s));
    sd_signals_restore(was);
    if (r == SD_OFFER_PAIRED) {
        store_rel(&b->state, SD_BLOCK_PAIRED);
    } else if (r == SD_OFFER_LATER) {
        later(b);
        return;
    } else if (r != SD_OFFER_PENDING) {
        if (r == -ENOSYS)
            g.no_supervisor = 1;
        if (r < 0)
            b->reason = r == -ENOSYS ? SD_REASON_no_supervisor : SD_REASON_refused;
        else if (!b->reason)
            b->reason = SD_REASON_refused;
        store_rel(&b->state, SD_BLOCK_PINNED);
        return;
    }
    if (unlikely(load_rlx(&b->given) & SD_GIVEN_CAME))
        sd_given_alone(s, fd);
}

/* Who asks the supervisor waits for it, for milliseconds where it has much to do. Of a program with threads so many wait at a time; the others go on by TCP and ask with
 * a later call. Or all of a pool may stand there: Go begins a thread for each that does, and its HTTP client opens a connection for each request that finds none
 * free, which has to be offered as well. A place holds when it was taken, for who has left it by siglongjmp. */
#define ASKERS 8
#define ASKS_US 1000000

static _Atomic u64 asking[ASKERS];

static bool may_ask(u32 *place, u64 *now)
{
    *place = ASKERS;
    if (!g.mt)
        return true;
    *now = sd_tsc() | 1;
    for (u32 i = 0; i < ASKERS; i++) {
        u64 since = load_rlx(&asking[i]);
        if ((!since || *now - since > ASKS_US * g.tsc_per_us) && atomic_compare_exchange_strong(&asking[i], &since, *now)) {
            *place = i;
            return true;
        }
    }
    return false;
}

static void has_asked(u32 place, u64 now)
{
    if (place < ASKERS)
        atomic_compare_exchange_strong(&asking[place], &now, 0);
}

#define BUF_LOCK_SND 1u /* SOCK_SNDBUF_LOCK: the program has set SO_SNDBUF */

/* TCP's buffers on one host, of a connection that has not carried much; over a device they begin smaller, and the ring has had so much there from the start. */
#define TAKES_MIN (256u * 1024)

/* No more is unread than TCP would take before a send waits: its own buffer, a part of which is overhead, and the peer's window. So nobody waits for room who would
 * not natively, and all of it can go back there (recall.c, sdtrace/giveback.py). A program that has chosen how large that buffer is gets no more from us; the
 * kernel says twice what was asked for. TCP_NOTSENT_LOWAT is about what the window does not hold. */
void sd_tx_limit(struct sock *s, int fd)
{
    struct tcp_info_window w = {0};
    bool chosen = sd_get_int(fd, SOL_SOCKET, SO_BUF_LOCK) & BUF_LOCK_SND;
    u32 len = sizeof w, unsent = sd_get_int(fd, SOL_TCP, TCP_NOTSENT_LOWAT), buffer = sd_get_int(fd, SOL_SOCKET, SO_SNDBUF);
    u64 most = s->e.bytes;

    SYS5(__NR_getsockopt, fd, SOL_TCP, TCP_INFO, &w, &len);
    if (chosen)
        most = buffer / 2 + (u64)w.snd_wnd;
    else if (!sd_is_far(s) && most > TAKES_MIN)
        most = max_u64(buffer - buffer / 16 + (u64)w.snd_wnd, TAKES_MIN);
    if (unsent)
        most = min_u64(most, (u64)unsent + w.snd_wnd);
    sd_tx_most(&s->e, most);
}

static void announce(struct sock *s)
{
    struct sd_block *b = s->b;

    sd_fence(); /* [A1] ATTACHED is set before rx_plain is read; a reader raises rx_plain before it reads the state. And before tx_shut: shutdown.c */
    if (unlikely(b->tx_shut)) /* or what the peer sends to who hears nothing any more would be put on the ring, and read */
        sd_hint_shut(&s->e, load_rlx(&b->rx_shut));
    if (unlikely(b->exclusive))
        store_rlx(&s->e.rx->exclusive, 1); /* [B4] */
    if (load_rlx(&b->rx_plain) == 0)
        sd_attached_say(s->seg, b->side);
    if (sd_is_far(s))
        sd_far_nudge(s);
}

/* Doorbells are single bytes, so the kernel's low-water mark has to be 1. */
static void lower_mark(struct sock *s, int fd)
{
    u32 lowat = sd_get_int(fd, SOL_SOCKET, SO_RCVLOWAT);

    if (lowat > 1) {
        s->b->rcvlowat = lowat;
        sd_set_int(fd, SOL_SOCKET, SO_RCVLOWAT, 1);
    }
}

/* Nobody but this process holds the socket, so threads only have to agree who does it; the others go on by TCP meanwhile. */
static void attach(struct sock *s, int fd)
{
    struct sd_block *b = s->b;
    bool done = false;

    if (!cas_u32(&s->attaching, 0, 1))
        return;
    bool again = unlikely(load_rlx(&b->rx_mode) == SD_MODE_BACK);
    if (load_acq(&b->state) == SD_BLOCK_PAIRED && !is_shared(b) && !(again && !sd_again_may(s))) {
        if (!again && unlikely(sd_has_mark(fd))) { /* sent by a program that was attached since: nothing else tells of it */
            sd_reason(s, SD_REASON_flag);
        } else if (!sd_map_segment(s, fd)) {
            if (load_acq(&b->state) == SD_BLOCK_PAIRED) /* or it was taken back meanwhile, and may be offered anew */
                sd_reason(s, g.no_supervisor ? SD_REASON_no_supervisor : SD_REASON_no_memory);
        } else {
            COUNT(attaches);
            if (again)
                sd_again_ready(s);
            lower_mark(s, fd);
            sd_inq_set(s, fd);
            sd_ep_attaches(s);
            store_rel(&b->state, SD_BLOCK_ATTACHED);
            announce(s);
            sd_peer_came(s);
            done = true;
        }
    }
    store_rel(&s->attaching, 0);
    if (done)
        sd_ep_changed(s);
}

/* By this operation. */
static bool is_wanted(struct sock *s, int fd)
{
    struct sd_block *b = s->b;
    const struct sd_config *c = g.cfg;
    u32 ops;

    if (!c->accel || !b->established || g.no_supervisor)
        return false;
    ops = load_rlx(&b->ops) + 1;
    store_rlx(&b->ops, ops);
    if (c->upgrade == SD_UPGRADE_AFTER_OPS ? ops < c->upgrade_n || sd_too_young(s, fd, ops)
                                           : c->upgrade != SD_UPGRADE_EAGER && (c->upgrade != SD_UPGRADE_AFTER_BYTES || b->bytes_tcp < c->upgrade_n))
        return false;
    return is_time(b, ops);
}

static void ask(struct sock *s, int fd, u32 state)
{
    u64 now = 0;
    u32 place;

    if (!may_ask(&place, &now))
        return;
    if (state == SD_BLOCK_TCP)
        offer(s, fd);
    if (load_acq(&s->b->state) == SD_BLOCK_PAIRED)
        attach(s, fd);
    has_asked(place, now);
}

void sd_tick(struct sock *s, int fd)
{
    struct sd_block *b = s->b;
    u32 state = load_acq(&b->state);

    if (unlikely(load_rlx(&b->tx_mode) != SD_MODE_RING) && state == SD_BLOCK_ATTACHED && sd_forsaken(s))
        state = sd_again_begin(s, fd);
    if (likely(state == SD_BLOCK_ATTACHED)) {
        if (s->seg && unlikely(!sd_attached_said(s->seg, b->side)))
            announce(s);
        sd_fast_on(s, fd);
        return;
    }
    if (state == SD_BLOCK_PAIRED || (state == SD_BLOCK_TCP && is_wanted(s, fd)))
        ask(s, fd, state);
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

static void end(struct sock *s, int fd, u32 reason)
{
    struct sd_block *b = s->b;

    g.proc->moved_back[reason]++;
    store_rel(&b->rx_err, ECONNRESET);
    atomic_fetch_or(&b->latched, LATCH_FIN | POLLRDHUP | POLLERR | POLLHUP);
    store_rel(&b->rx_mode, SD_MODE_RING);
    store_rel(&b->tx_mode, SD_MODE_BACK);
    SYS2(__NR_shutdown, fd, SHUT_RDWR);
}

void sd_break(struct sock *s, int fd, u32 reason)
{
    if (load_rlx(&s->b->latched) & POLLERR)
        return;
    if (reason == SD_REASON_hostile)
        COUNT(hostile_drops);
    end(s, fd, reason);
}

void sd_drop(struct sock *s, int fd) { sd_break(s, fd, SD_REASON_hostile); }

void sd_reset(struct sock *s, int fd, u32 reason)
{
    u16 unspec[8] = {0};

    if (reason == SD_REASON_hostile)
        sd_drop(s, fd);
    else
        end(s, fd, reason);
    SYS3(__NR_connect, fd, unspec, sizeof unspec);
}
