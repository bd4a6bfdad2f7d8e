/* SPDX-License-Identifier: Apache-2.0
 *
 * undumpable before|after|who|drop|drop-twice: a conversation of a process that has become, or is from birth (set-uid), one that nobody may trace. `who` prints
 * the real and the effective user first; `drop` gives root's privileges up before the first socket, as daemons do, and `drop-twice` executes itself as the other user, and
 * is not dumpable then. It is long enough for others to take notice of it, on a busy machine and if they have to be started for it.
 */
#include "guest.h"
#include <sys/prctl.h>
#include <grp.h>

static const char *when;

static void close_up(const char *now)
{
    if (strcmp(when, now) == 0)
        CHECK(prctl(PR_SET_DUMPABLE, 0) == 0);
}

#define ROUNDS 200
#define SECONDS 1.5

static void accepted(int fd)
{
    double end = now_s() + SECONDS;

    close_up("after");
    for (int i = 0; i < ROUNDS; i++) {
        if (i == ROUNDS / 2)
            for (; strcmp(when, "before") != 0 && now_s() < end; sleep_ms(10)) {
                say(fd, "there");
                expect(fd, "back");
            }
        say(fd, "there");
        expect(fd, "back");
    }
    CHECK(shutdown(fd, SHUT_WR) == 0);
    expect_eof(fd);
}

static void connected(int fd)
{
    char text[5];

    close_up("after");
    for (ssize_t n; (n = recv(fd, text, sizeof text, MSG_WAITALL)) != 0; say(fd, "back"))
        CHECK(n == sizeof text && memcmp(text, "there", sizeof text) == 0);
    CHECK(shutdown(fd, SHUT_WR) == 0);
}

int main(int argc, char **argv)
{
    CHECK(argc == 2);
    when = argv[1];
    close_up("before");
    if (strncmp(when, "drop", 4) == 0) {
        CHECK(setgroups(0, NULL) == 0 && setgid(65534) == 0 && setuid(65534) == 0);
        CHECK(prctl(PR_GET_DUMPABLE) == 0);
    }
    if (strcmp(when, "drop-twice") == 0)
        CHECK(execl("/proc/self/exe", argv[0], "before", NULL) == 0);
    if (strcmp(when, "who") == 0) {
        printf("%d %d\n", (int)getuid(), (int)geteuid());
        fflush(stdout);
    }
    return guest_main(accepted, connected);
}
