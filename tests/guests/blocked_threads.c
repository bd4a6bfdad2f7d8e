/* SPDX-License-Identifier: Apache-2.0
 *
 * Threads sit in calls that any interruption ends early, while the main thread makes the process's first TCP socket: none of
 * them may notice. Each call must end by what it waits for, after what it waits for, and never with EINTR. */
#include "guest.h"

#define FUTEX_WAIT 0 /* linux/futex.h, which musl does not come with */
#include <pthread.h>
#include <sys/epoll.h>
#include <sys/sem.h>
#include <sys/syscall.h>

#define HOLD_MS 700
static int pipe_fds[2], pair[2], semaphores;
static uint32_t futex_word;
static double start;

#define EXPECT_FULL_WAIT() CHECK(now_s() - start > HOLD_MS / 1000.0 - 0.05)

static void *in_recv(void *arg)
{
    char c;
    CHECK(recv(pair[0], &c, 1, 0) == 1 && c == 'x');
    return arg;
}

static void *in_recv_timeout(void *arg)
{
    int mine[2];
    char c;
    struct timeval t = {0, HOLD_MS * 1000};
    CHECK(socketpair(AF_UNIX, SOCK_STREAM, 0, mine) == 0);
    CHECK(setsockopt(mine[0], SOL_SOCKET, SO_RCVTIMEO, &t, sizeof(t)) == 0);
    CHECK(recv(mine[0], &c, 1, 0) == -1 && errno == EAGAIN);
    EXPECT_FULL_WAIT();
    return arg;
}

static void *in_epoll(void *arg)
{
    int ep = epoll_create1(0);
    struct epoll_event e = {.events = EPOLLIN};
    CHECK(epoll_ctl(ep, EPOLL_CTL_ADD, pipe_fds[0], &e) == 0);
    CHECK(epoll_wait(ep, &e, 1, 5000) == 1);
    return arg;
}

static void *in_futex(void *arg)
{
    struct timespec t = {0, HOLD_MS * 1000000L};
    CHECK(syscall(SYS_futex, &futex_word, FUTEX_WAIT, 0, &t, NULL, 0) == -1 && errno == ETIMEDOUT);
    EXPECT_FULL_WAIT();
    return arg;
}

static void *in_nanosleep(void *arg)
{
    struct timespec t = {0, HOLD_MS * 1000000L};
    CHECK(nanosleep(&t, NULL) == 0);
    EXPECT_FULL_WAIT();
    CHECK(now_s() - start < HOLD_MS / 1000.0 + 2.0);
    return arg;
}

static void *in_ppoll(void *arg)
{
    struct pollfd p = {.fd = pipe_fds[0], .events = POLLIN};
    sigset_t all;
    sigfillset(&all);
    CHECK(ppoll(&p, 1, NULL, &all) == 1);
    sigset_t now;
    CHECK(pthread_sigmask(SIG_BLOCK, NULL, &now) == 0 && !sigismember(&now, SIGUSR1));
    return arg;
}

static void *in_sigtimedwait(void *arg)
{
    sigset_t set;
    struct timespec t = {0, HOLD_MS * 1000000L};
    sigemptyset(&set);
    sigaddset(&set, SIGUSR2);
    pthread_sigmask(SIG_BLOCK, &set, NULL);
    CHECK(sigtimedwait(&set, NULL, &t) == -1 && errno == EAGAIN);
    return arg;
}

static void *in_semop(void *arg)
{
    struct sembuf down = {0, -1, 0};
    CHECK(semop(semaphores, &down, 1) == 0);
    return arg;
}

int main(void)
{
    void *(*bodies[])(void *) = {in_recv,      in_recv_timeout, in_epoll,        in_futex,
                                 in_nanosleep, in_ppoll,        in_sigtimedwait, in_semop};
    enum { COUNT = sizeof(bodies) / sizeof(bodies[0]) };
    pthread_t threads[COUNT];
    struct sembuf up = {0, 1, 0};
    CHECK(pipe(pipe_fds) == 0 && socketpair(AF_UNIX, SOCK_STREAM, 0, pair) == 0);
    CHECK((semaphores = semget(IPC_PRIVATE, 1, 0600)) >= 0);
    start = now_s();
    for (int i = 0; i < COUNT; i++)
        CHECK(pthread_create(&threads[i], NULL, bodies[i], NULL) == 0);
    sleep_ms(150);
    int fd = socket(AF_INET, SOCK_STREAM, 0);
    CHECK(fd >= 0 && close(fd) == 0);
    sleep_ms(100);
    write_all(pair[1], "x", 1);
    write_all(pipe_fds[1], "y", 1);
    CHECK(semop(semaphores, &up, 1) == 0);
    for (int i = 0; i < COUNT; i++)
        CHECK(pthread_join(threads[i], NULL) == 0);
    CHECK(semctl(semaphores, 0, IPC_RMID) == 0);
    puts("undisturbed");
    return 0;
}
