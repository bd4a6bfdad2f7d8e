/* SPDX-License-Identifier: Apache-2.0
 * One thread sends on a connection, another one receives, and a third one does to it in the meantime whatever leaves the stream as it is, in random turn.
 *
 *   disturbed SEED [MIB [FIRST LAST]]     only the disturbances from FIRST to LAST, below
 *
 * The other end is a process of one thread that sends and receives as much. Every byte is checked at both ends, and the end of the stream. */
#include "guest.h"
#include <limits.h>
#include <linux/sockios.h>
#include <pthread.h>
#include <spawn.h>
#include <sys/epoll.h>
#include <sys/select.h>
#include <sys/syscall.h>

#define CHUNK 9000

extern char **environ;
static int near;
static size_t total;
static pthread_t sender, receiver;
static _Atomic int finished, over;
static volatile long did; /* for who looks why it hangs */

static unsigned char byte_at(size_t at, int dir) { return (unsigned char)(at * 131 + (at >> 8) * 7 + (size_t)dir * 77); }

static void fill(unsigned char *b, size_t n, size_t at, int dir)
{
    for (size_t i = 0; i < n; i++)
        b[i] = byte_at(at + i, dir);
}

static void check(const unsigned char *b, size_t n, size_t at, int dir)
{
    for (size_t i = 0; i < n; i++)
        if (b[i] != byte_at(at + i, dir)) {
            fprintf(stderr, "%s: byte %zu of %zu is %d, not %d, after %ld disturbances\n", dir ? "back" : "there", at + i, total, b[i], byte_at(at + i, dir), did);
            _exit(1);
        }
}

static bool again(int fd, short events)
{
    struct pollfd p = {fd, events, 0};

    if (errno == EINTR)
        return true;
    CHECK(errno == EAGAIN);
    poll(&p, 1, 100);
    return true;
}

/* Signals may be sent to a thread until then. */
static void *finish(void)
{
    finished++;
    while (!over)
        usleep(2000);
    return NULL;
}

static size_t some(struct prng *r) { return 1 + prng_next(r) % (prng_next(r) % 4 ? 64 : CHUNK); }

static void *sends(void *seed)
{
    struct prng r = {*(uint64_t *)seed + 1};
    unsigned char b[CHUNK];

    for (size_t at = 0; at < total;) {
        size_t n = some(&r);
        if (n > total - at)
            n = total - at;
        fill(b, n, at, 0);
        ssize_t s = send(near, b, n, prng_next(&r) % 2 ? MSG_DONTWAIT : 0);
        CHECK(s > 0 || again(near, POLLOUT));
        at += s > 0 ? (size_t)s : 0;
    }
    return finish();
}

static void *receives(void *seed)
{
    struct prng r = {*(uint64_t *)seed + 2};
    unsigned char b[CHUNK];

    for (size_t at = 0; at < total;) {
        ssize_t s = recv(near, b, some(&r), prng_next(&r) % 2 ? MSG_DONTWAIT : 0);
        CHECK(s > 0 || (s < 0 && again(near, POLLIN)));
        if (s > 0) {
            check(b, (size_t)s, at, 1);
            at += (size_t)s;
        }
    }
    return finish();
}

static void far_side(int fd, uint64_t seed)
{
    struct prng r = {seed + 3};
    unsigned char b[CHUNK];
    size_t in = 0, out = 0;
    ssize_t s;

    while (in < total || out < total) {
        struct pollfd p = {fd, (short)((in < total ? POLLIN : 0) | (out < total ? POLLOUT : 0)), 0};
        CHECK(poll(&p, 1, 20000) == 1);
        if (p.revents & POLLIN && in < total) {
            CHECK((s = recv(fd, b, some(&r), 0)) > 0);
            check(b, (size_t)s, in, 0);
            in += (size_t)s;
        }
        if (p.revents & POLLOUT && out < total) {
            size_t n = some(&r);
            if (n > total - out)
                n = total - out;
            fill(b, n, out, 1);
            CHECK((s = send(fd, b, n, MSG_DONTWAIT)) > 0 || errno == EAGAIN);
            out += s > 0 ? (size_t)s : 0;
        }
        if (prng_next(&r) % 2000 == 0)
            usleep(prng_next(&r) % 3000);
    }
    CHECK(recv(fd, b, 1, 0) == 0);
    CHECK(send(fd, "e", 1, 0) == 1);
}

/* ---------------------------------------------------------------- disturbances */

static void set(int level, int name, int v) { CHECK(setsockopt(near, level, name, &v, sizeof v) == 0); }

static void another_name(struct prng *r)
{
    int fd = prng_next(r) % 2 ? dup(near) : fcntl(near, F_DUPFD_CLOEXEC, 100);
    CHECK(fd >= 0 && close(fd) == 0);
}

static void the_same_name(struct prng *r)
{
    int fd = dup(near);
    CHECK(fd >= 0 && (prng_next(r) % 2 ? dup2(fd, near) : dup3(fd, near, 0)) == near && close(fd) == 0);
}

static void flags(struct prng *r)
{
    int fl = fcntl(near, F_GETFL);
    CHECK(fl >= 0 && fcntl(near, F_SETFL, prng_next(r) % 2 ? fl | O_NONBLOCK : fl & ~O_NONBLOCK) == 0);
}

static void options(struct prng *r)
{
    static const int names[] = {TCP_NODELAY, TCP_CORK, TCP_QUICKACK};
    set(IPPROTO_TCP, names[prng_next(r) % 3], (int)(prng_next(r) % 2));
    if (prng_next(r) % 4 == 0)
        set(SOL_SOCKET, prng_next(r) % 2 ? SO_SNDBUF : SO_RCVBUF, (int)(65536 << prng_next(r) % 4));
}

static void limits(struct prng *r)
{
    struct timeval t = {0, (suseconds_t)(prng_next(r) % 3 * 1000)};
    CHECK(setsockopt(near, SOL_SOCKET, prng_next(r) % 2 ? SO_RCVTIMEO : SO_SNDTIMEO, &t, sizeof t) == 0);
}

static void questions(struct prng *r)
{
    struct tcp_info info;
    struct sockaddr_storage name;
    socklen_t len = sizeof info, nlen = sizeof name;
    char c[10];
    int n;

    CHECK(ioctl(near, FIONREAD, &n) == 0 && n >= 0 && ioctl(near, SIOCOUTQ, &n) == 0 && n >= 0);
    CHECK(getsockopt(near, IPPROTO_TCP, TCP_INFO, &info, &len) == 0 && getpeername(near, (struct sockaddr *)&name, &nlen) == 0);
    len = sizeof n;
    CHECK(getsockopt(near, SOL_SOCKET, SO_ERROR, &n, &len) == 0 && n == 0);
    if (prng_next(r) % 2)
        CHECK(recv(near, c, sizeof c, MSG_PEEK | MSG_DONTWAIT) > 0 || errno == EAGAIN || errno == EINTR);
}

static void readiness(struct prng *r)
{
    struct pollfd p = {near, (short)(prng_next(r) % 2 ? POLLIN : POLLIN | POLLOUT | POLLRDHUP), 0};
    struct timeval t = {0, (suseconds_t)(prng_next(r) % 1000)};
    fd_set in, out;

    CHECK(poll(&p, 1, (int)(prng_next(r) % 2)) >= 0 && !(p.revents & (POLLERR | POLLHUP | POLLRDHUP | POLLNVAL)));
    FD_ZERO(&in);
    FD_ZERO(&out);
    FD_SET(near, &in);
    FD_SET(near, &out);
    CHECK(select(near + 1, &in, prng_next(r) % 2 ? &out : NULL, NULL, &t) >= 0);
}

static void sets(struct prng *r)
{
    int ep = epoll_create1(EPOLL_CLOEXEC);
    struct epoll_event ev = {.events = EPOLLIN | (prng_next(r) % 2 ? EPOLLOUT : 0) | (prng_next(r) % 2 ? EPOLLET : 0) | (prng_next(r) % 3 ? 0 : EPOLLONESHOT)}, got[2];

    CHECK(ep >= 0 && epoll_ctl(ep, EPOLL_CTL_ADD, near, &ev) == 0);
    for (int i = (int)(prng_next(r) % 4); i--;)
        CHECK(epoll_wait(ep, got, 2, (int)(prng_next(r) % 2)) >= 0);
    ev.events ^= EPOLLET;
    CHECK(epoll_ctl(ep, EPOLL_CTL_MOD, near, &ev) == 0 && epoll_wait(ep, got, 2, 0) >= 0);
    if (prng_next(r) % 2)
        CHECK(epoll_ctl(ep, EPOLL_CTL_DEL, near, NULL) == 0);
    CHECK(close(ep) == 0);
}

static void children(struct prng *r)
{
    int how = (int)(prng_next(r) % 3), status;
    pid_t pid;

    if (how == 2) {
        char *argv[] = {"true", NULL};
        CHECK(posix_spawnp(&pid, "true", NULL, NULL, argv, environ) == 0);
    } else {
        CHECK((pid = fork()) >= 0);
        if (!pid && how)
            execlp("true", "true", NULL);
        if (!pid)
            _exit(close(near) != 0);
    }
    while (waitpid(pid, &status, 0) < 0)
        CHECK(errno == EINTR);
    CHECK(status == 0);
}

static void sent_around(struct prng *r)
{
    char control[CMSG_SPACE(sizeof(int))] = {0}, c = 'f';
    struct iovec iov = {&c, 1};
    struct msghdr m = {.msg_iov = &iov, .msg_iovlen = 1, .msg_control = control, .msg_controllen = sizeof control};
    struct cmsghdr *h = CMSG_FIRSTHDR(&m);
    int pair[2], fd;

    h->cmsg_level = SOL_SOCKET;
    h->cmsg_type = SCM_RIGHTS;
    h->cmsg_len = CMSG_LEN(sizeof(int));
    memcpy(CMSG_DATA(h), &near, sizeof near);
    CHECK(socketpair(AF_UNIX, SOCK_STREAM, 0, pair) == 0);
    CHECK(sendmsg(pair[0], &m, 0) == 1);
    if (prng_next(r) % 4) {
        CHECK(recvmsg(pair[1], &m, MSG_CMSG_CLOEXEC) == 1);
        memcpy(&fd, CMSG_DATA(CMSG_FIRSTHDR(&m)), sizeof fd);
        CHECK(close(fd) == 0);
    }
    CHECK(close(pair[0]) == 0 && close(pair[1]) == 0);
}

static void signals(struct prng *r) { pthread_kill(prng_next(r) % 2 ? sender : receiver, prng_next(r) % 2 ? SIGUSR1 : SIGUSR2); }

static void owned(struct prng *r)
{
    int fl = fcntl(near, F_GETFL);
    CHECK(fcntl(near, F_SETOWN, getpid()) == 0 && fcntl(near, F_SETFL, prng_next(r) % 4 ? fl & ~O_ASYNC : fl | O_ASYNC) == 0);
}

static void taken(struct prng *r)
{
    int pid = (int)syscall(SYS_pidfd_open, getpid(), 0), fd;
    (void)r;
    if (pid < 0)
        return;
    fd = (int)syscall(SYS_pidfd_getfd, pid, near, 0);
    CHECK(fd >= 0 && close(fd) == 0 && close(pid) == 0);
}

static void (*const disturbance[])(struct prng *) = {
    another_name, the_same_name, flags, options, limits, questions, readiness, sets, children, sent_around, signals, owned, taken,
};
#define KINDS (sizeof disturbance / sizeof *disturbance)

static void *disturbs(void *arg)
{
    uint64_t *a = arg;
    struct prng r = {a[0] + 4};

    for (; !over; did++) {
        uint64_t kind = a[1] + prng_next(&r) % (a[2] - a[1] + 1);
        if (kind != 8 || prng_next(&r) % 8 == 0) /* children take long */
            disturbance[kind](&r);
        if (prng_next(&r) % 8 == 0)
            usleep(prng_next(&r) % 500);
    }
    return NULL;
}

static void handler(int number) { (void)number; }

static void near_side(uint64_t *a)
{
    struct timeval forever = {0, 0};
    pthread_t third;
    char c = 0;

    sigaction(SIGUSR1, &(struct sigaction){.sa_handler = handler, .sa_flags = SA_RESTART}, NULL);
    sigaction(SIGUSR2, &(struct sigaction){.sa_handler = handler}, NULL);
    signal(SIGIO, SIG_IGN);
    CHECK(pthread_create(&sender, NULL, sends, a) == 0 && pthread_create(&receiver, NULL, receives, a) == 0);
    CHECK(pthread_create(&third, NULL, disturbs, a) == 0);
    while (finished < 2)
        usleep(2000);
    over = 1;
    CHECK(pthread_join(third, NULL) == 0 && pthread_join(receiver, NULL) == 0 && pthread_join(sender, NULL) == 0);
    set(IPPROTO_TCP, TCP_CORK, 0);
    fcntl(near, F_SETFL, fcntl(near, F_GETFL) & ~(O_NONBLOCK | O_ASYNC));
    setsockopt(near, SOL_SOCKET, SO_RCVTIMEO, &forever, sizeof forever);
    CHECK(shutdown(near, SHUT_WR) == 0);
    CHECK(recv(near, &c, 1, 0) == 1 && c == 'e' && recv(near, &c, 1, 0) == 0);
}

int main(int argc, char **argv)
{
    struct sockaddr_in at;
    int listener = listen_loopback(&at, 8);
    uint64_t a[3] = {argc > 1 ? (uint64_t)atoll(argv[1]) * 1000003 : 1, argc > 3 ? (uint64_t)atoi(argv[3]) : 0, argc > 4 ? (uint64_t)atoi(argv[4]) : KINDS - 1};
    pid_t pid;

    total = (size_t)(argc > 2 ? atoi(argv[2]) : 4) << 20;
    CHECK((pid = fork()) >= 0);
    if (!pid) {
        int fd = accept(listener, NULL, NULL);
        CHECK(fd >= 0);
        far_side(fd, a[0]);
        _exit(0);
    }
    near = socket(AF_INET, SOCK_STREAM, 0); /* programs that are executed inherit it */
    CHECK(connect(near, (struct sockaddr *)&at, sizeof at) == 0);
    near_side(a);
    reap(pid);
    puts("done");
    return 0;
}
