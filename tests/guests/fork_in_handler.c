/* SPDX-License-Identifier: Apache-2.0
 *
 * fork_in_handler WHAT: a handler forks while its thread sleeps on the connection. Both come back, and whoever sleeps on it afterwards, or still, is woken.
 *
 *   recv, poll, select, epoll   the call ends with EINTR, twice; the child ends; the parent makes it again
 *   room                        the same of a send that waits for room
 *   parent, child               the receive is restarted, twice; the other one leaves by a second signal
 *   tcp                         the receive is on TCP, in a process that shares its socket; later nobody else has it, and it moves up
 */
#include "guest.h"
#include <sys/epoll.h>
#include <sys/select.h>
#include <sys/time.h>

#define BYTES (24 << 20)
#define ROUNDS 3

static const char *what;
static volatile pid_t child; /* 0: we are it */
static volatile int calls;
static int begin[2]; /* pipe: when the peer may go on */

static bool is(const char *name) { return strcmp(what, name) == 0; }

/* The first signal is the peer's, which it sends when its parent sleeps: by a timer it might come too early on a busy machine. */
static void interrupt_sleeper(void)
{
    char path[32], text[256], *state;
    snprintf(path, sizeof path, "/proc/%d/stat", (int)getppid());
    for (int asleep = 0; asleep < 4;) {
        FILE *f = fopen(path, "r");
        CHECK(f && fgets(text, sizeof text, f) && (state = strrchr(text, ')')));
        fclose(f);
        asleep = state[2] == 'S' ? asleep + 1 : 0;
        sleep_ms(10);
    }
    CHECK(kill(getppid(), SIGALRM) == 0);
}

/* The second: again and again, for the same reason. */
static void signals_from_now_on(void)
{
    struct itimerval t = {{0, 30000}, {0, 30000}};
    CHECK(setitimer(ITIMER_REAL, &t, NULL) == 0);
}

static void on_alarm(void (*handler)(int), int flags)
{
    struct sigaction a = {.sa_handler = handler, .sa_flags = flags};
    CHECK(sigaction(SIGALRM, &a, NULL) == 0);
}

static void only_counts(int number) { calls += number == SIGALRM; }

static void forks(int number)
{
    (void)number;
    child = fork();
    CHECK(child >= 0);
    calls++;
}

/* Who is to leave gets a second signal. */
static void forks_and_one_leaves(int number)
{
    forks(number);
    if ((child == 0) == is("parent")) {
        on_alarm(only_counts, 0);
        signals_from_now_on();
    }
}

static void child_ends(void)
{
    if (child == 0)
        _exit(0);
    reap(child);
}

/* ---- EINTR */

static long wait_once(int fd, int set)
{
    struct epoll_event e;
    struct pollfd p = {fd, POLLIN, 0};
    fd_set in;
    char c;

    if (is("poll"))
        return poll(&p, 1, -1);
    if (is("epoll"))
        return epoll_wait(set, &e, 1, -1);
    if (!is("select"))
        return recv(fd, &c, 1, MSG_PEEK);
    FD_ZERO(&in);
    FD_SET(fd, &in);
    return select(fd + 1, &in, NULL, NULL, NULL);
}

static void interrupted(int fd)
{
    struct epoll_event e = {.events = EPOLLIN};
    int set = epoll_create1(0);
    CHECK(set >= 0 && epoll_ctl(set, EPOLL_CTL_ADD, fd, &e) == 0);
    on_alarm(forks, 0);
    for (int i = 0; i < ROUNDS; i++) {
        CHECK(wait_once(fd, set) == -1 && errno == EINTR && calls == i + 1);
        child_ends();
        say(fd, "g");
        CHECK(wait_once(fd, set) == 1);
        expect(fd, "o");
    }
}

/* ---- room */

static void fills(int fd)
{
    static unsigned char bytes[BYTES];
    struct prng r = {7};
    size_t done = 0;
    prng_fill(&r, bytes, sizeof bytes);
    on_alarm(forks, 0);
    while (done < sizeof bytes) {
        ssize_t n = write(fd, bytes + done, sizeof bytes - done);
        if (calls && child >= 0) {
            CHECK(n > 0 || errno == EINTR);
            child_ends();
            child = -1;
            CHECK(write(begin[1], "f", 1) == 1); /* only now is it read */
        }
        done += n > 0 ? (size_t)n : 0;
    }
    CHECK(calls == 1);
}

static void may_go_on(void)
{
    char c;
    CHECK(read(begin[0], &c, 1) == 1);
    sleep_ms(100);
}

static void empties(int fd)
{
    static unsigned char bytes[BYTES], same[BYTES];
    struct prng r = {7};
    prng_fill(&r, same, sizeof same);
    interrupt_sleeper();
    may_go_on();
    read_all(fd, bytes, sizeof bytes);
    CHECK(memcmp(bytes, same, sizeof bytes) == 0);
}

/* ---- SA_RESTART */

static void restarted(int fd)
{
    char c;
    on_alarm(forks_and_one_leaves, SA_RESTART);
    long r = recv(fd, &c, 1, 0);
    if ((child == 0) == is("parent")) {
        CHECK(r == -1 && errno == EINTR && calls >= 2);
        on_alarm(SIG_IGN, 0);
        CHECK(write(begin[1], "f", 1) == 1);
    } else {
        CHECK(r == 1 && c == 'o' && calls == 1);
        say(fd, "k");
    }
    child_ends();
}

/* ---- on TCP */

static void on_tcp(int fd)
{
    int hold[2];
    char c;
    CHECK(pipe(hold) == 0);
    pid_t holder = fork();
    CHECK(holder >= 0);
    if (holder == 0) {
        close(hold[1]);
        CHECK(read(hold[0], &c, 1) == 0);
        _exit(0);
    }
    close(hold[0]);
    on_alarm(forks, 0);
    CHECK(recv(fd, &c, 1, 0) == -1 && errno == EINTR && calls == 1);
    if (child == 0)
        close(hold[1]);
    child_ends();
    close(hold[1]);
    reap(holder);
    say(fd, "g");
    expect(fd, "o");
    warm_up(fd, false);
}

static void accepted(int fd)
{
    if (is("room"))
        fills(fd);
    else if (is("parent") || is("child"))
        restarted(fd);
    else
        interrupted(fd);
}

static void connected(int fd)
{
    if (is("room")) {
        empties(fd);
        return;
    }
    if (is("parent") || is("child")) {
        interrupt_sleeper();
        may_go_on();
        say(fd, "o");
        expect(fd, "k"); /* its end would wake, too */
        return;
    }
    for (int i = 0; i < ROUNDS; i++) {
        interrupt_sleeper();
        expect(fd, "g");
        sleep_ms(100);
        say(fd, "o");
    }
}

static int without_warm_up(void)
{
    struct sockaddr_in addr;
    int listener = listen_loopback(&addr, 8), fd;
    pid_t peer = fork();
    CHECK(peer >= 0);
    if (peer == 0) {
        fd = connect_loopback(&addr);
        interrupt_sleeper();
        expect(fd, "g");
        say(fd, "o");
        warm_up(fd, true);
        _exit(0);
    }
    fd = accept(listener, NULL, NULL);
    CHECK(fd >= 0);
    on_tcp(fd);
    reap(peer);
    puts("ok");
    return 0;
}

int main(int argc, char **argv)
{
    CHECK(argc == 2);
    what = argv[1];
    child = -1;
    CHECK(pipe(begin) == 0);
    return is("tcp") ? without_warm_up() : guest_main(accepted, connected);
}
