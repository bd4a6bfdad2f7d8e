/* SPDX-License-Identifier: Apache-2.0
 * A thousand connections one after the other, each with a few messages and another way to end; no descriptor is left. */
#include "guest.h"
#include <dirent.h>

enum { CONNECTIONS = 1000 };

static int descriptors(void)
{
    int count = 0;
    DIR *d = opendir("/proc/self/fd");
    CHECK(d != NULL);
    while (readdir(d) != NULL)
        count++;
    closedir(d);
    return count;
}

static void server(int listener)
{
    for (int i = 0; i < CONNECTIONS; i++) {
        int fd = accept(listener, NULL, NULL);
        char buf[64];
        CHECK(fd >= 0);
        for (ssize_t n; (n = read(fd, buf, sizeof buf)) > 0;)
            write_all(fd, buf, (size_t)n);
        CHECK(close(fd) == 0);
    }
}

static void client(const struct sockaddr_in *addr)
{
    for (int i = 0; i < CONNECTIONS; i++) {
        int fd = connect_loopback(addr);
        char back[16];
        for (int round = 0; round < i % 12; round++) {
            write_all(fd, "message", 7);
            read_all(fd, back, 7);
            CHECK(memcmp(back, "message", 7) == 0);
        }
        if (i % 3 == 0) {
            CHECK(shutdown(fd, SHUT_WR) == 0);
            expect_eof(fd);
        }
        CHECK(close(fd) == 0);
    }
}

/* As many as before; else says which there are, to be seen in the test's message. */
static void same_descriptors(int before)
{
    struct dirent *entry;
    char path[300], to[256];
    int count = descriptors();
    DIR *d;

    if (count == before)
        return;
    CHECK((d = opendir("/proc/self/fd")) != NULL);
    while ((entry = readdir(d)) != NULL) {
        snprintf(path, sizeof path, "/proc/self/fd/%s", entry->d_name);
        ssize_t n = readlink(path, to, sizeof to - 1);
        if (n > 0)
            fprintf(stderr, "%s -> %.*s\n", entry->d_name, (int)n, to);
    }
    fprintf(stderr, "%d descriptors, %d before\n", count, before);
    CHECK(count == before);
}

int main(void)
{
    struct sockaddr_in addr;
    int listener = listen_loopback(&addr, 64), before = descriptors();
    pid_t child = fork();
    CHECK(child >= 0);
    if (child == 0) {
        client(&addr);
        same_descriptors(before);
        _exit(0);
    }
    server(listener);
    same_descriptors(before);
    reap(child);
    puts("ok");
    return 0;
}
