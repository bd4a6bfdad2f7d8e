/* SPDX-License-Identifier: Apache-2.0
 *
 * sharers WHAT PROCESSES THREADS CHAOS: one connection used by several processes with several threads each, all at the same time.
 *
 *   write   they send records of different lengths, whole ones or none: the other side checks that none is lost, doubled, torn or late
 *   read    they receive what they get: together it is every byte once (by how often each of the 256 values came)
 *
 * Chaos: "none"; "stop", one process is stopped in the middle and stays so until all others are done; "kill", it is killed.
 */
#include "guest.h"
#include <pthread.h>
#include <sched.h>
#include <sys/mman.h>

#define RECORDS 400
#define MAX_BODY 3000
#define READ_TOTAL (6u << 20)
#define MAX_SHARERS 16

struct head {
    uint16_t magic, writer;
    uint32_t seq, len;
};

static struct shared {
    uint64_t values[MAX_SHARERS][256];
    volatile uint32_t going[MAX_SHARERS];
} *shared;
static bool reading;
static int processes, threads, sock;
static const char *chaos;

struct job {
    pthread_t thread;
    int number;
};

static void body_of(struct head *h, unsigned char *body)
{
    struct prng r = {0x9e3779b97f4a7c15ull * (h->writer + 1) + h->seq};

    prng_next(&r);
    h->len = (uint32_t)(prng_next(&r) % MAX_BODY) + 1;
    prng_fill(&r, body, h->len);
}

static void *sharer(void *arg)
{
    int me = ((struct job *)arg)->number;
    unsigned char buf[sizeof(struct head) + MAX_BODY];
    struct prng r = {(uint64_t)me + 77};

    if (reading) {
        ssize_t n;
        while ((n = read(sock, buf, prng_next(&r) % sizeof buf + 1)) > 0) {
            for (ssize_t i = 0; i < n; i++)
                shared->values[me][buf[i]]++;
            shared->going[me]++;
        }
        CHECK(n == 0);
        return NULL;
    }
    for (uint32_t seq = 0; seq < RECORDS; seq++) {
        struct head h = {0x5d5d, (uint16_t)me, seq, 0};
        body_of(&h, buf + sizeof h);
        memcpy(buf, &h, sizeof h);
        CHECK(write(sock, buf, sizeof h + h.len) == (ssize_t)(sizeof h + h.len));
        shared->going[me]++;
    }
    return NULL;
}

static void run_process(int index)
{
    struct job jobs[MAX_SHARERS];

    for (int t = 0; t < threads; t++) {
        jobs[t].number = index * threads + t;
        if (t)
            CHECK(pthread_create(&jobs[t].thread, NULL, sharer, &jobs[t]) == 0);
    }
    sharer(&jobs[0]);
    for (int t = 1; t < threads; t++)
        CHECK(pthread_join(jobs[t].thread, NULL) == 0);
    _exit(0);
}

static uint32_t all_together(void)
{
    uint32_t sum = 0;

    for (int i = 0; i < processes * threads; i++)
        sum += shared->going[i];
    return sum;
}

static void sharing_side(int fd)
{
    pid_t child[MAX_SHARERS];
    bool killed = strcmp(chaos, "kill") == 0, victim = killed || strcmp(chaos, "stop") == 0;

    sock = fd;
    for (int p = 0; p < processes; p++)
        if ((child[p] = fork()) == 0)
            run_process(p);
    if (victim) {
        while (all_together() < 100)
            sched_yield();
        CHECK(kill(child[0], killed ? SIGKILL : SIGSTOP) == 0);
    }
    for (int p = victim; p < processes; p++)
        reap(child[p]);
    if (victim) {
        int status;
        CHECK(kill(child[0], SIGCONT) == 0);
        CHECK(waitpid(child[0], &status, 0) == child[0]);
        CHECK(status == 0 || (killed && WIFSIGNALED(status))); /* it may have been done already */
    }
    close(fd);
}

static bool head_comes(int fd, struct head *h)
{
    size_t got = 0;
    ssize_t n;

    while (got < sizeof *h && (n = read(fd, (char *)h + got, sizeof *h - got)) > 0)
        got += (size_t)n;
    CHECK(got == 0 || got == sizeof *h);
    return got != 0;
}

static void check_records(int fd)
{
    unsigned char body[MAX_BODY], want[MAX_BODY];
    uint32_t next[MAX_SHARERS] = {0};
    struct head h;

    while (head_comes(fd, &h)) {
        struct head again = {h.magic, h.writer, h.seq, 0};
        CHECK(h.magic == 0x5d5d && h.writer < processes * threads);
        CHECK(h.seq == next[h.writer]++);
        body_of(&again, want);
        CHECK(again.len == h.len);
        read_all(fd, body, h.len);
        CHECK(memcmp(body, want, h.len) == 0);
    }
    for (int w = strcmp(chaos, "kill") ? 0 : threads; w < processes * threads; w++)
        CHECK(next[w] == RECORDS);
}

static void feed_readers(int fd)
{
    static unsigned char buf[20000];
    struct prng r = {4711};
    uint64_t want[256] = {0};
    char c;

    for (size_t left = READ_TOTAL; left;) {
        size_t n = prng_next(&r) % sizeof buf + 1;
        n = n < left ? n : left;
        prng_fill(&r, buf, n);
        for (size_t i = 0; i < n; i++)
            want[buf[i]]++;
        write_all(fd, buf, n);
        left -= n;
    }
    CHECK(shutdown(fd, SHUT_WR) == 0);
    CHECK(read(fd, &c, 1) == 0); /* all readers are done */
    for (int v = 0; v < 256; v++) {
        uint64_t got = 0;
        for (int w = 0; w < processes * threads; w++)
            got += shared->values[w][v];
        if (strcmp(chaos, "kill") == 0)
            CHECK(got <= want[v]); /* what it had read and not yet counted */
        else
            CHECK(got == want[v]);
    }
}

static void other_side(int fd)
{
    if (reading)
        feed_readers(fd);
    else
        check_records(fd);
}

int main(int argc, char **argv)
{
    CHECK(argc == 5);
    reading = strcmp(argv[1], "read") == 0;
    processes = atoi(argv[2]);
    threads = atoi(argv[3]);
    chaos = argv[4];
    CHECK(processes * threads <= MAX_SHARERS);
    shared = mmap(NULL, sizeof *shared, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
    CHECK(shared != MAP_FAILED);
    return guest_main(sharing_side, other_side);
}
