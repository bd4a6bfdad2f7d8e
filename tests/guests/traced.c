/* SPDX-License-Identifier: Apache-2.0
 *
 * Exactly N round trips of 8 bytes in each of: this thread, a second thread, a forked child, and this process again after it has executed itself;
 * each over a connection of its own to a child that echoes. Prints "NAME PID TID" for each. `traced burst N`: one connection to itself, and N
 * bytes sent and received one by one after a line was read from standard input.
 */
#include "guest.h"
#include <arpa/inet.h>
#include <netinet/in.h>
#include <pthread.h>
#include <sys/syscall.h>
#include <sys/wait.h>

static int N, port;

static int to_server(void)
{
    struct sockaddr_in a = {.sin_family = AF_INET, .sin_port = htons((uint16_t)port), .sin_addr.s_addr = htonl(INADDR_LOOPBACK)};
    int fd = socket(AF_INET, SOCK_STREAM, 0);

    CHECK(fd >= 0 && connect(fd, (struct sockaddr *)&a, sizeof a) == 0);
    return fd;
}

static void *trips(void *name)
{
    char out[8] = "8 bytes", in[8];
    int fd = to_server();

    for (int i = 0; i < N; i++) {
        CHECK(send(fd, out, 8, 0) == 8);
        CHECK(recv(fd, in, 8, MSG_WAITALL) == 8 && !memcmp(in, out, 8));
    }
    close(fd);
    printf("%s %d %d\n", (char *)name, getpid(), (int)syscall(SYS_gettid));
    fflush(stdout);
    return NULL;
}

/* One process per connection: each has one thread, and ends with its client. */
static void serve(int listener)
{
    for (int i = 0; i < 4; i++) {
        int fd = accept(listener, NULL, NULL);
        char b[8];
        CHECK(fd >= 0);
        if (fork())
            close(fd);
        else {
            while (recv(fd, b, 8, MSG_WAITALL) == 8)
                CHECK(send(fd, b, 8, 0) == 8);
            _exit(0);
        }
    }
    while (wait(NULL) > 0)
        ;
    _exit(0);
}

static int listen_on_any(void)
{
    struct sockaddr_in a = {.sin_family = AF_INET, .sin_addr.s_addr = htonl(INADDR_LOOPBACK)};
    socklen_t len = sizeof a;
    int fd = socket(AF_INET, SOCK_STREAM, 0);

    CHECK(bind(fd, (struct sockaddr *)&a, sizeof a) == 0 && listen(fd, 8) == 0);
    CHECK(getsockname(fd, (struct sockaddr *)&a, &len) == 0);
    port = ntohs(a.sin_port);
    return fd;
}

static int burst(void)
{
    int listener = listen_on_any(), out = to_server(), in = accept(listener, NULL, NULL);
    char b = 0, line[8];

    for (int i = 0; i < 100; i++)
        CHECK(send(out, &b, 1, 0) == 1 && recv(in, &b, 1, 0) == 1);
    puts("ready");
    fflush(stdout);
    CHECK(read(0, line, sizeof line) > 0);
    for (int i = 0; i < N; i++) {
        b = (char)i;
        CHECK(send(out, &b, 1, 0) == 1 && recv(in, &b, 1, 0) == 1);
    }
    puts("done");
    fflush(stdout);
    CHECK(read(0, line, sizeof line) > 0);
    return 0;
}

int main(int argc, char **argv)
{
    pthread_t thread;
    char text[16];
    pid_t server;

    CHECK(argc == 3);
    N = atoi(argv[2]);
    if (!strcmp(argv[1], "burst"))
        return burst();
    port = atoi(argv[1]);
    if (port) { /* executed by ourselves */
        trips("exec");
        return 0;
    }
    int listener = listen_on_any();
    server = fork();
    if (!server)
        serve(listener);
    close(listener);
    trips("main");
    CHECK(pthread_create(&thread, NULL, trips, "thread") == 0 && pthread_join(thread, NULL) == 0);
    pid_t child = fork();
    if (!child) {
        trips("fork");
        _exit(0);
    }
    CHECK(waitpid(child, NULL, 0) == child);
    snprintf(text, sizeof text, "%d", port);
    execl("/proc/self/exe", "traced", text, argv[2], (char *)NULL);
    return 1;
}
