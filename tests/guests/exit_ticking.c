/* SPDX-License-Identifier: Apache-2.0
 * Ends while a timer interrupts it a thousand times a second, with other threads beside it: an end is nothing that a signal interrupts.
 * library: it has a TCP socket; bare: none. */
#include "guest.h"
#include <pthread.h>
#include <sys/syscall.h>
#include <sys/time.h>

static void on_alarm(int signal) { (void)signal; }

static void *asleep(void *nothing)
{
    sigset_t all;
    sigfillset(&all); /* the signals are for who ends */
    pthread_sigmask(SIG_SETMASK, &all, NULL);
    for (;;)
        pause();
    return nothing;
}

int main(int argc, char **argv)
{
    struct sigaction act = {.sa_handler = on_alarm, .sa_flags = SA_RESTART};
    struct itimerval t = {{0, 1000}, {0, 1000}};
    pthread_t thread;
    pthread_attr_t small;
    CHECK(argc == 2);
    if (!strcmp(argv[1], "library"))
        CHECK(socket(AF_INET, SOCK_STREAM, 0) >= 0);
    pthread_attr_init(&small);
    pthread_attr_setstacksize(&small, 65536);
    for (int i = 0; i < 1000; i++)
        CHECK(pthread_create(&thread, &small, asleep, NULL) == 0);
    CHECK(sigaction(SIGALRM, &act, NULL) == 0 && setitimer(ITIMER_REAL, &t, NULL) == 0);
    puts("ends");
    fflush(stdout);
    for (int i = 0; i < 10; i++)
        syscall(SYS_getppid); /* the site is patched by then: no handler of ours, which blocks signals, is in the way */
    syscall(SYS_exit_group, 7);
}
