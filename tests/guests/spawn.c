/* SPDX-License-Identifier: Apache-2.0
 * Between messages the program runs others: system, popen, posix_spawn, vfork; the connection is not disturbed. */
#include "guest.h"
#include <spawn.h>

extern char **environ;

static void run_others(void)
{
    char line[64];
    CHECK(system("exit 3") >> 8 == 3);
    FILE *f = popen("echo from a child", "r");
    CHECK(f != NULL && fgets(line, sizeof line, f) != NULL && strcmp(line, "from a child\n") == 0);
    CHECK(pclose(f) == 0);
    char *argv[] = {"true", NULL};
    pid_t child;
    int status;
    CHECK(posix_spawnp(&child, "true", NULL, NULL, argv, environ) == 0);
    CHECK(waitpid(child, &status, 0) == child && status == 0);
    child = vfork();
    if (child == 0) {
        execlp("true", "true", (char *)NULL);
        _exit(1);
    }
    CHECK(waitpid(child, &status, 0) == child && status == 0);
}

static void accepted(int fd)
{
    for (int i = 0; i < 10; i++) {
        say(fd, "ping");
        run_others();
        expect(fd, "pong");
    }
    expect_eof(fd);
}

static void connected(int fd)
{
    for (int i = 0; i < 10; i++) {
        expect(fd, "ping");
        run_others();
        say(fd, "pong");
    }
}

int main(void) { return guest_main(accepted, connected); }
