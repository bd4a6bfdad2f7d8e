/* SPDX-License-Identifier: Apache-2.0
 * A handler ends epoll_wait and poll, with SA_RESTART, too, also of who sleeps on the rings of two other processes. Argument: restart or plain, epoll or poll. */
#include "guest.h"
#include "one_cpu.h"
#include <sys/epoll.h>
#include <sys/time.h>

#define CLIENTS 2
#define WARM 20000 /* until both ends nap, if they may */
#define ROUNDS 200

static volatile sig_atomic_t waiting, alarms;
static void on_alarm(int signal) { alarms += waiting && signal; }
static int epfd, socks[CLIENTS] = {-1, -1};
static bool polls;

static int wait_for(int *which)
{
    struct pollfd p[CLIENTS] = {{socks[0], POLLIN, 0}, {socks[1], POLLIN, 0}};
    struct epoll_event e;
    int n = polls ? poll(p, CLIENTS, -1) : epoll_wait(epfd, &e, 1, -1);
    if (n > 0)
        *which = polls ? !(p[0].revents & POLLIN) : (int)e.data.u32;
    return n;
}

static void client(const struct sockaddr_in *to)
{
    char c = 'x';
    int fd = socket(AF_INET, SOCK_STREAM, 0);
    setsid();
    for (int i = 0; i < CLIENTS; i++)
        close(socks[i]); /* another's connection must not be shared */
    CHECK(connect(fd, (const void *)to, sizeof *to) == 0);
    while (write(fd, &c, 1) == 1 && read(fd, &c, 1) == 1)
        ;
    _exit(0);
}

static void serve(bool interrupted, int rounds)
{
    struct itimerval soon = {{0, 20000}, {0, 1500}}, off = {{0, 0}, {0, 0}}; /* again, if the first came before the wait */
    int which = 0;
    char c;
    for (int i = 0; i < rounds; i++) {
        CHECK(wait_for(&which) >= 1 && read(socks[which], &c, 1) == 1);
        if (interrupted) { /* both have sent, and wait for an answer */
            CHECK(wait_for(&which) >= 1 && read(socks[which], &c, 1) == 1);
            CHECK(setitimer(ITIMER_REAL, &soon, NULL) == 0);
            waiting = 1;
            CHECK(wait_for(&which) == -1 && errno == EINTR);
            waiting = 0;
            CHECK(setitimer(ITIMER_REAL, &off, NULL) == 0);
            CHECK(write(socks[!which], &c, 1) == 1);
        }
        CHECK(write(socks[which], &c, 1) == 1);
    }
}

int main(int argc, char **argv)
{
    struct sockaddr_in at;
    struct sigaction act = {.sa_handler = on_alarm};
    int listener;
    CHECK(argc == 3);
    act.sa_flags = strcmp(argv[1], "restart") ? 0 : SA_RESTART;
    polls = !strcmp(argv[2], "poll");
    on_one_cpu();
    listener = listen_loopback(&at, 5);
    epfd = epoll_create1(0);
    for (unsigned i = 0; i < CLIENTS; i++) {
        struct epoll_event e = {EPOLLIN, {.u32 = i}};
        if (fork() == 0)
            client(&at);
        socks[i] = accept(listener, NULL, NULL);
        CHECK(socks[i] >= 0 && epoll_ctl(epfd, EPOLL_CTL_ADD, socks[i], &e) == 0);
    }
    CHECK(sigaction(SIGALRM, &act, NULL) == 0);
    serve(false, WARM);
    for (int i = 0; i < ROUNDS; i++) {
        serve(false, 50); /* who sleeps in vain does not nap again soon */
        serve(true, 1);
    }
    CHECK(alarms <= ROUNDS * 5 / 4); /* one that comes just before the call ends nothing */
    puts("ok");
    return 0;
}
