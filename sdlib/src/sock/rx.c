/* SPDX-License-Identifier: Apache-2.0
 *
 * rx.c - receiving: from the ring, and who else is asked.
 */
#include "poll/poll.h"
#include "ring/cork.h"
#include "ring/vec.h"
#include "sock/far.h"
#include "sock/rx.h"

u64 sd_iov_bytes(const struct iovec *iov, u64 n)
{
    u64 sum = 0;

    for (u64 i = 0; i < n; i++)
        sum += iov[i].len;
    return sum;
}

/* What is left of SO_RCVTIMEO for a receive that has waited before; the kernel's own clock starts anew with each park. */
static bool time_left(int fd, const struct rx *w, struct timespec64 *ts)
{
    i64 tv[2] = {0, 0};
    u32 len = sizeof tv;
    i64 ns;

    SYS5(__NR_getsockopt, fd, SOL_SOCKET, SO_RCVTIMEO_OLD, tv, &len);
    if (!tv[0] && !tv[1])
        return false;
    ns = tv[0] * 1000000000 + tv[1] * 1000 - (i64)((sd_tsc() - w->since) / (g.tsc_per_us ? g.tsc_per_us : 1)) * 1000;
    if (ns < 0)
        ns = 0;
    ts->sec = ns / 1000000000;
    ts->nsec = ns % 1000000000;
    return true;
}

#define SD_NEWS 2 /* no value of recv for one byte */

static long park(struct sock *s, int fd, bool again, const struct rx *w, u64 sleeper)
{
    struct pollfd p = {fd, POLLIN, 0};
    struct timespec64 ts;
    bool held = sd_cork_pending(&s->e), stays = sleeper != SD_NOT_PARKED && sd_bell_stays(s), timed = (again || w->later) && time_left(fd, w, &ts), brief;
    long r;

    if (!timed && (!w->later || held || stays))
        return sd_park(s, fd, sleeper);
    brief = (held || stays) && (!timed || ts.sec || ts.nsec > 1000000);
    if (brief)
        ts = (struct timespec64){0, 1000000};
    COUNT_OF(s, parks);
    COUNT(calls_kernel);
    r = SYS5(__NR_ppoll, &p, !stays, timed ? &ts : NULL, 0, 8); /* a doorbell that stays for others would wake us at once, each time: sd_park() */
    if (r == 0)
        return brief ? 1 : -EAGAIN;
    return r; /* an error of the connection stays for sd_look_at_kernel() */
}

/* Something has come since the ring was looked at. What others have taken meanwhile is none, and hides none. */
static bool more(const struct sock *s, const struct rx *w)
{
    return unlikely(w->peek && w->got) ? load_acq(&s->e.rx->tail) != w->seen : sd_rx_news(&s->e, 0); /* [R1] [W1] */
}

static bool let_others_run(struct sock *s, const struct rx *w)
{
    bool again, news;
    u32 tries = 0;

    if (s->yielded) { /* that was done in rx_empty() */
        s->yielded = false;
        return more(s, w);
    }
    do {
        again = sd_yield(&tries);
        news = more(s, w);
    } while (!news && again);
    return news;
}

/* Without SO_RCVTIMEO, which only the kernel keeps. Of sockets that others have, too, nobody knows. */
static bool waits_for_ever(struct sock *s, int fd)
{
    i64 tv[2] = {0, 0};
    u32 len = sizeof tv;

    if (!s->timed)
        s->timed = SYS5(__NR_getsockopt, fd, SOL_SOCKET, SO_RCVTIMEO_OLD, tv, &len) == 0 && !tv[0] && !tv[1] ? 1 : 2;
    return s->timed == 1;
}

/* > 0: look again, 0: sleep, -EINTR. */
static long nap(struct sock *s, int fd, u64 began, struct rx *w)
{
    u64 others = 0;
    long r;

    if ((w->peek && w->got) || !sd_nap_pays(SD_FOREVER, &others) || !waits_for_ever(s, fd))
        return 0;
    if (s->kcheck & 1)
        sd_look_at_kernel(s, fd); /* behind the doorbell of the last sleep */
    if (!sd_nap_possible(s, sd_rung_soon(&sd_learn_process, false)))
        return 0;
    w->napped = sd_nap_enter(&s, 1); /* [N3] until it sleeps in the kernel, or is over */
    r = sd_nap(&s, 1, !w->later, false, &sd_learn_process, began);
    return r > 0 && !more(s, w) ? 0 : r; /* who closes may have ended it, and waits */
}

static void nap_over(struct sock *s, struct rx *w, u32 sleeper)
{
    if (unlikely(w->napped))
        sd_nap_leave(&s, 1, sleeper);
    w->napped = 0;
}

/* As nap(). To a peer that can only run on this CPU. */
static long give_way(struct sock *s, int fd, u64 began, struct rx *w)
{
    if (!g.cfg->spin_us)
        return 0;
    if (sd_yields_pay() && sd_yield_won(let_others_run(s, w)))
        return 1;
    return nap(s, fd, began, w);
}

/* As nap(). */
static long spin_rx(struct sock *s, int fd, u64 began, struct rx *w)
{
    struct sd_spin sp;
    bool won = false;

    if (!sd_spin_pays(s) || sd_spin_held(&sd_learn_process))
        return give_way(s, fd, began, w);
    if (!sd_spin_begin(&sp, &sd_learn_process, SD_FOREVER, false))
        return 0;
    do
        won = more(s, w);
    while (!won && sd_spin_more(&sp));
    sd_spin_end(&sp, won);
    sd_spun(s, won);
    return !won && sd_rung_soon(&sd_learn_process, false) ? nap(s, fd, began, w) : won;
}

/* The ring has not enough and the program waits: spin, then park in recv on the program's own descriptor. */
static long wait_rx(struct sock *s, int fd, struct rx *w)
{
    u64 began = sd_tsc(), t0 = began;
    bool again = w->since != 0;
    long r;

    if (!again)
        w->since = t0;
    r = spin_rx(s, fd, began, w);
    if (r) {
        nap_over(s, w, 0);
        return r;
    }
    t0 = sd_tsc();
    u32 armed = sd_owe_armed(s, POLLIN);
    u64 sleeper = sd_sleeper_enter(s, w->peek ? w->target : 1);
    if ((armed & SD_ARM_BARRIER) || sleeper != SD_NOT_PARKED)
        sd_membarrier();
    nap_over(s, w, sd_self()->tid);
    r = more(s, w) ? SD_NEWS : park(s, fd, again, w, sleeper);
    sd_sleeper_leave(s, sleeper);
    sd_owed_armed(s, armed);
    if (r == SD_NEWS)
        return 1;
    if (r >= 0)
        sd_spin_parked(&sd_learn_process, began, t0, load_rlx(&s->e.rx->rung_at));
    if (r == -EAGAIN || r == -EINTR)
        return r; /* SO_RCVTIMEO, a handler without SA_RESTART */
    fd = sd_fd_after_wait(s, fd);
    if (r < 0) { /* the error is consumed: keep it */
        sd_latch_end(s, fd, (u32)-r);
        return 1;
    }
    sd_look_at_kernel(s, fd);
    return 1;
}

/* MSG_TRUNC: as many bytes as could be copied, without copying. */
static i64 ring_count(struct sock *s, u64 most, u64 skip)
{
    u64 tail = load_acq(&s->e.rx->tail), n = tail - load_rlx(&s->e.rx->head); /* [R1] */

    s->e.rx_tail_seen = tail; /* never behind the head: fast.c relies on it */
    if (unlikely(n > s->e.bytes))
        return SD_BROKEN;
    return n > skip ? (i64)min_u64(n - skip, most) : 0;
}

/* How far behind the head a peek goes on. Where others have taken what it has shown, that is at the head once something has come, as in tcp_recvmsg: what was
 * shown counts all the same. */
static u64 peek_from(struct sock *s, struct rx *w, u64 head)
{
    if (w->seen - w->got != head && (!w->got || load_acq(&s->e.rx->tail) != w->seen))
        w->seen = head;
    return w->seen - head;
}

#define GONE (-3) /* beside SD_BROKEN and SD_FAULT: the ring is not to be read */

/* What the ring has, up to what is still wanted. */
static i64 ring_take(struct sock *s, struct rx *w)
{
    struct sd_block *b = s->b;
    i64 got;
    struct sd_hold h;

    for (;;) {
        sd_take(s, SD_DIR_RX, SD_MARK_OP, &h);
        if (unlikely(load_rlx(&b->rx_mode) != SD_MODE_RING)) { /* [S5] nobody reads it any more */
            sd_leave(&h);
            return GONE;
        }
        u64 from = load_rlx(&s->e.rx->head);
        u64 behind = unlikely(w->peek) ? peek_from(s, w, from) : 0;
        if (unlikely(behind) && load_acq(&s->e.rx->tail) - from < behind) /* no honest peer takes any back */
            got = SD_BROKEN;
        else
            got = unlikely(w->drop) ? ring_count(s, w->len - w->got, behind) : sd_rx_scatter(&s->e, w->iov, w->n, w->got, behind);
        bool keep = got <= 0 || w->peek;
        bool done = keep ? sd_still_inside(&h) : sd_commit_index(&h, &s->e.rx->head, from, from + (u64)got); /* [R2] */
        if (done && !keep)
            b->bytes_shm_rx += (u64)got;
        if (done && unlikely(w->peek) && got > 0)
            w->seen += (u64)got;
        sd_leave(&h);
        if (sd_tracing(SD_TRACE_BYTES) && done && !keep)
            sd_saw_ring(s, 1, from, w->drop ? NULL : w->iov, w->got, (u64)got);
        if (done)
            return got;
    }
}

static long the_end(struct sock *s, const struct rx *w)
{
    bool orderly = (load_rlx(&s->b->latched) & (LATCH_KEPT | POLLERR)) == LATCH_KEPT; /* behind a FIN no kept error is told, and it stays */
    u32 err = w->got || orderly ? 0 : sd_kept_error(s);

    return sd_rx_result(w, -(long)err);
}

/* Without waiting: the kernel is asked now and then whether it has anything to say, and at once where the peer has said that its end comes. */
static bool kernel_has_news(struct sock *s, int fd)
{
    bool ends = sd_end_comes(s);

    if (!(s->kcheck & 1) && !ends && sd_tsc() - s->checked_tsc <= SD_KERNEL_US * g.tsc_per_us)
        return false;
    sd_look_at_kernel(s, fd);
    COUNT(calls_kernel);
    if (unlikely(ends) && (s->kcheck & 1))
        sd_look_at_kernel(s, fd); /* it stands behind a doorbell */
    return load_rlx(&s->b->latched) & LATCH_FIN;
}

bool sd_rx_another_ms(int fd, struct rx *w)
{
    struct pollfd end = {fd, POLLRDHUP, 0};
    struct timespec64 ms = {0, 1000000}, left;

    w->since = w->since ? w->since : sd_tsc();
    if (time_left(fd, w, &left) && !left.sec && left.nsec < ms.nsec)
        ms = left;
    return ms.nsec && SYS5(__NR_ppoll, &end, 1, &ms, 0, 8) == 0;
}

/* MSG_PEEK, and the ring ends here: what stands behind it by TCP is shown with it. */
static NOINLINE long peek_beyond(struct sock *s, int fd, struct rx *w)
{
    u64 lacks = w->nb || w->got >= w->target ? 0 : w->target - w->got;
    bool over = !lacks;
    struct timespec64 left;
    long r;

    for (;;) {
        r = sd_peek_behind(s, fd, w, 0);
        if (r == -ERANGE) {
            w->got = 0;
            return r;
        }
        if (over || (u64)r >= lacks)
            return (long)(w->got += (u64)r);
        /* Others may take what is in front of it, and the kernel's own clock starts anew. */
        over = sd_shared(s) || (w->since && time_left(fd, w, &left)) ? !sd_rx_another_ms(fd, w) : sd_peek_behind(s, fd, w, lacks) < (long)lacks;
        fd = sd_fd_after_wait(s, fd);
    }
}

static long ring_rx(struct sock *s, int fd, struct rx *w)
{
    struct sd_block *b = s->b;
    u64 calls = g.proc->ctr[SD_CTR_calls_kernel];
    long kept;

    if (sd_is_far(s) && unlikely(load_rlx(&b->rx_shut)))
        sd_far_overhear(s, fd); /* none of the program's is read */
    for (;;) {
        i64 r = ring_take(s, w);
        if (unlikely(r < 0)) {
            if (r == GONE) {
                w->got = w->peek ? 0 : w->got; /* what was shown comes by TCP now, once more */
                return -ERANGE;
            }
            if (r == SD_FAULT)
                return sd_rx_result(w, -EFAULT);
            sd_drop(s, fd);
            return the_end(s, w);
        }
        if (unlikely(!r && sd_cork_pending(&s->e)) && sd_cork_over(s))
            continue;
        w->got += (u64)r;
        if (r > 0 && !w->peek && sd_room_wanted(&s->e))
            sd_ring_bell(s, fd);
        if (w->got >= w->target && (likely(!sd_back_published(&s->e)) || w->got == w->len))
            break;
        if (w->peek && w->got && sd_back_published(&s->e))
            return peek_beyond(s, fd, w);
        if (w->peek && (i64)(w->seen - load_rlx(&s->e.rx->head)) >= (i64)sd_rx_most(&s->e))
            break; /* no more can come behind it while it is not consumed */
        if (unlikely(sd_back_published(&s->e))) {
            if (sd_back_reached(&s->e)) {
                if (sd_rx_back(s, fd))
                    return -ERANGE;
                /* else its last bell is on the way, and wakes us */
            } else if (!sd_rx_news(&s->e, 0) && !sd_back_reached(&s->e)) { /* the ring was to end elsewhere: no honest peer */
                sd_drop(s, fd);
                return the_end(s, w);
            } else {
                continue;
            }
            if (w->got >= w->target)
                break;
        }
        if (load_rlx(&b->latched) & LATCH_FIN) {
            if (more(s, w))
                continue; /* stored before the FIN was sent */
            return the_end(s, w);
        }
        if (unlikely(load_rlx(&b->latched) & LATCH_KEPT) && (kept = sd_rx_kept(s, w)))
            return kept;
        if (w->nb) {
            if (kernel_has_news(s, fd) || more(s, w))
                continue;
            return sd_rx_result(w, -EAGAIN);
        }
        long waited = wait_rx(s, fd, w);
        if (waited < 0)
            return sd_rx_result(w, waited);
        fd = sd_fd_after_wait(s, fd);
    }
    if (calls == g.proc->ctr[SD_CTR_calls_kernel])
        COUNT(calls_library);
    return (long)w->got;
}

static long receive(struct sock *s, int fd, struct rx *w)
{
    struct sd_block *b = s->b;
    long r;

    do {
        if (likely(load_rlx(&b->rx_mode) == SD_MODE_RING)) {
            r = ring_rx(s, fd, w);
        } else if (unlikely(load_rlx(&b->rx_mode) == SD_MODE_RETIRE)) {
            sd_recall_wait(s, fd);
            r = -ERANGE;
        } else if (!sd_attached(s) || load_rlx(&b->rx_mode) == SD_MODE_BACK) {
            r = unlikely(w->got) && sd_at_mark(fd) ? (long)w->got : sd_plain_rx(s, fd, w);
        } else {
            r = w->peek ? sd_switching_peek(s, fd, w) : sd_switching_rx(s, fd, w);
            COUNT(calls_kernel);
        }
    } while (r == -ERANGE && (fd = sd_fd_after_wait(s, fd)) >= 0);
    return r;
}

static long begin(struct sock *s, int fd, struct rx *w)
{
    u8 byte;
    struct iovec one = {&byte, 1};
    long r;

    sd_tick(s, fd);
    if (unlikely(w->flags & (MSG_OOB | MSG_ERRQUEUE)))
        return sd_kernel_rx(fd, w, w->flags, (u64)-1 >> 1);
    w->nb = (w->flags & MSG_DONTWAIT) || load_rlx(&s->b->nonblock);
    w->peek = w->flags & MSG_PEEK;
    w->drop = w->flags & MSG_TRUNC;
    w->target = w->flags & MSG_WAITALL ? w->len : min_u64(w->len, s->b->rcvlowat ? s->b->rcvlowat : 1);
    if (unlikely(!w->len) && sd_attached(s)) { /* waits all the same, and takes nothing */
        *w = (struct rx){.iov = &one, .n = 1, .len = 1, .target = 1, .peek = true, .nb = w->nb, .flags = w->flags | MSG_PEEK};
        r = receive(s, fd, w);
        return r > 0 ? 0 : r;
    }
    r = receive(s, fd, w);
    if (r > 0 && !w->peek)
        sd_sized(s, 1, (u64)r);
    if (unlikely(s->watched) && r > 0 && !w->peek)
        sd_ep_emptied(s, sd_fd_after_wait(s, fd));
    return r;
}

long sd_rx(struct sock *s, int fd, struct iovec *iov, u64 n, u32 flags)
{
    struct rx w = {.iov = iov, .n = n, .len = sd_iov_bytes(iov, n), .flags = flags};

    return begin(s, fd, &w);
}

long sd_rx_msg(struct sock *s, int fd, struct msghdr *m, u32 flags, bool later, bool *told)
{
    struct rx w = {.iov = m->iov, .n = m->iovlen, .len = sd_iov_bytes(m->iov, m->iovlen), .flags = flags, .msg = m, .later = later};
    long r = begin(s, fd, &w);

    *told = w.told;
    return r;
}
