/* SPDX-License-Identifier: Apache-2.0
 * SO_RCVLOWAT, set before the connection moves: poll and epoll speak of a whole record only, while it moves and afterwards. */
#include "guest.h"
#include <poll.h>
#include <sys/epoll.h>

#define RECORD 8

static void low(int fd)
{
    int n = RECORD;
    CHECK(setsockopt(fd, SOL_SOCKET, SO_RCVLOWAT, &n, sizeof n) == 0);
}

static void is_kept(int fd)
{
    int n = 0;
    socklen_t len = sizeof n;
    CHECK(getsockopt(fd, SOL_SOCKET, SO_RCVLOWAT, &n, &len) == 0 && n == RECORD);
}

static void take(int fd, const char *record)
{
    char buf[RECORD];
    CHECK(recv(fd, buf, sizeof buf, 0) == RECORD && memcmp(buf, record, RECORD) == 0);
}

static void accepted(int fd)
{
    struct pollfd p = {fd, POLLIN, 0};
    struct epoll_event e = {.events = EPOLLIN};
    int ep = epoll_create1(0);

    CHECK(ep >= 0 && epoll_ctl(ep, EPOLL_CTL_ADD, fd, &e) == 0);
    low(fd);
    for (int i = 0; i < 300; i++) {
        CHECK((i & 1 ? epoll_wait(ep, &e, 1, 10000) : poll(&p, 1, 10000)) == 1);
        take(fd, "a record");
        CHECK(poll(&p, 1, 0) == 0);
        say(fd, "answered");
        CHECK((i & 1 ? epoll_wait(ep, &e, 1, i % 50 == 1 ? 5 : 0) : poll(&p, 1, i % 50 == 0 ? 5 : 0)) == 0); /* half of one is here, or comes */
        say(fd, "the rest");
    }
    is_kept(fd);
    expect_eof(fd);
}

static void connected(int fd)
{
    low(fd);
    say(fd, "a record");
    for (int i = 0; i < 300; i++) {
        take(fd, "answered");
        if (i < 299)
            say(fd, "a re");
        take(fd, "the rest");
        if (i < 299)
            say(fd, "cord");
    }
    is_kept(fd);
}

int main(void) { return guest_main(accepted, connected); }
