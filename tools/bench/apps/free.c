/* SPDX-License-Identifier: Apache-2.0
 *
 * free.c - what a program takes for a request where its sockets cost nothing: a library for LD_PRELOAD.
 *
 *   SDBENCH_FREE=FILE SDBENCH_FREE_AFTER=EXCHANGES
 *
 * An exchange is what arrives on a TCP connection and what the program says then. The first of them go to the kernel as ever. Then, where the program is about to wait
 * for the next one, it gets the last one again, and what it says is taken and forgotten; so it goes on for ROUNDS x EACH exchanges, without a system call for
 * any socket. All else it does itself: its own instructions, files, clocks. A line with the CPU seconds of an exchange, the median of the rounds, is added to FILE. From then on the kernel
 * has the connection again, on which no byte was lost or made up: the peer has waited meanwhile.
 *
 * Too little, so a floor: caches and branch predictors know everything after a few rounds. Too much: a function of ours in place of each call (some 5 ns), and bytes that arrive are
 * copied once, as they would be from any memory that two programs share.
 */
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <signal.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/sendfile.h>
#include <sys/socket.h>
#include <sys/syscall.h>
#include <sys/uio.h>
#include <time.h>
#include <unistd.h>

#define FDS 1024
#define TAPE (1u << 20)
#define ROUNDS 8
#define EACH 500

enum kind { UNKNOWN, OURS, OTHER };

struct connection {
    enum kind kind;
    bool said;      /* since something has arrived */
    bool blocks;
    uint32_t exchanges;
    int set;        /* 1 + the epoll set that it is in */
    uint32_t events;
    epoll_data_t data;
    size_t bytes, taken; /* on the tape, and of them, while it plays */
    char *tape;
};

static struct connection all[FDS];
static struct connection *playing; /* by one thread */
static __thread bool mine;
static bool over;
static uint32_t after, played;
static char result[512];
static double taken[ROUNDS], began;

static void __attribute__((constructor)) start(void)
{
    const char *file = getenv("SDBENCH_FREE"), *from = getenv("SDBENCH_FREE_AFTER");

    /* nginx forgets its environment */
    snprintf(result, sizeof result, "%s", file ? file : "");
    after = from ? (uint32_t)atoi(from) : 1000;
    over = !file;
}

static double cpu_seconds(void)
{
    struct timespec ts;

    clock_gettime(CLOCK_THREAD_CPUTIME_ID, &ts);
    return (double)ts.tv_sec + (double)ts.tv_nsec * 1e-9;
}

/* NULL: none of a TCP connection. */
static struct connection *of(int fd)
{
    struct connection *c = &all[fd];
    int domain = 0, type = 0;
    socklen_t len = sizeof domain;

    if (over || fd < 0 || fd >= FDS || c->kind == OTHER)
        return NULL;
    if (c->kind == UNKNOWN) {
        int saved = errno;
        bool tcp = getsockopt(fd, SOL_SOCKET, SO_DOMAIN, &domain, &len) == 0 && (domain == AF_INET || domain == AF_INET6) &&
                   getsockopt(fd, SOL_SOCKET, SO_TYPE, &type, &len) == 0 && type == SOCK_STREAM;
        errno = saved;
        c->kind = tcp ? OURS : OTHER;
    }
    return c->kind == OURS ? c : NULL;
}

static bool plays(const struct connection *c) { return c && c == playing && mine; }

static int by_value(const void *a, const void *b)
{
    double x = *(const double *)a, y = *(const double *)b;

    return (x > y) - (x < y);
}

static void finish(void)
{
    char line[32];
    int fd = open(result, O_WRONLY | O_APPEND | O_CREAT | O_CLOEXEC, 0666);

    qsort(taken, ROUNDS, sizeof *taken, by_value);
    int n = snprintf(line, sizeof line, "%.4e\n", (taken[ROUNDS / 2] + taken[ROUNDS / 2 - 1]) / 2 / EACH);
    if (fd >= 0 && write(fd, line, (size_t)n) == n)
        syscall(SYS_close, fd);
    over = true;
    playing = NULL;
}

/* The program is about to wait for what comes on c, to which it has answered. True: the tape has been turned back. */
static bool turn(int fd, struct connection *c)
{
    if (!playing) {
        if (c->exchanges < after || !c->said || !c->bytes || c->bytes == TAPE)
            return false;
        c->blocks = !(fcntl(fd, F_GETFL) & O_NONBLOCK);
        c->taken = c->bytes;
        playing = c;
        mine = true;
        began = cpu_seconds();
    }
    if (!plays(c) || !c->said || c->taken < c->bytes)
        return false;
    if (played && played % EACH == 0) {
        double now = cpu_seconds();
        taken[played / EACH - 1] = now - began;
        began = now;
        if (played == ROUNDS * EACH) {
            finish();
            return false;
        }
    }
    played++;
    c->taken = 0;
    c->said = false;
    return true;
}

/* What has arrived, natively. */
static void record(struct connection *c, const char *bytes, ssize_t n)
{
    if (!c || over || n <= 0)
        return;
    if (c->said || !c->bytes) {
        c->exchanges++;
        c->bytes = 0;
        c->said = false;
    }
    if (!c->tape && !(c->tape = malloc(TAPE)))
        return;
    size_t room = TAPE - c->bytes, fits = (size_t)n < room ? (size_t)n : room;
    memcpy(c->tape + c->bytes, bytes, fits);
    c->bytes += fits;
}

static ssize_t take(int fd, struct connection *c, char *buf, size_t len, int flags)
{
    size_t n = c->bytes - c->taken;

    if (!n && c->blocks && !(flags & MSG_DONTWAIT) && turn(fd, c))
        n = c->bytes;
    if (!n) {
        errno = EAGAIN;
        return -1;
    }
    n = n < len ? n : len;
    memcpy(buf, c->tape + c->taken, n);
    if (!(flags & MSG_PEEK))
        c->taken += n;
    return (ssize_t)n;
}

static ssize_t say(struct connection *c, ssize_t n)
{
    if (c && n > 0)
        c->said = true;
    return n;
}

/* ------------------------------------------------------------------ bytes */

static ssize_t receive(int fd, void *buf, size_t len, int flags, bool plain)
{
    struct connection *c = of(fd);

    if (c && !playing && c->exchanges >= after && !(flags & MSG_DONTWAIT) && !(fcntl(fd, F_GETFL) & O_NONBLOCK))
        turn(fd, c);
    if (plays(c)) {
        ssize_t n = take(fd, c, buf, len, flags);
        if (n >= 0 || playing)
            return n;
    }
    ssize_t n = plain ? syscall(SYS_read, fd, buf, len) : syscall(SYS_recvfrom, fd, buf, len, flags, NULL, NULL);
    if (!(flags & MSG_PEEK))
        record(c, buf, n);
    return n;
}

ssize_t read(int fd, void *buf, size_t len) { return receive(fd, buf, len, 0, true); }
ssize_t recv(int fd, void *buf, size_t len, int flags) { return receive(fd, buf, len, flags, false); }

ssize_t __read_chk(int fd, void *buf, size_t len, size_t room);
ssize_t __recv_chk(int fd, void *buf, size_t len, size_t room, int flags);
ssize_t __read_chk(int fd, void *buf, size_t len, size_t room) { return receive(fd, buf, len < room ? len : room, 0, true); }
ssize_t __recv_chk(int fd, void *buf, size_t len, size_t room, int flags) { return receive(fd, buf, len < room ? len : room, flags, false); }

ssize_t write(int fd, const void *buf, size_t len)
{
    struct connection *c = of(fd);

    return say(c, plays(c) ? (ssize_t)len : syscall(SYS_write, fd, buf, len));
}

ssize_t send(int fd, const void *buf, size_t len, int flags)
{
    struct connection *c = of(fd);

    return say(c, plays(c) ? (ssize_t)len : syscall(SYS_sendto, fd, buf, len, flags, NULL, 0));
}

static ssize_t sum(const struct iovec *v, size_t n)
{
    ssize_t bytes = 0;

    while (n--)
        bytes += (ssize_t)(v++)->iov_len;
    return bytes;
}

ssize_t writev(int fd, const struct iovec *v, int n)
{
    struct connection *c = of(fd);

    return say(c, plays(c) ? sum(v, (size_t)n) : syscall(SYS_writev, fd, v, n));
}

ssize_t sendmsg(int fd, const struct msghdr *m, int flags)
{
    struct connection *c = of(fd);

    return say(c, plays(c) ? sum(m->msg_iov, m->msg_iovlen) : syscall(SYS_sendmsg, fd, m, flags));
}

/* The file has to be read, whoever carries it. */
ssize_t sendfile64(int to, int from, off64_t *at, size_t len)
{
    static char buffer[1 << 18];
    struct connection *c = of(to);

    if (!plays(c))
        return say(c, syscall(SYS_sendfile, to, from, at, len));
    len = len < sizeof buffer ? len : sizeof buffer;
    ssize_t n = at ? pread64(from, buffer, len, *at) : syscall(SYS_read, from, buffer, len);
    if (at && n > 0)
        *at += n;
    return say(c, n);
}

ssize_t sendfile(int to, int from, off_t *at, size_t len) { return sendfile64(to, from, at, len); }

int close(int fd)
{
    if (fd >= 0 && fd < FDS) {
        struct connection *c = &all[fd];
        char *tape = c->tape;
        if (c == playing)
            playing = NULL;
        *c = (struct connection){.tape = tape};
    }
    return (int)syscall(SYS_close, fd);
}

/* ---------------------------------------------------------------- waiting */

int epoll_ctl(int set, int op, int fd, struct epoll_event *event)
{
    struct connection *c = of(fd);

    if (c) {
        c->set = op == EPOLL_CTL_DEL ? 0 : set + 1;
        if (event && op != EPOLL_CTL_DEL) {
            c->events = event->events;
            c->data = event->data;
        }
    }
    return plays(c) ? 0 : (int)syscall(SYS_epoll_ctl, set, op, fd, event);
}

static uint32_t due(int fd, struct connection *c, uint32_t wanted)
{
    uint32_t out = wanted & EPOLLET ? 0 : wanted & EPOLLOUT; /* of an edge it was told long ago */

    if (wanted & EPOLLIN && (c->taken < c->bytes || (!out && turn(fd, c))))
        return out | EPOLLIN;
    return out;
}

/* -1: the kernel has to say it. */
static int in_set(int set, struct epoll_event *events, int timeout)
{
    if (playing && !mine)
        return -1;
    for (struct connection *c = playing ? playing : all; !over && c < all + FDS; c++) {
        int fd = (int)(c - all);
        if (c->kind == OURS && c->set == set + 1 && (playing || (c->exchanges >= after && turn(fd, c)))) {
            uint32_t ready = c->taken < c->bytes ? due(fd, c, c->events) : playing ? due(fd, c, c->events) : 0;
            if (ready)
                *events = (struct epoll_event){.events = ready, .data = c->data};
            return ready ? 1 : !playing || timeout ? -1 : 0;
        }
        if (playing)
            break;
    }
    return -1;
}

int epoll_pwait(int set, struct epoll_event *events, int n, int timeout, const sigset_t *mask)
{
    int found = in_set(set, events, timeout);

    return found >= 0 ? found : (int)syscall(SYS_epoll_pwait, set, events, n, timeout, mask, _NSIG / 8);
}

int epoll_wait(int set, struct epoll_event *events, int n, int timeout) { return epoll_pwait(set, events, n, timeout, NULL); }

static int in_list(struct pollfd *p, nfds_t n, bool waits)
{
    for (nfds_t i = 0; i < n && !over; i++) {
        struct connection *c = of(p[i].fd);
        if (!c || (!plays(c) && (playing || c->exchanges < after || !waits || !(p[i].events & POLLIN) || !turn(p[i].fd, c))))
            continue;
        uint32_t ready = due(p[i].fd, c, (uint32_t)p[i].events);
        if (!playing || (!ready && waits))
            return -1;
        for (nfds_t k = 0; k < n; k++)
            p[k].revents = k == i ? (short)ready : 0;
        return ready != 0;
    }
    return -1;
}

int poll(struct pollfd *p, nfds_t n, int timeout)
{
    int found = in_list(p, n, timeout != 0);

    return found >= 0 ? found : (int)syscall(SYS_poll, p, n, timeout);
}

int ppoll(struct pollfd *p, nfds_t n, const struct timespec *timeout, const sigset_t *mask)
{
    struct timespec copy = timeout ? *timeout : (struct timespec){0};
    int found = in_list(p, n, !timeout || timeout->tv_sec || timeout->tv_nsec);

    return found >= 0 ? found : (int)syscall(SYS_ppoll, p, n, timeout ? &copy : NULL, mask, _NSIG / 8);
}

int __poll_chk(struct pollfd *p, nfds_t n, int timeout, size_t room);
int __ppoll_chk(struct pollfd *p, nfds_t n, const struct timespec *timeout, const sigset_t *mask, size_t room);
int __poll_chk(struct pollfd *p, nfds_t n, int timeout, size_t room) { (void)room; return poll(p, n, timeout); }
int __ppoll_chk(struct pollfd *p, nfds_t n, const struct timespec *timeout, const sigset_t *mask, size_t room)
{
    (void)room;
    return ppoll(p, n, timeout, mask);
}
