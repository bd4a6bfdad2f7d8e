/* SPDX-License-Identifier: Apache-2.0
 *
 * bench.h - what the load programs have in common.
 *
 * Each program forks its workers and watches them from outside: the workers count in shared memory, the parent sleeps, reads the counters
 * and the workers' CPU clocks at the beginning and at the end of the measured time, and prints one JSON object. So nothing in a worker's
 * loop reads a clock that it would not read anyway, and a worker that is stuck is seen as no progress.
 */
#ifndef BENCH_H
#define BENCH_H

#define _GNU_SOURCE
#include <errno.h>
#include <linux/filter.h>
#include <linux/seccomp.h>
#include <sched.h>
#include <signal.h>
#include <stdarg.h>
#include <stdatomic.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

#define MAX_WORKERS 64

/* Latencies: 128 steps an octave, so a percentile is right to 1 %. */
#define HIST_BITS 7
#define HIST_SIZE ((64 - HIST_BITS) << HIST_BITS)
struct hist {
    uint64_t n[HIST_SIZE];
};

enum phase { PHASE_START, PHASE_WARM, PHASE_MEASURE, PHASE_STOP };

struct worker {
    _Atomic uint64_t count; /* messages or requests done, ever */
    _Atomic uint64_t bytes;
    _Atomic uint32_t ready;
    pid_t pid;
    uint64_t pad[4];
} __attribute__((aligned(64)));

struct shared {
    _Atomic uint32_t phase __attribute__((aligned(64)));
    _Atomic uint32_t port __attribute__((aligned(64))); /* chosen by the worker that listens */
    struct worker worker[MAX_WORKERS];
    struct hist hist[MAX_WORKERS];
};

static inline void die(const char *format, ...)
{
    va_list args;
    va_start(args, format);
    vfprintf(stderr, format, args);
    va_end(args);
    if (errno)
        fprintf(stderr, ": %s", strerror(errno));
    fputc('\n', stderr);
    exit(1);
}

static inline uint64_t now_ns(void)
{
    struct timespec ts;
    clock_gettime(CLOCK_MONOTONIC, &ts);
    return (uint64_t)ts.tv_sec * 1000000000u + (uint64_t)ts.tv_nsec;
}

static inline void sleep_ms(unsigned ms)
{
    struct timespec ts = {ms / 1000, ms % 1000 * 1000000l};
    while (nanosleep(&ts, &ts) < 0 && errno == EINTR)
        ;
}

static inline void pin(int cpu)
{
    cpu_set_t set;
    if (cpu < 0)
        return;
    CPU_ZERO(&set);
    CPU_SET(cpu, &set);
    if (sched_setaffinity(0, sizeof set, &set) < 0)
        die("sched_setaffinity to CPU %d", cpu);
}

#define WATCH_FILTER 1u   /* allows every call */
#define WATCH_DISPATCH 2u /* exempts every site */

/* What the kernel takes for calls that can be intercepted, with nobody who does it. */
static inline void be_watched(unsigned what)
{
    struct sock_filter allow = BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_ALLOW);
    struct sock_fprog filter = {1, &allow};

    if ((what & WATCH_FILTER) && (prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) || prctl(PR_SET_SECCOMP, SECCOMP_MODE_FILTER, &filter)))
        die("filter");
    if ((what & WATCH_DISPATCH) && prctl(PR_SET_SYSCALL_USER_DISPATCH, PR_SYS_DISPATCH_ON, 0l, (1l << 47) - 4096, NULL))
        die("dispatch");
}

static inline void *share(size_t bytes)
{
    void *at = mmap(NULL, bytes, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    if (at == MAP_FAILED)
        die("mmap");
    return at;
}

static inline unsigned hist_index(uint64_t ns)
{
    if (ns < 1u << HIST_BITS)
        return (unsigned)ns;
    unsigned octave = 63 - (unsigned)__builtin_clzll(ns) - HIST_BITS;
    return ((octave + 1) << HIST_BITS) + (unsigned)((ns >> octave) & ((1u << HIST_BITS) - 1));
}

static inline uint64_t hist_value(unsigned index)
{
    unsigned octave = index >> HIST_BITS, rest = index & ((1u << HIST_BITS) - 1);
    return octave ? (uint64_t)((1u << HIST_BITS) + rest) << (octave - 1) : rest;
}

static inline void hist_add(struct hist *h, uint64_t ns) { h->n[hist_index(ns)]++; }

/* The value that `share` of all samples in `hists` histograms do not exceed. */
static inline double hist_quantile(const struct hist *h, int hists, double share)
{
    uint64_t all = 0, seen = 0;
    for (int k = 0; k < hists; k++)
        for (unsigned i = 0; i < HIST_SIZE; i++)
            all += h[k].n[i];
    for (unsigned i = 0; i < HIST_SIZE; i++) {
        for (int k = 0; k < hists; k++)
            seen += h[k].n[i];
        if (all && seen >= share * all)
            return (double)hist_value(i);
    }
    return 0;
}

static inline double cpu_of(pid_t pid)
{
    clockid_t clock;
    struct timespec ts;
    if (clock_getcpuclockid(pid, &clock) != 0 || clock_gettime(clock, &ts) < 0)
        return 0;
    return (double)ts.tv_sec + (double)ts.tv_nsec / 1e9;
}

/* Forks worker `index`; it dies with its parent. */
static inline bool fork_worker(struct shared *s, int index)
{
    pid_t pid = fork();
    if (pid < 0)
        die("fork");
    if (pid == 0) {
        prctl(PR_SET_PDEATHSIG, SIGKILL);
        return true;
    }
    s->worker[index].pid = pid;
    return false;
}

static inline void wait_ready(struct shared *s, int workers, unsigned ms)
{
    for (int i = 0; i < workers; i++) {
        for (unsigned t = 0; !atomic_load(&s->worker[i].ready); t++) {
            int status;
            if (t > ms || waitpid(s->worker[i].pid, &status, WNOHANG) > 0) {
                errno = 0;
                die("worker %d did not get ready", i);
            }
            sleep_ms(1);
        }
    }
}

static inline void stop_workers(struct shared *s, int workers)
{
    atomic_store(&s->phase, PHASE_STOP);
    uint64_t until = now_ns() + 500000000u;
    for (int i = 0; i < workers; i++) {
        int status;
        while (waitpid(s->worker[i].pid, &status, WNOHANG) == 0) {
            if (now_ns() > until)
                kill(s->worker[i].pid, SIGKILL);
            sleep_ms(2);
        }
    }
}

struct measured {
    double seconds, cpu; /* CPU seconds of all workers */
    uint64_t count, bytes;
};

/* Warms up, measures, and returns what workers [first, first + n) counted meanwhile; CPU time is that of all `workers`. */
static inline struct measured measure(struct shared *s, int workers, int first, int n, unsigned warm_ms, unsigned ms)
{
    struct measured m = {0};
    atomic_store(&s->phase, PHASE_WARM);
    sleep_ms(warm_ms);
    atomic_store(&s->phase, PHASE_MEASURE);
    for (int sign = -1; sign <= 1; sign += 2) {
        m.seconds += sign * (double)now_ns() / 1e9;
        for (int i = 0; i < workers; i++)
            m.cpu += sign * cpu_of(s->worker[i].pid);
        for (int i = first; i < first + n; i++) {
            m.count += (uint64_t)sign * atomic_load(&s->worker[i].count);
            m.bytes += (uint64_t)sign * atomic_load(&s->worker[i].bytes);
        }
        if (sign < 0)
            sleep_ms(ms);
    }
    atomic_store(&s->phase, PHASE_WARM); /* nobody adds to a histogram any more */
    for (int i = 0; i < workers; i++) {
        int status;
        if (waitpid(s->worker[i].pid, &status, WNOHANG) != 0) { /* what it has counted is not what was to be measured */
            errno = 0;
            die("worker %d ended too early", i);
        }
    }
    return m;
}

#endif
