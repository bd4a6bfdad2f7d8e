/* SPDX-License-Identifier: Apache-2.0
 * pass_fd HOW WHEN: an accepted connection goes to another process by SCM_RIGHTS, which serves it. HOW: named, over a unix socket that
 * the worker has connected itself; pair, over a socketpair; exec, the same to a worker that is another program by then. WHEN: young, as it
 * comes from accept, with the first bytes on their way; used, after a talk; unread, with bytes in it (only named). But for used, where both hold it for a
 * while, the worker begins when it is the only one: a connection that two hold stays on TCP, and a busy machine may let it talk all the time until then. */
#include <sys/un.h>

#include "guest.h"

enum { ROUNDS = 300 };

static void give(int to, int fd)
{
    char space[CMSG_SPACE(sizeof fd)] = {0}, byte = 'f';
    struct iovec v = {&byte, 1};
    struct msghdr m = {.msg_iov = &v, .msg_iovlen = 1, .msg_control = space, .msg_controllen = sizeof space};
    struct cmsghdr *c = CMSG_FIRSTHDR(&m);
    c->cmsg_level = SOL_SOCKET;
    c->cmsg_type = SCM_RIGHTS;
    c->cmsg_len = CMSG_LEN(sizeof fd);
    memcpy(CMSG_DATA(c), &fd, sizeof fd);
    CHECK(sendmsg(to, &m, 0) == 1);
}

static int take(int from)
{
    char space[CMSG_SPACE(sizeof(int))], byte;
    struct iovec v = {&byte, 1};
    struct msghdr m = {.msg_iov = &v, .msg_iovlen = 1, .msg_control = space, .msg_controllen = sizeof space};
    int fd;
    CHECK(recvmsg(from, &m, MSG_CMSG_CLOEXEC) == 1 && CMSG_FIRSTHDR(&m));
    memcpy(&fd, CMSG_DATA(CMSG_FIRSTHDR(&m)), sizeof fd);
    CHECK(fcntl(fd, F_GETFD) == FD_CLOEXEC);
    return fd;
}

static void serve(int from, const char *when)
{
    char buf[64];
    int fd = take(from);
    if (strcmp(when, "used") != 0)
        expect(from, "go");
    for (ssize_t n; (n = read(fd, buf, sizeof buf)) > 0;)
        write_all(fd, buf, (size_t)n);
    close(fd);
}

static void client(const struct sockaddr_in *addr, const char *when)
{
    char text[32], back[32];
    int fd = connect_loopback(addr);
    if (strcmp(when, "young") != 0)
        warm_up(fd, true);
    for (int i = 0; i < ROUNDS; i++) {
        int n = snprintf(text, sizeof text, "message %d", i);
        write_all(fd, text, (size_t)n);
        read_all(fd, back, (size_t)n);
        CHECK(memcmp(text, back, (size_t)n) == 0);
    }
    close(fd);
    _exit(0);
}

static pid_t start_worker(const char *how, const char *when, int *to)
{
    struct sockaddr_un name = {.sun_family = AF_UNIX}; /* autobound: an abstract name that the kernel chooses */
    socklen_t len = sizeof name;
    int pair[2], listener = socket(AF_UNIX, SOCK_STREAM, 0);
    CHECK(listener >= 0 && bind(listener, (struct sockaddr *)&name, sizeof name.sun_family) == 0 && listen(listener, 1) == 0);
    CHECK(getsockname(listener, (struct sockaddr *)&name, &len) == 0);
    CHECK(socketpair(AF_UNIX, SOCK_STREAM, 0, pair) == 0);
    pid_t worker = fork();
    CHECK(worker >= 0);
    if (worker == 0) {
        if (strcmp(how, "exec") == 0) {
            CHECK(dup2(pair[1], 0) == 0);
            execl("/proc/self/exe", "pass_fd", when, (char *)NULL);
            CHECK(!"exec");
        }
        int from = pair[1];
        close(pair[0]);
        if (strcmp(how, "named") == 0) {
            CHECK((from = socket(AF_UNIX, SOCK_STREAM, 0)) >= 0);
            CHECK(connect(from, (struct sockaddr *)&name, len) == 0);
        }
        serve(from, when);
        _exit(0);
    }
    close(pair[1]);
    *to = strcmp(how, "named") == 0 ? accept(listener, NULL, NULL) : pair[0];
    CHECK(*to >= 0);
    close(listener);
    return worker;
}

int main(int argc, char **argv)
{
    struct sockaddr_in addr;
    if (argc == 2) { /* the worker of "exec" */
        serve(0, argv[1]);
        return 0;
    }
    CHECK(argc == 3);
    int to, listener = listen_loopback(&addr, 1);
    pid_t talker = fork();
    CHECK(talker >= 0);
    if (talker == 0)
        client(&addr, argv[2]);
    int fd = accept(listener, NULL, NULL);
    CHECK(fd >= 0);
    close(listener);
    if (strcmp(argv[2], "young") != 0)
        warm_up(fd, false);
    if (strcmp(argv[2], "used") != 0)
        sleep_ms(20); /* the client's first message is here */
    pid_t worker = start_worker(argv[1], argv[2], &to);
    if (strcmp(argv[2], "used") == 0) { /* the client waits for an answer, nothing is on its way */
        char buf[16];
        read_all(fd, buf, strlen("message 0"));
        write_all(fd, buf, strlen("message 0"));
        expect(fd, "message 1");
        give(to, fd);
        say(fd, "message 1"); /* both hold it */
    } else {
        give(to, fd);
    }
    close(fd);
    if (strcmp(argv[2], "used") != 0)
        say(to, "go");
    reap(talker);
    reap(worker);
    puts("ok");
    return 0;
}
