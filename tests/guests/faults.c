/* SPDX-License-Identifier: Apache-2.0
 *
 * faults.c - SIGSEGV and SIGBUS of the program's own, in a process that has a connection: each case in a child, whose end is printed.
 */
#include "guest.h"
#include <setjmp.h>
#include <sys/mman.h>
#include <sys/resource.h>
#include <sys/syscall.h>

static volatile int *nowhere;
static int connection;
static sigjmp_buf out;

static void crash(void) { *nowhere = 1; }

/* What a handler is told. */
static void tell(int sig, siginfo_t *si, void *uc)
{
    ucontext_t *u = uc;
    bool here = (uintptr_t)u->uc_mcontext.gregs[REG_RIP] - (uintptr_t)crash < 64;
    printf("  handler: signal %d code %d at %s, %s\n", sig, si->si_code, si->si_code > 0 && si->si_addr == nowhere ? "nowhere" : "?",
           si->si_code <= 0 ? "sent" : here ? "in crash()" : "elsewhere");
    fflush(stdout);
    siglongjmp(out, 1);
}

static void set(int sig, void *handler, int flags)
{
    struct sigaction sa = {.sa_flags = flags};
    sa.sa_handler = handler;
    CHECK(sigaction(sig, &sa, NULL) == 0);
}

static void show(int sig)
{
    struct sigaction sa;
    CHECK(sigaction(sig, NULL, &sa) == 0);
    printf("  action of %d: %s flags %x\n", sig,
           sa.sa_handler == SIG_DFL ? "default" : sa.sa_handler == SIG_IGN ? "ignore" : "handler", sa.sa_flags & ~0x04000000);
}

static void bad_call(void)
{
    ssize_t r = write(connection, (void *)nowhere, 8);
    printf("  write: %zd errno %d\n", r, errno);
    fflush(stdout);
}

static void handled(int flags)
{
    set(SIGSEGV, tell, SA_SIGINFO | flags);
    for (int i = 0; i < 2; i++) {
        bad_call();
        if (!sigsetjmp(out, 1))
            crash();
        show(SIGSEGV);
    }
}

static volatile bool for_ever = true;
static int overflow(int depth)
{
    volatile char room[1000];
    room[0] = (char)depth;
    return for_ever ? overflow(depth + 1) + room[0] : 0;
}

static void run(const char *what)
{
    if (!strcmp(what, "default")) {
        bad_call();
        crash();
    } else if (!strcmp(what, "ignored")) {
        set(SIGSEGV, SIG_IGN, 0);
        show(SIGSEGV);
        raise(SIGSEGV);
        bad_call();
        crash();
    } else if (!strcmp(what, "handler")) {
        handled(0);
    } else if (!strcmp(what, "reset")) {
        handled(SA_RESETHAND);
    } else if (!strcmp(what, "altstack")) {
        static char stack[65536];
        stack_t ss = {.ss_sp = stack, .ss_size = sizeof stack};
        CHECK(sigaltstack(&ss, NULL) == 0);
        handled(SA_ONSTACK);
        if (!sigsetjmp(out, 1))
            overflow(0);
    } else if (!strcmp(what, "overflow")) {
        overflow(0);
    } else if (!strcmp(what, "sent")) {
        kill(getpid(), SIGBUS);
    } else if (!strcmp(what, "queued")) {
        set(SIGSEGV, tell, SA_SIGINFO);
        if (!sigsetjmp(out, 1))
            sigqueue(getpid(), SIGSEGV, (union sigval){7});
        set(SIGSEGV, SIG_DFL, 0);
        sigqueue(getpid(), SIGSEGV, (union sigval){7});
    } else if (!strcmp(what, "blocked")) {
        sigset_t s;
        sigemptyset(&s);
        sigaddset(&s, SIGSEGV);
        set(SIGSEGV, tell, SA_SIGINFO);
        sigprocmask(SIG_BLOCK, &s, NULL);
        raise(SIGSEGV);
        sigpending(&s);
        printf("  pending: %d\n", sigismember(&s, SIGSEGV));
        fflush(stdout);
        crash();
    } else if (!strcmp(what, "exec")) {
        set(SIGSEGV, SIG_IGN, 0);
        set(SIGBUS, tell, SA_SIGINFO);
        execl("/proc/self/exe", "faults", "show", NULL);
    } else if (!strcmp(what, "exec-fails")) {
        set(SIGSEGV, SIG_IGN, 0);
        CHECK(execl("/nonexistent", "x", NULL) < 0);
        bad_call();
        show(SIGSEGV);
    } else if (!strcmp(what, "core")) {
        struct rlimit none = {0, 0};
        setrlimit(RLIMIT_CORE, &none);
        abort();
    }
}

/* A connection whose two ends are ours, moved to the ring. */
static void connect_self(void)
{
    struct sockaddr_in at = {.sin_family = AF_INET, .sin_addr.s_addr = htonl(INADDR_LOOPBACK)};
    socklen_t len = sizeof at;
    int l = socket(AF_INET, SOCK_STREAM, 0);
    CHECK(l >= 0 && bind(l, (void *)&at, len) == 0 && listen(l, 1) == 0 && getsockname(l, (void *)&at, &len) == 0);
    connection = socket(AF_INET, SOCK_STREAM, 0);
    CHECK(connect(connection, (void *)&at, len) == 0);
    int other = accept(l, NULL, NULL);
    CHECK(other >= 0);
    for (int i = 0; i < 400; i++) {
        char c = 'x';
        if (i % 20 == 10)
            sleep_ms(i < 100 ? 20 : 5); /* for a busy supervisor, which brings the two ends together */
        write_all(connection, &c, 1);
        read_all(other, &c, 1);
        write_all(other, &c, 1);
        read_all(connection, &c, 1);
    }
}

int main(int argc, char **argv)
{
    static const char *cases[] = {"default", "ignored", "handler", "reset", "altstack", "overflow", "sent", "queued", "blocked",
                                  "exec", "exec-fails", "core"};
    if (argc > 1 && !strcmp(argv[1], "show")) {
        show(SIGSEGV);
        show(SIGBUS);
        return 0;
    }
    nowhere = mmap(NULL, 4096, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    connect_self();
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        int status;
        printf("%s\n", cases[i]);
        fflush(stdout);
        pid_t pid = fork();
        if (!pid) {
            run(cases[i]);
            fflush(stdout);
            _exit(0);
        }
        CHECK(waitpid(pid, &status, 0) == pid);
        printf("  %s %d%s\n", WIFSIGNALED(status) ? "killed by" : "exit", WIFSIGNALED(status) ? WTERMSIG(status) : WEXITSTATUS(status),
               WIFSIGNALED(status) && WCOREDUMP(status) ? ", core dumped" : "");
    }
    return 0;
}
