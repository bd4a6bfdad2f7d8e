/* SPDX-License-Identifier: Apache-2.0
 *
 * states.c - what a state of the explorer is: all memory that a thread can see, plus the live part of each stack.
 *
 * It is copied and restored, and remembered as a hash of 64 bits: what was there before is not explored again, so spinning and looking again
 * are finite.
 */
#include <stdlib.h>
#include <string.h>
#define XXH_INLINE_ALL
#include <xxhash.h>
#include "explore_inside.h"

/* Their header and the library's own list of such numbers exclude each other. */
void *mmap(void *, size_t, int, int, int, long);
int munmap(void *, size_t);
int madvise(void *, size_t, int);
#define MADV_HUGEPAGE 14

#define TABLE_BITS 15
#define TABLE_BITS_MOST 25

struct part {
    void *p;
    u64 n;
};

#define MORE_PARTS 8
#define FIXED (7 + 2 * THREADS + MORE_PARTS)
#define PARTS (FIXED + 1 + THREADS)
static struct part fixed[FIXED]; /* of the scenario; behind them what the pool has given and the stacks */
static u32 nfixed;

void mc_part(void *p, u64 bytes)
{
    if (nfixed == FIXED || bytes % 8)
        abort();
    if (bytes)
        fixed[nfixed++] = (struct part){p, bytes};
}

/* Without the second connection. */
static void world_parts(void)
{
    nfixed = 0;
    mc_part(&w, offsetof(struct world, tcb));
    for (u32 i = 0; i < THREADS; i++) { /* but for what was set aside of signal stacks, which nothing here does */
        mc_part(&w.tcb[i], offsetof(struct sd_tcb, asides));
        mc_part(w.tcb[i].owed, sizeof w.tcb[i] - offsetof(struct sd_tcb, owed));
    }
    mc_part(&prog, sizeof prog);
    mc_part(th, sizeof th);
    mc_part((void *)hosted_area.told, sizeof hosted_area.told);
    mc_part(hosted_area.part, (THREADS + 1) * sizeof *hosted_area.part);
    mc_part(__start_hosted_state, (u64)(__stop_hosted_state - __start_hosted_state));
}

static u32 moving_parts(struct part *out)
{
    u32 n = 0;

    out[n++] = (struct part){hosted_pool, w.pool_used};
    for (u32 i = 0; i < THREADS; i++)
        if (th[i].state != DONE)
            out[n++] = (struct part){(void *)th[i].sp, stack_left(i)};
    return n;
}

static u32 parts_of(struct part *out)
{
    memcpy(out, fixed, nfixed * sizeof *fixed);
    return nfixed + moving_parts(out + nfixed);
}

/* Most of the explorer's time goes here. Where a part ends is part of what it says: stacks differ in length. */
static u64 hash_state(void)
{
    struct part parts[PARTS];
    u64 h = 0;

    for (u32 i = 0, n = parts_of(parts); i < n; i++)
        h = (h ^ XXH3_64bits(parts[i].p, parts[i].n)) * 0x9e3779b97f4a7c15;
    h ^= h >> 29;
    return h ? h : 1;
}

void save(struct frame *f)
{
    struct part parts[PARTS];
    u32 n = parts_of(parts);
    u32 bytes = 0;
    u8 *to;

    for (u32 i = 0; i < n; i++)
        bytes += (u32)parts[i].n;
    if (bytes > f->room) {
        f->saved = realloc(f->saved, f->room = bytes + 512);
        if (!f->saved)
            abort();
    }
    to = f->saved;
    for (u32 i = 0; i < n; to += parts[i++].n)
        memcpy(to, parts[i].p, parts[i].n);
}

static const u8 *copy_back(const u8 *from, const struct part *parts, u32 n)
{
    for (u32 i = 0; i < n; from += parts[i++].n)
        memcpy(parts[i].p, from, parts[i].n);
    return from;
}

void restore(const struct frame *f)
{
    const u8 *from = copy_back(f->saved, fixed, nfixed);
    struct part parts[1 + THREADS];

    copy_back(from, parts, moving_parts(parts)); /* of the extents that they have now */
}

static u64 *table; /* of hashes; 0: free */
static u32 bits;   /* its size: it grows, since clearing memory is most of what a small scenario would cost */
u64 states_seen;

static void new_table(u32 size_bits)
{
    u64 bytes = sizeof *table << size_bits;

    table = mmap(NULL, bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (table == (u64 *)-1)
        abort();
    madvise(table, bytes, MADV_HUGEPAGE); /* each look is at another place of it */
    bits = size_bits;
}

/* False: it is there. */
static bool note(u64 h)
{
    u64 mask = (1ull << bits) - 1, i = h & mask;

    for (; table[i]; i = (i + 1) & mask)
        if (table[i] == h)
            return false;
    table[i] = h;
    return true;
}

static void grow(void)
{
    u64 *old = table, n = 1ull << bits;

    if (bits == TABLE_BITS_MOST)
        host_fail("more states than this machine can remember");
    new_table(bits + 2);
    for (u64 i = 0; i < n; i++)
        if (old[i])
            note(old[i]);
    munmap(old, n * sizeof *old);
}

bool is_new(void)
{
    if (!note(hash_state()))
        return false;
    if (++states_seen > (1ull << bits) / 2)
        grow();
    return true;
}

/* Before a scenario is set up, which may add parts of its own. */
void states_clear(void)
{
    if (table)
        munmap(table, sizeof *table << bits);
    new_table(TABLE_BITS);
    states_seen = 0;
    memset(__start_hosted_state, 0, (u64)(__stop_hosted_state - __start_hosted_state));
    memset(hosted_pool, 0, sizeof hosted_pool);
    world_parts();
}
