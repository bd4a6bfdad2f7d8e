/* SPDX-License-Identifier: Apache-2.0
 * reset KIND: how the other side sees an end. unread: closed with bytes unread; linger: SO_LINGER 0; kill: SIGKILL after
 * sending; close: an orderly end. */
#include "guest.h"

static const char *kind;
static unsigned char data[100000], got[100000];

static void accepted(int fd)
{
    struct prng r = {3};
    prng_fill(&r, data, sizeof data);
    if (strcmp(kind, "unread") == 0) {
        say(fd, "you will not read this");
        say(fd, "g");
    } else {
        say(fd, "g");
    }
    if (strcmp(kind, "kill") == 0 || strcmp(kind, "close") == 0) {
        read_all(fd, got, sizeof got); /* all that was sent before the end */
        CHECK(memcmp(got, data, sizeof data) == 0);
        expect_eof(fd);
        return;
    }
    char c;
    CHECK(read(fd, &c, 1) == -1 && errno == ECONNRESET);
    CHECK(read(fd, &c, 1) == 0); /* the error is told once */
    CHECK(send(fd, "x", 1, MSG_NOSIGNAL) == -1 && errno == EPIPE);
}

static void connected(int fd)
{
    struct prng r = {3};
    prng_fill(&r, data, sizeof data);
    if (strcmp(kind, "unread") == 0) {
        struct pollfd p = {fd, POLLIN, 0};
        char all[64];
        do
            CHECK(poll(&p, 1, 5000) == 1);
        while (recv(fd, all, sizeof all, MSG_PEEK) < 23);
        close(fd);
        sleep_ms(50);
        return;
    }
    expect(fd, "g");
    if (strcmp(kind, "linger") == 0) {
        struct linger now = {1, 0};
        CHECK(setsockopt(fd, SOL_SOCKET, SO_LINGER, &now, sizeof now) == 0);
        close(fd);
        sleep_ms(50);
        return;
    }
    write_all(fd, data, sizeof data);
    if (strcmp(kind, "kill") == 0)
        _exit(0); /* the parent's reap wants 0; the kernel closes as after SIGKILL: no code of ours runs */
    close(fd);
}

int main(int argc, char **argv)
{
    CHECK(argc == 2);
    kind = argv[1];
    return guest_main(accepted, connected);
}
