/* SPDX-License-Identifier: Apache-2.0
 *
 * fuzz_kernel.c - the kernel's side of the connection, which the peer also has a hand in: bytes, doorbells and ends come when they like.
 */
#include <string.h>
#include "fuzz.h"

static struct sd_tcb tcb = {.tid = 100, .level = 1};

struct sd_tcb *sd_self(void) { return &tcb; }
u64 sd_now_ns(void)
{
    static u64 now_ns;

    return now_ns += 100000;
}

struct sock *sd_sock_of(u64 fd) { return fd == FD ? &sk : NULL; }
void *sd_epoll_of(u64 fd) { return (void)fd, NULL; }
bool sd_epoll_set(u64 fd, void *ep, u32 *number) { return (void)fd, (void)ep, (void)number, false; }
void sd_epoll_forget(u64 fd) { (void)fd; }
void sd_epoll_dup(u64 from, u64 to) { (void)from, (void)to; }
void sd_out_of_reach(struct sock *s, int fd) { (void)s, (void)fd; }
void *sd_alloc(u64 bytes) { return (void)bytes, NULL; }
void sd_free(void *p, u64 bytes) { (void)p, (void)bytes; }
struct sock *sd_sock_enter_numbered(u32 ent) { return ent == 1 ? &sk : NULL; }
void sd_sock_put_numbered(struct sock *s) { (void)s; }

static long receive(u8 *p, u64 n, u32 flags)
{
    if (net.reset) {
        net.reset = false;
        net.fin = true;
        return -ECONNRESET;
    }
    if (net.arrived == net.read) {
        if (net.fin || net.shut)
            return 0;
        if (flags & MSG_DONTWAIT)
            return -EAGAIN;
        if (one_in(2))
            return one_in(2) ? -EINTR : -EAGAIN;
        net.arrived += 1 + rnd() % 3; /* something has come */
    }
    n = min_u64(n, net.arrived - net.read);
    if (n)
        memset(p, 0x5a, n);
    if (!(flags & MSG_PEEK))
        net.read += n;
    return (long)n;
}

static long transmit(u64 n, u32 flags)
{
    if (net.shut || net.fin)
        return -EPIPE;
    if (one_in(4))
        return flags & MSG_DONTWAIT ? -EAGAIN : -EINTR;
    n = 1 + rnd() % n;
    net.written += n;
    return (long)n;
}

static long get_option(long level, long name, void *out, u32 *len)
{
    memset(out, 0, *len);
    if (level == SOL_TCP && name == TCP_INFO && *len == sizeof(struct tcp_info_head)) {
        struct tcp_info_head *ti = out;
        ti->state = net.shut ? TCP_CLOSE : net.fin ? TCP_CLOSE_WAIT : TCP_ESTABLISHED;
        ti->bytes_acked = net.written + 1;
        ti->bytes_received = net.arrived + net.fin;
    }
    return 0;
}

static long poll_all(struct pollfd *p, u64 n)
{
    long count = 0;

    if (one_in(8))
        return -EINTR;
    for (u64 i = 0; i < n; i++) {
        u32 is = (net.arrived > net.read || net.fin || net.reset || net.shut ? POLLIN : 0) | (one_in(2) ? POLLOUT : 0) |
                 (net.fin ? POLLRDHUP : 0) | (net.shut || net.reset ? POLLHUP | POLLERR : 0);
        p[i].revents = (int16_t)(is & ((u32)p[i].events | POLLHUP | POLLERR));
        count += p[i].revents != 0;
    }
    return count;
}

static long first_iov(struct msghdr *m, u32 flags, bool sending)
{
    struct iovec *v = m->iov;

    for (u64 i = 0; i < m->iovlen; i++, v++)
        if (v->len)
            return sending ? transmit(v->len, flags) : receive(v->base, v->len, flags);
    return 0;
}

long sd_sys(long nr, long a, long b, long c, long d, long e, long f)
{
    (void)a, (void)f;
    come_in();
    switch (nr) {
    case __NR_getsockopt:
        return get_option(b, c, (void *)d, (u32 *)e);
    case __NR_setsockopt:
    case __NR_getpid:
    case __NR_tgkill:
    case __NR_tkill:
    case __NR_newfstatat:
    case __NR_close:
    case __NR_sched_yield:
        return 0;
    case __NR_futex_waitv:
        return one_in(4) ? -EINTR : one_in(3) ? -ETIMEDOUT : one_in(2) ? -EAGAIN : 0;
    case __NR_futex: /* also where a peer says that somebody sleeps on the bell word */
        return b == FUTEX_WAKE ? (long)(rnd() % 2) : one_in(4) ? -EINTR : one_in(3) ? -ETIMEDOUT : one_in(2) ? -EAGAIN : 0;
    case __NR_connect: /* to nowhere: a reset */
    case __NR_shutdown:
        net.shut = true;
        return 0;
    case __NR_sendto:
        return transmit((u64)c, (u32)d);
    case __NR_sendmsg:
        return first_iov((struct msghdr *)b, (u32)c, true);
    case __NR_recvfrom:
        return receive((u8 *)b, (u64)c, (u32)d);
    case __NR_recvmsg:
        return first_iov((struct msghdr *)b, (u32)c, false);
    case __NR_ioctl:
        *(i32 *)c = b == FIONREAD ? (i32)(net.arrived - net.read) : 0;
        return 0;
    case __NR_ppoll:
        return poll_all((struct pollfd *)a, (u64)b);
    }
    host_fail("a system call that this kernel does not know");
    return 0;
}
