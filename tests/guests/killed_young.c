/* SPDX-License-Identifier: Apache-2.0
 *
 * killed_young: children that are killed around their first socket, at any point of what happens to them then. Their parent hears of the end of each.
 */
#include "guest.h"

#define CHILDREN 400
#define LATEST_US 3000

int main(void)
{
    struct prng r = {(uint64_t)getpid() | 1};
    int status;

    for (int i = 0; i < CHILDREN; i++) {
        struct timespec wait = {0, (long)(prng_next(&r) >> 16) % LATEST_US * 1000};
        pid_t child = fork();
        if (child == 0) {
            socket(AF_INET, SOCK_STREAM, 0);
            for (;;)
                pause();
        }
        wait.tv_nsec = wait.tv_nsec < 0 ? -wait.tv_nsec : wait.tv_nsec;
        alarm(20);
        nanosleep(&wait, NULL);
        CHECK(kill(child, SIGKILL) == 0 && waitpid(child, &status, 0) == child);
        CHECK(WIFSIGNALED(status) && WTERMSIG(status) == SIGKILL);
    }
    puts("ok");
    return 0;
}
