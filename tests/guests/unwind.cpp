/* SPDX-License-Identifier: Apache-2.0
 *
 * unwind WHAT: C++ unwinds out of calls on the connection.
 *
 *   throw   an exception that a signal handler throws out of a recv that waits (-fnon-call-exceptions) runs destructors up to its catch
 *   cancel  pthread_cancel of a thread that waits in recv, in accept and in poll: its destructors run, catch (...) sees it, and may look at the connection
 *   trace   backtrace() in a handler that comes into a recv that waits, and in one for SIGSEGV right after a send: the names of the functions
 *           from there to main
 *   core    abort() in the middle of a conversation, while another thread waits in recv: what stands in the core dump is the test's affair
 */
#include "guest.h"
#include <cxxabi.h>
#include <dlfcn.h>
#include <execinfo.h>
#include <pthread.h>
#include <stdexcept>
#include <sys/time.h>

static const char *what;
static int conn, destroyed;

struct Guard {
    ~Guard() { destroyed++; }
};

static void on(int number, void (*handler)(int))
{
    struct sigaction a;
    memset(&a, 0, sizeof a);
    a.sa_handler = handler;
    a.sa_flags = SA_NODEFER;
    CHECK(sigaction(number, &a, NULL) == 0);
}

static void alarm_in(int ms)
{
    struct itimerval t;
    memset(&t, 0, sizeof t);
    t.it_value.tv_usec = ms * 1000;
    CHECK(setitimer(ITIMER_REAL, &t, NULL) == 0);
}

/* ---- throw */

static void thrower(int) { throw std::runtime_error("alarm"); }

extern "C" __attribute__((noinline)) void deepest(int fd)
{
    Guard guard;
    char c;
    recv(fd, &c, 1, 0);
    CHECK(!"came back");
}

extern "C" __attribute__((noinline)) void middle(int fd)
{
    Guard guard;
    deepest(fd);
    destroyed += 100; /* never */
}

static void throws(int fd)
{
    on(SIGALRM, thrower);
    for (int i = 1; i <= 20; i++) {
        bool caught = false;
        alarm_in(i % 2 ? 20 : 1);
        try {
            middle(fd);
        } catch (const std::runtime_error &error) {
            caught = !strcmp(error.what(), "alarm");
        }
        CHECK(caught && destroyed == 2 * i);
    }
}

/* ---- cancel */

static volatile bool looked;

static void *cancelled(void *how)
{
    Guard guard;
    char c;
    try {
        Guard inner;
        if (how == (void *)1) {
            recv(conn, &c, 1, 0);
        } else if (how == (void *)2) {
            struct sockaddr_in addr;
            accept(listen_loopback(&addr, 1), NULL, NULL);
        } else {
            struct pollfd p = {conn, POLLIN, 0};
            poll(&p, 1, -1);
        }
    } catch (abi::__forced_unwind &) {
        looked = recv(conn, &c, 1, MSG_DONTWAIT | MSG_PEEK) == -1 && errno == EAGAIN;
        throw;
    }
    return NULL;
}

static void cancels(int)
{
    for (long how = 1; how <= 3; how++) {
        pthread_t thread;
        void *result;
        destroyed = 0;
        looked = false;
        CHECK(pthread_create(&thread, NULL, cancelled, (void *)how) == 0);
        sleep_ms(30);
        CHECK(pthread_cancel(thread) == 0 && pthread_join(thread, &result) == 0);
        CHECK(result == PTHREAD_CANCELED && destroyed == 2 && looked);
    }
}

/* ---- trace */

static char names[1024];

static void look(int number)
{
    void *frames[32];
    int n = backtrace(frames, 32);
    for (int i = 0; i < n; i++) {
        Dl_info info;
        if (dladdr(frames[i], &info) && info.dli_sname && strlen(names) < sizeof names - 64)
            snprintf(names + strlen(names), 64, "%.40s ", info.dli_sname);
    }
    if (number == SIGSEGV)
        throw std::runtime_error("fault");
    throw std::runtime_error("alarm");
}

static bool in_order(const char *one, const char *two, const char *three)
{
    const char *a = strstr(names, one), *b = a ? strstr(a, two) : NULL;
    return b && strstr(b, three);
}

static volatile int *volatile nowhere;

extern "C" __attribute__((noinline)) void faults(int fd)
{
    Guard guard;
    say(fd, "f");
    *nowhere = 1;
}

static void traces(int fd)
{
    void *unused[1];
    backtrace(unused, 1); /* loads what it needs */
    on(SIGALRM, look);
    on(SIGSEGV, look);
    alarm_in(20);
    try {
        middle(fd);
    } catch (const std::runtime_error &) {
    }
    if (!in_order("deepest", "middle", "main")) {
        puts(names);
        _exit(1);
    }
    names[0] = 0;
    try {
        faults(fd);
    } catch (const std::runtime_error &) {
    }
    if (!in_order("faults", "main", "main")) {
        puts(names);
        _exit(1);
    }
}

/* ---- core */

extern "C" __attribute__((noinline)) void *waits(void *arg)
{
    char c;
    recv(conn, &c, 1, 0);
    return arg;
}

extern "C" __attribute__((noinline)) void gives_up(int fd)
{
    say(fd, "c");
    abort();
}

static void dumps(int fd)
{
    pthread_t thread;
    CHECK(pthread_create(&thread, NULL, waits, NULL) == 0);
    sleep_ms(50);
    gives_up(fd);
}

static void accepted(int fd)
{
    conn = fd;
    if (!strcmp(what, "throw"))
        throws(fd);
    else if (!strcmp(what, "cancel"))
        cancels(fd);
    else if (!strcmp(what, "trace"))
        traces(fd);
    else
        dumps(fd);
    say(fd, "x");
    for (int i = 0; i < 100; i++) { /* and the connection is as it was */
        expect(fd, "ping");
        say(fd, "pong");
    }
}

static void connected(int fd)
{
    char c = 0;
    while (c != 'x' && read(fd, &c, 1) == 1)
        ;
    if (!strcmp(what, "core"))
        return;
    for (int i = 0; i < 100; i++) {
        say(fd, "ping");
        expect(fd, "pong");
    }
}

int main(int, char **argv)
{
    what = argv[1];
    return guest_main(accepted, connected);
}
