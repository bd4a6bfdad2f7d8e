/* SPDX-License-Identifier: Apache-2.0
 * epoll: EPOLLET reports each arrival once, EPOLLONESHOT until re-armed, MOD re-examines, a closed descriptor is gone. */
#include "guest.h"
#include <sys/epoll.h>

static int ep;

static int wait_events(int ms, uint32_t *events)
{
    struct epoll_event e = {0};
    int n = epoll_wait(ep, &e, 1, ms);
    CHECK(n >= 0);
    *events = e.events;
    return n;
}

static void ctl(int op, int fd, uint32_t events)
{
    struct epoll_event e = {.events = events, .data.fd = fd};
    CHECK(epoll_ctl(ep, op, fd, &e) == 0);
}

static void accepted(int fd)
{
    uint32_t got;
    ep = epoll_create1(0);
    ctl(EPOLL_CTL_ADD, fd, EPOLLIN | EPOLLET);
    CHECK(wait_events(0, &got) == 0);
    for (int i = 0; i < 50; i++) {
        say(fd, "g");
        CHECK(wait_events(10000, &got) == 1 && got == EPOLLIN);
        CHECK(wait_events(i < 5 ? 20 : 0, &got) == 0); /* the same bytes make no second edge */
        expect(fd, "ab");                             /* ... even though one is left unread */
        CHECK(wait_events(0, &got) == 0);
        say(fd, "g");
        CHECK(wait_events(10000, &got) == 1 && got == EPOLLIN); /* a new arrival behind unread bytes does */
        expect(fd, "cd");
        set_nonblock(fd, true);
        char c;
        CHECK(read(fd, &c, 1) == -1 && errno == EAGAIN);
        set_nonblock(fd, false);
    }
    ctl(EPOLL_CTL_MOD, fd, EPOLLIN | EPOLLONESHOT);
    say(fd, "g");
    CHECK(wait_events(10000, &got) == 1 && got == EPOLLIN);
    CHECK(wait_events(30, &got) == 0);
    ctl(EPOLL_CTL_MOD, fd, EPOLLIN | EPOLLONESHOT);
    CHECK(wait_events(1000, &got) == 1 && got == EPOLLIN);
    expect(fd, "ef");
    ctl(EPOLL_CTL_MOD, fd, EPOLLIN | EPOLLOUT | EPOLLET);
    CHECK(wait_events(1000, &got) == 1 && got == EPOLLOUT);
    CHECK(wait_events(0, &got) == 0);
    ctl(EPOLL_CTL_DEL, fd, 0);
    say(fd, "g");
    sleep_ms(30);
    CHECK(wait_events(0, &got) == 0); /* bytes are there but nobody asks */
    ctl(EPOLL_CTL_ADD, fd, EPOLLIN | EPOLLRDHUP);
    CHECK(wait_events(1000, &got) == 1 && (got & EPOLLIN));
    expect(fd, "gh");
    int end = 0; /* the peer goes */
    for (int i = 0; i < 100 && !end; i++)
        end = wait_events(1000, &got) == 1 && (got & EPOLLRDHUP);
    CHECK(end && (got & EPOLLIN));
    expect_eof(fd);
    close(fd);
    CHECK(wait_events(0, &got) == 0);
}

static void connected(int fd)
{
    for (int i = 0; i < 50; i++) {
        expect(fd, "g");
        if (i < 5)
            sleep_ms(10);
        say(fd, "ab");
        expect(fd, "g");
        say(fd, "cd");
    }
    expect(fd, "g");
    say(fd, "ef");
    expect(fd, "g");
    say(fd, "gh");
    sleep_ms(50);
}

int main(void) { return guest_main(accepted, connected); }
