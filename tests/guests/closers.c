/* SPDX-License-Identifier: Apache-2.0
 * closers: one process talks, while children that hold the connection as well close it, one after the other. Prints how many bytes went there and back. */
#include "guest.h"

enum { CHILDREN = 150, ROUNDS = 60 };

static void closes(int fd)
{
    sleep_ms(1); /* the other one is in the middle of it */
    close(fd);
    _exit(0);
}

static void talks(int fd)
{
    unsigned long sent = 0;
    for (int i = 0; i < CHILDREN; i++) {
        pid_t child = fork();
        CHECK(child >= 0);
        if (child == 0)
            closes(fd);
        for (int status; waitpid(child, &status, WNOHANG) == 0;)
            for (int round = 0; round < ROUNDS; round++) {
                meet(fd);
                sent++;
            }
    }
    printf("%lu\n", sent);
    close(fd);
}

static void answers(int fd)
{
    give_back(fd, fd);
    close(fd);
}

int main(void)
{
    return guest_main(talks, answers);
}
