/* SPDX-License-Identifier: Apache-2.0
 *
 * Threads that make their first sockets side by side, and get a signal each, with a handler that restarts nothing, 20 ms after they have begun.
 * Natively they are done long before. Then two of them talk over a connection. Prints how many could not have a socket; to stderr, how many signals
 * came while one was made, and whether shared memory has come in. `first_tick FILE` begins when that is there. */
#include "guest.h"

#include <pthread.h>
#include <sys/syscall.h>

#define THREADS 4

static struct one {
    pthread_t thread;
    pid_t tid;
    int error, inside;
} all[THREADS];
static pthread_barrier_t begin;
static __thread volatile sig_atomic_t ticks;

static void on_tick(int signal)
{
    (void)signal;
    ticks++;
}

static void *first(void *arg)
{
    struct one *o = arg;
    o->tid = (pid_t)syscall(SYS_gettid);
    pthread_barrier_wait(&begin);
    int fd = socket(AF_INET, SOCK_STREAM, 0);
    o->error = fd < 0 ? errno : 0;
    o->inside = ticks;
    while (!ticks)
        sleep_ms(1);
    close(fd);
    return NULL;
}

static void *answer(void *arg)
{
    int fd = accept(*(int *)arg, NULL, NULL);
    CHECK(fd >= 0);
    warm_up(fd, false);
    give_back(fd, fd);
    close(fd);
    return NULL;
}

static bool has_mapped(const char *name)
{
    FILE *maps = fopen("/proc/self/maps", "r");
    char line[512];
    bool found = false;
    while (maps && !found && fgets(line, sizeof line, maps))
        found = strstr(line, name);
    return found;
}

int main(int argc, char **argv)
{
    struct sigaction act = {.sa_handler = on_tick};
    struct sockaddr_in addr;
    int failed = 0, inside = 0;
    pthread_t other;
    CHECK(sigaction(SIGUSR1, &act, NULL) == 0 && pthread_barrier_init(&begin, NULL, THREADS + 1) == 0);
    while (argc > 1 && access(argv[1], F_OK))
        sleep_ms(5);
    for (int i = 0; i < THREADS; i++)
        CHECK(pthread_create(&all[i].thread, NULL, first, &all[i]) == 0);
    pthread_barrier_wait(&begin);
    sleep_ms(20);
    for (int i = 0; i < THREADS; i++)
        CHECK(syscall(SYS_tgkill, getpid(), all[i].tid, SIGUSR1) == 0);
    for (int i = 0; i < THREADS; i++) {
        CHECK(pthread_join(all[i].thread, NULL) == 0);
        failed += all[i].error != 0;
        inside += all[i].inside;
    }
    int listener = listen_loopback(&addr, 1);
    CHECK(pthread_create(&other, NULL, answer, &listener) == 0);
    int fd = connect_loopback(&addr);
    warm_up(fd, true);
    converse(fd, 500);
    bool shared = has_mapped("socksdirect-segment");
    CHECK(shutdown(fd, SHUT_WR) == 0 && pthread_join(other, NULL) == 0);
    printf("failed %d\n", failed);
    fprintf(stderr, "inside %d, shared %d\n", inside, shared);
    return 0;
}
