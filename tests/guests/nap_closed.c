/* SPDX-License-Identifier: Apache-2.0
 * A thread waits in poll or recv for a connection that another one closes: it sleeps on, and the peer is told of no end, until something comes. Argument: poll or recv.
 * Both ends are on one CPU, in sessions of their own, and have come to expect each other soon. */
#include "guest.h"
#include "one_cpu.h"
#include <pthread.h>
#include <sys/prctl.h>

#define CONNECTIONS 12
#define WARM 400
#define US 1000

static bool polls;
static int sock, go[2];
static volatile int waits, is_back; /* waits: the thread's number */

static long wait_for(int fd, char *c)
{
    struct pollfd p = {fd, POLLIN, 0};
    if (!polls)
        return recv(fd, c, 1, 0);
    CHECK(poll(&p, 1, -1) == 1);
    return p.revents & POLLNVAL ? -1 : read(fd, c, 1);
}

static void sleep_us(long us)
{
    struct timespec ts = {0, us * 1000};
    nanosleep(&ts, NULL);
}

/* In a system call: of those that it makes from there on only naps and the kernel's own waits put it to sleep. */
static bool sleeps(int tid)
{
    char path[64], text[512], *state;
    snprintf(path, sizeof path, "/proc/self/task/%d/stat", tid);
    int fd = open(path, O_RDONLY);
    ssize_t n = read(fd, text, sizeof text - 1);
    close(fd);
    CHECK(n > 0);
    text[n] = 0;
    CHECK((state = strrchr(text, ')')) != NULL);
    return state[2] == 'S';
}

static void *serve(void *unused)
{
    char c;
    for (int i = 0; i < WARM; i++) {
        CHECK(wait_for(sock, &c) == 1);
        CHECK(write(sock, &c, 1) == 1);
    }
    waits = gettid();
    CHECK(wait_for(sock, &c) == (polls ? -1 : 1));
    is_back = 1;
    return unused;
}

static void client(const struct sockaddr_in *to)
{
    char c = 'x';
    CHECK(prctl(PR_SET_PDEATHSIG, SIGKILL) == 0 && setsid() > 0); /* it waits for a word of its parent */
    for (int i = 0; i < CONNECTIONS; i++) {
        int fd = socket(AF_INET, SOCK_STREAM, 0);
        struct pollfd p = {fd, POLLIN | POLLRDHUP, 0};
        CHECK(connect(fd, (const void *)to, sizeof *to) == 0);
        for (int k = 0; k < WARM; k++) {
            CHECK(write(fd, &c, 1) == 1);
            CHECK(read(fd, &c, 1) == 1);
        }
        CHECK(read(go[0], &c, 1) == 1);
        CHECK(poll(&p, 1, 0) == 0); /* closed, but somebody sleeps on it */
        CHECK(write(fd, &c, 1) == 1);
        CHECK(poll(&p, 1, -1) == 1 && read(fd, &c, 1) <= 0);
        close(fd);
    }
    _exit(0);
}

int main(int argc, char **argv)
{
    struct sockaddr_in at;
    int listener, status;
    pid_t pid;
    CHECK(argc == 2);
    polls = !strcmp(argv[1], "poll");
    on_one_cpu();
    listener = listen_loopback(&at, 5);
    CHECK(pipe(go) == 0);
    pid = fork();
    if (pid == 0)
        client(&at);
    for (int i = 0; i < CONNECTIONS; i++) {
        pthread_t thread;
        sock = accept(listener, NULL, NULL);
        waits = is_back = 0;
        CHECK(sock >= 0 && pthread_create(&thread, NULL, serve, NULL) == 0);
        while (!waits || !sleeps(waits))
            sleep_us(50);
        close(sock);
        sleep_us(10 * US);
        CHECK(!is_back && write(go[1], "", 1) == 1);
        CHECK(pthread_join(thread, NULL) == 0);
    }
    CHECK(waitpid(pid, &status, 0) == pid && status == 0);
    puts("ok");
    return 0;
}
