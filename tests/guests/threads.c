/* SPDX-License-Identifier: Apache-2.0
 * Threads share one connection: on each side one writes and one reads, all at the same time; then four threads take
 * turns to read fixed records of which none may be lost or torn apart. */
#include "guest.h"
#include <pthread.h>

enum { BYTES = 32 << 20, CHUNK = 30000, RECORDS = 4000 };
static int conn;
static unsigned seed_out, seed_in;
static _Atomic unsigned seen;
static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;

static void *writer(void *unused)
{
    static unsigned char buf[CHUNK];
    struct prng r = {seed_out}, lengths = {seed_out + 77};
    for (size_t left = BYTES; left > 0;) {
        size_t n = prng_next(&lengths) % CHUNK + 1;
        n = n < left ? n : left;
        prng_fill(&r, buf, n);
        write_all(conn, buf, n);
        left -= n;
    }
    return unused;
}

static void *reader(void *unused)
{
    static unsigned char buf[CHUNK], want[CHUNK];
    struct prng r = {seed_in};
    for (size_t left = BYTES; left > 0;) {
        ssize_t n = read(conn, buf, left < CHUNK ? left : CHUNK);
        CHECK(n > 0);
        prng_fill(&r, want, (size_t)n);
        CHECK(memcmp(buf, want, (size_t)n) == 0);
        left -= (size_t)n;
    }
    return unused;
}

static void *take_turns(void *unused)
{
    unsigned number;
    for (;;) {
        pthread_mutex_lock(&lock);
        ssize_t n = recv(conn, &number, sizeof number, MSG_WAITALL);
        CHECK(n == 0 || (n == sizeof number && number == seen));
        seen += n != 0;
        pthread_mutex_unlock(&lock);
        if (n == 0)
            return unused;
    }
}

static void both_ways(int fd)
{
    pthread_t w, r;
    conn = fd;
    CHECK(pthread_create(&w, NULL, writer, NULL) == 0 && pthread_create(&r, NULL, reader, NULL) == 0);
    CHECK(pthread_join(w, NULL) == 0 && pthread_join(r, NULL) == 0);
}

static void accepted(int fd)
{
    seed_out = 1, seed_in = 2;
    both_ways(fd);
    pthread_t t[4];
    for (int i = 0; i < 4; i++)
        CHECK(pthread_create(&t[i], NULL, take_turns, NULL) == 0);
    for (int i = 0; i < 4; i++)
        CHECK(pthread_join(t[i], NULL) == 0);
    CHECK(seen == RECORDS);
}

static void connected(int fd)
{
    seed_out = 2, seed_in = 1;
    both_ways(fd);
    for (unsigned i = 0; i < RECORDS; i++)
        write_all(fd, &i, sizeof i);
}

int main(void) { return guest_main(accepted, connected); }
