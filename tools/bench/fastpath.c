/* SPDX-License-Identifier: Apache-2.0
 *
 * fastpath.c - the calls whose instructions tools/instructions.py counts. Run by it under sdrun; alone it does nothing of use.
 *
 * Both ends of two loopback connections are in this one process and everything happens in one order, so each call always finds the same
 * state: room when it sends, bytes when it receives. "idle N": the epoll set has N connections more, whose other ends a child holds. Every call into the library after the start goes through probe(): a counted call must
 * not find what an uncounted one has left behind. The call is `mov $nr,%eax; syscall`, as libc's wrappers have it, between two `int3`,
 * where the tracer takes over and where it stops; the number of the probe is in r15.
 */
#include <arpa/inet.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/socket.h>
#include <sys/syscall.h>
#include <unistd.h>
#include <fcntl.h>
#include <poll.h>
#include <signal.h>
#include <sys/resource.h>

/* Order and names: printed for the tracer. also_*: bring about the state for the next one. */
#define PROBES(X) \
    X(send8, __NR_sendto) X(recv8, __NR_recvfrom) X(write8, __NR_write) X(read8, __NR_read) X(recv_empty, __NR_recvfrom) \
    X(also_epoll_send8, __NR_sendto) X(epoll_ready, __NR_epoll_wait) X(also_epoll_recv8, __NR_recvfrom) X(also_poll_send8, __NR_sendto) \
    X(poll_ready, __NR_poll) X(also_poll_recv8, __NR_recvfrom) X(other_getppid, __NR_getppid) X(other_read, __NR_read) \
    X(other_poll, __NR_poll) X(other_sigprocmask, __NR_rt_sigprocmask)

/* The same for the life of a connection that stays on TCP, in one process. */
#define SHORT_PROBES(X) \
    X(short_socket, __NR_socket) X(short_connect, __NR_connect) X(short_accept, __NR_accept) X(short_ask, __NR_sendto) X(short_asked, __NR_recvfrom) \
    X(short_answer, __NR_sendto) X(short_answered, __NR_recvfrom) X(short_close, __NR_close) X(short_end, __NR_recvfrom) X(short_close_too, __NR_close)

enum { PROBE_NONE,
#define X(name, nr) PROBE_##name,
PROBES(X)
#undef X
};
enum { SHORT_NONE,
#define X(name, nr) PROBE_##name,
SHORT_PROBES(X)
#undef X
};

/* One function a probe, so that each has a call site of its own. In a block of 16 bytes the site can be patched with threads about, too. */
#define X(name, nr) \
    static __attribute__((noinline)) long probe_##name(long a, long b, long c, long d) \
    { \
        register long r10 __asm__("r10") = d; \
        register long r8 __asm__("r8") = 0; \
        register long r9 __asm__("r9") = 0; \
        register long r15 __asm__("r15") = PROBE_##name; \
        long r; \
        __asm__ volatile(".balign 16\n\tnop; nop; nop; int3\n\tmov %[n], %%eax\n\tsyscall\n\tint3" \
                         : "=&a"(r), "+r"(r15), "+r"(r10), "+r"(r8), "+r"(r9) \
                         : [n] "i"(nr), "D"(a), "S"(b), "d"(c) \
                         : "rcx", "r11", "memory"); \
        return r; \
    }
PROBES(X)
SHORT_PROBES(X)
#undef X

static void check(int ok, const char *what)
{
    if (!ok) {
        perror(what);
        exit(1);
    }
}

static int outgoing(int listener)
{
    struct sockaddr_in to;
    socklen_t len = sizeof to;
    int fd = socket(AF_INET, SOCK_STREAM, 0);

    check(getsockname(listener, (struct sockaddr *)&to, &len) == 0, "getsockname");
    check(fd >= 0 && connect(fd, (struct sockaddr *)&to, sizeof to) == 0, "connect");
    return fd;
}

static void connection(int listener, int *tx, int *rx)
{
    *tx = outgoing(listener);
    *rx = accept(listener, NULL, NULL);
    check(*rx >= 0, "accept");
}

static void *sleeper(void *unused)
{
    (void)unused;
    for (;;)
        pause();
    return NULL;
}

static void exchange(int fd, int first)
{
    char byte = 'x';

    for (int i = 0; i < 4; i++) {
        if (first)
            check(write(fd, &byte, 1) == 1, "idle connection");
        check(read(fd, &byte, 1) == 1, "idle connection");
        if (!first)
            check(write(fd, &byte, 1) == 1, "idle connection");
    }
}

static void more_descriptors(void)
{
    struct rlimit files;

    getrlimit(RLIMIT_NOFILE, &files);
    files.rlim_cur = files.rlim_max;
    setrlimit(RLIMIT_NOFILE, &files);
}

/* The other ends, by a child that holds none of our connections. It waits for a byte; it is as silent as they are, until it is killed with our group. */
static int idle_peer(int listener, int n)
{
    int begin[2];
    char byte;

    more_descriptors();
    check(pipe(begin) == 0, "pipe");
    if (fork() != 0)
        return begin[1];
    check(read(begin[0], &byte, 1) == 1, "pipe");
    for (int i = 0; i < n; i++)
        exchange(outgoing(listener), 1);
    for (;;)
        pause();
}

/* Connections in the same epoll set that have moved, and say nothing any more. */
static void idle_connections(int listener, int epfd, int n, int begin)
{
    struct epoll_event event = {.events = EPOLLIN, .data.u32 = 1}, got;

    check(write(begin, "x", 1) == 1, "pipe");
    for (int i = 0; i < n; i++) {
        int fd = accept(listener, NULL, NULL);
        check(fd >= 0, "accept");
        exchange(fd, 0);
        check(epoll_ctl(epfd, EPOLL_CTL_ADD, fd, &event) == 0, "epoll_ctl");
        event.data.u32++;
    }
    for (int i = 0; i < 8; i++)
        check(epoll_wait(epfd, &got, 1, 1) == 0, "silence");
}

/* Until the tracer is there: without one the next int3 is fatal. */
static int told_to_begin(void)
{
    char byte;

    printf("\n");
    fflush(stdout);
    return read(0, &byte, 1) == 1;
}

static int short_lives(int listener)
{
    struct sockaddr_in to;
    socklen_t len = sizeof to;
    char bytes[64] = "";

    check(getsockname(listener, (struct sockaddr *)&to, &len) == 0, "getsockname");
#define X(name, nr) printf("%s ", #name);
    SHORT_PROBES(X)
#undef X
    if (!told_to_begin())
        return 1;
    for (;;) {
        long fd = probe_short_socket(AF_INET, SOCK_STREAM, 0, 0), peer;
        check(fd >= 0 && probe_short_connect(fd, (long)&to, sizeof to, 0) == 0, "connect");
        peer = probe_short_accept(listener, 0, 0, 0);
        check(peer >= 0, "accept");
        check(probe_short_ask(fd, (long)bytes, 64, MSG_NOSIGNAL) == 64 && probe_short_asked(peer, (long)bytes, 64, 0) == 64, "request");
        check(probe_short_answer(peer, (long)bytes, 64, MSG_NOSIGNAL) == 64 && probe_short_answered(fd, (long)bytes, 64, 0) == 64, "answer");
        check(probe_short_close(peer, 0, 0, 0) == 0 && probe_short_end(fd, (long)bytes, 1, 0) == 0, "end");
        check(probe_short_close_too(fd, 0, 0, 0) == 0, "close");
    }
}

int main(int argc, char **argv)
{
    struct sockaddr_in any = {.sin_family = AF_INET, .sin_addr.s_addr = htonl(INADDR_LOOPBACK)};
    struct epoll_event event = {.events = EPOLLIN}, got;
    struct pollfd ours = {.events = POLLIN}, other = {.events = POLLIN};
    char out[8] = "8 bytes", in[64];
    int tx, rx, etx, erx, listener, epfd, null, mt, idle, begin = -1;
    sigset_t none;
    pthread_t thread;

    mt = argc > 1 && strcmp(argv[1], "threads") == 0;
    idle = argc > 2 && strcmp(argv[1], "idle") == 0 ? atoi(argv[2]) : 0;
    listener = socket(AF_INET, SOCK_STREAM, 0);
    check(bind(listener, (struct sockaddr *)&any, sizeof any) == 0 && listen(listener, 8) == 0, "listen");
    if (idle)
        begin = idle_peer(listener, idle);
    if (argc > 1 && strcmp(argv[1], "short") == 0)
        return short_lives(listener);
    if (mt)
        check(pthread_create(&thread, NULL, sleeper, NULL) == 0, "pthread_create");
    connection(listener, &tx, &rx);
    connection(listener, &etx, &erx);
    epfd = epoll_create1(0);
    check(epoll_ctl(epfd, EPOLL_CTL_ADD, erx, &event) == 0, "epoll_ctl");
    if (idle)
        idle_connections(listener, epfd, idle, begin);
    null = open("/dev/null", O_RDWR);
    ours.fd = rx;
    other.fd = null;
    sigemptyset(&none);
#define X(name, nr) printf("%s ", #name);
    PROBES(X)
#undef X
    if (!told_to_begin())
        return 1;
    for (;;) {
        check(probe_send8(tx, (long)out, 8, 0) == 8, "send8");
        check(probe_recv8(rx, (long)in, 8, 0) == 8, "recv8");
        check(probe_write8(tx, (long)out, 8, 0) == 8, "write8");
        check(probe_read8(rx, (long)in, 64, 0) == 8, "read8");
        check(probe_recv_empty(rx, (long)in, 64, MSG_DONTWAIT) < 0, "recv_empty");
        check(probe_also_epoll_send8(etx, (long)out, 8, 0) == 8, "epoll_send8");
        check(probe_epoll_ready(epfd, (long)&got, 1, -1) == 1, "epoll_ready");
        check(probe_also_epoll_recv8(erx, (long)in, 64, 0) == 8, "epoll_recv8");
        check(probe_also_poll_send8(tx, (long)out, 8, 0) == 8, "poll_send8");
        check(probe_poll_ready((long)&ours, 1, -1, 0) == 1, "poll_ready");
        check(probe_also_poll_recv8(rx, (long)in, 64, 0) == 8, "poll_recv8");
        check(probe_other_getppid(0, 0, 0, 0) > 0, "other_getppid");
        check(probe_other_read(null, (long)in, 8, 0) == 0, "other_read");
        check(probe_other_poll((long)&other, 1, 0, 0) == 1, "other_poll");
        check(probe_other_sigprocmask(SIG_SETMASK, (long)&none, 0, 8) == 0, "other_sigprocmask");
    }
}
