/* SPDX-License-Identifier: Apache-2.0
 * A connection survives execve into another program, named on the command line: the server talks, and then that program goes on ("exec_again -"). */
#include "guest.h"

static const char *next;

/* What has been executed: everything comes back. */
static int echo(void)
{
    char *buf = malloc(4096);
    ssize_t n;

    CHECK(buf);
    while ((n = read(0, buf, 4096)) > 0)
        write_all(0, buf, (size_t)n);
    CHECK(n == 0);
    free(buf);
    return 0;
}

static void accepted(int fd)
{
    pid_t child = fork();
    CHECK(child >= 0);
    if (child == 0) {
        say(fd, "hello ");
        CHECK(dup2(fd, 0) == 0);
        execl(next, next, "-", (char *)NULL);
        CHECK(!"exec");
    }
    close(fd);
    reap(child);
}

static void connected(int fd)
{
    expect(fd, "hello ");
    for (int i = 0; i < 300; i++) {
        say(fd, "ping");
        expect(fd, "ping");
    }
    CHECK(shutdown(fd, SHUT_WR) == 0);
    expect_eof(fd);
}

int main(int argc, char **argv)
{
    CHECK(argc == 2);
    next = argv[1];
    return strcmp(next, "-") ? guest_main(accepted, connected) : echo();
}
