/* SPDX-License-Identifier: Apache-2.0
 * A process ends, in different ways, while one of its threads sends all the time: what the peer's kernel or its own has taken arrives, in order, and then the end.
 *
 *   ending shutdown|exit|exec|kill|fork [rounds]
 *
 * The thread counts in memory that both see: a send may have been done and not counted yet. `exec`: another program, which has not got the connection.
 * `kill`: SIGKILL from the peer, `fork`: a child lives on for a while, and sends the last byte. */
#include "guest.h"
#include <pthread.h>
#include <sys/mman.h>

#define WARM 60
#define LAST 0xee

static int near, far;
static volatile long *sent;
static const char *what;

static void *sends(void *unused)
{
    for (;;) {
        unsigned char byte = (unsigned char)(*sent % 200);
        ssize_t r = send(near, &byte, 1, MSG_DONTWAIT | MSG_NOSIGNAL);
        if (r == 1) {
            (*sent)++;
        } else {
            CHECK(r < 0);
            if (errno == EAGAIN)
                continue;
            CHECK(!strcmp(what, "shutdown") && errno == EPIPE);
            return unused;
        }
    }
}

static void ends(pthread_t thread)
{
    if (!strcmp(what, "shutdown")) {
        CHECK(shutdown(near, SHUT_WR) == 0);
        CHECK(pthread_join(thread, NULL) == 0);
        _exit(0);
    }
    if (!strcmp(what, "exit"))
        exit(0);
    if (!strcmp(what, "exec")) {
        execlp("true", "true", NULL);
        CHECK(0);
    }
    if (!strcmp(what, "fork")) {
        unsigned char byte = LAST;
        pid_t parent = getpid(), pid = fork();
        CHECK(pid >= 0);
        if (pid)
            _exit(0);
        while (getppid() == parent) /* its thread sends until the process has ended */
            usleep(1000);
        usleep(2000);
        CHECK(send(near, &byte, 1, 0) == 1);
        _exit(0);
    }
    pause(); /* kill */
}

static void near_side(const struct sockaddr_in *at, long us)
{
    char c;
    pthread_t thread;

    near = connect_loopback(at);
    for (int i = 0; i < WARM; i++)
        CHECK(recv(near, &c, 1, 0) == 1 && send(near, &c, 1, 0) == 1);
    CHECK(pthread_create(&thread, NULL, sends, NULL) == 0);
    while (!*sent)
        sched_yield();
    usleep(us);
    ends(thread);
}

/* All of it in order, and the end. */
static void arrives(pid_t pid)
{
    static unsigned char bytes[1 << 16];
    bool last = false;
    long all = 0;
    ssize_t r;

    while ((r = recv(far, bytes, sizeof bytes, 0)) > 0) {
        for (ssize_t i = 0; i < r; i++) {
            CHECK(!last);
            last = bytes[i] == LAST;
            if (!last)
                CHECK(bytes[i] == (unsigned char)(all++ % 200));
        }
        if (!strcmp(what, "kill") && all > 3000)
            kill(pid, SIGKILL);
    }
    CHECK(r == 0);
    CHECK(last == !strcmp(what, "fork"));
    if (all != *sent && all != *sent + 1)
        fprintf(stderr, "sent %ld, arrived %ld\n", *sent, all);
    CHECK(all == *sent || all == *sent + 1);
}

static void round_of(int listener, const struct sockaddr_in *at, long us)
{
    int status;
    pid_t pid;
    char c = 'w';

    *sent = 0;
    CHECK((pid = fork()) >= 0);
    if (!pid) {
        near_side(at, us);
        _exit(0);
    }
    CHECK((far = accept(listener, NULL, NULL)) >= 0);
    for (int i = 0; i < WARM; i++) {
        CHECK(send(far, &c, 1, 0) == 1 && recv(far, &c, 1, 0) == 1);
        if (i < WARM / 2)
            usleep(200);
    }
    if (us % 20)
        usleep(1000);
    arrives(pid);
    CHECK(waitpid(pid, &status, 0) == pid);
    CHECK(!strcmp(what, "kill") ? WIFSIGNALED(status) : status == 0);
    close(far);
}

int main(int argc, char **argv)
{
    struct sockaddr_in at;
    int listener = listen_loopback(&at, 8), rounds = argc > 2 ? atoi(argv[2]) : 60;

    CHECK(argc > 1);
    what = argv[1];
    sent = mmap(NULL, 4096, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
    CHECK(sent != MAP_FAILED);
    for (int i = 0; i < rounds; i++)
        round_of(listener, &at, i % 20 * 10);
    puts("done");
    return 0;
}
