/* SPDX-License-Identifier: Apache-2.0
 * Whoever closes everything closes only what is the program's: numbers are the lowest, close_range ends the connection. */
#include "guest.h"
#include <sys/syscall.h>

static void accepted(int fd)
{
    char c;
    for (int i = 0; i < 3; i++) {
        int file = open("/dev/null", O_RDONLY); /* the listener had 3 and is closed */
        CHECK(file == 3);
        close(file);
        say(fd, "x");
        expect(fd, "x");
    }
    expect_eof(fd);
    CHECK(read(fd, &c, 1) == 0);
    CHECK((fcntl(fd, F_GETFL) & O_ACCMODE) == O_RDWR);
    CHECK(close(fd) == 0);
    CHECK(close(fd) == -1 && errno == EBADF);
    CHECK(read(fd, &c, 1) == -1 && errno == EBADF);
}

static void connected(int fd)
{
    for (int i = 0; i < 3; i++) {
        expect(fd, "x");
        say(fd, "x");
    }
    CHECK(syscall(SYS_close_range, 3, ~0u, 0) == 0);
    char c;
    CHECK(read(fd, &c, 1) == -1 && errno == EBADF);
    /* Life goes on with new descriptors under the old numbers. */
    int p[2];
    CHECK(pipe(p) == 0 && p[0] == 3 && p[1] == 4);
    say(p[1], "pipe");
    expect(p[0], "pipe");
    sleep_ms(50);
}

int main(void) { return guest_main(accepted, connected); }
