/* SPDX-License-Identifier: Apache-2.0
 *
 * handover FIFO PROGRAM [FIFO2]: opens FIFO in the middle of a conversation (a test lets it go on when it likes), then gives the connection, with unread
 * bytes, to PROGRAM by execve: `PROGRAM fd FIFO2`. What the peer has sent before and afterwards comes back, each byte plus one, then the end.
 *
 * handover chain N: executes itself N times along, with bytes on their way each time.
 */
#include "guest.h"

#define AHEAD 5000
static char **words;

static void let_go(const char *fifo)
{
    int fd = open(fifo, O_RDONLY);
    CHECK(fd >= 0);
    close(fd);
}

static void echo(int fd, size_t many)
{
    unsigned char c;
    for (size_t i = 0; i < many; i++) {
        read_all(fd, &c, 1);
        c++;
        write_all(fd, &c, 1);
    }
}

static int chain(int fd, int left)
{
    char a[16], b[16];
    if (left == 0) {
        expect_eof(fd);
        return 0;
    }
    echo(fd, 20);
    snprintf(a, sizeof a, "%d", left - 1);
    snprintf(b, sizeof b, "%d", fd);
    execl("/proc/self/exe", "handover", "chain", a, b, (char *)NULL);
    CHECK(!"exec");
}

static void accepted(int fd)
{
    char text[16];
    pid_t child = fork();
    CHECK(child >= 0);
    if (child == 0) {
        snprintf(text, sizeof text, "%d", fd);
        if (strcmp(words[1], "chain") == 0)
            _exit(chain(fd, atoi(words[2])));
        expect(fd, "?");
        let_go(words[1]);
        execl(words[2], words[2], text, words[3], (char *)NULL);
        CHECK(!"exec");
    }
    close(fd);
    reap(child);
}

static void talk(int fd, int many)
{
    for (int i = 0; i < many; i++) {
        unsigned char c = (unsigned char)i, back;
        write_all(fd, &c, 1);
        read_all(fd, &back, 1);
        CHECK(back == (unsigned char)(c + 1));
    }
}

static void connected(int fd)
{
    static unsigned char data[AHEAD], back[AHEAD];
    struct prng r = {5};

    if (strcmp(words[1], "chain") == 0) {
        talk(fd, 20 * atoi(words[2]));
    } else {
        prng_fill(&r, data, AHEAD);
        say(fd, "?");
        write_all(fd, data, AHEAD);
        read_all(fd, back, AHEAD);
        for (size_t i = 0; i < AHEAD; i++)
            CHECK(back[i] == (unsigned char)(data[i] + 1));
        talk(fd, 200);
    }
    CHECK(shutdown(fd, SHUT_WR) == 0);
    expect_eof(fd);
}

int main(int argc, char **argv)
{
    words = argv;
    return argc == 4 && strcmp(argv[1], "chain") == 0 ? chain(atoi(argv[3]), atoi(argv[2])) : guest_main(accepted, connected);
}
