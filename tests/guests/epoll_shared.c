/* SPDX-License-Identifier: Apache-2.0
 *
 * epoll_shared.c - epoll sets that several threads sleep on, that change while somebody sleeps, that lie in each other, and descriptors
 * that leave a set and come back.
 */
#include <pthread.h>
#include <sys/epoll.h>
#include "guest.h"

static int one, two; /* our ends of two connections; the peer answers 's' with 'd' 30 ms later, and ends at 'q' */

static void ctl(int ep, int op, int fd, uint32_t events)
{
    struct epoll_event ev = {.events = events, .data.fd = fd};
    CHECK(epoll_ctl(ep, op, fd, &ev) == 0);
}

static int refused(int ep, int op, int fd)
{
    struct epoll_event ev = {.events = EPOLLIN, .data.fd = fd};
    CHECK(epoll_ctl(ep, op, fd, &ev) == -1);
    return errno;
}

static int take(int ep, int most, int ms)
{
    struct epoll_event ev[4];
    int n;
    do
        n = epoll_wait(ep, ev, most, ms);
    while (n < 0 && errno == EINTR);
    CHECK(n >= 0 && n <= 1);
    return n ? ev[0].data.fd : -1;
}

/* The one descriptor that is ready, -1 if none is within ms. */
static int ready(int ep, int ms) { return take(ep, 4, ms); }

struct sleeper {
    pthread_t thread;
    int ep, got;
    bool handle; /* answer for the other: wait until both have been woken */
};
static pthread_barrier_t both;

static void *sleep_on(void *arg)
{
    struct sleeper *s = arg;
    s->got = take(s->ep, 1, 5000); /* on a busy machine both are ready before the first of two sleeps */
    if (s->handle)
        pthread_barrier_wait(&both);
    return NULL;
}

static void start(struct sleeper *s, int ep)
{
    s->ep = ep;
    CHECK(pthread_create(&s->thread, NULL, sleep_on, s) == 0);
}

static int woken(struct sleeper *s)
{
    CHECK(pthread_join(s->thread, NULL) == 0);
    return s->got;
}

static void changes_under_a_sleeper(void)
{
    struct sleeper s = {0};
    int ep = epoll_create1(EPOLL_CLOEXEC);
    ctl(ep, EPOLL_CTL_ADD, one, EPOLLIN);
    say(one, "s");
    CHECK(ready(ep, 5000) == one);
    ctl(ep, EPOLL_CTL_MOD, one, 0); /* readable, but nobody asks */
    start(&s, ep);
    sleep_ms(50);
    ctl(ep, EPOLL_CTL_MOD, one, EPOLLIN);
    CHECK(woken(&s) == one);
    expect(one, "d");
    ctl(ep, EPOLL_CTL_DEL, one, 0);
    start(&s, ep);
    sleep_ms(50);
    ctl(ep, EPOLL_CTL_ADD, one, EPOLLIN | EPOLLET);
    say(one, "s");
    CHECK(woken(&s) == one);
    expect(one, "d");
    ctl(ep, EPOLL_CTL_DEL, one, 0);
    start(&s, ep);
    sleep_ms(50);
    ctl(ep, EPOLL_CTL_ADD, one, EPOLLOUT);
    CHECK(woken(&s) == one);
    close(ep);
}

static void two_sleepers(uint32_t flags)
{
    struct sleeper a = {.handle = true}, b = {.handle = true};
    int ep = epoll_create1(EPOLL_CLOEXEC);
    ctl(ep, EPOLL_CTL_ADD, one, EPOLLIN | flags);
    ctl(ep, EPOLL_CTL_ADD, two, EPOLLIN | flags);
    CHECK(pthread_barrier_init(&both, NULL, 2) == 0);
    start(&a, ep);
    start(&b, ep);
    sleep_ms(50);
    say(one, "s");
    sleep_ms(100);
    say(two, "s"); /* one of them sits in its handler until the other has been woken as well */
    CHECK(woken(&a) + woken(&b) == one + two);
    CHECK(a.got != b.got);
    expect(one, "d");
    expect(two, "d");
    close(ep);
}

static void gone_and_back(void)
{
    int ep = epoll_create1(EPOLL_CLOEXEC), copy;
    ctl(ep, EPOLL_CTL_ADD, one, EPOLLIN);
    CHECK(refused(ep, EPOLL_CTL_ADD, one) == EEXIST);
    say(one, "s");
    CHECK(ready(ep, 5000) == one);
    ctl(ep, EPOLL_CTL_DEL, one, 0);
    CHECK(refused(ep, EPOLL_CTL_DEL, one) == ENOENT);
    CHECK(refused(ep, EPOLL_CTL_MOD, one) == ENOENT);
    CHECK(ready(ep, 50) == -1);
    ctl(ep, EPOLL_CTL_ADD, one, EPOLLIN);
    CHECK(ready(ep, 5000) == one);
    expect(one, "d");
    CHECK(ready(ep, 0) == -1);
    ctl(ep, EPOLL_CTL_DEL, one, 0);
    say(one, "s");
    CHECK(ready(ep, 100) == -1); /* and does not wake anybody */
    pid_t child = fork();
    CHECK(child >= 0);
    if (child == 0)
        _exit(ready(ep, 50) == -1 ? 0 : 1);
    reap(child);
    CHECK((copy = dup(one)) >= 0);
    ctl(ep, EPOLL_CTL_ADD, copy, EPOLLIN);
    ctl(ep, EPOLL_CTL_DEL, copy, 0);
    CHECK(close(copy) == 0);
    CHECK(ready(ep, 50) == -1);
    CHECK(dup(one) == copy);
    ctl(ep, EPOLL_CTL_ADD, copy, EPOLLIN);
    CHECK(ready(ep, 5000) == copy);
    expect(copy, "d");
    close(copy);
    close(ep);
}

static void nested(bool before)
{
    int inner = epoll_create1(EPOLL_CLOEXEC), outer = epoll_create1(EPOLL_CLOEXEC);
    struct pollfd p = {.fd = inner, .events = POLLIN};
    if (before)
        ctl(outer, EPOLL_CTL_ADD, inner, EPOLLIN);
    ctl(inner, EPOLL_CTL_ADD, one, EPOLLIN);
    if (!before)
        ctl(outer, EPOLL_CTL_ADD, inner, EPOLLIN);
    for (int i = 0; i < 3; i++) {
        CHECK(ready(outer, 0) == -1);
        say(one, "s");
        CHECK(ready(outer, 5000) == inner);
        CHECK(poll(&p, 1, 0) == 1);
        CHECK(ready(inner, 0) == one);
        CHECK(ready(outer, 0) == inner); /* level-triggered: not read yet */
        expect(one, "d");
        CHECK(ready(inner, 0) == -1);
        CHECK(poll(&p, 1, 0) == 0);
    }
    ctl(inner, EPOLL_CTL_MOD, one, EPOLLIN | EPOLLOUT);
    CHECK(ready(outer, 0) == inner);
    ctl(inner, EPOLL_CTL_DEL, one, 0);
    CHECK(ready(outer, 20) == -1);
    close(inner);
    close(outer);
}

static void peer(const struct sockaddr_in *addr)
{
    struct pollfd p[2];
    for (int i = 0; i < 2; i++) {
        p[i] = (struct pollfd){.fd = connect_loopback(addr), .events = POLLIN};
        warm_up(p[i].fd, true);
    }
    for (;;) {
        CHECK(poll(p, 2, -1) > 0);
        for (int i = 0; i < 2; i++) {
            char c;
            if (!p[i].revents)
                continue;
            read_all(p[i].fd, &c, 1);
            if (c == 'q')
                _exit(0);
            sleep_ms(30);
            say(p[i].fd, "d");
        }
    }
}

int main(void)
{
    struct sockaddr_in addr;
    int listener = listen_loopback(&addr, 8);
    pid_t child = fork();
    CHECK(child >= 0);
    if (child == 0)
        peer(&addr);
    CHECK((one = accept(listener, NULL, NULL)) >= 0);
    warm_up(one, false);
    CHECK((two = accept(listener, NULL, NULL)) >= 0);
    warm_up(two, false);
    gone_and_back();
    nested(true);
    nested(false);
    changes_under_a_sleeper();
    two_sleepers(EPOLLONESHOT);
    two_sleepers(EPOLLET);
    gone_and_back();
    nested(true);
    say(one, "q");
    reap(child);
    puts("ok");
    return 0;
}
