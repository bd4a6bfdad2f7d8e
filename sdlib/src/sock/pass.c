/* SPDX-License-Identifier: Apache-2.0
 *
 * pass.c - sockets of ours that travel in SCM_RIGHTS messages.
 *
 * A receiver that descends from the same process sees our blocks, and goes on with the connection wherever its bytes are: the sender counts
 * it as a user before the message leaves, and notes the socket's cookie, by which the receiver finds the block. To everybody else the
 * socket is a plain one, so its bytes have to be on TCP first. Who receives is known if the other end of the unix socket was connected by
 * one of us; of a socketpair the supervisor looks who holds its other end (sdtrace/kin.py), once. Whoever of these executes another program before
 * it receives takes the areas along ([P1], start/exec.c).
 *
 * A stranger gets a connection that was never attached as it is, which is how programs that accept for others pass them. One that is on
 * the ring goes back to TCP first, and what is unread in the ring with it (recall.c). A peer that has gone, or went back itself before that was read, cannot
 * do that: then our supervisor puts it into the kernel's queue, if it may (sdtrace/leftover.py), while all who have the connection stand still; the thread
 * that asks, too, which is why it holds nothing then. A connection of which that cannot be done is reset: no stream ends early without an error.
 *
 * A stranger that has the library makes the connection one of its own (adopt.c), and offers it when it alone has the socket. That is the kernel's word
 * as far as descriptors go (the supervisor looks in /proc), but a message that nobody has received yet holds the socket, too, and does not show. So:
 *   [G1] Who receives adopts only what comes from where nobody lacks the library, so each program that it has been through has counted its messages.
 *   [G2] One message: who has received it is who asks. The sender's last close tells the peer, in the old rings, that the connection may be offered anew
 *        (HINT_GIVEN, again.c); without that the peer never does. It is said if there was one message in all, to a stranger that has the library.
 *   [G3] A connection that is not attached has no rings to say so, and its peer may have an open offer. So the second message waits until no supervisor of
 *        this user offers it any more (SD_HC_SCATTER); its sender has the socket meanwhile, so nobody is alone with it.
 */
#include "poll/poll.h"
#include "ring/cork.h"
#include "sock/far.h"
#include "sock/sock.h"

#define SCM_RIGHTS 1
#define AF_UNIX 1
#define SO_PEERCRED 17
#define WAIT_MS 200

struct cmsg {
    u64 len;
    i32 level, type;
    i32 fd[];
};

/* The next SCM_RIGHTS message from *at on; its descriptors to *fds. 0: no more. */
static u32 next_rights(const struct msghdr *m, u64 *at, const i32 **fds)
{
    while (*at + sizeof(struct cmsg) <= m->controllen) {
        const struct cmsg *c = (const struct cmsg *)((u64)m->control + *at);
        if (c->len < sizeof *c || c->len > m->controllen - *at)
            return 0;
        *at += (c->len + 7) & ~7ull;
        *fds = c->fd;
        if (c->level == SOL_SOCKET && c->type == SCM_RIGHTS && c->len > sizeof *c)
            return (u32)((c->len - sizeof *c) / 4);
    }
    return 0;
}

static u32 cookie_of(int fd)
{
    u64 cookie = 0;
    u32 len = 8;

    return SYS5(__NR_getsockopt, fd, SOL_SOCKET, SO_COOKIE, &cookie, &len) < 0 ? 0 : (u32)cookie;
}

/* Was the other end of this unix socket connected by a process that shares our area, and has not begun another program since? */
static bool is_family(int fd)
{
    u32 cred[3] = {0, 0, 0}, len = sizeof cred;

    if (SYS5(__NR_getsockopt, fd, SOL_SOCKET, SO_PEERCRED, cred, &len) < 0 || !cred[0] || cred[0] == g.pid)
        return false;
    for (u32 i = 0; i < SD_AREA_PROCS && i < load_rlx(&g.area[0]->procs_top); i++)
        if (load_rlx(&g.area[0]->proc[i].pid) == cred[0])
            return !load_rlx(&g.area[0]->proc[i].execs);
    return false;
}

/* What was found out about unix sockets: their cookies, and in the lowest bits who has the other end, enum sd_kin, and when that was asked. It stays so
 * while forks and execs are all that happens to it; a unix socket that is sent itself makes us forget everything. Who had no library when something
 * came from there had none when it sent that; who is to receive something gets it first. */
#define ASKED 64
static _Atomic u64 asked[ASKED];

static void forget_asked(void)
{
    for (u32 i = 0; i < ASKED; i++)
        store_rlx(&asked[i], 0);
}

static u32 other_end(int fd, bool sending)
{
    u64 cookie = cookie_of(fd), key = cookie << 1 | sending, known = load_rlx(&asked[key % ASKED]);
    long who;

    if (!cookie || sd_sockopt_int(fd, SO_DOMAIN) != AF_UNIX)
        return SD_KIN_UNKNOWN;
    if (known >> 2 != key) {
        who = sd_hypercall(SD_HC_KIN, (u64)fd, sending);
        known = key << 2 | (who == SD_KIN_FAMILY || who == SD_KIN_LIBRARY ? (u64)who : SD_KIN_UNKNOWN);
        store_rlx(&asked[key % ASKED], known);
    }
    return known & 3;
}

/* Who may receive this message; FAMILY: they all see the block. */
static u32 receivers(const struct msghdr *m, int fd, const struct sock *s)
{
    u32 who;

    if (!g.area[0] || m->name)
        return SD_KIN_UNKNOWN;
    store_rlx(&g.area[0]->passing, 1);
    sd_fence(); /* [P1] */
    who = is_family(fd) ? SD_KIN_FAMILY : other_end(fd, true);
    return who == SD_KIN_FAMILY && s->id >> 16 ? SD_KIN_LIBRARY : who; /* a later area may be younger than its relation to us */
}

/* ------------------------------------------------------------------ sending */

static bool is_back(struct sock *s, int fd)
{
    u32 mode = load_rlx(&s->b->rx_mode);

    if (mode == SD_MODE_TCP)
        return !sd_sw_published(&s->e); /* asked before it has switched: it will not any more */
    return mode == SD_MODE_BACK || (sd_back_reached(&s->e) && sd_rx_back(s, fd));
}

/* The peer sends nothing again: it is back, and we have not read the ring to its end, or it has gone. */
static bool is_final(struct sock *s, int fd)
{
    if (sd_back_published(&s->e))
        return true;
    sd_look_at_kernel(s, fd);
    if (!sd_ended(fd))
        return load_rlx(&s->b->latched) & LATCH_FIN;
    sd_look_at_kernel(s, fd); /* it may stand behind a doorbell */
    return true;
}

/* Whoever reads TCP alone is not told what we would be. A peer that was on the ring and is back before we have come there: its doorbells lie behind bytes that
 * nobody has read ([S6]), and are none of the stream's. */
static bool would_miss(const struct sock *s)
{
    u32 mode = load_rlx(&s->b->rx_mode);

    if (mode == SD_MODE_TCP)
        return sd_sw_published(&s->e) && !sd_is_far(s) && load_rlx(&s->e.rx->sw_back) != load_rlx(&s->e.rx->sw_ring);
    if (mode != SD_MODE_RING)
        return false;
    return !(load_rlx(&s->b->latched) & LATCH_FIN) || load_rlx(&s->b->rx_err) || sd_rx_news(&s->e, 0) || sd_cork_pending(&s->e);
}

void sd_off_the_ring(struct sock *s, int fd, u32 reason)
{
    if (!sd_recall(s, fd, reason)) {
        sd_back_ask(&s->e);
        sd_membarrier(); /* whoever sends from here on sees it */
        if (!sd_ended(fd))
            sd_ring_bell(s, fd);
        for (u32 i = 0; i < WAIT_MS && !is_back(s, fd) && !is_final(s, fd); i++) {
            sd_sleep_ns(1000000);
            if (sd_recall(s, fd, reason)) /* it has switched as we asked */
                break;
        }
    }
    /* leave.c hands out what is in a ring. */
    if ((reason != SD_REASON_call || load_rlx(&s->b->rx_mode) != SD_MODE_RING) && would_miss(s) && !is_back(s, fd)) {
        if (!sd_is_far(s))
            sd_hypercall(SD_HC_SCATTER, (u64)fd, 0); /* both directions may be on TCP then */
        if (would_miss(s) && !is_back(s, fd))
            sd_reset(s, fd, SD_REASON_unread_lost);
    }
    sd_recall_tx(s, fd, reason);
}

static void to_stranger(struct sock *s, int fd, u32 who)
{
    struct sd_block *b = s->b;
    u32 state = load_rlx(&b->state), before;

    if (who == SD_KIN_UNKNOWN)
        before = atomic_fetch_or(&b->given, SD_GIVEN_AWAY);
    else
        before = atomic_fetch_add(&b->given, SD_GIVEN_ONCE);
    if (sd_attached(s)) {
        sd_off_the_ring(s, fd, SD_REASON_passed);
        b->reason = SD_REASON_passed; /* from here on; before, it may take a doorbell, and with it our switch, to have its bytes back */
        return;
    }
    sd_reason(s, SD_REASON_passed);
    if (state == SD_BLOCK_OFFERED || state == SD_BLOCK_PAIRED)
        sd_hypercall(SD_HC_WITHDRAW, sd_sock_name(s), 0);
    if (before & ~SD_GIVEN_CAME)
        sd_hypercall(SD_HC_SCATTER, (u64)fd, 0); /* [G3] */
}

void sd_out_of_reach(struct sock *s, int fd)
{
    to_stranger(s, fd, SD_KIN_UNKNOWN);
}

/* Before (by 1) the message leaves, and again (by -1) if it did not. Returns how many sockets of ours are in it. */
static u32 count_in(const struct msghdr *m, int fd, i32 by)
{
    const i32 *fds;
    u64 at = 0;
    u32 ours = 0;

    for (u32 n; (n = next_rights(m, &at, &fds));)
        for (u32 i = 0; i < n; i++) {
            struct sock *s = sd_sock_look((u32)fds[i]);
            if (!s && by > 0)
                sd_ep_give((u32)fds[i]);
            if (!s && sd_sockopt_int(fds[i], SO_DOMAIN) == AF_UNIX)
                forget_asked();
            if (!s)
                continue;
            ours++;
            u32 who = receivers(m, fd, s);
            if (who == SD_KIN_FAMILY) {
                s->b->passed = cookie_of(fds[i]);
                sd_fast_off();
                atomic_fetch_add(&s->b->users, (u32)by);
                sd_ep_joined(s);
            } else if (by > 0) {
                to_stranger(s, fds[i], who);
            } else if (who == SD_KIN_LIBRARY) {
                atomic_fetch_sub(&s->b->given, SD_GIVEN_ONCE);
            }
        }
    return ours;
}

static bool has_control(const struct msghdr *m)
{
    return !sd_bad_ptr(m) && m->controllen >= sizeof(struct cmsg) && !sd_bad_ptr(m->control);
}

/* A socket that is not ours. */
long sd_pass_send(struct sd_frame *f, struct sd_tcb *t)
{
    const struct msghdr *m = (const struct msghdr *)f->rsi;
    long r;

    if (likely(!has_control(m)) || t->foreign || !count_in(m, (int)f->rdi, 1))
        return SD_PASS;
    r = SYS3(__NR_sendmsg, f->rdi, f->rsi, f->rdx);
    if (r < 0)
        count_in(m, (int)f->rdi, -1);
    return r;
}

long sd_pass_send_many(struct sd_frame *f, struct sd_tcb *t)
{
    const struct mmsghdr *v = (const struct mmsghdr *)f->rsi;
    u32 i, ours = 0, n = (u32)min_u64((u32)f->rdx, MAX_IOV);
    long r;

    if (sd_bad_ptr(v) || t->foreign)
        return SD_PASS;
    for (i = 0; i < n; i++)
        if (unlikely(has_control(&v[i].hdr)))
            ours += count_in(&v[i].hdr, (int)f->rdi, 1);
    if (likely(!ours))
        return SD_PASS;
    r = SYS4(__NR_sendmmsg, f->rdi, f->rsi, f->rdx, f->r10);
    for (i = r > 0 ? (u32)r : 0; i < n; i++)
        if (has_control(&v[i].hdr))
            count_in(&v[i].hdr, (int)f->rdi, -1);
    return r;
}

/* ---------------------------------------------------------------- receiving */

static struct sock *known(const struct sd_block *b)
{
    for (u32 fd = 0; fd < sd_fd_top(); fd++) {
        struct sock *s = sd_sock_of(fd);
        if (s && s->b == b)
            return s;
    }
    return NULL;
}

/* The table does not reach as far as fd: nobody would look at the ring for it. */
static void take_beyond(int fd, u32 id, struct sd_block *b)
{
    struct sock *s = known(b);

    if (s) {
        sd_out_of_reach(s, fd);
        atomic_fetch_sub(&b->users, 1); /* of the message */
        return;
    }
    s = sd_sock_carried(id, b);
    if (!s)
        return;
    if (load_acq(&b->state) != SD_BLOCK_ATTACHED || sd_map_segment(s, fd))
        sd_out_of_reach(s, fd);
    store_rel(&s->dead, 1);
    sd_sock_reap(s); /* the kernel's alone from here on */
}

static void take_over(int fd, u32 id, struct sd_block *b)
{
    struct sock *s = known(b);

    if (unlikely((u32)fd >= ARRAY_LEN(sd_fdent))) {
        take_beyond(fd, id, b);
        return;
    }
    if (s) {
        atomic_fetch_sub(&b->users, 1); /* of the message: we are counted already */
    } else {
        s = sd_sock_carried(id, b);
        if (s && load_acq(&b->state) == SD_BLOCK_ATTACHED && !sd_map_segment(s, fd))
            return; /* the sender sees it attached; nobody can read it any more, and so it ends */
    }
    if (s)
        sd_fd_install(fd, s);
}

/* peeked: the message stays, and holds the socket as before. `from`: where it came. */
static void arrived(int fd, int from, bool peeked)
{
    i32 kind = fd < 0 ? -1 : sd_sockopt_int(fd, SO_PROTOCOL);
    u32 cookie;

    if (sd_sock_of((u32)fd))
        sd_fd_remove((u32)fd); /* closed behind our back */
    if (fd >= 0 && kind < 0)
        sd_ep_came(fd); /* no socket */
    if (kind != IPPROTO_TCP || !(cookie = cookie_of(fd)))
        return;
    for (u32 a = 0; a < SD_MAX_AREAS && g.area[a]; a++)
        for (u32 i = 0; i < SD_AREA_BLOCKS; i++) {
            struct sd_block *b = &g.area[a]->block[i];
            if (b->passed == cookie && load_acq(&b->state) != SD_BLOCK_FREE) {
                if (peeked)
                    atomic_fetch_add(&b->users, 1);
                take_over(fd, a << 16 | i, b);
                return;
            }
        }
    if (sd_area_get(0) && other_end(from, false) != SD_KIN_UNKNOWN) /* [G1] */
        sd_adopt_given(fd, peeked);
}

/* Out of ourselves: one descriptor more. Out of another process: the filter has held the call until the connection was on TCP (sdtrace/strangers.py). */
SD_CALL(sd_pidfd_getfd)
{
    struct sock *s = t->foreign ? NULL : sd_sock_of((u32)f->rsi);
    u32 cookie = s ? cookie_of((int)f->rsi) : 0;
    long fd = SYS3(__NR_pidfd_getfd, f->rdi, f->rsi, f->rdx);

    if (fd >= 0 && !t->foreign && sd_sock_of((u64)fd))
        sd_fd_remove((u64)fd); /* closed behind our back */
    if (fd >= 0 && cookie && cookie_of((int)fd) == cookie && (u32)fd >= ARRAY_LEN(sd_fdent))
        sd_out_of_reach(s, (int)f->rsi);
    else if (fd >= 0 && cookie && cookie_of((int)fd) == cookie)
        sd_fd_install((int)fd, s);
    else if (fd >= 0 && !t->foreign && !s)
        sd_ep_taken_in((int)fd, (int)f->rsi);
    return fd;
}

static void arrived_in(const struct msghdr *m, int from, u64 flags)
{
    const i32 *fds;
    u64 at = 0;

    for (u32 n; (n = next_rights(m, &at, &fds));)
        for (u32 i = 0; i < n; i++)
            arrived(fds[i], from, flags & MSG_PEEK);
}

long sd_pass_recv(struct sd_frame *f, struct sd_tcb *t)
{
    const struct msghdr *m = (const struct msghdr *)f->rsi;
    long r;

    if (likely(!has_control(m)) || t->foreign)
        return SD_PASS;
    r = SYS3(__NR_recvmsg, f->rdi, f->rsi, f->rdx);
    if (r >= 0)
        arrived_in(m, (int)f->rdi, f->rdx);
    return r;
}

long sd_pass_recv_many(struct sd_frame *f, struct sd_tcb *t)
{
    const struct mmsghdr *v = (const struct mmsghdr *)f->rsi;
    u32 n = (u32)min_u64((u32)f->rdx, MAX_IOV);
    bool any = false;
    long r;

    if (sd_bad_ptr(v) || t->foreign)
        return SD_PASS;
    for (u32 i = 0; i < n; i++)
        any |= has_control(&v[i].hdr);
    if (likely(!any))
        return SD_PASS;
    r = SYS5(__NR_recvmmsg, f->rdi, f->rsi, f->rdx, f->r10, f->r8);
    for (long i = 0; i < r; i++)
        arrived_in(&v[i].hdr, (int)f->rdi, f->r10);
    return r;
}
