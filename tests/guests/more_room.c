/* SPDX-License-Identifier: Apache-2.0
 * A thread raises and lowers SO_SNDBUF while others send on the connection, wait in poll for room, and sleep for something else: no call ends in EINTR, or
 * with fewer bytes than were asked for, unless a handler of the program has run in it. Argument: none, plain or restart: is there one? */
#include "guest.h"
#include <pthread.h>

#define SECONDS 1.5
#define MOST 30000

#define THREADS 4

static const char *handler;
static pthread_t thread[THREADS];
static int sock;
static volatile bool over;
static __thread volatile unsigned handled;

static void on_alarm(int number)
{
    (void)number;
    handled++;
}

static bool excused(long r, long asked, unsigned before)
{
    return r == asked || (handled != before && (r >= 0 || errno == EINTR));
}

static void *send_much(void *unused)
{
    static unsigned char data[MOST];
    struct prng sizes = {(uint64_t)(uintptr_t)&unused};
    while (!over) {
        long n = 1 + (long)(prng_next(&sizes) % MOST);
        unsigned before = handled;
        CHECK(excused(send(sock, data, (size_t)n, 0), n, before));
    }
    return NULL;
}

static void *poll_for_room(void *unused)
{
    struct pollfd p = {sock, POLLOUT, 0};
    while (!over) {
        unsigned before = handled;
        int r = poll(&p, 1, 2000);
        CHECK(excused(r, 1, before));
        sleep_ms(1);
    }
    return unused;
}

static void *sleep_beside(void *unused)
{
    struct timespec ts = {0, 300000};
    while (!over) {
        unsigned before = handled;
        CHECK(excused(nanosleep(&ts, NULL), 0, before));
        before = handled;
        CHECK(excused(poll(NULL, 0, 1), 0, before));
    }
    return unused;
}

/* To each by itself: of a signal to all of them natively also who does not take it may hear. */
static void tick(void)
{
    struct timespec ts = {0, 700000};
    for (size_t i = 0; i < THREADS && strcmp(handler, "none"); i++)
        CHECK(pthread_kill(thread[i], SIGALRM) == 0);
    nanosleep(&ts, NULL);
}

static void change(void)
{
    int small = 4096, large = 200000;
    double end = now_s() + SECONDS;
    while (now_s() < end) {
        CHECK(setsockopt(sock, SOL_SOCKET, SO_SNDBUF, &small, sizeof small) == 0);
        tick();
        CHECK(setsockopt(sock, SOL_SOCKET, SO_SNDBUF, &large, sizeof large) == 0);
    }
    over = true;
}

static void reader(const struct sockaddr_in *to)
{
    static char buf[16384];
    long n;
    sock = connect_loopback(to);
    warm_up(sock, false);
    while ((n = recv(sock, buf, sizeof buf, 0)) > 0)
        sleep_ms(1);
    CHECK(n == 0);
    _exit(0);
}

int main(int argc, char **argv)
{
    void *(*const does[THREADS])(void *) = {send_much, send_much, poll_for_room, sleep_beside};
    struct sigaction sa = {.sa_handler = on_alarm};
    struct sockaddr_in addr;
    int listener = listen_loopback(&addr, 4);
    pid_t child = fork();
    handler = argc > 1 ? argv[1] : "none";
    if (!child)
        reader(&addr);
    CHECK((sock = accept(listener, NULL, NULL)) >= 0);
    warm_up(sock, true);
    sa.sa_flags = strcmp(handler, "restart") ? 0 : SA_RESTART;
    CHECK(sigaction(SIGALRM, &sa, NULL) == 0);
    for (size_t i = 0; i < THREADS; i++)
        CHECK(pthread_create(&thread[i], NULL, does[i], NULL) == 0);
    change();
    for (size_t i = 0; i < THREADS; i++)
        CHECK(pthread_join(thread[i], NULL) == 0);
    CHECK(shutdown(sock, SHUT_WR) == 0);
    reap(child);
    puts("ok");
    return 0;
}
