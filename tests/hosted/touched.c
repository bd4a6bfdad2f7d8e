/* SPDX-License-Identifier: Apache-2.0
 *
 * touched.c - memory that is touched though it is gone is a failure like any other, with its trace. (The C library's signals and the library's own names exclude
 * each other.)
 */
#include <signal.h>
#include <stddef.h>

void host_fail(const char *why);
void host_touched(void);

static void touched(int sig)
{
    (void)sig;
    host_fail("memory is touched that is gone");
}

void host_touched(void)
{
    static char own[65536]; /* the stack may be a thread's of the scenario, which is small */
    stack_t on = {.ss_sp = own, .ss_size = sizeof own};
    struct sigaction act = {.sa_handler = touched, .sa_flags = (int)(SA_ONSTACK | SA_RESETHAND)};

    sigaltstack(&on, NULL);
    sigaction(SIGSEGV, &act, NULL);
}
