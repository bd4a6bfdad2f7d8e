/* SPDX-License-Identifier: Apache-2.0
 * A clock that the vdso cannot read: its own system call, ten thousand times; then once more in a child and in a thread. */
#include "guest.h"
#include <pthread.h>
#include <time.h>

static void *ask(void *unused)
{
    struct timespec before, now;
    CHECK(clock_gettime(CLOCK_THREAD_CPUTIME_ID, &before) == 0);
    for (int i = 0; i < 10000; i++) {
        CHECK(clock_gettime(CLOCK_THREAD_CPUTIME_ID, &now) == 0);
        CHECK(now.tv_sec > before.tv_sec || (now.tv_sec == before.tv_sec && now.tv_nsec >= before.tv_nsec));
        before = now;
    }
    CHECK(clock_gettime(-1000000, &now) == -1 && errno == EINVAL);
    return unused;
}

int main(void)
{
    struct sockaddr_in addr;
    pthread_t thread;
    CHECK(listen_loopback(&addr, 1) >= 0); /* the library comes with the first socket */
    ask(NULL);
    pid_t child = fork();
    CHECK(child >= 0);
    if (child == 0) {
        ask(NULL);
        _exit(0);
    }
    reap(child);
    CHECK(pthread_create(&thread, NULL, ask, NULL) == 0 && pthread_join(thread, NULL) == 0);
    puts("ok");
    return 0;
}
