/* SPDX-License-Identifier: Apache-2.0
 *
 * closing.c - one thread closes a descriptor that others make calls on all the time.
 *
 * [F5] A call comes before the close, on our rings, or after it, and fails with EBADF. Between the moment in which the entry goes, from where on nobody comes in (fd.c [F1]), and that in which the
 * kernel closes the number lies all that the close waits for (kept.c [F4]). What came to the kernel's socket in between would be lost, since the peer takes bytes there for doorbells, or would
 * be one. So the entry is marked for that time, and the kind beside it: all calls get into C code, and wait there, until the number is closed, or another file's.
 *
 *   closing: entry |= SD_ENT_CLOSING, kind := CLOSING, membarrier..., close(), entry := 0 if it is still that, kind := 0 if it is still that
 *   another thread gets the number from the kernel meanwhile, after close(): entry := its socket, kind := OURS. In any order each word ends as the later one's.
 *
 * The closing thread has its signals blocked: a handler of its own would wait for itself, or leave by siglongjmp.
 */
#include "fd/fd.h"

#define YIELDS 50
#define LOOK_NS 50000

static _Atomic u32 closing; /* how many descriptors; for a forked child */

u64 sd_fd_closing(u32 fd, const struct sock *s)
{
    u64 mask = sd_signals_block();

    atomic_fetch_add(&closing, 1);
    *(volatile u32 *)&sd_fdent[fd] = s->ent | SD_ENT_CLOSING;
    *(volatile u8 *)&sd_fdkind[fd] = SD_KIND_CLOSING;
    return mask;
}

static void clear(u32 fd, u32 ent)
{
    u8 kind = SD_KIND_CLOSING;

    __atomic_compare_exchange_n(&sd_fdent[fd], &ent, 0, false, __ATOMIC_RELEASE, __ATOMIC_RELAXED);
    __atomic_compare_exchange_n(&sd_fdkind[fd], &kind, 0, false, __ATOMIC_RELEASE, __ATOMIC_RELAXED);
}

void sd_fd_closed(u32 fd, const struct sock *s, u64 mask)
{
    clear(fd, s->ent | SD_ENT_CLOSING);
    atomic_fetch_sub(&closing, 1);
    sd_signals_restore(mask);
}

/* When it is over: it comes to an end, since the thread that closes cannot be gone without us. */
NOINLINE struct sock *sd_sock_look_again(u64 fd)
{
    for (u32 i = 0; sd_is_closing(fd); i++)
        if (i < YIELDS)
            SYS0(__NR_sched_yield);
        else
            sd_sleep_ns(LOOK_NS);
    return sd_sock_of(fd);
}

/* The thread that closes is not here: what it has not closed is open, and was counted as ours (sd_socks_before_fork). */
void sd_fds_closing_after_fork(void)
{
    for (u32 fd = 0; load_rlx(&closing) && fd < sd_fd_top(); fd++) {
        if (!sd_is_closing(fd))
            continue;
        if (SYS2(__NR_fcntl, fd, F_GETFD) < 0) {
            clear(fd, sd_fdent[fd]);
        } else {
            sd_fdkind[fd] = SD_KIND_OURS;
            sd_fdent[fd] &= ~SD_ENT_CLOSING;
        }
    }
    store_rlx(&closing, 0);
}
