/* SPDX-License-Identifier: Apache-2.0
 * What a process may see of whoever stands between it and the kernel: signal masks and handlers that name SIGSYS, small
 * alternate stacks, calls out of handlers that never return, children of every kind, and a filter that allows only the program's own calls. */
#include "guest.h"
#include <linux/filter.h>
#include <linux/seccomp.h>
#include <pthread.h>
#include <sched.h>
#include <setjmp.h>
#include <spawn.h>
#include <stddef.h>
#include <sys/prctl.h>
#include <sys/syscall.h>
#include <sys/time.h>
#include <ucontext.h>

extern char **environ;
static sigjmp_buf out;
static volatile sig_atomic_t ticks, jumps, own_sigsys;
static int pair[2];

static void look(void)
{
    struct pollfd p = {pair[0], POLLIN, 0};
    CHECK(poll(&p, 1, 0) == 0);
}

static void count(int sig)
{
    char c;
    ticks += sig == SIGALRM;
    look();
    CHECK(recv(pair[0], &c, 1, MSG_DONTWAIT) == -1 && errno == EAGAIN);
}

static void jump(int sig)
{
    jumps += sig == SIGALRM;
    look();
    siglongjmp(out, 1);
}

/* Handlers every 300 us in the middle of polls and selects, for a third of a second. */
static void storm(void (*handler)(int), size_t stack)
{
    static char memory[65536]; /* a signal that comes within siglongjmp finds the last one's frame still there, and natively 8 KiB did not hold both */
    stack_t alt = {.ss_sp = memory, .ss_size = stack ? stack : sizeof memory, .ss_flags = stack ? 0 : SS_DISABLE};
    struct sigaction act = {.sa_handler = handler, .sa_flags = stack ? SA_ONSTACK : 0}, seen;
    struct itimerval on = {{0, 300}, {0, 300}}, off = {0};
    CHECK(sigaltstack(&alt, NULL) == 0);
    sigfillset(&act.sa_mask);
    CHECK(sigaction(SIGALRM, &act, NULL) == 0 && sigaction(SIGALRM, NULL, &seen) == 0 && sigismember(&seen.sa_mask, SIGSYS));
    setitimer(ITIMER_REAL, &on, NULL);
    for (double end = now_s() + 0.35; now_s() < end;) {
        fd_set set;
        struct timeval wait = {0, 100};
        struct pollfd p = {pair[0], POLLIN, 0};
        if (sigsetjmp(out, 1))
            continue;
        poll(&p, 1, 1);
        FD_ZERO(&set);
        FD_SET(pair[0], &set);
        select(pair[0] + 1, &set, NULL, NULL, &wait);
    }
    setitimer(ITIMER_REAL, &off, NULL);
    signal(SIGALRM, SIG_IGN);
    alt.ss_flags = SS_DISABLE;
    CHECK(sigaltstack(&alt, NULL) == 0);
}

static void masks(void)
{
    sigset_t all, none, seen;
    sigfillset(&all);
    sigemptyset(&none);
    CHECK(sigprocmask(SIG_SETMASK, &all, &seen) == 0 && !sigismember(&seen, SIGSYS));
    look();
    CHECK(sigprocmask(SIG_BLOCK, NULL, &seen) == 0 && sigismember(&seen, SIGSYS));
    CHECK(sigprocmask(SIG_SETMASK, &none, &seen) == 0 && sigismember(&seen, SIGSYS));
    CHECK(sigprocmask(SIG_SETMASK, NULL, &seen) == 0 && !sigismember(&seen, SIGSYS));
}

static void *thread(void *arg)
{
    for (int i = 0; i < 200; i++)
        look();
    return arg;
}

static int shares_memory(void *arg UNUSED)
{
    look();
    return 7;
}

static void expect_exit(pid_t child, int status)
{
    int got;
    CHECK(child > 0 && waitpid(child, &got, 0) == child && got == status << 8);
}

static void children(void)
{
    static char stack[65536];
    char *argv[] = {"true", NULL};
    pthread_t threads[20];
    for (int i = 0; i < 20; i++)
        CHECK(pthread_create(&threads[i], NULL, thread, NULL) == 0);
    for (int i = 0; i < 10; i++) {
        pid_t child;
        CHECK(posix_spawnp(&child, "true", NULL, NULL, argv, environ) == 0);
        expect_exit(child, 0);
        expect_exit(clone(shares_memory, stack + sizeof stack, CLONE_VM | SIGCHLD, NULL), 7);
        if ((child = fork()) == 0) {
            look();
            _exit(3);
        }
        expect_exit(child, 3);
    }
    for (int i = 0; i < 20; i++)
        CHECK(pthread_join(threads[i], NULL) == 0);
}

static void filtered(int sig, siginfo_t *info, void *context)
{
    ucontext_t *c = context;
    own_sigsys += sig == SIGSYS;
    if (info->si_code == 1) /* SYS_SECCOMP */
        c->uc_mcontext.gregs[REG_RAX] = 4242;
}

#define LOAD_NR BPF_STMT(BPF_LD | BPF_W | BPF_ABS, offsetof(struct seccomp_data, nr))
#define ON(nr, action) BPF_JUMP(BPF_JMP | BPF_JEQ | BPF_K, nr, 0, 1), BPF_STMT(BPF_RET | BPF_K, action)

static void sigsys_of_our_own(void)
{
    struct sigaction act = {.sa_sigaction = filtered, .sa_flags = SA_SIGINFO};
    struct sock_filter code[] = {LOAD_NR, ON(SYS_getppid, SECCOMP_RET_TRAP), ON(SYS_mprotect, SECCOMP_RET_KILL_PROCESS),
                                 ON(SYS_openat, SECCOMP_RET_KILL_PROCESS), BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_ALLOW)};
    struct sock_fprog filter = {sizeof code / sizeof *code, code};
    pid_t child = fork();
    int status;
    if (child == 0) {
        kill(getpid(), SIGSYS);
        _exit(0);
    }
    CHECK(waitpid(child, &status, 0) == child && WIFSIGNALED(status) && WTERMSIG(status) == SIGSYS);
    CHECK(sigaction(SIGSYS, &act, NULL) == 0 && raise(SIGSYS) == 0 && own_sigsys == 1);
    CHECK(prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) == 0 && prctl(PR_SET_SECCOMP, SECCOMP_MODE_FILTER, &filter) == 0);
    CHECK(getppid() == 4242 && getppid() == 4242 && own_sigsys == 3);
    CHECK(getsid(0) > 0 && getegid() == getgid()); /* sites that were never used before the filter */
}

int main(void)
{
    struct sockaddr_in addr = {.sin_family = AF_INET, .sin_addr.s_addr = htonl(INADDR_LOOPBACK)};
    socklen_t len = sizeof addr;
    int listener = socket(AF_INET, SOCK_STREAM, 0);
    CHECK(listener >= 0 && bind(listener, (struct sockaddr *)&addr, len) == 0 && listen(listener, 1) == 0);
    CHECK(getsockname(listener, (struct sockaddr *)&addr, &len) == 0);
    pair[1] = socket(AF_INET, SOCK_STREAM, 0);
    CHECK(connect(pair[1], (struct sockaddr *)&addr, len) == 0 && (pair[0] = accept(listener, NULL, NULL)) >= 0);

    storm(count, 0);
    storm(count, 8192);
    storm(jump, 0);
    storm(jump, 65536);
    storm(count, 0);
    CHECK(ticks > 100 && jumps > 100);
    masks();
    children();
    sigsys_of_our_own();
    puts("ok");
    return 0;
}
