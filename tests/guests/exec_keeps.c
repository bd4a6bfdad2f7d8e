/* SPDX-License-Identifier: Apache-2.0
 * A connection survives execve: an inetd-like server puts it on stdin and stdout of /bin/cat after having talked. */
#include "guest.h"

static void accepted(int fd)
{
    pid_t child = fork();
    CHECK(child >= 0);
    if (child == 0) {
        say(fd, "hello ");
        CHECK(dup2(fd, 0) == 0 && dup2(fd, 1) == 1);
        execl("/bin/cat", "cat", (char *)NULL);
        CHECK(!"exec");
    }
    close(fd);
    reap(child);
}

static void connected(int fd)
{
    static unsigned char data[1 << 18], got[1 << 18];
    struct prng r = {11};
    expect(fd, "hello ");
    for (int i = 0; i < 300; i++) {
        say(fd, "ping");
        expect(fd, "ping");
    }
    for (int i = 0; i < 8; i++) {
        prng_fill(&r, data, sizeof data / 8);
        write_all(fd, data, sizeof data / 8);
        read_all(fd, got, sizeof data / 8);
        CHECK(memcmp(data, got, sizeof data / 8) == 0);
    }
    CHECK(shutdown(fd, SHUT_WR) == 0);
    expect_eof(fd);
}

int main(void) { return guest_main(accepted, connected); }
