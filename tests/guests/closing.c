/* SPDX-License-Identifier: Apache-2.0
 * One thread closes what another one uses all the time, between its calls: each of those comes before the close, and is whole, or fails with EBADF.
 *
 *   closing send|receive|replace|range|duplicate|poll [rounds]
 *
 * `send`: what was sent arrives. `receive`: what is received was sent. `replace`: send, and dup2() puts a pipe there. `range`: send, and close_range().
 * `duplicate`: each byte is sent by a descriptor of its own. `poll`: it is readable, or closed. */
#include "guest.h"
#include <pthread.h>

#define WARM 60

static int near, far, pipes[2];
static volatile int waits, got_first;
static long sent;
static const char *what;

static void *sends(void *unused)
{
    for (;;) {
        unsigned char byte = (unsigned char)sent;
        ssize_t r = send(near, &byte, 1, MSG_DONTWAIT | MSG_NOSIGNAL);
        if (r == 1) {
            sent++;
        } else {
            CHECK(r < 0);
            if (errno == EAGAIN)
                continue;
            CHECK(errno == (!strcmp(what, "replace") ? ENOTSOCK : EBADF));
            return unused;
        }
        waits = 1;
    }
}

static void *duplicates(void *unused)
{
    for (;;) {
        unsigned char byte = (unsigned char)sent;
        int fd = dup(near);
        if (fd < 0) {
            CHECK(errno == EBADF);
            return unused;
        }
        CHECK(send(fd, &byte, 1, MSG_NOSIGNAL) == 1);
        CHECK(close(fd) == 0);
        sent++;
        waits = 1;
    }
}

static void *polls(void *unused)
{
    CHECK(send(far, "p", 1, 0) == 1);
    for (;;) {
        struct pollfd p = {near, POLLIN, 0};
        CHECK(poll(&p, 1, 5000) == 1 && p.revents & (POLLIN | POLLNVAL));
        if (p.revents & POLLNVAL)
            return unused;
        waits = 1;
    }
}

/* The first one asleep: the other end rings, by what lies in TCP then. */
static void *receives(void *unused)
{
    unsigned char byte, next = 1;

    waits = 1;
    for (int flags = 0;; flags = MSG_DONTWAIT) {
        ssize_t r = recv(near, &byte, 1, flags);
        if (r == 1) {
            CHECK(byte == next);
            next++;
        } else {
            CHECK(r < 0);
            if (errno == EAGAIN)
                continue;
            CHECK(errno == EBADF);
            return unused;
        }
        got_first = 1;
    }
}

static void warm(void)
{
    char c = 'w';
    for (int i = 0; i < WARM; i++) {
        CHECK(send(near, &c, 1, 0) == 1 && recv(far, &c, 1, 0) == 1);
        CHECK(send(far, &c, 1, 0) == 1 && recv(near, &c, 1, 0) == 1);
        if (i < WARM / 2)
            usleep(200);
    }
}

/* All of it in order, and the end. */
static void arrives(void)
{
    static unsigned char bytes[1 << 16];
    long all = 0;
    ssize_t r;

    while ((r = recv(far, bytes, sizeof bytes, 0)) > 0)
        for (ssize_t i = 0; i < r; i++, all++)
            CHECK(bytes[i] == (unsigned char)all);
    CHECK(r == 0);
    if (all != sent)
        fprintf(stderr, "sent %ld, arrived %ld\n", sent, all);
    CHECK(all == sent);
}

static void ends(void)
{
    if (!strcmp(what, "replace"))
        CHECK(dup2(pipes[0], near) == near);
    else if (!strcmp(what, "range"))
        CHECK(close_range((unsigned)near, (unsigned)near, 0) == 0);
    else
        CHECK(close(near) == 0);
}

static void round_of(int listener, const struct sockaddr_in *at, long us)
{
    bool receive = !strcmp(what, "receive"), poll = !strcmp(what, "poll");
    void *(*use)(void *) = receive ? receives : poll ? polls : !strcmp(what, "duplicate") ? duplicates : sends;
    pthread_t thread;

    near = connect_loopback(at);
    CHECK((far = accept(listener, NULL, NULL)) >= 0);
    warm();
    waits = got_first = 0;
    sent = 0;
    CHECK(pthread_create(&thread, NULL, use, NULL) == 0);
    while (!waits)
        sched_yield();
    if (receive) {
        usleep(12000); /* asleep in the kernel, not napping */
        for (unsigned char byte = 1; byte < 4; byte++)
            CHECK(send(far, &byte, 1, 0) == 1);
        while (!got_first)
            sched_yield();
    }
    usleep(us);
    ends();
    CHECK(pthread_join(thread, NULL) == 0);
    if (!receive && !poll)
        arrives();
    if (!strcmp(what, "replace"))
        close(near);
    close(far);
}

int main(int argc, char **argv)
{
    struct sockaddr_in at;
    int listener = listen_loopback(&at, 8), rounds = argc > 2 ? atoi(argv[2]) : 60;

    CHECK(argc > 1);
    what = argv[1];
    CHECK(pipe(pipes) == 0);
    for (int i = 0; i < rounds; i++)
        round_of(listener, &at, i % 20 * 10);
    puts("done");
    return 0;
}
