/* SPDX-License-Identifier: Apache-2.0
 * gone KIND: how one who only sends learns that nobody reads. close, exit, kill: the peer has read everything; unread: it has not. */
#include "guest.h"

static const char *kind;

/* Errors come with the second send at the latest that the peer's kernel has seen; what a program may rely on is that they come. */
static void send_until_error(int fd, int wanted)
{
    signal(SIGPIPE, SIG_IGN);
    for (int i = 0; i < 100; i++) {
        ssize_t n = send(fd, "x", 1, 0);
        if (n < 0) {
            CHECK(errno == wanted || (errno == ECONNRESET && wanted == EPIPE));
            CHECK(send(fd, "x", 1, 0) == -1 && errno == EPIPE);
            return;
        }
        CHECK(n == 1);
        sleep_ms(2);
    }
    CHECK(!"an error within 100 sends");
}

static void accepted(int fd)
{
    say(fd, "go");
    sleep_ms(30); /* the other side is gone, and nothing of ours was on its way */
    send_until_error(fd, strcmp(kind, "unread") == 0 ? ECONNRESET : EPIPE);
    close(fd);
}

static void connected(int fd)
{
    if (strcmp(kind, "unread") == 0) {
        char c;
        read_all(fd, &c, 1);
    } else {
        expect(fd, "go");
    }
    if (strcmp(kind, "kill") == 0)
        kill(getpid(), SIGKILL);
    if (strcmp(kind, "exit") == 0)
        _exit(0);
    close(fd);
}

static void killed(pid_t child)
{
    int status;
    CHECK(waitpid(child, &status, 0) == child && (status == 0 || status == SIGKILL));
}

int main(int argc, char **argv)
{
    struct sockaddr_in addr;
    int listener = listen_loopback(&addr, 1);
    CHECK(argc == 2);
    kind = argv[1];
    pid_t child = fork();
    CHECK(child >= 0);
    if (child == 0) {
        close(listener);
        int fd = connect_loopback(&addr);
        warm_up(fd, true);
        connected(fd);
        _exit(0);
    }
    int fd = accept(listener, NULL, NULL);
    CHECK(fd >= 0);
    warm_up(fd, false);
    accepted(fd);
    killed(child);
    puts("ok");
    return 0;
}
