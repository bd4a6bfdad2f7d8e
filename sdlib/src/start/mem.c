/* SPDX-License-Identifier: Apache-2.0
 *
 * mem.c - memory, time, barriers and the supervisor's number.
 */
#include "gate/gate.h"

/* ---- memory: power-of-two classes from 64 bytes, a lock-free list of free pieces each. A list head holds 48 bits of address and a
 * 16-bit tag that changes with every removal, against a piece that goes and comes back meanwhile (a signal handler may do that).
 * Memory is never unmapped, so reading the link of a piece that somebody else has just taken is harmless. */
#define SMALLEST_LOG2 6
#define CLASSES 22
#define CHUNK (256u * 1024)
#define ADDRESS 0xffffffffffffull

static _Atomic u64 free_list[CLASSES];
static _Atomic u64 chunk_at; /* next free byte of the current chunk; chunks are aligned, so its end is known */

static u32 class_of(u64 bytes)
{
    u32 class = 0;
    while ((64ull << class) < bytes)
        class++;
    return class;
}

static u64 map_pages(u64 bytes)
{
    long at = SYS6(__NR_mmap, 0, bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    return at < 0 && at > -4096 ? 0 : (u64)at;
}

static void *from_chunk(u64 size)
{
    for (;;) {
        u64 at = load_acq(&chunk_at);
        u64 end = at ? ((at - 1) | (CHUNK - 1)) + 1 : 0;
        if (at && at + size <= end) {
            if (atomic_compare_exchange_strong(&chunk_at, &at, at + size))
                return (void *)at;
            continue;
        }
        u64 fresh = map_pages(2ull * CHUNK); /* half of it is only room for the alignment and never touched */
        if (!fresh)
            return NULL;
        fresh = (fresh + CHUNK - 1) & ~(u64)(CHUNK - 1);
        if (atomic_compare_exchange_strong(&chunk_at, &at, fresh + size))
            return (void *)fresh;
        SYS2(__NR_munmap, fresh, CHUNK);
    }
}

void *sd_alloc(u64 bytes)
{
    u32 class = class_of(bytes);
    if (class >= CLASSES)
        return NULL;
    u64 size = 64ull << class, head = load_acq(&free_list[class]);
    while (head & ADDRESS) {
        u64 at = head & ADDRESS, next = *(volatile u64 *)at;
        if (atomic_compare_exchange_weak(&free_list[class], &head, (head & ~ADDRESS) + (1ull << 48) + (next & ADDRESS))) {
            sd_zero((void *)at, size);
            return (void *)at;
        }
    }
    return size > CHUNK / 4 ? (void *)map_pages(size) : from_chunk(size);
}

void sd_free(void *p, u64 bytes)
{
    if (!p)
        return;
    u32 class = class_of(bytes);
    u64 head = load_rlx(&free_list[class]);
    do
        *(volatile u64 *)p = head & ADDRESS;
    while (!atomic_compare_exchange_weak(&free_list[class], &head, (head & ~ADDRESS) | (u64)p));
}

/* ---- the rest */

void sd_membarrier(void)
{
    if (unlikely(SYS2(__NR_membarrier, MEMBARRIER_CMD_GLOBAL_EXPEDITED, 0) < 0))
        sd_fence(); /* no membarrier here (a filter of the program's): waiting stays right because waits are bounded then */
}

void sd_membarrier_threads(void)
{
    static _Atomic u32 cmd = MEMBARRIER_CMD_PRIVATE_EXPEDITED;

    if (likely(SYS2(__NR_membarrier, load_rlx(&cmd), 0) == 0))
        return;
    /* Not registered: injection found threads, and then registering takes the kernel 10 ms. Global is, and covers them. */
    store_rlx(&cmd, MEMBARRIER_CMD_GLOBAL_EXPEDITED);
    sd_membarrier();
}

u64 sd_now_ns(void)
{
    struct timespec64 ts = { 0, 0 };
    SYS2(__NR_clock_gettime, CLOCK_MONOTONIC, &ts);
    return (u64)ts.sec * 1000000000ull + (u64)ts.nsec;
}

long sd_hypercall(u32 op, u64 a, u64 b)
{
    if (g.no_supervisor)
        return -ENOSYS;
    long r;
    do
        r = SYS3(SD_HC_NR, op, a, b);
    while (r == -EINTR); /* a handler has run before it was taken: it is as if it had not been asked */
    if (r == -ENOSYS)
        g.no_supervisor = 1;
    return r;
}

/* A supervisor that is killed or stopped while it hands a descriptor over makes the kernel answer 0 and give none (ADDFD with SEND, its wait
 * interrupted): whoever believed that 0 closed the program's standard input. All that we are given are memfds with their size sealed. */
long sd_hypercall_fd(u32 op, u64 a, u64 b)
{
    for (int attempt = 0; attempt < 4; attempt++) { /* it has a successor */
        long fd = sd_hypercall(op, a, b);
        if (fd != 0)
            return fd;
        long seals = SYS3(__NR_fcntl, 0, F_GET_SEALS, 0);
        if (seals > 0 && (seals & (F_SEAL_SHRINK | F_SEAL_GROW)) == (F_SEAL_SHRINK | F_SEAL_GROW))
            return fd;
    }
    g.no_supervisor = 1;
    return -ENOSYS;
}
