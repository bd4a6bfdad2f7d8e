/* SPDX-License-Identifier: Apache-2.0
 *
 * guest.h - what the guest programs of the tests have in common. Plain POSIX and Linux: nothing here knows sdrun.
 *
 * Most guests are a conversation of two processes over one TCP connection: guest_main() forks; the parent listens and
 * accepts, the child connects; both then exchange a hundred small messages, so that with eager upgrade the
 * connection has moved to shared memory before the behaviour under test begins, and run their side of the guest.
 * A failed CHECK says file, line and condition and exits 1; the parent passes its child's failure on.
 */
#ifndef GUEST_H
#define GUEST_H

#ifndef _GNU_SOURCE
#define _GNU_SOURCE
#endif
#include <arpa/inet.h>
#include <errno.h>
#include <fcntl.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <poll.h>
#include <signal.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/socket.h>
#include <sys/uio.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

#define UNUSED __attribute__((unused))

#define CHECK(cond)                                                                                            \
    do {                                                                                                       \
        if (!(cond)) {                                                                                         \
            fprintf(stderr, "%s:%d: [%d] failed: %s (errno %d %s)\n", __FILE__, __LINE__, (int)getpid(), #cond, \
                    errno, strerror(errno));                                                                   \
            _exit(1);                                                                                          \
        }                                                                                                      \
    } while (0)

/* xorshift64*: the same bytes for the same seed on both sides. */
struct prng {
    uint64_t state;
};

static inline uint64_t prng_next(struct prng *r)
{
    r->state ^= r->state >> 12;
    r->state ^= r->state << 25;
    r->state ^= r->state >> 27;
    return r->state * 0x2545f4914f6cdd1dull;
}

UNUSED static void prng_fill(struct prng *r, unsigned char *buf, size_t len)
{
    for (size_t i = 0; i < len; i++)
        buf[i] = (unsigned char)(prng_next(r) >> 32);
}

UNUSED static double now_s(void)
{
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return (double)t.tv_sec + (double)t.tv_nsec / 1e9;
}

UNUSED static void sleep_ms(long ms)
{
    struct timespec t = {ms / 1000, ms % 1000 * 1000000};
    while (nanosleep(&t, &t) && errno == EINTR)
        ;
}

UNUSED static void write_all(int fd, const void *buf, size_t len)
{
    for (size_t done = 0; done < len;) {
        ssize_t n = write(fd, (const char *)buf + done, len - done);
        CHECK(n > 0);
        done += (size_t)n;
    }
}

UNUSED static void read_all(int fd, void *buf, size_t len)
{
    for (size_t done = 0; done < len;) {
        ssize_t n = read(fd, (char *)buf + done, len - done);
        CHECK(n > 0);
        done += (size_t)n;
    }
}

UNUSED static void expect(int fd, const char *text)
{
    char buf[256];
    read_all(fd, buf, strlen(text));
    CHECK(memcmp(buf, text, strlen(text)) == 0);
}

UNUSED static void say(int fd, const char *text)
{
    write_all(fd, text, strlen(text));
}

UNUSED static void expect_eof(int fd)
{
    char c;
    CHECK(read(fd, &c, 1) == 0);
}

/* Both sides reach this point. */
UNUSED static void meet(int fd)
{
    char c = 'm';
    write_all(fd, &c, 1);
    read_all(fd, &c, 1);
    CHECK(c == 'm');
}

UNUSED static void set_nonblock(int fd, bool on)
{
    int flags = fcntl(fd, F_GETFL);
    CHECK(flags >= 0);
    CHECK(fcntl(fd, F_SETFL, on ? flags | O_NONBLOCK : flags & ~O_NONBLOCK) == 0);
}

/* Listens on an ephemeral port of 127.0.0.1; its address goes to *addr. */
UNUSED static int listen_loopback(struct sockaddr_in *addr, int backlog)
{
    int fd = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);
    socklen_t len = sizeof *addr;
    CHECK(fd >= 0);
    memset(addr, 0, sizeof *addr);
    addr->sin_family = AF_INET;
    addr->sin_addr.s_addr = htonl(INADDR_LOOPBACK);
    CHECK(bind(fd, (struct sockaddr *)addr, sizeof *addr) == 0);
    CHECK(listen(fd, backlog) == 0);
    CHECK(getsockname(fd, (struct sockaddr *)addr, &len) == 0);
    return fd;
}

UNUSED static int connect_loopback(const struct sockaddr_in *addr)
{
    int fd = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);
    CHECK(fd >= 0);
    CHECK(connect(fd, (const struct sockaddr *)addr, sizeof *addr) == 0);
    return fd;
}

/* A hundred small messages in each direction: more than any upgrade threshold, and both sides have waited. The pause is for the
 * supervisor, which needs a few milliseconds of a busy machine to bring the two ends together; the behaviours come after the switch. */
UNUSED static void warm_up(int fd, bool first)
{
    for (int i = 0; i < 100; i++) {
        unsigned char c = (unsigned char)i, back;
        if (i == 10)
            sleep_ms(20);
        if (first)
            write_all(fd, &c, 1);
        read_all(fd, &back, 1);
        CHECK(back == c);
        if (!first)
            write_all(fd, &c, 1);
    }
}

/* Numbered messages, each of which comes back as it was. The pauses are for the supervisor, as in warm_up(). */
UNUSED static void converse(int fd, int rounds)
{
    for (int i = 0; i < rounds; i++) {
        char text[32], back[32];
        if (i % 50 == 10)
            sleep_ms(4);
        int n = snprintf(text, sizeof text, "%d:%d", (int)getpid(), i);
        write_all(fd, text, (size_t)n);
        read_all(fd, back, (size_t)n);
        CHECK(memcmp(text, back, (size_t)n) == 0);
    }
}

/* Gives back what comes, until the end. */
UNUSED static void give_back(int in, int out)
{
    char buf[64];
    for (ssize_t n; (n = read(in, buf, sizeof buf)) > 0;)
        write_all(out, buf, (size_t)n);
}

UNUSED static void reap(pid_t child)
{
    int status;
    CHECK(waitpid(child, &status, 0) == child);
    if (status != 0) {
        fprintf(stderr, "child: wait status %#x\n", status);
        _exit(1);
    }
}

typedef void guest_side(int fd);

/* Runs the two sides of a guest in two processes; neither closes fd for the side: that is part of the behaviour. */
UNUSED static int guest_main(guest_side *accepted, guest_side *connected)
{
    struct sockaddr_in addr;
    int listener = listen_loopback(&addr, 8);
    pid_t child = fork();
    CHECK(child >= 0);
    if (child == 0) {
        close(listener);
        int fd = connect_loopback(&addr);
        warm_up(fd, true);
        connected(fd);
        _exit(0);
    }
    int fd = accept(listener, NULL, NULL);
    CHECK(fd >= 0);
    close(listener);
    warm_up(fd, false);
    accepted(fd);
    reap(child);
    puts("ok");
    return 0;
}

#endif
