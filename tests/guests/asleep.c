/* SPDX-License-Identifier: Apache-2.0
 *
 * asleep: threads that sleep in calls on a connection that is on the ring, and in calls that are none of our business, until they are looked at: it
 * prints "asleep", and ends by a signal.
 */
#include "guest.h"
#include <pthread.h>
#include <sys/epoll.h>

#define NOINLINE __attribute__((noinline))

static int conn, pipes[2];
static pthread_mutex_t mutex = PTHREAD_MUTEX_INITIALIZER;
static pthread_cond_t never = PTHREAD_COND_INITIALIZER;

NOINLINE void *in_recv(void *arg)
{
    char c;
    recv(conn, &c, 1, 0);
    return arg;
}

NOINLINE void *in_poll(void *arg)
{
    struct pollfd p = {conn, POLLIN, 0};
    poll(&p, 1, -1);
    return arg;
}

NOINLINE void *in_epoll(void *arg)
{
    struct epoll_event e = {.events = EPOLLIN};
    int set = epoll_create1(0);
    CHECK(epoll_ctl(set, EPOLL_CTL_ADD, conn, &e) == 0);
    epoll_wait(set, &e, 1, -1);
    return arg;
}

NOINLINE void *in_wait(void *arg)
{
    pthread_mutex_lock(&mutex);
    pthread_cond_wait(&never, &mutex);
    return arg;
}

NOINLINE void *in_read(void *arg)
{
    char c;
    CHECK(read(pipes[0], &c, 1) == 1);
    return arg;
}

NOINLINE static void in_pause(void)
{
    for (;;)
        pause();
}

static void accepted(int fd)
{
    void *(*calls[])(void *) = {in_recv, in_poll, in_epoll, in_wait, in_read};
    pthread_t t;
    conn = fd;
    CHECK(pipe(pipes) == 0);
    for (size_t i = 0; i < sizeof calls / sizeof *calls; i++)
        CHECK(pthread_create(&t, NULL, calls[i], NULL) == 0);
    sleep_ms(300);
    puts("asleep");
    fflush(stdout);
    in_pause();
}

static void connected(int fd)
{
    char c;
    while (read(fd, &c, 1) > 0)
        ;
}

int main(void) { return guest_main(accepted, connected); }
