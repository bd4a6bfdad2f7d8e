/* SPDX-License-Identifier: Apache-2.0
 *
 * rouse.c - a thread sleeps in the kernel for room in a ring, and another one of its program makes some: by SO_SNDBUF or TCP_NOTSENT_LOWAT.
 *
 * The kernel's own senders are woken there. Ours sleep for a doorbell, or in poll, and of what threads of one program have to end each other's calls there is
 * but a signal. SIGSYS is ours and never blocked, and its handler can make the call that it has interrupted return what it likes: that there is a doorbell, or nothing
 * in poll. So the sleeper goes around once more, and the program sees no EINTR. (A supervisor does the same from outside: sdtrace/rouse.py.)
 *
 * No signal of ours may come to the thread anywhere else, since there it could end a call of the program's. So:
 *
 *   MAY     before the last look for room: the thread may come to sleep in the call that has `rouse_at` among its arguments.
 *   CALLED  by who has seen it sleep there (/proc tells), and is about to send the signal, with its own signals blocked. The sleeper does not leave before it has come.
 *   HEARD   by the handler.
 *   NOT     the sleeper has left.
 *
 * A thread that has left by siglongjmp is at MAY still, but in no such call. Where a signal of the program's is pending as well it shall do to the call what it does natively: then the
 * handler has the call made anew, which the other signal ends, and who calls tries again.
 */
#include "base/task.h"
#include "gate/gate.h"

#define TRIES 100 /* of a thread that does not come to run, or is not seen */
#define PAUSE_NS 20000
#define SI_TKILL (-6)
#define RECV_BUFFER 1 /* which argument */

static u32 state_of(const struct sd_tcb *t) { return __atomic_load_n(&t->rouse, __ATOMIC_SEQ_CST) % SD_ROUSE_STATES; }
static u32 turn_of(const struct sd_tcb *t) { return __atomic_load_n(&t->rouse, __ATOMIC_SEQ_CST) / SD_ROUSE_STATES; }

static void set_state(struct sd_tcb *t, u32 turn, u32 state)
{
    __atomic_store_n(&t->rouse, turn * SD_ROUSE_STATES + state, __ATOMIC_SEQ_CST);
}

static bool move(struct sd_tcb *t, u32 turn, u32 from, u32 to)
{
    u32 was = turn * SD_ROUSE_STATES + from;

    return __atomic_compare_exchange_n(&t->rouse, &was, turn * SD_ROUSE_STATES + to, false, __ATOMIC_SEQ_CST, __ATOMIC_SEQ_CST);
}

/* ------------------------------------------------------------- the sleeper */

/* A signal of ours is on its way to this thread: it comes here, where it disturbs nobody. */
static void leave(struct sd_tcb *t)
{
    u32 state;

    while ((state = state_of(t)) == SD_ROUSE_CALLED || !move(t, turn_of(t), state, SD_ROUSE_NOT))
        sd_sleep_ns(PAUSE_NS);
}

struct sd_rouse sd_rouse_begin_shared(const void *at)
{
    struct sd_tcb *t = sd_self();
    struct sd_rouse before = {.state = state_of(t), .begun = true};

    if (before.state != SD_ROUSE_NOT)
        leave(t);
    before.at = t->rouse_at;
    t->rouse_at = (u64)at;
    set_state(t, turn_of(t) + 1, SD_ROUSE_MAY);
    return before;
}

void sd_rouse_end_shared(const struct sd_rouse *before)
{
    struct sd_tcb *t = sd_self();

    leave(t);
    t->rouse_at = before->at;
    if (before->state != SD_ROUSE_NOT)
        set_state(t, turn_of(t), SD_ROUSE_MAY);
}

/* The handler. All signals are blocked. */
bool sd_roused(const struct siginfo_sys *si, struct ucontext *uc)
{
    struct sd_tcb *t = sd_self();
    u64 *r = uc->reg, ret = (u64)sd_sys_ret, nr, pending = 0;
    bool receives, interrupted;

    if (!t || si->code != SI_TKILL || state_of(t) != SD_ROUSE_CALLED)
        return false;
    set_state(t, turn_of(t), SD_ROUSE_HEARD);
    receives = r[UC_RSI] == t->rouse_at;
    nr = receives ? __NR_recvfrom : __NR_ppoll;
    interrupted = r[UC_RIP] == ret && (long)r[UC_RAX] == -EINTR;
    if ((!receives && r[UC_RDI] != t->rouse_at) || !(interrupted || (r[UC_RIP] == ret - 2 && r[UC_RAX] == nr)))
        return true;
    SYS2(__NR_rt_sigpending, &pending, 8);
    if (pending & ~uc->sigmask) {
        r[UC_RIP] = ret - 2;
        r[UC_RAX] = nr;
    } else {
        r[UC_RIP] = ret;
        r[UC_RAX] = receives ? 1 : 0;
    }
    return true;
}

/* -------------------------------------------------------------- who wakes */

/* In the very call, and asleep. */
static bool sleeps_there(const struct sd_tcb *t)
{
    u64 word[SD_TASK_WORDS], nr;

    if (sd_task_call(t->tid, word) != SD_TASK_SLEEPS)
        return false;
    nr = word[SD_TASK_NR];
    return (nr == __NR_recvfrom && word[SD_TASK_ARG + RECV_BUFFER] == t->rouse_at) || (nr == __NR_ppoll && word[SD_TASK_ARG] == t->rouse_at);
}

static void rouse(struct sd_tcb *t)
{
    u32 turn = turn_of(t), state;

    for (u32 i = 0; i < TRIES && turn_of(t) == turn && (state = state_of(t)) != SD_ROUSE_NOT; i++) {
        if (state != SD_ROUSE_CALLED && sleeps_there(t) && move(t, turn, state, SD_ROUSE_CALLED) && SYS3(__NR_tgkill, g.pid, t->tid, SIGSYS) < 0) {
            move(t, turn, SD_ROUSE_CALLED, SD_ROUSE_MAY);
            return;
        }
        sd_sleep_ns(PAUSE_NS);
    }
}

void sd_rouse(void)
{
    struct sd_tcb *self = sd_self();
    u64 old;

    if (g.boxed)
        return;
    old = sd_signals_block();
    for (struct sd_tcb *t = sd_tcbs(); t; t = t->next)
        if (t != self && !t->exiting && !t->foreign && !__atomic_load_n(&t->alt_shared, __ATOMIC_RELAXED))
            rouse(t);
    sd_signals_restore(old);
}
