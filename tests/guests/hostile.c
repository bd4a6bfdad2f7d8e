/* SPDX-License-Identifier: Apache-2.0
 *
 * hostile word OFFSET OFFSET | hostile all SEED: one end of an accelerated connection overwrites the shared header; the other
 * end must drop the connection with ECONNRESET, and live. The only guest that knows what it runs under: it finds the
 * ring memory in its own address space by its magic number.
 */
#include "guest.h"

#define SEGMENT_MAGIC 0x474e495253445244ull
#define HEADER_WORDS (768 / 8)

static bool all;
static uint64_t numbers[2]; /* the seed, or offsets of words in the header */
static int pipes[2];

static uint64_t *find_segment(void)
{
    char line[512];
    FILE *maps = fopen("/proc/self/maps", "r");
    CHECK(maps != NULL);
    while (fgets(line, sizeof line, maps) != NULL) {
        unsigned long from, to;
        char prot[8];
        if (sscanf(line, "%lx-%lx %7s", &from, &to, prot) == 3 && strncmp(prot, "rw-s", 4) == 0 &&
            *(uint64_t *)from == SEGMENT_MAGIC) {
            fclose(maps);
            return (uint64_t *)from;
        }
    }
    fprintf(stderr, "no ring memory: the connection is on TCP\n");
    _exit(3);
}

static void scribble(uint64_t *segment)
{
    struct prng r = {numbers[0] * 2 + 1};
    for (int i = 0; i < 2 && !all; i++)
        segment[numbers[i] / 8] = 0xfedcba9876543210ull;
    if (!all)
        return;
    for (int i = 0; i < 10000; i++)
        segment[8 + prng_next(&r) % HEADER_WORDS] = prng_next(&r) >> prng_next(&r) % 64;
}

static void tell(int which)
{
    char c = 1;
    CHECK(write(pipes[which], &c, 1) == 1);
}

/* The victim: reads and writes on until the connection is dropped. */
static void accepted(int fd)
{
    static char buf[4096];
    char c;
    close(pipes[1]); /* the end of a peer that never told ends this wait too */
    CHECK(read(pipes[0], &c, 1) == 1);
    double start = now_s();
    for (bool alive = true; alive;) {
        CHECK(now_s() - start < 20);
        ssize_t n = recv(fd, buf, sizeof buf, MSG_DONTWAIT);
        if (n < 0 && errno != EAGAIN) {
            CHECK(errno == ECONNRESET);
            alive = false;
        } else if (n == 0) {
            CHECK(all); /* random words may do no harm until the hostile end exits; a wrong position does at once */
            alive = false;
        }
        n = send(fd, buf, 100, MSG_DONTWAIT | MSG_NOSIGNAL);
        if (n < 0 && errno != EAGAIN) {
            CHECK(errno == ECONNRESET || errno == EPIPE);
            alive = false;
        }
    }
    close(fd);
}

static void connected(int fd)
{
    scribble(find_segment());
    tell(1);
    sleep_ms(500); /* and makes no call on the connection */
    (void)fd;
    _exit(0);
}

int main(int argc, char **argv)
{
    CHECK(argc >= 3 && pipe(pipes) == 0);
    all = strcmp(argv[1], "all") == 0;
    for (int i = 2; i < argc && i < 4; i++)
        numbers[i - 2] = strtoull(argv[i], NULL, 0);
    return guest_main(accepted, connected);
}
