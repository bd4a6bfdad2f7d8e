/* SPDX-License-Identifier: Apache-2.0
 * spawn_serve KIND: an accepted connection that is still on TCP goes to another program, out of a child that shares its parent's memory. vfork: under
 * its own number; spawn: posix_spawn moves it to 0 and 1, as inetd does; second: the first execve fails; given-up: all do, and a forked child serves;
 * threads: spawn, while another thread of the parent opens and closes connections. */
#include "guest.h"
#include <pthread.h>
#include <spawn.h>

extern char **environ;

enum { CONNECTIONS = 4, ROUNDS = 1000 };

static const char self[] = "/proc/self/exe", none[] = "/nonexistent/program";
static volatile bool over;
static int go[2]; /* who talks begins when only one holds each connection: as long as two do it stays on TCP */

static void client(const struct sockaddr_in *addr)
{
    int fd = connect_loopback(addr);
    expect(go[0], "g");
    converse(fd, ROUNDS);
    close(fd);
    _exit(0);
}

static pid_t by_vfork(const char *first, const char *program, int fd)
{
    char number[16], *argv[] = {"spawn_serve", "serve", number, NULL};
    sprintf(number, "%d", fd);
    pid_t child = vfork();
    if (child == 0) {
        dup2(fd, 40);
        close(40);
        execv(first, argv);
        execv(program, argv);
        _exit(126);
    }
    return child;
}

static pid_t by_spawn(int fd)
{
    char *argv[] = {"spawn_serve", "serve", "0", NULL};
    posix_spawn_file_actions_t actions;
    pid_t child;
    posix_spawn_file_actions_init(&actions);
    posix_spawn_file_actions_adddup2(&actions, fd, 0);
    posix_spawn_file_actions_adddup2(&actions, 0, 1);
    posix_spawn_file_actions_addclose(&actions, fd);
    CHECK(posix_spawn(&child, self, &actions, NULL, argv, environ) == 0);
    posix_spawn_file_actions_destroy(&actions);
    return child;
}

static pid_t by_fork(int fd)
{
    int status;
    pid_t child = by_vfork(none, none, fd);
    CHECK(waitpid(child, &status, 0) == child && status == 126 << 8);
    child = fork();
    if (child == 0) {
        give_back(fd, fd);
        _exit(0);
    }
    return child;
}

/* Numbers, and the library's places for sockets, are used again and again. */
static void *churn(void *arg)
{
    struct sockaddr_in addr;
    int listener = listen_loopback(&addr, 4);
    (void)arg;
    while (!over) {
        int out = connect_loopback(&addr), in = accept(listener, NULL, NULL);
        CHECK(in >= 0);
        say(out, "x");
        expect(in, "x");
        close(out);
        close(in);
    }
    close(listener);
    return NULL;
}

int main(int argc, char **argv)
{
    struct sockaddr_in addr;
    pid_t clients[CONNECTIONS], servers[CONNECTIONS];
    pthread_t other;
    CHECK(argc >= 2);
    if (strcmp(argv[1], "serve") == 0) {
        give_back(atoi(argv[2]), atoi(argv[2]) ? atoi(argv[2]) : 1);
        return 0;
    }
    int listener = listen_loopback(&addr, 16);
    CHECK(pipe(go) == 0);
    for (int i = 0; i < CONNECTIONS; i++) {
        CHECK((clients[i] = fork()) >= 0);
        if (clients[i] == 0)
            client(&addr);
    }
    if (strcmp(argv[1], "threads") == 0)
        CHECK(pthread_create(&other, NULL, churn, NULL) == 0);
    for (int i = 0; i < CONNECTIONS; i++) {
        int fd = accept(listener, NULL, NULL);
        CHECK(fd >= 0);
        servers[i] = strcmp(argv[1], "vfork") == 0    ? by_vfork(self, none, fd)
                   : strcmp(argv[1], "second") == 0   ? by_vfork(none, self, fd)
                   : strcmp(argv[1], "given-up") == 0 ? by_fork(fd)
                                                      : by_spawn(fd);
        CHECK(servers[i] > 0);
        close(fd);
    }
    say(go[1], "gggg");
    for (int i = 0; i < CONNECTIONS; i++)
        reap(clients[i]), reap(servers[i]);
    over = true;
    if (strcmp(argv[1], "threads") == 0)
        CHECK(pthread_join(other, NULL) == 0);
    puts("ok");
    return 0;
}
