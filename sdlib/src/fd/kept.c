/* SPDX-License-Identifier: Apache-2.0
 *
 * kept.c - a descriptor is closed while another thread waits in a call on it.
 *
 * [F4] The kernel's calls hold the file: they go on with it, and the connection ends when the last of them is over. Ours consist of several, and the number
 * may be another file's by the next one: who waits would take a byte of that, or ring in it. So whoever closes takes the entry out of the table,
 * then waits until every other thread inside sleeps in the kernel, or has left. If some sleep, and it was the last descriptor, a duplicate of it is kept.
 * Who has slept asks which descriptor to go on with (sd_fd_after_wait), before it uses any. Whoever leaves last closes the duplicate (sd_sock_reap).
 *
 * A thread that has left its call by siglongjmp still counts as inside (fd.c). It does not sleep on a stack of ours.
 */
#include "base/task.h"
#include "sock/sock.h"

#define LOOKS 400 /* then a thread that still runs is taken for one that has left by siglongjmp */
#define LOOK_NS 500000
#define KEPT_LEAST 256 /* if the limit is lower for a while, that is not remembered */

static _Atomic u32 kept; /* how many sockets have one; for a forked child */

bool sd_is_inside(const struct sd_tcb *t, const struct sock *s)
{
    for (u32 l = 0; l < SD_STACK_LEVELS; l++)
        if (load_acq(&t->use[l]) == s || load_acq(&t->home[l]) == s)
            return true;
    return false;
}

enum where { RUNS, ELSEWHERE, IN_A_CALL_OF_OURS };

static enum where where_is(const struct sd_tcb *t)
{
    u64 word[SD_TASK_WORDS], sp;

    switch (sd_task_call(t->tid, word)) {
    case SD_TASK_RUNS:
        return RUNS;
    case SD_TASK_UNKNOWN: /* it has ended, or there is no /proc */
        return t->exiting ? ELSEWHERE : IN_A_CALL_OF_OURS;
    case SD_TASK_SLEEPS:
        break;
    }
    sp = word[SD_TASK_SP];
    return (sp >= t->lo && sp < t->hi) || (sp >= t->alt_lo && sp < t->alt_hi) ? IN_A_CALL_OF_OURS : ELSEWHERE;
}

/* The table does not lead to s by the descriptor any more. Do others sleep inside? */
NOINLINE bool sd_others_inside(const struct sock *s)
{
    const struct sd_tcb *me = sd_self();
    bool inside = false;

    sd_membarrier_threads(); /* [F1] */
    for (u32 i = 0; i < LOOKS; i++) {
        bool runs = inside = false;
        for (const struct sd_tcb *t = sd_tcbs(); t; t = t->next) {
            enum where w = t != me && sd_is_inside(t, s) ? where_is(t) : ELSEWHERE;
            runs |= w == RUNS;
            inside |= w == IN_A_CALL_OF_OURS;
        }
        if (!runs)
            break;
        sd_sleep_ns(LOOK_NS);
    }
    return inside;
}

/* Out of the way of the program's own numbers, if its limit allows that. Each close beside threads asks: what the limit has not allowed is not asked for again. */
bool sd_fd_keep(struct sock *s, int fd)
{
    static _Atomic u32 highest = 1u << 16;

    for (u32 from = load_rlx(&highest); from; from >>= 1) {
        long r = SYS3(__NR_fcntl, fd, F_DUPFD_CLOEXEC, from);
        if (r == -EINVAL && from > KEPT_LEAST)
            store_rlx(&highest, from >> 1);
        if (r < 0)
            continue;
        atomic_fetch_add(&kept, 1);
        store_rel(&s->kept, (u32)r + 1);
        return true;
    }
    return false;
}

NOINLINE int sd_fd_moved(const struct sock *s, int fd)
{
    u32 k = load_acq(&s->kept);

    for (u32 other = 0; !k && other < sd_fd_top(); other++)
        if (sd_sock_of(other) == s)
            return (int)other;
    return k ? (int)k - 1 : fd;
}

void sd_fd_kept_end(struct sock *s)
{
    u32 k = atomic_exchange(&s->kept, 0);

    if (!k)
        return;
    SYS1(__NR_close, k - 1);
    atomic_fetch_sub(&kept, 1);
}

u32 sd_fds_kept(void) { return load_rlx(&kept); }
