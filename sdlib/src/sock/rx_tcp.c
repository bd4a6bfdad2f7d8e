/* SPDX-License-Identifier: Apache-2.0
 *
 * rx_tcp.c - receiving what is still, or again, on TCP.
 */
#include "ring/cork.h"
#include "sock/far.h"
#include "sock/rx.h"

/* The first piece, and with it what the kernel says beside the bytes. */
static long recv_headed(int fd, struct rx *w, const struct iovec *piece, u32 flags)
{
    struct iovec v = {piece->base, w->asked};
    struct msghdr m = *w->msg;
    long r;

    m.iov = &v;
    m.iovlen = 1;
    r = SYS3(__NR_recvmsg, fd, &m, flags);
    if (r < 0)
        return r;
    w->told = true;
    w->msg->namelen = m.namelen;
    w->msg->controllen = m.controllen;
    w->msg->flags = m.flags & ~(flags & MSG_DONTWAIT);
    return r;
}

/* The program's own call for what is still missing, at most `limit` bytes of it. A shorter answer is always allowed. */
long sd_kernel_rx(int fd, struct rx *w, u32 flags, u64 limit)
{
    struct msghdr m = {.iov = w->iov, .iovlen = w->n};
    u64 skip = w->got;

    if (!skip && w->len <= limit && (w->msg || w->n != 1)) {
        w->told = w->msg;
        w->asked = w->len;
        return SYS3(__NR_recvmsg, fd, w->msg ? w->msg : &m, flags);
    }
    for (u64 i = 0; i < w->n; i++) {
        w->asked = min_u64(w->iov[i].len - skip, limit);
        if (skip < w->iov[i].len && w->msg && !w->got)
            return recv_headed(fd, w, &w->iov[i], flags);
        if (skip < w->iov[i].len)
            return SYS6(__NR_recvfrom, fd, w->iov[i].base + skip, w->asked, flags, 0, 0);
        skip -= w->iov[i].len;
    }
    return SYS6(__NR_recvfrom, fd, 0, 0, flags, 0, 0);
}

/* A receive that knows nothing of rings is about to happen; false if the connection has been attached meanwhile. */
bool sd_rx_plain_enter(struct sock *s)
{
    struct sd_block *b = s->b;
    bool shared = sd_shared(s);

    sd_owe_plain(s, shared ? SD_OWES_RX : 0); /* [A1] */
    if (!shared)
        return true;
    /* Whether it has been said already does not matter: who has read rx_plain before may be about to. */
    if (load_acq(&b->state) != SD_BLOCK_ATTACHED || load_rlx(&b->rx_mode) == SD_MODE_BACK || !s->seg)
        return true;
    sd_owed_plain(s, SD_OWES_RX);
    return false;
}

/* The program has sent no byte by TCP since the switch: what the peer's kernel calls unread are doorbells. The kernel counts what it was given by what it
 * has sent, too, and that also of a connection that is closed. */
static bool only_bells(const struct sock *s, int fd)
{
    struct tcp_info_sent ti = {0};
    u32 len = sizeof ti, mode = load_rlx(&s->b->tx_mode);
    u64 back = load_rlx(&s->e.tx->sw_back);

    if (mode == SD_MODE_RING)
        return true;
    if (mode != SD_MODE_BACK || !back || sd_is_far(s) || load_rlx(&s->e.tx->go_back) == SD_GO_BACK_TAKEN)
        return false;
    return SYS5(__NR_getsockopt, fd, SOL_TCP, TCP_INFO, &ti, &len) == 0 && len == sizeof ti && ti.bytes_sent - ti.bytes_retrans + ti.notsent == back - 1;
}

long sd_plain_rx(struct sock *s, int fd, struct rx *w)
{
    long r;

    if (!sd_rx_plain_enter(s))
        return -ERANGE;
    r = sd_kernel_rx(fd, w, w->flags | (w->got >= w->target && w->got ? MSG_DONTWAIT : 0), (u64)-1 >> 1);
    sd_plain_leave(s, SD_OWES_RX, w->peek ? 0 : r);
    if (sd_tracing(SD_TRACE_BYTES) && r > 0 && !w->peek)
        sd_saw_tcp(s, fd, 1, w->drop ? NULL : w->iov, w->got, (u64)r);
    if (unlikely(r == -ECONNRESET) && sd_attached(s) && !load_rlx(&s->b->rx_shut) && only_bells(s, fd) && (!sd_is_far(s) || sd_far_settle(s)))
        r = -(long)sd_end_error(&s->e, ECONNRESET); /* what the peer has left unread on TCP were doorbells of ours */
    if (unlikely(r == 0 && !w->peek && w->len && load_rlx(&s->b->rx_err)))
        r = -(long)atomic_exchange(&s->b->rx_err, 0); /* taken from the kernel by sd_rx_pos() */
    if (r > 0)
        w->got += (u64)r;
    return sd_rx_result(w, r);
}

/* TCP bytes that can be read now and are the program's for certain: what FIONREAD counted before sw_ring was seen empty, or what stands
 * before the switch. *last: with them, all of TCP is read. */
static u64 tcp_bytes(struct sock *s, int fd, bool *last)
{
    u64 left = 0;
    i32 q = 0;
    i64 pos;

    *last = false;
    q = sd_unread(s, fd);
    if (!sd_sw_published(&s->e))
        return q > 0 ? (u64)q : 0;
    pos = sd_rx_pos(s, fd);
    q = sd_unread(s, fd);
    if (q <= 0 || pos < 0 || sd_sw_decide(&s->e, (u64)pos, &left) != SD_SW_DRAIN)
        return 0;
    *last = (u64)q >= left;
    return min_u64((u64)q, left);
}

/* What FIONREAD counts: as much as a read can give now. A read goes on from TCP to the ring, and back, so both are counted: nginx takes what it
 * reads beyond this number for bytes that have come since, of which an edge-triggered epoll will still tell. -1: the kernel knows. */
i64 sd_rx_bytes(struct sock *s, int fd)
{
    u64 tcp = 0, ring, back, behind;
    bool last = true;
    i32 q = 0;
    i64 pos;

    if (!sd_rx_poll_switch(s, fd) && load_rlx(&s->b->rx_mode) == SD_MODE_TCP) {
        tcp = tcp_bytes(s, fd, &last);
        if (!last)
            return sd_sw_published(&s->e) ? (i64)tcp : -1;
    }
    if (load_rlx(&s->b->rx_mode) == SD_MODE_BACK)
        return -1;
    if (sd_cork_pending(&s->e))
        sd_cork_over(s);
    ring = load_acq(&s->e.rx->tail) - load_rlx(&s->e.rx->head);
    if (ring > s->e.bytes)
        return 0; /* no honest peer: the next read ends the connection */
    back = load_acq(&s->e.rx->sw_back);
    if (unlikely(back) && (pos = sd_rx_pos(s, fd)) >= 0 && SYS3(__NR_ioctl, fd, FIONREAD, &q) == 0) {
        behind = (u64)pos + (u64)q - (back - 1);
        ring += behind <= (u64)q ? behind : 0;
    }
    return (i64)(tcp + ring);
}

/* Inside: no other reader comes between asking what is the program's and reading it. The kernel's answer; 0: nothing. */
static long take_tcp(struct sock *s, int fd, struct rx *w, struct sd_hold *h)
{
    u32 flags = (w->flags & ~(u32)MSG_WAITALL) | MSG_DONTWAIT;
    u64 skip = w->got, n;
    bool last;
    long r;

    if (load_rlx(&s->b->rx_mode) != SD_MODE_TCP)
        return 0;
    n = tcp_bytes(s, fd, &last);
    if (!n)
        return 0;
    if (!sd_hold_marked(h)) {
        r = sd_kernel_rx(fd, w, flags, n);
        w->asked = min_u64(w->asked, n);
        return r;
    }
    for (u64 i = 0; i < w->n; i++) {
        if (skip < w->iov[i].len) {
            w->asked = min_u64(w->iov[i].len - skip, n);
            r = sd_revocable(h, __NR_recvmsg, fd, w->iov[i].base + skip, w->asked, flags);
            return r == -EINTR ? -EAGAIN : r;
        }
        skip -= w->iov[i].len;
    }
    return 0;
}

/* As a recv would wait, but that any handler ends it. 0: something is there. */
static long until_readable(int fd)
{
    struct pollfd p = {fd, POLLIN, 0};
    struct timespec64 ts;
    i64 tv[2] = {0, 0};
    u32 len = sizeof tv;
    long r;

    SYS5(__NR_getsockopt, fd, SOL_SOCKET, SO_RCVTIMEO_OLD, tv, &len);
    ts = (struct timespec64){tv[0], tv[1] * 1000};
    r = SYS5(__NR_ppoll, &p, 1, tv[0] || tv[1] ? &ts : NULL, 0, 8);
    return r > 0 ? 0 : r ? r : -EAGAIN;
}

/* Waits for one byte, a doorbell or the end: recv's answer. */
static long wait_tcp(struct sock *s, int fd, const struct rx *w)
{
    u8 byte;
    /* Another thread may take the connection to the ring, and us with it, while we sleep here. */
    u64 sleeper = w->nb ? SD_NOT_PARKED : sd_sleeper_enter(s, 1);
    u32 armed = w->nb ? 0 : sd_owe_armed(s, POLLIN); /* or by another process: a handler may fork meanwhile */
    bool gone = load_rlx(&s->b->rx_mode) != SD_MODE_TCP;
    long r = gone ? -ERANGE : w->later && !w->nb ? until_readable(fd) : 0;

    if (!r)
        r = SYS6(__NR_recvfrom, fd, &byte, 1, MSG_PEEK | (w->nb || w->later ? MSG_DONTWAIT : 0), 0, 0);

    sd_owed_armed(s, armed);
    sd_sleeper_leave(s, sleeper);
    fd = sd_fd_after_wait(s, fd);
    if (r == 0 && sd_is_far(s))
        sd_far_settle(s); /* [H1] */
    if (r == 0 && sd_rx_poll_switch(s, fd))
        return -ERANGE; /* a FIN behind the switch: the ring is read first */
    return r;
}

/* Attached, but the peer still sends on TCP; it may switch at any moment, and then doorbells follow its bytes. */
long sd_switching_rx(struct sock *s, int fd, struct rx *w)
{
    struct sd_hold h;
    long r;

    for (;;) {
        if (sd_rx_poll_switch(s, fd))
            return -ERANGE;
        sd_take(s, SD_DIR_RX, SD_MARK_EAT, &h);
        r = take_tcp(s, fd, w, &h);
        sd_leave(&h);
        if (r < 0 && r != -EAGAIN)
            return sd_rx_result(w, r);
        if (r > 0) {
            if (sd_tracing(SD_TRACE_BYTES))
                sd_saw_tcp(s, fd, 1, w->drop ? NULL : w->iov, w->got, (u64)r);
            w->got += (u64)r;
            s->b->bytes_tcp += (u64)r;
            if (w->got == w->len || ((u64)r < w->asked && w->got >= w->target))
                return (long)w->got; /* all of it, or up to the mark of urgent data */
            continue;
        }
        if (w->got && (w->nb || w->got >= w->target))
            return (long)w->got;
        bool kept = unlikely(load_rlx(&s->b->latched) & LATCH_KEPT), nb = w->nb;
        w->nb |= kept;
        r = wait_tcp(s, fd, w);
        w->nb = nb;
        fd = sd_fd_after_wait(s, fd);
        if (kept && r == -EAGAIN) { /* the end of the stream would come before it */
            r = sd_rx_kept(s, w);
            if (!r)
                continue;
            return r;
        }
        if (r <= 0)
            return r == -ERANGE ? r : sd_rx_result(w, r);
    }
}

/* The last bytes of TCP were looked at; those of the ring stand behind them. */
static void peek_on(struct sock *s, struct rx *w)
{
    u64 skip = w->got, tcp = w->got;

    if (w->drop) {
        i64 n = sd_rx_avail(&s->e);
        w->got += n > 0 ? min_u64((u64)n, w->len - w->got) : 0;
        return;
    }
    for (u64 i = 0; i < w->n; i++) {
        if (skip >= w->iov[i].len) {
            skip -= w->iov[i].len;
            continue;
        }
        i64 r = sd_rx_copy(&s->e, w->iov[i].base + skip, w->iov[i].len - skip, w->got - tcp);
        if (r <= 0)
            return;
        w->got += (u64)r;
        skip = 0;
    }
}

bool sd_at_mark(int fd)
{
    i32 at = 0;

    return SYS3(__NR_ioctl, fd, SIOCATMARK, &at) == 0 && at;
}

/* Doorbells that stand in front of them are looked at as well. The kernel's answer without them. */
static long peek_bytes(int fd, const struct rx *w, u64 bells, u64 most, u32 flags)
{
    u8 bell[SD_STRAY_BELLS];
    struct iovec v[1 + MAX_IOV]; /* the program's own may not be touched */
    struct msghdr m = {.iov = v, .iovlen = 1};
    u64 skip = w->got;
    long r;

    v[0] = (struct iovec){bell, bells};
    for (u64 i = 0; i < w->n && most && m.iovlen < 1 + MAX_IOV; i++) {
        u64 from = min_u64(skip, w->iov[i].len), n = min_u64(w->iov[i].len - from, most);
        skip -= from;
        most -= n;
        if (n)
            v[m.iovlen++] = (struct iovec){w->iov[i].base + from, n};
    }
    r = SYS3(__NR_recvmsg, fd, &m, flags);
    return r < 0 ? r : r > (long)bells ? r - (long)bells : 0;
}

long sd_peek_behind(struct sock *s, int fd, const struct rx *w, u64 most)
{
    u32 flags = most ? w->flags : (w->flags & ~(u32)MSG_WAITALL) | MSG_DONTWAIT;
    struct sd_hold h;
    bool whole, same;
    long r;

    do {
        r = 0;
        sd_take(s, SD_DIR_RX, SD_MARK_OP, &h);
        same = load_rlx(&s->b->rx_mode) == SD_MODE_RING && sd_rx_avail(&s->e) == (i64)w->got;
        if (same && sd_back_behind(&s->e, w->got) && !sd_is_far(s)) {
            i64 pos = sd_rx_pos(s, fd);
            u64 bells = pos < 0 ? SD_STRAY_BELLS + 1 : sd_back_left(&s->e, (u64)pos);
            if (bells <= SD_STRAY_BELLS && (bells || !sd_at_mark(fd)))
                r = peek_bytes(fd, w, bells, most ? most : w->len - w->got, flags);
        }
        whole = sd_still_inside(&h);
        sd_leave(&h);
    } while (!whole);
    return !same ? -ERANGE : r > 0 ? r : 0;
}

/* Inside. A peek shows `n` bytes from the first unread one on, and once more each time that it looks. Where others have taken some of what it has shown it goes on behind
 * that, and as peek_from() in rx.c counts both. False: then nothing has come since. */
static bool peek_begin(struct sock *s, int fd, struct rx *w, u64 n, bool last)
{
    i64 pos = w->got || w->target > 1 ? sd_rx_pos(s, fd) : -1;
    u64 ring = last ? load_acq(&s->e.rx->tail) : 0;

    if (pos < 0 || w->seen - w->got == (u64)pos)
        w->got = 0;
    else if (w->got && w->seen == (u64)pos + n + ring)
        return false;
    w->seen = (u64)pos;
    return true;
}

/* Inside. The kernel's answer; 0: nothing to show. */
static long peek_both(struct sock *s, int fd, struct rx *w)
{
    u32 flags = (w->flags & ~(u32)MSG_WAITALL) | MSG_DONTWAIT;
    bool last;
    u64 n = tcp_bytes(s, fd, &last), before;
    long r;

    if (!n || !peek_begin(s, fd, w, n, last))
        return 0;
    before = w->got;
    r = w->msg && w->msg->controllen && !before ? sd_kernel_rx(fd, w, flags, n) : peek_bytes(fd, w, 0, min_u64(n, w->len - before), flags);
    w->got += r > 0 ? (u64)r : 0;
    if (last && w->got - before == n)
        peek_on(s, w);
    w->seen += w->got - before;
    return r;
}

/* sd_switching_rx() for MSG_PEEK, which may have to show bytes of both. */
long sd_switching_peek(struct sock *s, int fd, struct rx *w)
{
    struct sd_hold h;
    bool whole, over = w->nb;
    struct rx before;
    long r;

    for (;;) {
        before = *w;
        if (sd_rx_poll_switch(s, fd)) {
            w->seen -= load_acq(&s->e.rx->sw_ring) - 1; /* where the ring's first byte stands */
            return -ERANGE;
        }
        sd_take(s, SD_DIR_RX, SD_MARK_OP, &h);
        r = peek_both(s, fd, w);
        whole = sd_still_inside(&h);
        sd_leave(&h);
        if (!whole) {
            *w = before;
            continue;
        }
        if (r == -EFAULT)
            return r;
        if (w->got && (over || w->got >= w->target))
            return (long)w->got;
        if (w->got) /* MSG_WAITALL */
            over = !sd_rx_another_ms(fd, w);
        else if ((r = wait_tcp(s, fd, w)) <= 0)
            return r;
        fd = sd_fd_after_wait(s, fd);
    }
}
