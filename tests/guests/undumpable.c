/* SPDX-License-Identifier: Apache-2.0
 *
 * undumpable before|after|who: a conversation of a process that has become, or is from birth (set-uid), one that nobody may trace. `who` prints the real
 * and the effective user first.
 */
#include "guest.h"
#include <sys/prctl.h>

static const char *when;

static void close_up(const char *now)
{
    if (strcmp(when, now) == 0)
        CHECK(prctl(PR_SET_DUMPABLE, 0) == 0);
}

static void talk(int fd, bool first)
{
    close_up("after");
    for (int i = 0; i < 200; i++) {
        if (first)
            say(fd, "there");
        expect(fd, first ? "back" : "there");
        if (!first)
            say(fd, "back");
    }
    CHECK(shutdown(fd, SHUT_WR) == 0);
    expect_eof(fd);
}

static void accepted(int fd) { talk(fd, true); }
static void connected(int fd) { talk(fd, false); }

int main(int argc, char **argv)
{
    CHECK(argc == 2);
    when = argv[1];
    close_up("before");
    if (strcmp(when, "who") == 0) {
        printf("%d %d\n", (int)getuid(), (int)geteuid());
        fflush(stdout);
    }
    return guest_main(accepted, connected);
}
