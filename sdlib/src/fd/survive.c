/* SPDX-License-Identifier: Apache-2.0
 *
 * survive.c - which connections live through an execve.
 *
 * The table tells, but for a child that shares our memory (vfork, posix_spawn): it has descriptors of its own and may have moved a socket to
 * another number, which the table must not follow; and other threads of the parent may change the table meanwhile. There the kernel is asked which
 * socket a descriptor is, and of every socket that there was when the child was made its cookie is known.
 */
#include "sock/sock.h"

static u64 cookie_of(u32 fd)
{
    u64 cookie = 0;
    u32 len = 8;

    return SYS5(__NR_getsockopt, fd, SOL_SOCKET, SO_COOKIE, &cookie, &len) == 0 ? cookie : 0;
}

static bool stays_open(u32 fd)
{
    long fl = SYS2(__NR_fcntl, fd, F_GETFD);

    return fl >= 0 && !(fl & FD_CLOEXEC);
}

/* Before a child comes that has our memory and descriptors of its own. */
void sd_socks_before_vfork(void)
{
    for (u32 fd = 0; fd < sd_fd_top(); fd++) {
        struct sock *s = sd_sock_enter(fd);
        u64 cookie;
        if (!s)
            continue;
        if (!s->cookie && (cookie = cookie_of(fd)) && sd_sock_of(fd) == s) /* else another thread has put something else there */
            s->cookie = cookie;
        sd_sock_put(s);
    }
}

/* What this descriptor of the child is. Entered: the parent's other threads may close it. */
static struct sock *by_cookie(u64 cookie)
{
    for (u32 fd = 0; fd < sd_fd_top(); fd++) {
        struct sock *s = sd_sock_of(fd);
        if (s && s->cookie == cookie && (s = sd_sock_enter(fd))) {
            if (s->cookie == cookie)
                return s;
            sd_sock_put(s);
        }
    }
    return NULL;
}

/* Has this child been counted among the users already? */
static bool is_counted(const struct sd_tcb *t, const struct sock *s)
{
    for (u32 i = 0; i < SD_FOREIGN_COUNTED; i++)
        if (s->cookie && t->foreign_counted[i] == s->cookie)
            return true;
    return false;
}

/* Entered. */
static struct sock *survivor(u32 fd, const struct sd_tcb *t)
{
    struct sock *s = sd_sock_of(fd);
    u64 cookie;

    if ((!s && !t->foreign_dups) || !stays_open(fd) || !(cookie = cookie_of(fd)))
        return NULL;
    s = sd_sock_enter(fd);
    if (!t->foreign || (s && (!s->cookie || s->cookie == cookie)))
        return s;
    if (s)
        sd_sock_put(s);
    return by_cookie(cookie);
}

/* Descriptors that may be ours. */
static u32 top_of(const struct sd_tcb *t)
{
    u32 top = sd_fd_top();

    if (!t->foreign_dups)
        return top;
    top = top > t->foreign_dups ? top : t->foreign_dups;
    return top > 64 ? top : 64; /* dup() gives low ones, unseen */
}

/* The new program is one more that holds it. */
static void hold(struct sock *s, const struct sd_carry *out, u32 n, const struct sd_tcb *t)
{
    if (is_counted(t, s))
        return;
    for (u32 i = 0; i < n; i++)
        if (out[i].block == s->id)
            return;
    atomic_fetch_add(&s->b->users, 1);
    if (s->seg)
        sd_rx_awake(&s->e); /* [W4] threads of the parent's may sleep on it, and have woken up long before the program runs */
}

/* Connections that are not on a ring go on by TCP in any case; the new program's library may move them up later. Where our table is not the
 * child's, only the cookie tells for sure which socket such a one is. */
static bool lives_on(const struct sock *s, const struct sd_tcb *t)
{
    u32 state = load_rlx(&s->b->state);

    if (state == SD_BLOCK_ATTACHED)
        return true;
    return (!t->foreign || s->cookie) && s->b->established && state != SD_BLOCK_PINNED && state != SD_BLOCK_FREE;
}

u32 sd_socks_before_exec(struct sd_carry *out, u32 max, const struct sd_tcb *t)
{
    u32 n = 0, top = top_of(t);

    for (u32 fd = 0; fd < top; fd++) {
        struct sock *s = survivor(fd, t);
        if (!s)
            continue;
        if (t->foreign)
            hold(s, out, n, t); /* if it cannot see the block, it is never switched */
        if (n < max && lives_on(s, t)) {
            out[n].fd = (i32)fd;
            out[n++].block = s->id;
        } else if (!t->foreign) {
            sd_reason(s, SD_REASON_exec);
        }
        sd_sock_put(s);
    }
    return n;
}

void sd_socks_exec_failed(const struct sd_carry *out, u32 n, const struct sd_tcb *t)
{
    for (u32 i = 0; i < n && t->foreign; i++) {
        struct sock *s = out[i].block >= SD_CARRY_AREAS ? NULL : survivor((u32)out[i].fd, t);
        bool first = true;
        for (u32 k = 0; k < i; k++)
            first &= out[k].block != out[i].block;
        if (s && first && !is_counted(t, s))
            atomic_fetch_sub(&s->b->users, 1);
        if (s)
            sd_sock_put(s);
    }
    for (u32 fd = 0; fd < sd_fd_top() && !t->foreign; fd++) {
        struct sock *s = sd_sock_of(fd);
        if (s && s->b->reason == SD_REASON_exec && cas_u32(&s->b->state, SD_BLOCK_PINNED, SD_BLOCK_TCP))
            s->b->reason = 0;
    }
}

/* A child with memory of its parent's has made another name for a socket: one more that holds it, though the parent closes its own. Once; more of them
 * than we can note are counted each time, and never upgraded. */
void sd_foreign_dup(struct sd_tcb *t, u64 old, long fd)
{
    struct sock *s = sd_sock_of(old);

    if (fd < 0 || (!s && !t->foreign_dups))
        return;
    if (s && !sd_attached(s) && !is_counted(t, s)) {
        atomic_fetch_add(&s->b->users, 1);
        for (u32 i = 0; i < SD_FOREIGN_COUNTED; i++) {
            if (!t->foreign_counted[i]) {
                t->foreign_counted[i] = s->cookie;
                break;
            }
        }
    }
    if ((u32)fd + 1 > t->foreign_dups)
        t->foreign_dups = (u32)fd + 1;
}

/* It ends without having executed a program. */
void sd_foreign_exit(const struct sd_tcb *t)
{
    for (u32 i = 0; i < SD_FOREIGN_COUNTED; i++) {
        struct sock *s = t->foreign_counted[i] ? by_cookie(t->foreign_counted[i]) : NULL;
        if (!s)
            continue;
        atomic_fetch_sub(&s->b->users, 1);
        sd_sock_put(s);
    }
}
