/* SPDX-License-Identifier: Apache-2.0
 *
 * Calls that sleep, of a program in a tree in which something is denied: the supervisor makes them. A child sends a signal while accept or connect sleeps,
 * and prints what became of the call. Handlers without SA_RESTART end it, others do not, unless the socket has a time limit. */
#include "guest.h"

static volatile sig_atomic_t handled;

static void on_signal(int number)
{
    (void)number;
    handled++;
}

static void handle(int flags)
{
    struct sigaction act = {.sa_handler = on_signal, .sa_flags = flags};
    handled = 0;
    CHECK(sigaction(SIGUSR1, &act, NULL) == 0);
}

static void limit(int fd, int option, long ms)
{
    struct timeval t = {ms / 1000, ms % 1000 * 1000};
    CHECK(setsockopt(fd, SOL_SOCKET, option, &t, sizeof t) == 0);
}

/* Until the other end goes; who comes too late hears so at once. */
static void come(const struct sockaddr_in *addr, int listener)
{
    char c;
    int fd = socket(AF_INET, SOCK_STREAM, 0);
    close(listener); /* only the parent's counts */
    if (connect(fd, (const struct sockaddr *)addr, sizeof *addr) == 0)
        CHECK(read(fd, &c, 1) <= 0);
}

/* In a child, while we sleep: the signals, and then whatever ends the call in order. */
static pid_t meanwhile(int first, int second, int listener, const struct sockaddr_in *then_come)
{
    struct pollfd room = {.fd = listener, .events = POLLIN};
    pid_t parent = getpid(), child = fork();
    CHECK(child >= 0);
    if (child)
        return child;
    sleep_ms(150);
    CHECK(kill(parent, first) == 0);
    sleep_ms(150);
    if (second)
        CHECK(kill(parent, second) == 0);
    if (then_come)
        come(then_come, listener);
    else if (poll(&room, 1, 0) == 1)
        CHECK(accept(listener, NULL, NULL) >= 0);
    _exit(0);
}

static void tell(const char *what, long r)
{
    int error = r < 0 ? errno : 0;
    printf("%s: %s, handled %d\n", what, error ? strerror(error) : "done", (int)handled);
    fflush(stdout);
    if (r > 0)
        close((int)r);
}

static void accepts(const char *what, int flags, int first, int second, long limit_ms, bool comes)
{
    struct sockaddr_in addr;
    int fd = listen_loopback(&addr, 5);
    if (limit_ms)
        limit(fd, SO_RCVTIMEO, limit_ms);
    handle(flags);
    pid_t child = meanwhile(first, second, fd, comes ? &addr : NULL);
    tell(what, accept(fd, NULL, NULL));
    close(fd);
    reap(child);
}

/* The queue is full, so that the kernel asks again after a second; the child makes room. */
static void connects(const char *what, int flags, long limit_ms, bool again)
{
    struct sockaddr_in addr;
    int full = listen_loopback(&addr, 0), first = connect_loopback(&addr), fd = socket(AF_INET, SOCK_STREAM, 0);
    if (limit_ms)
        limit(fd, SO_SNDTIMEO, limit_ms);
    handle(flags);
    pid_t child = meanwhile(SIGUSR1, 0, full, NULL);
    int r = connect(fd, (struct sockaddr *)&addr, sizeof addr);
    tell(what, r);
    if (again)
        tell("and again", connect(fd, (struct sockaddr *)&addr, sizeof addr));
    reap(child);
    close(first), close(fd), close(full);
}

int main(void)
{
    accepts("accept, plain", 0, SIGUSR1, 0, 0, false);
    accepts("accept, restart", SA_RESTART, SIGUSR1, SIGUSR1, 0, true);
    accepts("accept, plain, limit", 0, SIGUSR1, 0, 30000, false);
    accepts("accept, restart, limit", SA_RESTART, SIGUSR1, 0, 30000, false);
    accepts("accept, ignored", 0, SIGWINCH, 0, 0, true);
    accepts("accept, stopped", 0, SIGSTOP, SIGCONT, 0, true);
    accepts("accept, late", 0, SIGWINCH, 0, 400, false);
    connects("connect, plain", 0, 0, true);
    connects("connect, restart", SA_RESTART, 0, false);
    connects("connect, restart, limit", SA_RESTART, 30000, true);
    return 0;
}
