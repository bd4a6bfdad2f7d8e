/* SPDX-License-Identifier: Apache-2.0
 *
 * masks: a signal is blocked but for the time of a call that waits for the connection: ppoll, pselect, epoll_pwait, sigsuspend.
 */
#include "guest.h"
#include <sys/epoll.h>
#include <sys/select.h>

static volatile int handled;
static int epoll;

static void handler(int number) { handled += number == SIGUSR1; }

static int waits(int way, int fd, const sigset_t *mask)
{
    struct pollfd p = {fd, POLLIN, 0};
    struct epoll_event e;
    fd_set set;
    FD_ZERO(&set);
    FD_SET(fd, &set);
    return way == 0 ? ppoll(&p, 1, NULL, mask) : way == 1 ? pselect(fd + 1, &set, NULL, NULL, NULL, mask) : epoll_pwait(epoll, &e, 1, -1, mask);
}

static void still_blocked(bool pending)
{
    sigset_t now;
    CHECK(sigprocmask(SIG_SETMASK, NULL, &now) == 0 && sigismember(&now, SIGUSR1) == 1 && sigismember(&now, SIGUSR2) == 0);
    CHECK(sigpending(&now) == 0 && sigismember(&now, SIGUSR1) == pending);
}

static void accepted(int fd)
{
    struct sigaction act = {.sa_handler = handler, .sa_flags = SA_RESTART};
    struct epoll_event e = {.events = EPOLLIN};
    sigset_t none, all, one;
    char pid[16];

    epoll = epoll_create1(0);
    CHECK(epoll >= 0 && epoll_ctl(epoll, EPOLL_CTL_ADD, fd, &e) == 0 && sigaction(SIGUSR1, &act, NULL) == 0);
    sigemptyset(&none);
    sigfillset(&all);
    sigemptyset(&one);
    sigaddset(&one, SIGUSR1);
    CHECK(sigprocmask(SIG_BLOCK, &one, NULL) == 0);
    snprintf(pid, sizeof pid, "%15d", (int)getpid());
    say(fd, pid);
    for (int i = 0; i < 30; i++) {
        int before = handled;
        CHECK(raise(SIGUSR1) == 0 && handled == before);
        CHECK(waits(i % 3, fd, &none) == -1 && errno == EINTR && handled == before + 1); /* it was pending */
        still_blocked(false);
        CHECK(raise(SIGUSR1) == 0);
        say(fd, "g");
        CHECK(waits(i % 3, fd, &all) == 1 && handled == before + 1); /* not even now */
        expect(fd, "o");
        still_blocked(true);
        CHECK(sigsuspend(&none) == -1 && errno == EINTR && handled == before + 2);
        still_blocked(false);
        say(fd, "k"); /* signalled while it sleeps */
        CHECK(waits(i % 3, fd, &none) == -1 && errno == EINTR && handled == before + 3);
        say(fd, "g");
        CHECK(waits(i % 3, fd, &all) == 1);
        expect(fd, "o");
        still_blocked(false);
    }
    say(fd, "e");
}

static void connected(int fd)
{
    char pid[16] = "", c;
    read_all(fd, pid, 15);
    for (read_all(fd, &c, 1); c != 'e'; read_all(fd, &c, 1)) {
        sleep_ms(5);
        if (c == 'k')
            CHECK(kill(atoi(pid), SIGUSR1) == 0);
        else
            say(fd, "o");
    }
}

int main(void) { return guest_main(accepted, connected); }
