/* SPDX-License-Identifier: Apache-2.0
 *
 * fuzz_peer.c - the hostile peer: what it writes, when it comes in, and which words it must find untouched by us.
 */
#include <string.h>
#include "fuzz.h"

#define MEDDLE_STEPS 300   /* accesses of one call before the peer becomes quiet */
#define QUIET_STEPS 20000  /* and so many more may follow */

static u64 value(void)
{
    struct sd_dir *mine = &seg->dir[0], *its = &seg->dir[1];
    u64 bases[] = {0, ~0ull, 1ull << 63, *(u64 *)&mine->tail, *(u64 *)&mine->head, *(u64 *)&its->tail, *(u64 *)&its->head, net.read, net.arrived,
                   net.written, rnd()};
    u64 base = bases[rnd() % ARRAY_LEN(bases)];

    return one_in(2) ? base + rnd() % 5 - 2 : base + rnd() % (2 * RING + 3) - RING;
}

/* Mostly plausible, so that a connection lives for a while. */
static void meddle(void)
{
    struct sd_dir *its = &seg->dir[1], *mine = &seg->dir[0];
    u64 *tail = (u64 *)&its->tail, *head = (u64 *)&mine->head;

    switch (rnd() % 32) {
    case 0: /* any word */
        ((u32 *)seg)[rnd() % (sizeof *seg / 4)] = (u32)value();
        break;
    case 1:
        ((u64 *)seg)[rnd() % (sizeof *seg / 8)] = value();
        break;
    case 2 ... 11:
        *tail += rnd() % 9;
        if (*tail - *(u64 *)&its->head > RING && !one_in(20))
            *tail = *(u64 *)&its->head + RING;
        break;
    case 12 ... 21:
        if (*(u64 *)&mine->tail - *head <= RING)
            *head += rnd() % (*(u64 *)&mine->tail - *head + 1);
        break;
    case 22:
        *(u64 *)&its->sw_ring = net.arrived + 1 + rnd() % 3;
        break;
    case 23:
        if (one_in(8)) {
            *(u64 *)&its->sw_back_at = *tail;
            *(u64 *)&its->sw_back = net.arrived + 1 + rnd() % 3;
        }
        break;
    case 24:
        *(u32 *)&its->bell ^= 1 | step % 3 * SD_BELL_MORE;
        break;
    case 25:
        *(u32 *)&its->tx_armed = rnd() % 3;
        break;
    case 26:
        *(u32 *)&mine->rx_armed = rnd() % 3;
        break;
    case 27:
        net.arrived += rnd() % 4;
        break;
    case 28:
        *(u32 *)&seg->attached[1] = 1;
        break;
    case 29:
        if (one_in(40))
            net.fin = true;
        if (one_in(100))
            net.reset = true;
        break;
    default:
        break;
    }
}

void come_in(void)
{
    if (!inside)
        return;
    if (++step > MEDDLE_STEPS + QUIET_STEPS)
        host_fail("does not come to an end");
    if (step < MEDDLE_STEPS && one_in(6))
        meddle();
}

/* ------------------------------------------------------------ shared words */

static bool in_seg(const volatile void *p)
{
    return (u8 *)p >= (u8 *)seg && (u8 *)p < (u8 *)(seg + 1);
}

/* Who writes what: sd_segment.h. */
static void check_ours(const volatile void *p)
{
    struct sd_dir *tx = &seg->dir[0], *rx = &seg->dir[1];
    const volatile void *ours[] = {&tx->tail, &rx->tail /* [C2] */, &tx->held, &tx->held_since, &tx->base, &tx->prod_fenced, &tx->sw_ring, &tx->sw_back, &tx->sw_back_at, &tx->prod_hint, &tx->bell_first, &tx->tx_armed, &tx->prod_cpu, &tx->rung_at,
                                   &tx->bell, &tx->go_back /* [S5]: TAKEN */, &rx->head, &rx->rx_armed, &rx->nap, &tx->nap, &rx->go_back, &rx->cons_cpu, &rx->arrived, &rx->bell, &seg->attached[0],
                                   &tx->handle, &rx->nap_at, &tx->date[0], &tx->date[1], &tx->date[2], &tx->date[3], &tx->date[4]};

    if (!inside || !in_seg(p))
        return;
    for (u32 i = 0; i < ARRAY_LEN(ours); i++)
        if (p == ours[i])
            return;
    host_fail("writes a word that is not ours");
}

static u64 get_word(const volatile void *p, u32 size)
{
    return size == 8 ? *(const volatile u64 *)p : *(const volatile u32 *)p;
}

static void set_word(volatile void *p, u32 size, u64 v)
{
    check_ours(p);
    if (size == 8)
        *(volatile u64 *)p = v;
    else
        *(volatile u32 *)p = (u32)v;
}

u64 mc_load(const volatile void *p, u32 size)
{
    come_in();
    return get_word(p, size);
}

void mc_store(volatile void *p, u32 size, u64 v)
{
    come_in();
    set_word(p, size, v);
}

u64 mc_rmw(volatile void *p, u32 size, enum mc_op op, u64 v)
{
    u64 old;

    come_in();
    old = get_word(p, size);
    set_word(p, size, op == MC_ADD ? old + v : op == MC_SUB ? old - v : op == MC_OR ? old | v : op == MC_AND ? old & v : v);
    return old;
}

bool mc_cmpxchg(volatile void *p, u32 size, u64 *want, u64 val)
{
    u64 old;

    come_in();
    old = get_word(p, size);
    if (old != *want) {
        *want = old;
        return false;
    }
    set_word(p, size, val);
    return true;
}

bool mc_cas_local(_Atomic u64 *p, u64 want, u64 val) { return mc_cmpxchg(p, 8, &want, val); }
void mc_fence(void) { come_in(); }
void mc_relax(void) { come_in(); }
void host_membarrier(void) { come_in(); }
void mc_bytes(void *dst, const void *src, u64 n)
{
    come_in();
    memcpy(dst, src, n);
}
