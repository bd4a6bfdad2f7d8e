/* SPDX-License-Identifier: Apache-2.0
 * mid_switch: many young connections, each asked the same things at another age, so that some are in the middle of moving. What one send
 * has put into the stream comes out with one receive: scattered, waited for, peeked at, thrown away, or not asked for at all. */
#include <pthread.h>

#include "guest.h"

enum { CONNECTIONS = 150 };
static const char line[] = "Mary had a little lamb";
enum { LINE = sizeof line - 1 };

static void scattered(int fd)
{
    char a[4], b[7], c[14], d[1];
    struct iovec v[] = {{a, 4}, {b, 7}, {NULL, 0}, {c, 14}, {d, 1}};
    struct msghdr m = {.msg_iov = v, .msg_iovlen = 5};
    CHECK(recvmsg(fd, &m, 0) == LINE && m.msg_flags == 0);
    CHECK(memcmp(a, "Mary", 4) == 0 && memcmp(b, " had a ", 7) == 0 && memcmp(c, "little lamb", 11) == 0);
}

static void in_many_pieces(int fd)
{
    char buf[LINE];
    struct iovec v[LINE];
    for (int i = 0; i < LINE; i++)
        v[i] = (struct iovec){buf + i, 1};
    for (int done = 0; done < LINE;) {
        ssize_t n = readv(fd, v + done, LINE - done);
        CHECK(n > 0);
        done += (int)n;
    }
    CHECK(memcmp(buf, line, LINE) == 0);
}

static void whole(int fd)
{
    char buf[LINE];
    CHECK(recv(fd, buf, LINE, MSG_WAITALL | MSG_PEEK) == LINE && memcmp(buf, line, LINE) == 0);
    CHECK(recv(fd, buf, LINE, MSG_WAITALL) == LINE && memcmp(buf, line, LINE) == 0);
}

static void none_and_away(int fd)
{
    char buf[LINE] = "untouched";
    struct pollfd p = {fd, POLLIN, 0};
    CHECK(recv(fd, buf, 0, 0) == 0 && strcmp(buf, "untouched") == 0); /* waits for a byte, takes none */
    CHECK(poll(&p, 1, 0) == 1 && p.revents == POLLIN);
    CHECK(recv(fd, buf, LINE, MSG_TRUNC | MSG_WAITALL) == LINE && strcmp(buf, "untouched") == 0);
    CHECK(recv(fd, buf, 0, MSG_DONTWAIT) == -1 && errno == EAGAIN);
    CHECK(read(fd, buf, 0) == 0);
    CHECK(recv(fd, buf, 1, MSG_DONTWAIT) == -1 && errno == EAGAIN);
}

static void (*const ways[])(int) = {scattered, in_many_pieces, whole, none_and_away};
enum { WAYS = sizeof ways / sizeof *ways, ROUNDS = 3 * WAYS };

static void *server(void *listener)
{
    for (int k = 0; k < CONNECTIONS; k++) {
        int fd = accept(*(int *)listener, NULL, NULL);
        CHECK(fd >= 0);
        for (int i = 0; i < ROUNDS; i++) {
            ways[(i + k) % WAYS](fd);
            say(fd, "next");
        }
        expect_eof(fd);
        close(fd);
    }
    return NULL;
}

static void client(const struct sockaddr_in *addr)
{
    for (int k = 0; k < CONNECTIONS; k++) {
        int fd = connect_loopback(addr), half = k % LINE;
        if (k % 3 == 0)
            sleep_ms(1);
        for (int i = 0; i < ROUNDS; i++) {
            if (ways[(i + k) % WAYS] == whole && half) { /* comes in two parts */
                write_all(fd, line, (size_t)half);
                if (i % 2)
                    sleep_ms(1);
                write_all(fd, line + half, (size_t)(LINE - half));
            } else {
                write_all(fd, line, LINE);
            }
            expect(fd, "next");
        }
        close(fd);
    }
}

int main(void)
{
    struct sockaddr_in addr;
    pthread_t thread;
    int listener = listen_loopback(&addr, 8);
    pid_t child = fork();
    CHECK(child >= 0);
    if (child == 0) {
        client(&addr);
        _exit(0);
    }
    CHECK(pthread_create(&thread, NULL, server, &listener) == 0); /* a process with threads takes the locks */
    CHECK(pthread_join(thread, NULL) == 0);
    reap(child);
    puts("ok");
    return 0;
}
