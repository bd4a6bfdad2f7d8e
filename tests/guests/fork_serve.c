/* SPDX-License-Identifier: Apache-2.0
 * fork_serve KIND: who serves a connection. prefork: children accept from one inherited listener; per-connection: the
 * parent accepts and a child serves the inherited connection; handover: the parent talks first, then a child. */
#include "guest.h"

enum { CONNECTIONS = 6, ROUNDS = 500 };

static void client(const struct sockaddr_in *addr)
{
    int fd = connect_loopback(addr);
    warm_up(fd, true);
    converse(fd, ROUNDS);
    close(fd);
}

static void serve_child(int listener, const char *kind, pid_t *children)
{
    for (int i = 0; i < CONNECTIONS; i++) {
        int fd = -1;
        if (strcmp(kind, "prefork") != 0)
            CHECK((fd = accept(listener, NULL, NULL)) >= 0);
        if (strcmp(kind, "handover") == 0)
            warm_up(fd, false); /* as the client's first hundred messages */
        CHECK((children[i] = fork()) >= 0);
        if (children[i] == 0) {
            if (fd < 0)
                CHECK((fd = accept(listener, NULL, NULL)) >= 0);
            give_back(fd, fd);
            close(fd);
            _exit(0);
        }
        if (fd >= 0)
            close(fd);
    }
}

int main(int argc, char **argv)
{
    struct sockaddr_in addr;
    pid_t clients[CONNECTIONS], servers[CONNECTIONS];
    CHECK(argc == 2);
    int listener = listen_loopback(&addr, 16);
    for (int i = 0; i < CONNECTIONS; i++) {
        CHECK((clients[i] = fork()) >= 0);
        if (clients[i] == 0) {
            close(listener);
            client(&addr);
            _exit(0);
        }
    }
    serve_child(listener, argv[1], servers);
    for (int i = 0; i < CONNECTIONS; i++)
        reap(clients[i]), reap(servers[i]);
    puts("ok");
    return 0;
}
