/* SPDX-License-Identifier: Apache-2.0
 *
 * adopt.c - sockets of a program that was running before the library came (sdrun --attach).
 *
 * The supervisor has noted in sd_adopt[], while all threads stood still, which descriptors there are; the first call that reaches C takes them
 * over. Until then, and meanwhile, every thread that comes into C waits: nothing can close one of them, for close() of a marked descriptor
 * comes here, too. Children cannot be born either.
 *
 * A connection is adopted as one that has been on TCP since its birth. What we have not seen of its life:
 *   - who connected. The kernel's count of acknowledged bytes has the SYN of that side in it, so a stream position depends on it. The kernel
 *     also counts the bytes that it has sent, without the SYN; the difference is the answer. If it is neither 0 nor 1, the position is
 *     not known, and the connection stays on TCP.
 *   - options that keep a connection on TCP: they are asked for.
 *   - who else has it: the supervisor has looked.
 *
 * So is one that came in a message from another program (pass.c). Who else has it changes, and those may change what belongs to the socket: the
 * supervisor looks when it is offered, and what we keep of that is read once more then.
 */
#include "poll/poll.h"
#include "sock/rx.h"
#include "sock/sock.h"

u32 sd_adopt[SD_ADOPT_MAX];

#define SYN_DATA 32u /* TCPI_OPT_SYN_DATA, linux/tcp.h */
#define OPTIONS_AT 4 /* of rest0: tcpi_options */
#define TRIES 100

static bool sent_info(int fd, struct tcp_info_sent *ti)
{
    u32 len = sizeof *ti;

    sd_zero((u8 *)ti, sizeof *ti);
    return SYS5(__NR_getsockopt, fd, SOL_TCP, TCP_INFO, ti, &len) == 0 && len == sizeof *ti;
}

/* 1: it has connected, 2: it was accepted, 0: nobody can tell. */
static u32 role_of(int fd)
{
    struct tcp_info_sent a, z;
    i32 queued;
    u64 by_acks, by_sends;

    for (int i = 0; i < TRIES; i++) {
        if (!sent_info(fd, &a) || SYS3(__NR_ioctl, fd, TIOCOUTQ, &queued) < 0 || !sent_info(fd, &z))
            return 0;
        if (a.head.bytes_acked != z.head.bytes_acked || a.bytes_sent != z.bytes_sent || a.notsent != z.notsent)
            continue;
        if (a.head.state != TCP_ESTABLISHED || (a.head.rest0[OPTIONS_AT] & SYN_DATA))
            return 0;
        by_acks = a.head.bytes_acked + (u64)(u32)queued;
        by_sends = a.bytes_sent - a.bytes_retrans + a.notsent;
        return by_acks == by_sends ? 2 : by_acks == by_sends + 1 ? 1 : 0;
    }
    return 0;
}

static bool has_urgent(int fd)
{
    struct pollfd p = {fd, POLLPRI, 0};
    struct timespec64 zero = {0, 0};

    return SYS5(__NR_ppoll, &p, 1, &zero, 0, 8) == 1 && (p.revents & POLLPRI);
}

static bool has_ulp(int fd)
{
    u8 name[16];
    u32 len = sizeof name;

    return SYS5(__NR_getsockopt, fd, SOL_TCP, TCP_ULP, name, &len) == 0 && len > 0;
}

/* Why it stays on TCP. */
static u32 why_not(int fd, u32 state, u32 role, long flags, bool held)
{
    if (held)
        return SD_REASON_passed;
    if (state != TCP_ESTABLISHED)
        return SD_REASON_peer_fin;
    if (!role)
        return SD_REASON_position;
    if ((flags & O_ASYNC) || has_ulp(fd))
        return SD_REASON_option;
    return has_urgent(fd) || sd_has_mark(fd) ? SD_REASON_flag : SD_REASON_none;
}

static void adopt(int fd, bool held)
{
    struct tcp_info_sent ti;
    struct sock *s;
    u32 domain, role = 0, reason;
    long flags = SYS2(__NR_fcntl, fd, F_GETFL);

    if (flags < 0 || sd_sockopt_int(fd, SO_PROTOCOL) != IPPROTO_TCP)
        return;
    domain = (u32)sd_sockopt_int(fd, SO_DOMAIN);
    if ((domain != AF_INET && domain != AF_INET6) || !sent_info(fd, &ti))
        return;
    if ((u32)fd >= ARRAY_LEN(sd_fdent))
        return;
    bool connected = ti.head.state != TCP_CLOSE && ti.head.state != TCP_LISTEN && ti.head.state != TCP_SYN_SENT;
    if (held && !connected)
        return; /* listeners of a family of servers: whoever accepts has a connection of its own */
    if (connected)
        role = role_of(fd);
    else if (ti.head.state == TCP_SYN_SENT)
        role = 1;
    if (!(s = sd_sock_new(role)))
        return;
    store_rlx(&s->b->nonblock, flags & O_NONBLOCK ? 1 : 0);
    s->b->established = connected;
    sd_fd_install(fd, s);
    reason = connected ? why_not(fd, ti.head.state, role, flags, held) : SD_REASON_none;
    if (reason)
        sd_reason(s, reason);
}

void sd_adopt_given(int fd, bool held)
{
    struct tcp_info_sent ti;
    struct sock *s;

    if (!sent_info(fd, &ti) || ti.head.state != TCP_ESTABLISHED)
        return;
    adopt(fd, held);
    s = sd_sock_of((u64)fd);
    if (s)
        store_rlx(&s->b->given, 1);
}

void sd_given_alone(struct sock *s, int fd)
{
    struct pollfd p = {fd, POLLRDHUP, 0};
    struct timespec64 zero = {0, 0};
    long flags = SYS2(__NR_fcntl, fd, F_GETFL);

    store_rlx(&s->b->nonblock, flags & O_NONBLOCK ? 1 : 0);
    if (flags & O_ASYNC)
        sd_go_back(s, fd, SD_REASON_option);
    else if (SYS5(__NR_ppoll, &p, 1, &zero, 0, 8) > 0)
        sd_go_back(s, fd, SD_REASON_peer_fin); /* or somebody has shut our reading side */
}

static void adopt_everything(void)
{
    sd_area_get(0);
    for (u32 fd = 0; fd < SD_ADOPT_MAX; fd++) {
        u32 what = sd_adopt[fd], first = what >> 16;
        struct sock *s = sd_sock_of(first);
        if ((what & SD_ADOPT_SOCKET) && first == fd)
            adopt((int)fd, what & SD_ADOPT_HELD);
        else if ((what & SD_ADOPT_SOCKET) && s)
            sd_fd_install((int)fd, s);
        else if ((what & SD_ADOPT_EPOLL) && (what & SD_ADOPT_HELD) && first == fd)
            sd_ep_came((int)fd); /* what comes into it later is TCP's, too */
        else if (what & SD_ADOPT_EPOLL)
            sd_ep_adopt((int)fd, (int)first);
    }
    for (u32 fd = 0; fd < SD_ADOPT_MAX; fd++)
        if ((sd_adopt[fd] & SD_ADOPT_EPOLL) && !(sd_adopt[fd] & SD_ADOPT_HELD) && sd_adopt[fd] >> 16 == fd && sd_epoll_of(fd))
            sd_ep_carried((int)fd);
    for (u32 fd = 0; fd < SD_ADOPT_MAX; fd++)
        if (sd_adopt[fd] && !sd_sock_of(fd) && !sd_epoll_of(fd))
            *(volatile u8 *)&sd_fdkind[fd] = 0; /* a file of another kind, or the kernel's alone */
}

/* With all signals blocked: a handler that comes in between would wait for what it has interrupted. */
void sd_adopt_all(u32 *to_do)
{
    static _Atomic u32 busy;
    u64 none = ~(1ull << (SIGSYS - 1)), old;

    SYS4(__NR_rt_sigprocmask, SIG_SETMASK, &none, &old, 8);
    while (__atomic_load_n(to_do, __ATOMIC_ACQUIRE)) {
        if (!cas_u32(&busy, 0, 1)) {
            SYS0(__NR_sched_yield);
            continue;
        }
        if (__atomic_load_n(to_do, __ATOMIC_ACQUIRE)) {
            adopt_everything();
            __atomic_store_n(to_do, 0, __ATOMIC_RELEASE);
        }
        store_rel(&busy, 0);
    }
    SYS4(__NR_rt_sigprocmask, SIG_SETMASK, &old, 0, 8);
}
