/* SPDX-License-Identifier: Apache-2.0
 *
 * strict.c - seccomp's strict mode, which cannot be had beside a filter, and there is one: ours.
 *
 * So it becomes another filter: the same four calls, of either kind (rt_sigreturn has a number of its own by int $0x80). For all others the kernel ends the thread
 * as if by SIGKILL, which no filter can do, and no call: so they trap, and our handler ends the thread by exit, or, since the last thread's status is the
 * process's, the process by kill(2). The filter lets that through (who makes the call ends in the same way), and questions by two names, which lie in our text.
 *
 * Several may end at the same moment, and the kernel counts a thread for some time after it has taken its status. So threads count themselves out, each before the
 * call that ends it; by exit as well, which therefore traps where it does not come from the gate. Who leaves none behind is the last one. If that one ends strictly, so does
 * the process. If it ends by exit, with a status of its own, nobody who ends strictly may come behind it, for that exit would be the process's: it waits until they are gone.
 */
#include "gate/calls.h"
#include "gate/gate.h"
#include "sock/sock.h"

#define PR_SET_SECCOMP 22
#define SYS_SECCOMP_TRAP 0x5d /* si_errno of ours */
#define NR32_READ 3
#define NR32_WRITE 4
#define NR32_SIGRETURN 119
#define NR32_EXIT 1
#define ARCH_64 0xc000003eu
#define NLINK_AT 16 /* of struct stat */
#define GONE_MS 2000 /* who ends has a few calls before it */

/* In one place: one comparison of their upper halves is enough. */
static const char names[] = "/proc/self/task\0/proc/self/exe";
#define THREADS (names)
#define IMAGE (names + sizeof "/proc/self/task")

u8 sd_strict;
static u8 uncounted;
static SD_FORKED _Atomic u32 staying; /* threads that have not begun to end; more, where a clone has failed */

void sd_threads_are(u32 n) { staying = n ? n : 1; }
void sd_thread_comes(void) { atomic_fetch_add(&staying, 1); }
void sd_threads_uncounted(void) { uncounted = 1; }
bool sd_strict_alone(void) { return sd_strict && !uncounted; }

/* A vfork child has its parent's memory. */
static u32 own_pid(const struct sd_tcb *t) { return t && t->foreign ? t->tid : g.pid; }

/* That the process has, as the kernel counts: with a main thread that has ended, as long as there are others. */
static u32 threads(void)
{
    u64 stat[18];

    if (SYS4(__NR_newfstatat, AT_FDCWD, THREADS, stat, 0) < 0)
        return g.mt ? 0 : 1; /* no /proc: as far as we know */
    return (u32)stat[NLINK_AT / 8] - 2;
}

static bool main_has_ended(u32 pid)
{
    for (const struct sd_tcb *x = sd_tcbs(); x; x = x->next)
        if (__atomic_load_n(&x->tid, __ATOMIC_RELAXED) == pid)
            return x->exiting;
    return false;
}

/* It has no image any more: its status is taken. */
static bool main_is_gone(void)
{
    u64 stat[18];

    return main_has_ended(g.pid) && SYS4(__NR_newfstatat, AT_FDCWD, IMAGE, stat, 0) < 0;
}

static void wait_for_others(void)
{
    u64 until = sd_tsc() + GONE_MS * 1000 * g.tsc_per_us;
    u32 n = threads();

    while (n > 1 && !(n == 2 && main_is_gone()) && sd_tsc() < until)
        n = threads();
}

/* The calling thread. Is it the last one? */
static bool leaves(struct sd_tcb *t)
{
    if (t)
        __atomic_store_n(&t->exiting, 1, __ATOMIC_RELEASE); /* others may have the block once our thread number is gone */
    return !(t && t->foreign) && atomic_fetch_sub(&staying, 1) == 1 && !uncounted;
}

void sd_thread_ends(struct sd_tcb *t)
{
    if (leaves(t) && unlikely(sd_strict))
        wait_for_others();
}

static __attribute__((noreturn)) void end_strictly(struct sd_tcb *t)
{
    u32 pid = own_pid(t);
    bool is_main = t && t->tid == pid;

    if (leaves(t) || threads() == 1u + (!is_main && main_has_ended(pid)))
        SYS2(__NR_kill, pid, SIGKILL);
    for (;;)
        SYS1(__NR_exit, SIGKILL);
}

/* All signals are blocked here. */
void sd_strict_trap(const struct siginfo_sys *si, const struct ucontext *uc)
{
    bool is_64 = si->arch == ARCH_64;
    struct sd_tcb *t = sd_self();

    if (si->err != SYS_SECCOMP_TRAP)
        return;
    if (si->syscall != (is_64 ? __NR_exit : NR32_EXIT))
        end_strictly(t);
    if (t)
        sd_part_release(t);
    sd_thread_ends(t);
    for (;;)
        SYS1(__NR_exit, uc->reg[is_64 ? UC_RDI : UC_RBX]);
}

enum { NR = 0, ARCH = 4, RIP = 8, ARG0 = 16, ARG1 = 24 }; /* of struct seccomp_data; halves: the lower one first */
enum { OF_32 = 2, OF_64 = 7, EXIT = 14, KILL = 19, STAT = 23, ALLOW = 28, TRAP }; /* where in the filter */
#define LOAD(at, what) [at] = { 0x20, 0, 0, what }
#define IS(at, what, yes, no) [at] = { 0x15, (yes) - (at) - 1, (no) - (at) - 1, what }
#define FROM(at, what, yes, no) [at] = { 0x35, (yes) - (at) - 1, (no) - (at) - 1, what }
#define SAY(at, what) [at] = { 6, 0, 0, what }

long sd_strict_mode(const struct sd_tcb *t)
{
    u64 gate = (u64)sd_gate_start, gate_end = (u64)sd_gate_end;
    struct insn {
        u16 code;
        u8 yes, no;
        u32 k;
    } list[] = {
        LOAD(0, ARCH), IS(1, ARCH_64, OF_64, OF_32),
        LOAD(OF_32, NR), IS(3, NR32_READ, ALLOW, 4), IS(4, NR32_WRITE, ALLOW, 5), IS(5, NR32_SIGRETURN, ALLOW, 6), IS(6, NR32_EXIT, EXIT, TRAP),
        LOAD(OF_64, NR), IS(8, __NR_read, ALLOW, 9), IS(9, __NR_write, ALLOW, 10), IS(10, __NR_rt_sigreturn, ALLOW, 11),
        IS(11, __NR_newfstatat, STAT, 12), IS(12, __NR_kill, KILL, 13), IS(13, __NR_exit, EXIT, TRAP),
        LOAD(EXIT, RIP + 4), IS(15, (u32)(gate >> 32), 16, TRAP), LOAD(16, RIP), FROM(17, (u32)gate, 18, TRAP), FROM(18, (u32)gate_end, TRAP, ALLOW),
        LOAD(KILL, ARG0), IS(20, own_pid(t), 21, TRAP), LOAD(21, ARG1), IS(22, SIGKILL, ALLOW, TRAP),
        LOAD(STAT, ARG1 + 4), IS(24, (u32)((u64)names >> 32), 25, TRAP), LOAD(25, ARG1), IS(26, (u32)(u64)THREADS, ALLOW, 27), IS(27, (u32)(u64)IMAGE, ALLOW, TRAP),
        SAY(ALLOW, 0x7fff0000), SAY(TRAP, 0x30000 | SYS_SECCOMP_TRAP),
    };
    struct {
        u16 n;
        struct insn *list;
    } program = { ARRAY_LEN(list), list };

    sd_strict = 1;
    SYS5(__NR_prctl, PR_SET_SYSCALL_USER_DISPATCH, PR_SYS_DISPATCH_OFF, 0, 0, 0); /* also where another thread has locked itself up before */
    SYS5(__NR_prctl, PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0); /* there is no exec in strict mode */
    return SYS3(__NR_prctl, PR_SET_SECCOMP, 2, &program);
}
