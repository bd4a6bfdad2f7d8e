/* SPDX-License-Identifier: Apache-2.0
 *
 * closed_under.c - a descriptor is closed while another thread waits in a call on it, and the next connection gets its number.
 *
 *   closed_under receive|send|wait|jumped|cancelled
 *
 * Natively the call holds the file: it goes on, with the connection that it was begun on, and the end of that comes to the peer only when the call is over.
 * The next connection has nothing to do with it. `wait`: send with a time limit. A thread that has left its call (siglongjmp, pthread_cancel) holds nothing.
 */
#include <arpa/inet.h>
#include <errno.h>
#include <pthread.h>
#include <setjmp.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/time.h>
#include <unistd.h>

#define LATER_US 150000
#define WARM 30
#define MUCH (8 << 20)

struct pair {
    int near, far;
};

static struct sockaddr_in at = {.sin_family = AF_INET};
static char buffer[1 << 20];
static struct pair old;
static const char *what;

static void die(const char *why)
{
    perror(why);
    exit(1);
}

/* Whole and in order: `n` bytes of this letter. */
static void get(int fd, char letter, size_t n)
{
    for (size_t i = 0; i < n; i++) {
        char byte = 0;
        if (recv(fd, &byte, 1, 0) != 1 || byte != letter) {
            printf("not %c but %d\n", letter, byte);
            exit(1);
        }
    }
}

static void put(int fd, char letter, size_t n)
{
    memset(buffer, letter, n);
    if (send(fd, buffer, n, 0) != (ssize_t)n)
        die("send");
}

static struct pair connected(int listener)
{
    struct pair p = {socket(AF_INET, SOCK_STREAM, 0), -1};

    if (connect(p.near, (struct sockaddr *)&at, sizeof at) < 0 || (p.far = accept(listener, NULL, NULL)) < 0)
        die("connect");
    return p;
}

/* Both ends are on shared memory afterwards, where they can be. */
static void exchange(const struct pair *p)
{
    for (int i = 0; i < WARM; i++) {
        put(p->near, 'w', 1);
        get(p->far, 'w', 1);
        put(p->far, 'w', 1);
        get(p->near, 'w', 1);
        usleep(10000);
    }
}

static sigjmp_buf out;
static char said[128]; /* by that thread */

static void jump(int number) { siglongjmp(out, number); }

static void *blocked(void *none)
{
    ssize_t r;

    if (!strcmp(what, "jumped")) {
        if (!sigsetjmp(out, 1))
            recv(old.near, buffer, 1, 0);
        for (;;)
            pause();
    } else if (!strcmp(what, "cancelled")) {
        recv(old.near, buffer, 1, 0);
    } else if (!strcmp(what, "receive")) {
        char got[64] = "";
        r = recv(old.near, got, sizeof got - 1, 0);
        snprintf(said, sizeof said, "received %zd: %s", r, got);
    } else {
        r = send(old.near, buffer, !strcmp(what, "wait") ? 1 : MUCH / 8, 0);
        snprintf(said, sizeof said, "sent %zd%s", r, r < 0 ? strerror(errno) : "");
    }
    return none;
}

/* To the end; no byte more or less than that thread has sent. */
static void drain(int fd, size_t full)
{
    size_t all = 0;
    ssize_t r;

    while ((r = recv(fd, buffer, sizeof buffer, 0)) > 0)
        all += (size_t)r;
    printf("drained %s, end %zd\n", all == full ? "all" : all == full + MUCH / 8 ? "all and the send" : "something else", r);
}

static size_t fill(int fd)
{
    size_t all = 0;
    ssize_t r;

    memset(buffer, 'f', sizeof buffer);
    for (int idle = 0; idle < 10; idle++) { /* what the kernel holds moves on for a while */
        while ((r = send(fd, buffer, all ? 1 : sizeof buffer, MSG_DONTWAIT)) > 0) {
            all += (size_t)r;
            idle = 0;
        }
        usleep(20000);
    }
    return all;
}

static int left(pthread_t thread)
{
    struct timeval limit = {3, 0};

    if (!strcmp(what, "jumped")) {
        pthread_kill(thread, SIGUSR1);
        usleep(LATER_US);
    } else {
        pthread_cancel(thread);
        pthread_join(thread, NULL);
    }
    close(old.near);
    setsockopt(old.far, SOL_SOCKET, SO_RCVTIMEO, &limit, sizeof limit);
    printf("its end %zd\n", recv(old.far, buffer, 1, 0));
    return 0;
}

int main(int argc, char **argv)
{
    int listener = socket(AF_INET, SOCK_STREAM, 0), number;
    struct timeval limit = {1, 0};
    struct pair next;
    socklen_t len = sizeof at;
    size_t full = 0;
    pthread_t thread;

    what = argc > 1 ? argv[1] : "receive";
    signal(SIGUSR1, jump);
    at.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
    if (bind(listener, (struct sockaddr *)&at, sizeof at) < 0 || listen(listener, 8) < 0 || getsockname(listener, (struct sockaddr *)&at, &len) < 0)
        die("listen");
    old = connected(listener);
    exchange(&old);
    number = old.near;
    if (!strcmp(what, "send") || !strcmp(what, "wait"))
        full = fill(old.near);
    if (!strcmp(what, "wait"))
        setsockopt(old.near, SOL_SOCKET, SO_SNDTIMEO, &limit, sizeof limit);
    pthread_create(&thread, NULL, blocked, NULL);
    usleep(LATER_US);
    if (!strcmp(what, "jumped") || !strcmp(what, "cancelled"))
        return left(thread);
    close(old.near);
    next = connected(listener);
    printf("the next one has %s number\n", next.near == number ? "the same" : "another");
    put(next.far, 'n', 5); /* by TCP still: nobody else may take a byte of it */
    if (!strcmp(what, "receive")) {
        put(old.far, 'o', 5);
        pthread_join(thread, NULL);
        printf("then %zd\n", recv(old.far, buffer, 1, 0));
    } else if (!strcmp(what, "wait")) {
        pthread_join(thread, NULL);
        drain(old.far, full);
    } else {
        drain(old.far, full);
        pthread_join(thread, NULL);
    }
    puts(said);
    get(next.near, 'n', 5);
    exchange(&next);
    close(next.near);
    printf("the next one's end %zd\n", recv(next.far, buffer, 1, 0));
    return 0;
}
