/* SPDX-License-Identifier: Apache-2.0
 *
 * kernel.c - the system calls of sdlib/src/sock on a connection that lives in memory.
 *
 * Bytes of the programs are never 0 in these tests, and no two are the same; doorbells are 0, or the first byte in the ring as long as its reader has not
 * arrived ([S6]). So a doorbell that reaches a program is seen.
 */
#include "kernel.h"

struct world w;
struct sd_area hosted_area;

#define NAMESPACE 4026531836u

void (*hosted_new_rings)(void), (*hosted_nudged)(void);
bool (*hosted_futex_wake)(u64 at);
void (*hosted_readable)(u32 side);

static void fresh_segment(u32 start, u32 ring_bytes)
{
    __builtin_memset(&w.seg, 0, sizeof w.seg);
    w.seg.magic = SD_SEG_MAGIC;
    w.seg.ring_bytes = ring_bytes;
    for (u32 i = 0; i < SIDES; i++) {
        *(u64 *)&w.seg.dir[i].tail = *(u64 *)&w.seg.dir[i].head = *(u64 *)&w.seg.dir[i].held = (u64)0 - start;
        *(u32 *)&w.seg.dir[i].rx_armed = 1;
        *(u32 *)&w.seg.attached[i] = 1;
    }
}

static struct sd_end fresh_end(u32 i, u32 start, u32 ring_bytes)
{
    return (struct sd_end){.tx = &w.seg.dir[i], .rx = &w.seg.dir[!i], .tx_ring = w.ring[i], .rx_ring = w.ring[!i],
                           .bytes = ring_bytes, .tx_bytes = ring_bytes, .rx_tail_seen = (u64)0 - start, .tx_head_seen = (u64)0 - start};
}

/* In the place of the old one, as mmap(MAP_FIXED) does it: all at once. */
bool sd_map_segment(struct sock *s, int fd)
{
    (void)fd;
    if (!hosted_new_rings)
        return false;
    host_point("mmap");
    fresh_segment(0, w.seg.ring_bytes);
    hosted_new_rings();
    host_changed();
    s->e = fresh_end(s->b->side, 0, w.seg.ring_bytes);
    s->seg = &w.seg;
    return true;
}

void world_init(u32 start, u32 ring_bytes)
{
    __builtin_memset(&w, 0, sizeof w);
    hosted_config = (struct sd_config){.accel = 1, .upgrade = SD_UPGRADE_NEVER};
    hosted_supervised = false;
    hosted_new_rings = hosted_nudged = NULL;
    hosted_futex_wake = NULL;
    hosted_readable = NULL;
    __builtin_memset(hosted_area.part, 0, (HOSTED_THREADS + 1) * sizeof *hosted_area.part);
    g.area[0] = &hosted_area;
    *(u32 *)&hosted_area.parts_top = HOSTED_THREADS + 1;
    for (u32 i = 0; i < HOSTED_THREADS; i++) {
        *(u32 *)&hosted_area.part[i + 1].tid = 100 + i;
        hosted_area.part[i + 1].pidns = NAMESPACE;
        w.tcb[i] = (struct sd_tcb){.tid = 100 + i, .level = 1, .part = &hosted_area.part[i + 1], .part_number = i + 1,
                                    .next = i + 1 < HOSTED_THREADS ? &w.tcb[i + 1] : NULL};
    }
    fresh_segment(start, ring_bytes);
    for (u32 i = 0; i < SIDES; i++) {
        struct sock *s = &w.sock[i];
        w.net.dir[i].cap = STREAM_BYTES;
        w.block[i] = (struct sd_block){.state = SD_BLOCK_ATTACHED, .users = 1, .side = i, .role = (u8)(1 + i), .established = 1};
        s->b = &w.block[i];
        s->seg = &w.seg;
        s->e = fresh_end(i, start, ring_bytes);
    }
}

/* The supervisor: pairs at once. */
long sd_hypercall(u32 op, u64 a, u64 b)
{
    (void)a, (void)b;
    if (!hosted_supervised)
        return -ENOSYS;
    host_point("hypercall");
    if (op == SD_HC_NUDGE && hosted_nudged)
        hosted_nudged();
    return op == SD_HC_NUDGE ? 0 : op == SD_HC_OFFER ? SD_OFFER_PAIRED : -ENOSYS;
}

/* All threads are of one process, where that matters. */
struct sd_tcb *sd_tcbs(void) { return &w.tcb[0]; }

/* ------------------------------------------------------------------ network */

static struct stream *in(u32 side) { return &w.net.dir[!side]; }
static struct stream *out(u32 side) { return &w.net.dir[side]; }

bool net_deliver(u32 dir)
{
    struct stream *st = &w.net.dir[dir];

    if (st->arrived < st->written)
        st->arrived++;
    else if (st->fin && !st->fin_arrived)
        st->fin_arrived = 1;
    else
        return false;
    sets_hear(!dir, st->fin_arrived ? POLLIN | POLLRDHUP : POLLIN);
    if (hosted_readable)
        hosted_readable(!dir);
    return true;
}

u32 net_bells_unread(u32 dir)
{
    struct stream *st = &w.net.dir[dir];
    u32 n = 0;

    for (u32 i = st->read; i < st->written; i++)
        n += st->data[i] == 0;
    return n;
}

static bool readable(long side)
{
    struct stream *st = in((u32)side);

    return st->arrived > st->read || st->fin_arrived;
}

static bool writable(long side)
{
    struct stream *st = out((u32)side);

    return st->written - st->read < st->cap;
}

u64 bells_sent;
u32 bells_at_most;

static bool is_byte_of_bell(const u8 *p, u64 n)
{
    return n == 1 && *p == 0;
}

static long send_bytes(u32 side, const u8 *p, u64 n, bool nb)
{
    struct stream *st = out(side);

    if (in(side)->fin_arrived && st->fin)
        return -EPIPE;
    if (!writable(side)) {
        if (nb)
            return -EAGAIN;
        host_wait(writable, side, false);
    }
    n = min_u64(n, st->cap - (st->written - st->read));
    if (st->written + n > STREAM_BYTES)
        host_fail("test sends more than it may");
    if (is_byte_of_bell(p, n)) {
        if (net_bells_unread(side) >= bells_at_most)
            host_fail("a second doorbell is outstanding");
        bells_sent++;
    }
    __builtin_memcpy(st->data + st->written, p, n);
    st->written += (u32)n;
    host_changed();
    return (long)n;
}

static long recv_bytes(u32 side, u8 *p, u64 n, u32 flags)
{
    struct stream *st = in(side);

    if (!readable(side)) {
        if (flags & MSG_DONTWAIT)
            return -EAGAIN;
        host_wait(readable, side, false);
    }
    n = min_u64(n, st->arrived - st->read);
    __builtin_memcpy(p, st->data + st->read, n);
    if (!(flags & MSG_PEEK) && n) {
        bool full = !writable(!side);
        st->read += (u32)n;
        if (full)
            sets_hear(!side, POLLOUT);
        host_changed();
    }
    return (long)n;
}

u32 net_ready(u32 side)
{
    return (readable(side) ? POLLIN : 0) | (writable(side) ? POLLOUT : 0) | (in(side)->fin_arrived ? POLLRDHUP : 0);
}

static long poll_now(struct pollfd *p, u64 n)
{
    long count = 0;

    for (u64 i = 0; i < n; i++) {
        u32 is = p[i].fd >= SET_FD(0) ? set_ready(p[i].fd) ? POLLIN : 0 : net_ready(SIDE_OF(p[i].fd));
        p[i].revents = (int16_t)(is & (u32)p[i].events);
        count += p[i].revents != 0;
    }
    return count;
}

static bool poll_ready(long at)
{
    struct pollfd p = *(struct pollfd *)at; /* asked from outside of the thread: its memory stays as it is */

    return poll_now(&p, 1) != 0;
}

static long sys_setsockopt(u32 side, u32 name)
{
    if (name != SO_RCVLOWAT || !hosted_readable)
        return 0;
    host_point("SO_RCVLOWAT");
    if (readable(side))
        hosted_readable(side);
    host_changed();
    return 0;
}

static long tcp_info(u32 side, struct tcp_info_head *ti)
{
    *ti = (struct tcp_info_head){.state = in(side)->fin_arrived ? TCP_CLOSE_WAIT : TCP_ESTABLISHED};
    ti->bytes_acked = out(side)->arrived + (w.block[side].role == 1);
    ti->bytes_received = in(side)->arrived + in(side)->fin_arrived;
    return 0;
}

/* ------------------------------------------------------------- system calls */

static bool woken(long nothing)
{
    (void)nothing;
    return w.futex.woken;
}

/* One at a time sleeps. Its time-out does not end, unless the scenario says so: a wake-up that is lost shall be seen. */
static long sys_futex(long at, long op, u32 val)
{
    bool asleep = w.futex.at == (u64)at && !w.futex.woken;

    if (op == FUTEX_WAKE && hosted_futex_wake && hosted_futex_wake((u64)at))
        return 1;
    if (op == FUTEX_WAKE) {
        w.futex.woken |= asleep;
        host_changed();
        return asleep;
    }
    if (*(u32 *)at != val)
        return -EAGAIN;
    w.futex = (struct futex){.at = (u64)at, .ends = w.futex.ends};
    host_wait(woken, 0, w.futex.ends);
    asleep = !w.futex.woken;
    w.futex = (struct futex){.ends = w.futex.ends};
    return asleep ? -ETIMEDOUT : 0;
}

static long sys_ppoll(struct pollfd *p, u64 n, const struct timespec64 *ts)
{
    long r = poll_now(p, n);

    if (r || (ts && !ts->sec && !ts->nsec))
        return r;
    if (n > 1)
        host_fail("the kernel of these tests polls one descriptor");
    host_wait(n ? poll_ready : NULL, (long)p, ts != NULL);
    return poll_now(p, n);
}

static long sys_ioctl(u32 side, u32 what, i32 *out_value)
{
    struct stream *o = out(side), *i = in(side);

    *out_value = what == SIOCATMARK ? 0 : what == FIONREAD ? (i32)(i->arrived - i->read) : (i32)(o->written - o->arrived);
    return 0;
}

static long iov_each(u32 side, struct msghdr *m, u32 flags, bool sending)
{
    u64 n = m->iovlen ? m->iov[0].len : 0;

    /* A shorter answer is always allowed. */
    if (!n)
        return 0;
    return sending ? send_bytes(side, m->iov[0].base, n, flags & MSG_DONTWAIT) : recv_bytes(side, m->iov[0].base, n, flags);
}

long sd_sys(long nr, long a, long b, long c, long d, long e, long f)
{
    u32 side = SIDE_OF(a);

    (void)f;
    switch (nr) {
    case __NR_getsockopt: /* of ours only TCP_INFO changes under our feet */
        if (b == SOL_TCP && c == TCP_INFO) {
            host_point("TCP_INFO");
            return tcp_info(side, (struct tcp_info_head *)d);
        }
        __builtin_memset((void *)d, 0, *(u32 *)e);
        return 0;
    case __NR_setsockopt:
        return sys_setsockopt(side, b == SOL_SOCKET ? (u32)c : 0);
    case __NR_getpid:
    case __NR_tgkill:
    case __NR_rt_sigprocmask:
        return 0;
    case __NR_epoll_create1:
        return SET_FD(0);
    case __NR_epoll_ctl:
        host_point("epoll_ctl");
        return sys_epoll_ctl(a, b, SIDE_OF(c), (const struct epoll_event *)d);
    case __NR_epoll_pwait:
        host_point("epoll_wait");
        return sys_epoll_wait(a, (struct epoll_event *)b, c, d != 0, d > 0);
    case __NR_tkill:
        return host_dead((u32)a) ? -ESRCH : 0;
    case __NR_newfstatat: /* of the PID namespace: st_ino */
        ((u64 *)c)[1] = NAMESPACE;
        return 0;
    case __NR_openat:
        return -ENOENT;
    case __NR_connect:
        w.reset = 1;
        /* fallthrough */
    case __NR_shutdown:
        host_point("shutdown");
        out(side)->fin = 1;
        host_changed();
        return 0;
    case __NR_sched_yield:
        mc_relax();
        return 0;
    case __NR_sendto:
        host_point("send");
        return send_bytes(side, (const u8 *)b, (u64)c, d & MSG_DONTWAIT);
    case __NR_recvfrom:
        host_point(d & MSG_PEEK ? "peek" : "recv");
        return recv_bytes(side, (u8 *)b, (u64)c, (u32)d);
    case __NR_sendmsg:
        host_point("sendmsg");
        return iov_each(side, (struct msghdr *)b, (u32)c, true);
    case __NR_recvmsg:
        host_point("recvmsg");
        return iov_each(side, (struct msghdr *)b, (u32)c, false);
    case __NR_ioctl:
        host_point("ioctl");
        return sys_ioctl(side, (u32)b, (i32 *)c);
    case __NR_futex:
        host_point("futex");
        return sys_futex(a, b, (u32)c);
    case __NR_ppoll:
        host_point("ppoll");
        return sys_ppoll((struct pollfd *)a, (u64)b, (const struct timespec64 *)c);
    }
    host_fail("a system call that this kernel does not know");
    return -ENOSYS;
}

u64 sd_now_ns(void) { return w.now_ns; }

/* As side `ent` - 1 knows the second connection (world_second). */
struct sock *sd_sock_enter_numbered(u32 ent) { return ent - ENT_SECOND < SIDES ? &w.second.sock[ent - ENT_SECOND] : NULL; }
void sd_sock_put_numbered(struct sock *s) { (void)s; }

void world_second(void)
{
    struct second *c = &w.second;

    c->seg = w.seg;
    for (u32 i = 0; i < SIDES; i++) {
        c->block[i] = w.block[i];
        c->sock[i] = w.sock[i];
        c->sock[i].b = &c->block[i];
        c->sock[i].seg = &c->seg;
        c->sock[i].ent = ENT_SECOND + i;
        c->sock[i].e.tx = &c->seg.dir[i];
        c->sock[i].e.rx = &c->seg.dir[!i];
    }
}

struct sock *sd_sock_of(u64 fd) { return fd - 10 < SIDES && !load_rlx(&w.closed[fd - 10]) ? &w.sock[fd - 10] : NULL; }
