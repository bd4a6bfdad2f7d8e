/* SPDX-License-Identifier: Apache-2.0
 *
 * bell_takers.c - a thread sleeps on many connections, which one doorbell is to wake it for, and somebody else takes that doorbell away.
 *
 *   bell_takers WHAT
 *
 * A client writes to some of the connections at a time and waits until all of it has come back. Beside the thread that serves them another one does WHAT
 * with one half of them: answer, which leaves neither bytes nor doorbell; poll, which eats the doorbell; peek; mod and del, which change the set; same, which waits on the same set; fork, whose child polls;
 * exclusive, which looks at a set of its own without sleeping, where both sets have them with EPOLLEXCLUSIVE; exclusive-fork, whose child does so.
 */
#include <pthread.h>
#include <sys/epoll.h>
#include "guest.h"

#define CONNECTIONS 8
#define ROUNDS 1500

static const char *what;
static uint32_t flags;
static int fds[CONNECTIONS], ep, own; /* own: the set of who looks */
static volatile bool over;

static void ctl(int op, int fd, uint32_t events)
{
    struct epoll_event ev = {.events = events, .data.fd = fd};
    CHECK(epoll_ctl(ep, op, fd, &ev) == 0);
}

/* What has come in goes back. False: the end. */
static bool answer(int fd)
{
    char byte;
    ssize_t n;
    while ((n = recv(fd, &byte, 1, MSG_DONTWAIT)) == 1)
        CHECK(send(fd, &byte, 1, MSG_NOSIGNAL) == 1);
    return n != 0;
}

static void serve_once(int ms)
{
    struct epoll_event ev[CONNECTIONS];
    int n = epoll_wait(ep, ev, CONNECTIONS, ms);
    CHECK(n >= 0 || errno == EINTR);
    for (int i = 0; i < n; i++)
        if (!answer(ev[i].data.fd))
            over = true;
}

static void *serve(void *arg)
{
    while (!over)
        serve_once(-1);
    return arg;
}

static void poll_all(void)
{
    struct pollfd p[CONNECTIONS];
    for (int i = 0; i < CONNECTIONS; i++)
        p[i] = (struct pollfd){.fd = fds[i], .events = POLLIN};
    CHECK(poll(p, CONNECTIONS, 0) >= 0);
}

/* A set of its own. */
static void look(void)
{
    struct epoll_event ev[CONNECTIONS];
    CHECK(epoll_wait(own, ev, CONNECTIONS, 0) >= 0);
}

static void open_own(void)
{
    int sleeps = ep;
    CHECK((own = ep = epoll_create1(0)) >= 0);
    for (int i = 0; i < CONNECTIONS; i++)
        ctl(EPOLL_CTL_ADD, fds[i], EPOLLIN | flags);
    ep = sleeps;
}

static void take(int fd)
{
    struct pollfd p = {.fd = fd, .events = POLLIN};
    char byte;
    if (!strcmp(what, "answer")) {
        answer(fd);
    } else if (!strcmp(what, "poll")) {
        CHECK(poll(&p, 1, 0) >= 0);
    } else if (!strcmp(what, "peek")) {
        recv(fd, &byte, 1, MSG_DONTWAIT | MSG_PEEK);
    } else if (!strcmp(what, "mod")) {
        ctl(EPOLL_CTL_MOD, fd, 0);
        ctl(EPOLL_CTL_MOD, fd, EPOLLIN);
    } else if (!strcmp(what, "del")) {
        ctl(EPOLL_CTL_DEL, fd, 0);
        ctl(EPOLL_CTL_ADD, fd, EPOLLIN);
    } else if (flags) {
        look();
    } else if (!strcmp(what, "same")) {
        serve_once(1);
    } else {
        pid_t child = fork();
        CHECK(child >= 0);
        if (child == 0) {
            poll_all();
            _exit(0);
        }
        CHECK(waitpid(child, NULL, 0) == child);
    }
}

static void *taker(void *arg)
{
    struct prng r = {.state = 7};
    while (!over) {
        take(fds[prng_next(&r) % (CONNECTIONS / 2)]);
        if (prng_next(&r) % 4 == 0)
            usleep((useconds_t)(prng_next(&r) % 200));
    }
    return arg;
}

static void look_in_child(void)
{
    pid_t parent = getpid(), child = fork();
    CHECK(child >= 0);
    if (child)
        return;
    open_own();
    while (getppid() == parent) {
        look();
        usleep(20);
    }
    _exit(0);
}

static void server(int listener)
{
    pthread_t thread[2];
    for (int i = 0; i < CONNECTIONS; i++)
        CHECK((fds[i] = accept(listener, NULL, NULL)) >= 0);
    for (int k = 0; k < 50; k++)
        for (int i = 0; i < CONNECTIONS; i++) {
            char byte;
            CHECK(recv(fds[i], &byte, 1, 0) == 1 && send(fds[i], &byte, 1, 0) == 1);
        }
    CHECK((ep = epoll_create1(0)) >= 0);
    for (int i = 0; i < CONNECTIONS; i++)
        ctl(EPOLL_CTL_ADD, fds[i], EPOLLIN | flags);
    if (flags && !strchr(what, '-'))
        open_own();
    if (strchr(what, '-')) {
        look_in_child();
        serve(NULL);
        return;
    }
    CHECK(pthread_create(&thread[0], NULL, serve, NULL) == 0);
    CHECK(pthread_create(&thread[1], NULL, taker, NULL) == 0);
    CHECK(pthread_join(thread[0], NULL) == 0 && pthread_join(thread[1], NULL) == 0);
}

static void back(int fd, int round)
{
    struct pollfd p = {.fd = fd, .events = POLLIN};
    char byte;
    if (poll(&p, 1, 10000) != 1) {
        fprintf(stderr, "round %d: no answer\n", round);
        _exit(1);
    }
    CHECK(recv(fd, &byte, 1, 0) == 1);
}

static void client(const struct sockaddr_in *at)
{
    struct prng r = {.state = 3};
    for (int i = 0; i < CONNECTIONS; i++) {
        CHECK((fds[i] = socket(AF_INET, SOCK_STREAM, 0)) >= 0);
        CHECK(connect(fds[i], (const struct sockaddr *)at, sizeof *at) == 0);
    }
    for (int k = 0; k < 50; k++)
        for (int i = 0; i < CONNECTIONS; i++) {
            CHECK(send(fds[i], "?", 1, 0) == 1);
            back(fds[i], -1);
        }
    for (int round = 0; round < ROUNDS; round++) {
        unsigned some = 3u << (prng_next(&r) % CONNECTIONS) | (unsigned)prng_next(&r);
        for (int i = 0; i < CONNECTIONS; i++)
            if (some >> i & 1)
                CHECK(send(fds[i], "x", 1, 0) == 1);
        for (int i = 0; i < CONNECTIONS; i++)
            if (some >> i & 1)
                back(fds[i], round);
        if (round % 3)
            usleep((useconds_t)(prng_next(&r) % 300)); /* so that it falls asleep */
    }
}

int main(int argc, char **argv)
{
    struct sockaddr_in at;
    int listener = listen_loopback(&at, CONNECTIONS);

    what = argc > 1 ? argv[1] : "poll";
    flags = !strncmp(what, "exclusive", 9) ? EPOLLEXCLUSIVE : 0;
    pid_t child = fork();
    CHECK(child >= 0);
    if (child == 0) {
        server(listener);
        return 0;
    }
    client(&at);
    for (int i = 0; i < CONNECTIONS; i++)
        close(fds[i]);
    reap(child);
    puts("ok");
    return 0;
}
