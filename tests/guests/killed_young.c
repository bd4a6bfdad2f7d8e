/* SPDX-License-Identifier: Apache-2.0
 *
 * killed_young: children that are killed around their first socket, at any point of what happens to them then. Their parent hears of the end of each.
 * How long that takes, says one that is not killed.
 */
#include "guest.h"

#define CHILDREN 400
#define LATEST_S 0.003
#define ALL_S 4

static double first_socket(void)
{
    double begin = now_s();
    pid_t child = fork();
    if (child == 0)
        _exit(socket(AF_INET, SOCK_STREAM, 0) < 0);
    reap(child);
    return now_s() - begin;
}

int main(void)
{
    struct prng r = {(uint64_t)getpid() | 1};
    double begin = now_s(), latest;
    int status;

    first_socket(); /* by a supervisor that has to be started */
    latest = 0.75 * first_socket();
    latest = latest < LATEST_S ? LATEST_S : latest > 0.5 ? 0.5 : latest;
    for (int i = 0; i < CHILDREN && (i < 20 || now_s() < begin + ALL_S); i++) {
        struct timespec wait = {0, (long)((double)(prng_next(&r) >> 40) / (1 << 24) * latest * 1e9)};
        pid_t child = fork();
        if (child == 0) {
            socket(AF_INET, SOCK_STREAM, 0);
            for (;;)
                pause();
        }
        alarm(20);
        nanosleep(&wait, NULL);
        CHECK(kill(child, SIGKILL) == 0 && waitpid(child, &status, 0) == child);
        CHECK(WIFSIGNALED(status) && WTERMSIG(status) == SIGKILL);
    }
    puts("ok");
    return 0;
}
