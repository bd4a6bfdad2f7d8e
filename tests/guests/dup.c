/* SPDX-License-Identifier: Apache-2.0
 * dup, dup2, dup3, F_DUPFD: the numbers that Linux gives, one stream behind all of them, closed with the last. */
#include "guest.h"

static void accepted(int fd)
{
    expect(fd, "one two three four five six.");
    say(fd, "back");
    expect_eof(fd);
}

static void connected(int fd)
{
    int lowest = dup(0);
    CHECK(lowest > fd);
    close(lowest);
    int a = dup(fd);
    CHECK(a == lowest);
    say(a, "one ");
    CHECK(dup2(fd, 77) == 77 && (fcntl(77, F_GETFD) & FD_CLOEXEC) == 0);
    say(77, "two ");
    CHECK(dup3(fd, 78, O_CLOEXEC) == 78 && (fcntl(78, F_GETFD) & FD_CLOEXEC) != 0);
    say(78, "three ");
    CHECK(dup3(fd, fd, 0) == -1 && errno == EINVAL);
    CHECK(dup2(fd, fd) == fd);
    int c = fcntl(fd, F_DUPFD, 100);
    CHECK(c == 100);
    close(fd);
    say(c, "four ");
    /* The number of the connection now means a file, and again a connection. */
    int file = open("/dev/null", O_WRONLY);
    CHECK(file == fd);
    CHECK(write(file, "lost", 4) == 4);
    CHECK(dup2(c, file) == file);
    say(file, "five ");
    CHECK(dup2(STDIN_FILENO, 77) == 77); /* over a connection: closes only this name of it */
    close(78), close(a), close(c);
    CHECK(fcntl(78, F_GETFD) == -1 && errno == EBADF);
    CHECK(write(78, "x", 1) == -1 && errno == EBADF);
    say(file, "six.");
    expect(file, "back");
    close(file);
    sleep_ms(20);
}

int main(void) { return guest_main(accepted, connected); }
