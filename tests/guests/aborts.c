/* SPDX-License-Identifier: Apache-2.0
 *
 * aborts: abort() in the middle of a conversation; what stands in the core dump is the test's affair.
 */
#include "guest.h"

__attribute__((noinline)) void gives_up(int fd)
{
    say(fd, "c");
    abort();
}

static void connected(int fd)
{
    char c;
    while (read(fd, &c, 1) > 0)
        ;
}

int main(void) { return guest_main(gives_up, connected); }
