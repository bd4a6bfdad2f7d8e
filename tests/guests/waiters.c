/* SPDX-License-Identifier: Apache-2.0
 * waiters KIND: poll, ppoll, select, pselect, epoll wait for what is said: time-outs, wake-ups, writability, hang-up. */
#include "guest.h"
#include <sys/epoll.h>
#include <sys/select.h>

enum { IN = 1, OUT = 2, HUP = 4 };
static const char *kind;

static int by_poll(int fd, int what, int ms, bool p)
{
    struct pollfd f = {fd, (short)((what & IN ? POLLIN | POLLRDHUP : 0) | (what & OUT ? POLLOUT : 0)), 0};
    struct timespec t = {ms / 1000, ms % 1000 * 1000000L};
    int n = p ? ppoll(&f, 1, ms < 0 ? NULL : &t, NULL) : poll(&f, 1, ms);
    CHECK(n >= 0 && n == (f.revents != 0));
    return (f.revents & POLLIN ? IN : 0) | (f.revents & POLLOUT ? OUT : 0) |
           (f.revents & (POLLRDHUP | POLLHUP) ? HUP : 0);
}

static int by_select(int fd, int what, int ms, bool p)
{
    fd_set r, w;
    FD_ZERO(&r);
    FD_ZERO(&w);
    if (what & IN)
        FD_SET(fd, &r);
    if (what & OUT)
        FD_SET(fd, &w);
    struct timeval tv = {ms / 1000, ms % 1000 * 1000};
    struct timespec ts = {ms / 1000, ms % 1000 * 1000000L};
    int n = p ? pselect(fd + 1, &r, &w, NULL, ms < 0 ? NULL : &ts, NULL)
              : select(fd + 1, &r, &w, NULL, ms < 0 ? NULL : &tv);
    int got = (FD_ISSET(fd, &r) ? IN : 0) | (FD_ISSET(fd, &w) ? OUT : 0);
    CHECK(n == !!(got & IN) + !!(got & OUT));
    return got;
}

static int by_epoll(int fd, int what, int ms)
{
    int ep = epoll_create1(EPOLL_CLOEXEC);
    struct epoll_event e = {.events = (what & IN ? EPOLLIN | EPOLLRDHUP : 0u) | (what & OUT ? EPOLLOUT : 0u),
                            .data.u64 = 0x1122334455667788};
    CHECK(ep >= 0 && epoll_ctl(ep, EPOLL_CTL_ADD, fd, &e) == 0);
    CHECK(epoll_ctl(ep, EPOLL_CTL_ADD, fd, &e) == -1 && errno == EEXIST);
    struct epoll_event out[4];
    int n = epoll_wait(ep, out, 4, ms);
    close(ep);
    CHECK(n == 0 || (n == 1 && out[0].data.u64 == 0x1122334455667788));
    return n == 0 ? 0 : (out[0].events & EPOLLIN ? IN : 0) | (out[0].events & EPOLLOUT ? OUT : 0) |
                            (out[0].events & (EPOLLRDHUP | EPOLLHUP) ? HUP : 0);
}

static int wait_for(int fd, int what, int ms)
{
    if (strstr(kind, "poll") == kind || strcmp(kind, "ppoll") == 0)
        return by_poll(fd, what, ms, *kind == 'p' && kind[1] == 'p');
    if (strstr(kind, "select") != NULL)
        return by_select(fd, what, ms, *kind == 'p');
    CHECK(strcmp(kind, "epoll") == 0);
    return by_epoll(fd, what, ms);
}

static void accepted(int fd)
{
    CHECK(wait_for(fd, IN, 0) == 0);
    double start = now_s();
    CHECK(wait_for(fd, IN, 60) == 0);
    CHECK(now_s() - start > 0.055 && now_s() - start < 5);
    CHECK(wait_for(fd, IN | OUT, 1000) == OUT);
    for (int i = 0; i < 20; i++) { /* parked, then woken */
        say(fd, "g");
        CHECK(wait_for(fd, IN, 10000) == IN);
        CHECK(wait_for(fd, IN | OUT, -1) == (IN | OUT)); /* level: still there */
        expect(fd, "hello");
        CHECK(wait_for(fd, IN, 0) == 0);
    }
    for (int i = 0; i < 2000; i++) { /* hot */
        say(fd, "g");
        CHECK(wait_for(fd, IN, 10000) == IN);
        expect(fd, "hello");
    }
    say(fd, "q");
    int end = wait_for(fd, IN, 10000);
    CHECK(end & IN);
    CHECK(strstr(kind, "select") != NULL || (end & HUP));
    expect_eof(fd);
    close(fd);
}

static void connected(int fd)
{
    for (int i = 0; i < 2020; i++) {
        expect(fd, "g");
        if (i < 20)
            sleep_ms(15);
        say(fd, "hello");
    }
    expect(fd, "q");
    sleep_ms(20);
    CHECK(shutdown(fd, SHUT_WR) == 0);
    expect_eof(fd);
}

int main(int argc, char **argv)
{
    CHECK(argc == 2);
    kind = argv[1];
    return guest_main(accepted, connected);
}
