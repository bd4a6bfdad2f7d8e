/* SPDX-License-Identifier: Apache-2.0
 *
 * early_epoll thread|set|dup: an epoll set that is older than the program's first socket. Whoever sleeps on it has to hear of a connection that comes in later, and
 * by the number that the program has given it.
 *
 *   thread   a thread sleeps on it before there is a socket
 *   set      it starts to sleep when there is one, and before it is in the set
 *   dup      as thread, by another descriptor of the same set
 */
#include "guest.h"
#include <pthread.h>
#include <stdatomic.h>
#include <sys/epoll.h>

#define NUMBER 0x1122334455667788ull
#define ROUNDS 50

static int conn;
static atomic_int sleeper; /* its thread id */

static void *sleeps(void *arg)
{
    int set = *(int *)arg;
    struct epoll_event e;

    sleeper = gettid();
    for (int i = 0; i < ROUNDS; i++) {
        CHECK(epoll_wait(set, &e, 1, -1) == 1);
        CHECK(e.data.u64 == NUMBER && e.events == EPOLLIN);
        expect(conn, "there");
        say(conn, "back");
    }
    return NULL;
}

/* Until the thread sleeps in the kernel. */
static void asleep(void)
{
    char path[64], text[256] = "";

    while (!sleeper)
        sleep_ms(1);
    snprintf(path, sizeof path, "/proc/self/task/%d/wchan", (int)sleeper);
    while (!strstr(text, "poll")) {
        int fd = open(path, O_RDONLY);
        ssize_t n = read(fd, text, sizeof text - 1);
        text[n > 0 ? n : 0] = 0;
        close(fd);
        sleep_ms(1);
    }
}

static void other(const struct sockaddr_in *addr)
{
    conn = connect_loopback(addr);
    warm_up(conn, true);
    expect(conn, "g");
    for (int i = 0; i < ROUNDS; i++) {
        sleep_ms(i % 4); /* the thread over there falls asleep, or does not get round to it */
        say(conn, "there");
        expect(conn, "back");
    }
    expect_eof(conn);
    _exit(0);
}

int main(int argc, char **argv)
{
    struct sockaddr_in addr;
    int set = epoll_create1(0), waited = set, pipes[2];
    struct epoll_event e = {.events = EPOLLIN, .data.u64 = 1};
    bool late = argc == 2 && strcmp(argv[1], "set") == 0;
    pthread_t t;

    alarm(30);
    CHECK(argc == 2 && set >= 0 && pipe(pipes) == 0 && epoll_ctl(set, EPOLL_CTL_ADD, pipes[0], &e) == 0);
    if (strcmp(argv[1], "dup") == 0)
        waited = dup(set);
    if (!late) {
        CHECK(pthread_create(&t, NULL, sleeps, &waited) == 0);
        asleep();
    }
    int listener = listen_loopback(&addr, 1);
    pid_t child = fork();
    if (child == 0)
        other(&addr);
    if (late) {
        CHECK(pthread_create(&t, NULL, sleeps, &waited) == 0);
        asleep();
    }
    CHECK((conn = accept(listener, NULL, NULL)) >= 0);
    warm_up(conn, false);
    e.data.u64 = NUMBER;
    CHECK(epoll_ctl(set, EPOLL_CTL_ADD, conn, &e) == 0);
    say(conn, "g");
    CHECK(pthread_join(t, NULL) == 0);
    close(conn);
    reap(child);
    puts("ok");
    return 0;
}
