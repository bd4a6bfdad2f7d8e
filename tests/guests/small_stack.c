/* SPDX-License-Identifier: Apache-2.0
 *
 * small_stack: handlers on an alternate stack of 4 KiB use the connection that they have interrupted. The page below it is a guard: whoever needs more than
 * the kernel's own frame and a few hundred bytes dies. What sigaltstack says is compared with what the kernel says; a stack that overflows is noticed by
 * such a handler; a forked child has the stack, too, and a thread has none.
 */
#include "guest.h"
#include <pthread.h>
#include <setjmp.h>
#include <sys/mman.h>
#include <sys/time.h>
#include <ucontext.h>

#define SMALL 4096
#define ROUNDS 400

static int conn;
static char *low;
static volatile int handled, overflows;
static volatile bool jumps;
static sigjmp_buf back;

static bool is_on_it(void)
{
    char here;
    return (uintptr_t)&here - (uintptr_t)low < SMALL;
}

static void talk(void)
{
    char c;
    struct pollfd p = {conn, POLLIN, 0};

    CHECK(poll(&p, 1, 0) >= 0);
    CHECK(recv(conn, &c, 1, MSG_PEEK | MSG_DONTWAIT) >= 0 || errno == EAGAIN);
    send(conn, "t", 1, MSG_DONTWAIT);
}

static void handler(int number, siginfo_t *info, void *context)
{
    int kept = errno;
    stack_t now, other = {.ss_flags = SS_DISABLE};
    const ucontext_t *uc = context;

    CHECK(is_on_it() && info->si_signo == number && (uintptr_t)info - (uintptr_t)low < SMALL);
    CHECK((uintptr_t)uc->uc_mcontext.gregs[REG_RSP] - (uintptr_t)low >= SMALL);
    CHECK(sigaltstack(NULL, &now) == 0 && now.ss_flags == SS_ONSTACK && now.ss_sp == low && now.ss_size == SMALL);
    CHECK(sigaltstack(&other, NULL) == -1 && errno == EPERM);
    talk();
    handled++;
    errno = kept;
    if (jumps)
        siglongjmp(back, 1);
}

/* ---- a stack that overflows */

static void overflown(int number, siginfo_t *info, void *context)
{
    (void)context;
    CHECK(number == SIGSEGV && info->si_addr && is_on_it());
    overflows++;
    siglongjmp(back, 1);
}

static volatile bool never;

static int __attribute__((noinline)) endless(volatile char *below)
{
    volatile char here[4096];
    here[0] = below ? *below : 0;
    return never ? 0 : endless(here) + here[0];
}

static void overflow(void)
{
    struct sigaction act = {.sa_sigaction = overflown, .sa_flags = SA_ONSTACK | SA_SIGINFO};
    CHECK(sigaction(SIGSEGV, &act, NULL) == 0);
    for (volatile int i = 0; i < 3; i++)
        if (sigsetjmp(back, 1) == 0)
            endless(NULL);
    CHECK(overflows == 3);
}

/* ---- children */

static void expect_stack(void *sp, size_t size, int flags)
{
    stack_t seen;
    CHECK(sigaltstack(NULL, &seen) == 0 && seen.ss_size == size && seen.ss_flags == flags);
    CHECK(seen.ss_sp == sp);
}

static void *thread(void *arg)
{
    talk();
    expect_stack(NULL, 0, SS_DISABLE);
    return arg;
}

static void children(void)
{
    pthread_t t;
    CHECK(pthread_create(&t, NULL, thread, NULL) == 0 && pthread_join(t, NULL) == 0);
    for (int i = 0; i < 2; i++) {
        pid_t child = i ? fork() : vfork();
        if (child == 0) {
            stack_t seen;
            if (sigaltstack(NULL, &seen) || seen.ss_sp != low || seen.ss_size != SMALL || seen.ss_flags)
                _exit(1);
            if (i)
                overflows = 0, overflow();
            _exit(0);
        }
        reap(child);
    }
}

static void timer(bool on, bool again)
{
    struct itimerval t = {.it_value.tv_usec = on ? 1000 : 0, .it_interval.tv_usec = again ? 1000 : 0};
    CHECK(setitimer(ITIMER_REAL, &t, NULL) == 0);
}

static void accepted(int fd)
{
    stack_t alt = {.ss_size = SMALL}, none = {.ss_flags = SS_DISABLE}, was;
    struct sigaction act = {.sa_sigaction = handler, .sa_flags = SA_ONSTACK | SA_SIGINFO};
    char *pages = mmap(NULL, 2 * SMALL, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0), c;

    CHECK(pages != MAP_FAILED && mprotect(pages, SMALL, PROT_NONE) == 0);
    conn = fd;
    alt.ss_sp = low = pages + SMALL;
    CHECK(sigaltstack(&alt, NULL) == 0 && sigaction(SIGALRM, &act, NULL) == 0);
    sigaltstack(NULL, &was);
    talk(); /* the dynamic linker needs more than that, once for each function */
    if (sigsetjmp(back, 1) == 0)
        siglongjmp(back, 1);
    timer(true, true);
    for (int i = 0; i < ROUNDS; i++) {
        struct pollfd p = {fd, POLLIN, 0};
        CHECK(poll(&p, 1, 1) >= 0 || errno == EINTR);
        if (recv(fd, &c, 1, 0) < 0)
            CHECK(errno == EINTR);
    }
    jumps = true;
    for (volatile int i = 0; i < ROUNDS; i++) {
        timer(true, false); /* a signal that waits would come in while siglongjmp is still on that stack */
        if (sigsetjmp(back, 1) == 0)
            for (;;)
                recv(fd, &c, 1, 0);
    }
    expect_stack(low, SMALL, 0);
    CHECK(handled > ROUNDS);
    overflow();
    children();
    CHECK(sigaltstack(&none, &was) == 0 && was.ss_sp == low && was.ss_size == SMALL && was.ss_flags == 0);
    expect_stack(NULL, 0, SS_DISABLE);
    CHECK(shutdown(fd, SHUT_WR) == 0);
    while (recv(fd, &c, 1, 0) > 0)
        ;
}

static void connected(int fd)
{
    char got[64];
    ssize_t n;
    while ((n = recv(fd, got, sizeof got, 0)) > 0)
        CHECK(memcmp(got, "tttttttttttttttttttttttttttttttttttttttttttttttttttttttttttttttt", (size_t)n) == 0 &&
              send(fd, got, (size_t)n, MSG_NOSIGNAL) == n);
    CHECK(n == 0);
}

int main(void) { return guest_main(accepted, connected); }
