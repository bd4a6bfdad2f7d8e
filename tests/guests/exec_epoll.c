/* SPDX-License-Identifier: Apache-2.0
 * A server executes itself in the middle of a conversation: unread bytes, O_NONBLOCK and what it has registered with epoll are there after it. */
#include "guest.h"
#include <sys/epoll.h>

#define COOKIE 0x5eed5eed12345678ull
#define AHEAD 5000

static void wait_for(int ep, uint32_t events)
{
    struct epoll_event ev = {0};
    CHECK(epoll_wait(ep, &ev, 1, 10000) == 1);
    CHECK(ev.data.u64 == COOKIE && (ev.events & events) == events);
}

static size_t drain(int fd, unsigned char *buf, size_t most)
{
    size_t got = 0;
    ssize_t n;
    while (got < most && (n = read(fd, buf + got, most - got)) > 0)
        got += (size_t)n;
    CHECK(got == most || (n < 0 && errno == EAGAIN) || n == 0);
    return got;
}

/* The second life. */
static int again(int fd, int ep)
{
    unsigned char buf[AHEAD], want[AHEAD], c;
    struct prng r = {99};
    size_t got = 0;

    CHECK(fcntl(fd, F_GETFL) & O_NONBLOCK);
    while (got < AHEAD) {
        wait_for(ep, EPOLLIN);
        got += drain(fd, buf + got, AHEAD - got);
    }
    prng_fill(&r, want, AHEAD);
    CHECK(memcmp(buf, want, AHEAD) == 0);
    CHECK(read(fd, &c, 1) == -1 && errno == EAGAIN);
    say(fd, "again");
    for (int i = 0; i < 200; i++) {
        wait_for(ep, EPOLLIN);
        CHECK(read(fd, &c, 1) == 1 && c == (unsigned char)i);
        write_all(fd, &c, 1);
    }
    wait_for(ep, EPOLLIN | EPOLLRDHUP);
    CHECK(read(fd, &c, 1) == 0);
    return 0;
}

static void accepted(int fd)
{
    char a[16], b[16];
    struct epoll_event ev = {.events = EPOLLIN | EPOLLRDHUP | EPOLLET, .data.u64 = COOKIE};
    int ep = epoll_create1(0);
    pid_t child;

    CHECK(epoll_ctl(ep, EPOLL_CTL_ADD, fd, &ev) == 0);
    set_nonblock(fd, true);
    wait_for(ep, EPOLLIN);
    expect(fd, "!");
    say(fd, "go on");
    sleep_ms(50); /* what comes now is not read by us */
    snprintf(a, sizeof a, "%d", fd);
    snprintf(b, sizeof b, "%d", ep);
    child = fork();
    CHECK(child >= 0);
    if (child) { /* the child reports; it is we who were registered */
        execl("/proc/self/exe", "exec_epoll", a, b, (char *)NULL);
        CHECK(!"exec");
    }
    close(fd);
    close(ep);
    _exit(0);
}

static void connected(int fd)
{
    unsigned char data[AHEAD];
    struct prng r = {99};

    say(fd, "!");
    expect(fd, "go on");
    prng_fill(&r, data, AHEAD);
    write_all(fd, data, AHEAD);
    expect(fd, "again");
    for (int i = 0; i < 200; i++) {
        unsigned char c = (unsigned char)i, back;
        write_all(fd, &c, 1);
        read_all(fd, &back, 1);
        CHECK(back == c);
    }
    close(fd);
}

int main(int argc, char **argv)
{
    if (argc == 3) {
        again(atoi(argv[1]), atoi(argv[2]));
        while (waitpid(-1, NULL, 0) > 0)
            ;
        puts("ok");
        return 0;
    }
    return guest_main(accepted, connected);
}
