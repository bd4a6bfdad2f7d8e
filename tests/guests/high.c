/* SPDX-License-Identifier: Apache-2.0
 * Descriptors beyond 65535, and more epoll sets than a program has. Argument: sets, epoll, dup or passed. */
#include "guest.h"
#include <sys/epoll.h>
#include <sys/resource.h>

#define LAST 65535
#define HIGH (LAST + 65)
#define SETS 5000
#define ROUNDS 20

static const char *how;

static void wait_in(int set, int fd)
{
    struct epoll_event ev;
    char c;
    CHECK(write(fd, "x", 1) == 1);
    CHECK(epoll_wait(set, &ev, 1, 5000) == 1 && ev.data.fd == fd && ev.events == EPOLLIN);
    CHECK(recv(fd, &c, 1, MSG_DONTWAIT) == 1 && c == 'x');
    CHECK(epoll_wait(set, &ev, 1, 0) == 0);
}

static void ask(int out, int in)
{
    char c;
    CHECK(write(out, "x", 1) == 1);
    CHECK(read(in, &c, 1) == 1 && c == 'x');
}

static void many_sets(int fd)
{
    struct epoll_event ev = {EPOLLIN, {.fd = fd}};
    int set = -1;
    for (int i = 0; i < SETS; i++) {
        CHECK((set = epoll_create1(0)) >= 0);
        if (i % 500 == 499)
            CHECK(epoll_ctl(set, EPOLL_CTL_ADD, fd, &ev) == 0);
    }
    for (int i = 0; i < ROUNDS; i++)
        wait_in(set, fd);
    CHECK(epoll_ctl(set, EPOLL_CTL_DEL, fd, NULL) == 0);
    CHECK(epoll_ctl(set, EPOLL_CTL_DEL, fd, NULL) == -1 && errno == ENOENT);
}

static void high_set(int fd)
{
    struct epoll_event ev = {EPOLLIN, {.fd = fd}};
    int low = epoll_create1(0), set = fcntl(low, F_DUPFD, HIGH);
    CHECK(set >= HIGH && close(low) == 0);
    CHECK(epoll_ctl(set, EPOLL_CTL_ADD, fd, &ev) == 0);
    CHECK(epoll_ctl(set, EPOLL_CTL_ADD, fd, &ev) == -1 && errno == EEXIST);
    for (int i = 0; i < ROUNDS; i++)
        wait_in(set, fd);
    ev.events = EPOLLOUT;
    CHECK(epoll_ctl(set, EPOLL_CTL_MOD, fd, &ev) == 0 && epoll_wait(set, &ev, 1, 0) == 1 && ev.events == EPOLLOUT);
    CHECK(epoll_ctl(set, EPOLL_CTL_DEL, fd, NULL) == 0);
}

static void high_dup(int fd)
{
    int high = fcntl(fd, F_DUPFD, HIGH);
    CHECK(high >= HIGH);
    for (int i = 0; i < ROUNDS; i++) {
        ask(fd, high);
        ask(high, fd);
    }
}

/* The next descriptor is a high one. */
static void fill(void)
{
    int null = open("/dev/null", O_RDONLY);
    while (null >= 0 && null < LAST)
        CHECK((null = dup(null)) >= 0);
}

union control {
    char bytes[CMSG_SPACE(sizeof(int))];
    struct cmsghdr head;
};

static void give(int way, int fd)
{
    union control c = {.head = {CMSG_LEN(sizeof fd), SOL_SOCKET, SCM_RIGHTS}};
    struct iovec v = {"f", 1};
    struct msghdr m = {.msg_iov = &v, .msg_iovlen = 1, .msg_control = &c, .msg_controllen = sizeof c};
    memcpy(CMSG_DATA(&c.head), &fd, sizeof fd);
    CHECK(sendmsg(way, &m, 0) == 1);
}

static int get(int way)
{
    union control c;
    char f;
    struct iovec v = {&f, 1};
    struct msghdr m = {.msg_iov = &v, .msg_iovlen = 1, .msg_control = &c, .msg_controllen = sizeof c};
    int fd;
    CHECK(recvmsg(way, &m, 0) == 1);
    memcpy(&fd, CMSG_DATA(&c.head), sizeof fd);
    return fd;
}

/* Over a unix socket that is a high one itself, to a child that has closed the connection, and to this process, which has it. */
static void passed(int fd)
{
    int low[2], way[2];
    pid_t child;
    CHECK(socketpair(AF_UNIX, SOCK_STREAM, 0, low) == 0);
    for (int i = 0; i < 2; i++)
        CHECK((way[i] = fcntl(low[i], F_DUPFD, HIGH)) >= HIGH && close(low[i]) == 0);
    if ((child = fork()) == 0) {
        close(fd);
        fill();
        int given = get(way[1]);
        CHECK(given > LAST);
        for (int i = 0; i < ROUNDS; i++)
            ask(given, given);
        _exit(0);
    }
    give(way[0], fd);
    reap(child);
    ask(fd, fd);
    fill();
    give(way[0], fd);
    int given = get(way[1]);
    CHECK(given > LAST);
    for (int i = 0; i < ROUNDS; i++) {
        ask(fd, given);
        ask(given, fd);
    }
}

static void does(int fd)
{
    struct rlimit most;
    CHECK(getrlimit(RLIMIT_NOFILE, &most) == 0);
    most.rlim_cur = most.rlim_max;
    CHECK(setrlimit(RLIMIT_NOFILE, &most) == 0);
    (!strcmp(how, "sets") ? many_sets : !strcmp(how, "epoll") ? high_set : !strcmp(how, "dup") ? high_dup : passed)(fd);
    shutdown(fd, SHUT_RDWR);
}

static void echoes(int fd) { give_back(fd, fd); }

int main(int argc, char **argv)
{
    CHECK(argc == 2);
    how = argv[1];
    return guest_main(does, echoes);
}
