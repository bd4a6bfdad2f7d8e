/* SPDX-License-Identifier: Apache-2.0
 *
 * pair.c - round trips and streams between pairs of processes.
 *
 *   pair TRANSPORT MODE SIZE [-p PAIRS] [-a CPU] [-b CPU] [-w WARM_MS] [-t MS] [-c CONGESTION] [-r RING_BYTES] [-m] [-k] [-s]
 *
 * TRANSPORT tcp, unix, pipe, ring, one-copy. MODE rtt: A sends SIZE bytes, B sends them back; stream: A sends without pause, B reads message by
 * message; batch: B reads what is there, up to 64 KiB. A and B of each pair are pinned to the CPUs given. -m: each has a second thread, which sleeps.
 * -k: both behind a filter and a dispatch that allow everything, which is what the kernel takes for calls that can be intercepted. -s: each in a session of its own,
 * as servers and their clients are: where sessions are groups of the scheduler, sched_yield does not give the CPU from one to the other.
 */
#include "link.h"
#include <pthread.h>

struct options {
    enum kind kind;
    const char *mode, *congestion;
    size_t size;
    int pairs, cpu[2];
    unsigned warm_ms, ms;
    uint32_t ring_bytes;
    bool threads, sessions;
    unsigned watched; /* WATCH_* */
};

#define BATCH 65536

static inline enum phase phase_of(struct shared *s)
{
    return (enum phase)atomic_load_explicit(&s->phase, memory_order_relaxed);
}

static inline void done(struct worker *w, uint64_t messages, uint64_t bytes)
{
    atomic_store_explicit(&w->count, atomic_load_explicit(&w->count, memory_order_relaxed) + messages, memory_order_relaxed);
    atomic_store_explicit(&w->bytes, atomic_load_explicit(&w->bytes, memory_order_relaxed) + bytes, memory_order_relaxed);
}

static void ask(struct shared *s, struct link *l, struct worker *w, struct hist *h, uint8_t *buffer, size_t size)
{
    uint64_t before = now_ns();

    while (phase_of(s) != PHASE_STOP) {
        if (!link_send(l, buffer, size) || !link_recv(l, buffer, size))
            return;
        uint64_t after = now_ns();
        if (phase_of(s) == PHASE_MEASURE)
            hist_add(h, after - before);
        before = after;
        done(w, 1, size);
    }
}

static void answer(struct link *l, uint8_t *buffer, size_t size)
{
    while (link_recv(l, buffer, size) && link_send(l, buffer, size))
        ;
}

static void pour(struct shared *s, struct link *l, uint8_t *buffer, size_t size)
{
    while (phase_of(s) != PHASE_STOP && link_send(l, buffer, size))
        ;
}

static void drink(struct link *l, struct worker *w, uint8_t *buffer, size_t size)
{
    while (link_recv(l, buffer, size))
        done(w, 1, size);
}

static void gulp(struct link *l, struct worker *w, uint8_t *buffer, size_t size)
{
    uint64_t rest = 0;
    size_t got;

    while ((got = link_some(l, buffer, BATCH))) {
        rest += got;
        done(w, rest / size, got);
        rest %= size;
    }
}

static void *sleeper(void *nothing)
{
    for (;;)
        pause();
    return nothing;
}

static void work(struct shared *s, const struct options *o, const struct plan *plan, _Atomic uint32_t *port, int index)
{
    int side = index & 1;
    struct worker *w = &s->worker[index];
    size_t bytes = o->size > BATCH ? o->size : BATCH;
    uint8_t *buffer = mmap(NULL, bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_POPULATE, -1, 0);
    struct link l;

    if (buffer == MAP_FAILED)
        die("mmap");
    pin(o->cpu[side]);
    if (o->sessions && setsid() < 0)
        die("setsid");
    pthread_t other;
    if (o->threads && pthread_create(&other, NULL, sleeper, NULL))
        die("pthread_create");
    l = open_link(plan, side, port, o->congestion);
    l.phase = &s->phase;
    l.peer = &s->worker[index ^ 1].pid;
    l.spin = o->cpu[0] >= 0 && o->cpu[0] == o->cpu[1] ? 0 : SPIN;
    be_watched(o->watched);
    atomic_store(&w->ready, 1);
    while (phase_of(s) == PHASE_START)
        sleep_ms(1);
    if (!strcmp(o->mode, "rtt"))
        side == 0 ? ask(s, &l, w, &s->hist[index], buffer, o->size) : answer(&l, buffer, o->size);
    else if (side == 0)
        pour(s, &l, buffer, o->size);
    else if (!strcmp(o->mode, "stream"))
        drink(&l, w, buffer, o->size);
    else
        gulp(&l, w, buffer, o->size);
    exit(0);
}

static struct options parse(int argc, char **argv)
{
    static const char *const kinds[] = {"tcp", "unix", "pipe", "ring", "one-copy"};
    struct options o = {.pairs = 1, .cpu = {-1, -1}, .warm_ms = 100, .ms = 500, .congestion = "", .ring_bytes = 256 * 1024};
    int c, kind = 0;

    while ((c = getopt(argc, argv, "p:a:b:w:t:c:r:mks")) != -1) {
        switch (c) {
        case 'p': o.pairs = atoi(optarg); break;
        case 'a': o.cpu[0] = atoi(optarg); break;
        case 'b': o.cpu[1] = atoi(optarg); break;
        case 'w': o.warm_ms = (unsigned)atoi(optarg); break;
        case 't': o.ms = (unsigned)atoi(optarg); break;
        case 'c': o.congestion = optarg; break;
        case 'r': o.ring_bytes = (uint32_t)atoi(optarg); break;
        case 'm': o.threads = true; break;
        case 'k': o.watched = WATCH_FILTER | WATCH_DISPATCH; break;
        case 's': o.sessions = true; break;
        default: exit(2);
        }
    }
    errno = 0;
    if (argc - optind != 3)
        die("usage: pair [options] TRANSPORT MODE SIZE");
    while (kind < 5 && strcmp(kinds[kind], argv[optind]))
        kind++;
    o.kind = (enum kind)kind;
    o.mode = argv[optind + 1];
    o.size = (size_t)atol(argv[optind + 2]);
    bool mode = !strcmp(o.mode, "rtt") || !strcmp(o.mode, "stream") || !strcmp(o.mode, "batch");
    if (kind == 5 || !mode || o.size < 1 || o.pairs < 1 || o.pairs * 2 > MAX_WORKERS)
        die("pair: wrong transport, mode, size or number of pairs");
    return o;
}

int main(int argc, char **argv)
{
    struct options o = parse(argc, argv);
    struct shared *s = share(sizeof *s);
    _Atomic uint32_t *ports = share(MAX_WORKERS * sizeof *ports);
    int workers = 2 * o.pairs;
    bool rtt = !strcmp(o.mode, "rtt");

    for (int i = 0; i < workers; i += 2) {
        struct plan plan = plan_link(o.kind, o.ring_bytes);
        for (int side = 0; side < 2; side++)
            if (fork_worker(s, i + side))
                work(s, &o, &plan, &ports[i], i + side);
        if (o.kind == KIND_UNIX || o.kind == KIND_PIPE)
            for (int k = 0; k < 4; k++)
                close(plan.side[k / 2][k % 2]);
    }
    wait_ready(s, workers, 10000);
    struct measured m = measure(s, workers, 0, workers, o.warm_ms, o.ms);
    printf("{\"seconds\": %.6f, \"cpu\": %.6f, \"count\": %lu, \"bytes\": %lu", m.seconds, m.cpu, m.count, m.bytes);
    if (rtt)
        printf(", \"p50_ns\": %.0f, \"p99_ns\": %.0f, \"p999_ns\": %.0f", hist_quantile(s->hist, workers, 0.5),
               hist_quantile(s->hist, workers, 0.99), hist_quantile(s->hist, workers, 0.999));
    printf("}\n");
    fflush(stdout);
    stop_workers(s, workers);
    return 0;
}
