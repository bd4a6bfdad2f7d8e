/* SPDX-License-Identifier: Apache-2.0
 *
 * patch.c - trap once, then patch.
 *
 * Dispatch turns a call from outside of the gate into SIGSYS. The handler finds the site's slot, tries once to rewrite the site so that the
 * next call jumps there, and goes on in the slot itself: it changes rip and returns, so that the call is made outside of any signal context.
 *
 * Only two things are ever written into the program's text (DESIGN 2.3: a thread may be blocked at the site and returns to the byte behind
 * it, or restarts at it):
 *   - the five bytes of `mov $nr,%eax` before the call, by one aligned store; the call itself stays and traps if it is jumped to
 *   - the two bytes of the call, by a short jump to padding between functions, where a long jump has been put first
 * Padding is int3 (never executed), or a run of no-ops of at least seven bytes that begins with a jump over the rest: executed
 * in line it still does nothing.
 */
#include "gate/gate.h"

_Atomic u64 sd_slot_ret[SD_SLOTS];
static u8 tried[SD_SLOTS]; /* a site is looked at once */
static u32 forbidden;
static _Atomic u32 lock;

static struct stubs {
    u64 page, used;
} stubs[64];
static u32 nstubs;

static void take(void)
{
    while (!cas_u32(&lock, 0, 1))
        SYS0(__NR_sched_yield);
}

void sd_patch_after_fork(void) { store_rlx(&lock, 0); }

void sd_patch_forbid(void) { forbidden = 1; }

/* ------------------------------------------------------------------- stubs */

#define STUB_BYTES 32

/* A stub within reach of `site`, or 0. */
static u64 stub_new(u64 site, u64 hole, u32 nr, bool load_nr, u64 slot)
{
    struct stubs *p = NULL;
    u8 code[STUB_BYTES] = {0};
    u32 n = 0;
    u64 at;

    for (u32 i = 0; i < nstubs; i++) {
        u64 d = stubs[i].page > site ? stubs[i].page - site : site - stubs[i].page;
        if (d < 0x70000000 && stubs[i].used + STUB_BYTES <= 4096)
            p = &stubs[i];
    }
    if (!p) {
        if (!hole || nstubs == ARRAY_LEN(stubs))
            return 0;
        at = (u64)SYS6(__NR_mmap, hole, 4096, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED_NOREPLACE, -1, 0);
        if (at != hole)
            return 0;
        p = &stubs[nstubs++];
        *p = (struct stubs){at, 0};
    } else if (SYS3(__NR_mprotect, p->page, 4096, PROT_READ | PROT_WRITE | PROT_EXEC) < 0) {
        return 0;
    }
    if (load_nr) {
        code[n++] = 0xb8; /* mov $nr,%eax */
        for (u32 i = 0; i < 4; i++)
            code[n++] = (u8)(nr >> 8 * i);
    }
    code[n++] = 0xff; /* jmp *0(%rip) */
    code[n++] = 0x25;
    n += 4;
    for (u32 i = 0; i < 8; i++)
        code[n++] = (u8)(slot >> 8 * i);
    at = p->page + p->used;
    sd_copy((void *)at, code, STUB_BYTES);
    p->used += STUB_BYTES;
    SYS3(__NR_mprotect, p->page, 4096, PROT_READ | PROT_EXEC);
    return at;
}

/* -------------------------------------------------------------------- sites */

/* May n <= 5 bytes at `at` be replaced while others run there? One store within an aligned block of 16 bytes, which no processor fetches in
 * two parts; while there is only one thread, any. */
static bool replaceable(u64 at, u32 n) { return !g.mt || (at & 15) + n <= 16; }

static void replace(u64 at, const u8 *bytes, u32 n)
{
    u64 block = at & ~15ull, base = (at & 15) > 8 ? block + 8 : at, word;

    if ((at & 15) + n > 16) {
        sd_copy((void *)at, bytes, n);
        return;
    }
    sd_copy(&word, (void *)base, 8);
    for (u32 i = 0; i < n; i++) {
        u32 sh = (u32)(at - base + i) * 8;
        word = (word & ~(0xffull << sh)) | (u64)bytes[i] << sh;
    }
    __asm__ volatile("movq %1, %0" : "=m"(*(u64 *)base) : "r"(word) : "memory"); /* one store: others fetch the old bytes or the new */
}

static bool rel32(u64 from_end, u64 to, u8 *out)
{
    i64 d = (i64)(to - from_end);

    if (d != (i32)d)
        return false;
    for (u32 i = 0; i < 4; i++)
        out[i] = (u8)((u64)d >> 8 * i);
    return true;
}

/* Length of the recommended multi-byte no-op at p, 0 if it is something else. */
static u32 nop_len(const u8 *p)
{
    u32 pre = 0;

    while (pre < 10 && (p[pre] == 0x66 || p[pre] == 0x2e))
        pre++;
    if (p[pre] == 0x90)
        return pre + 1;
    if (p[pre] != 0x0f || p[pre + 1] != 0x1f)
        return 0;
    switch (p[pre + 2]) {
    case 0x00: return pre + 3;
    case 0x40: return pre + 4;
    case 0x44: return pre + 5;
    case 0x80: return pre + 7;
    case 0x84: return pre + 8;
    }
    return 0;
}

/* Room for five bytes of jump within reach of a short jump at `site`; *lead is set where a jump over it has to stand in front. */
static u64 find_padding(u64 site, const struct sd_map *m, u32 *lead)
{
    u64 lo = site + 2 - 120 > m->lo ? site + 2 - 120 : m->lo;
    u64 hi = site + 120 < m->hi - 16 ? site + 120 : m->hi - 16;

    for (u64 at = lo; at + 5 <= hi; at++) {
        const u8 *p = (const u8 *)at;
        if (p[0] == 0xcc && p[1] == 0xcc && p[2] == 0xcc && p[3] == 0xcc && p[4] == 0xcc && (at + 5 <= site || at >= site + 2)) {
            *lead = 0;
            return at;
        }
    }
    /* Behind a `ret`. Should that byte be the end of another instruction, the no-ops are executed in line, and stay harmless. */
    for (u64 at = lo + 1; at + 16 <= hi; at++) {
        u32 run = 0, n;
        if (*(const u8 *)(at - 1) != 0xc3 || !nop_len((const u8 *)at) || (at < site + 2 && at + 24 > site))
            continue;
        while (run < 24 && (n = nop_len((const u8 *)at + run)) != 0)
            run += n;
        if (run >= 7 && ((at + run) & 15) == 0) {
            *lead = run;
            return at;
        }
    }
    return 0;
}

static bool writable(const struct sd_map *m, u64 at, bool on)
{
    u64 lo = at & ~4095ull, hi = (at + 16 + 4095) & ~4095ull;

    return SYS3(__NR_mprotect, lo, hi - lo, (m->prot & 7) | (on ? PROT_WRITE : 0)) == 0;
}

static bool patch_mov(u64 site, u32 nr, const struct sd_map *m, u64 hole, u64 slot)
{
    const u8 *b = (const u8 *)(site - 5);
    u8 code[5] = {0xe9};
    u64 stub;
    u32 imm;

    if (site - 6 < m->lo || b[0] != 0xb8 || (b[-1] & 0xf0) == 0x40 || !replaceable(site - 5, 5))
        return false;
    sd_copy(&imm, b + 1, 4);
    if (imm != nr || !(stub = stub_new(site, hole, nr, true, slot)) || !rel32(site, stub, code + 1) || !writable(m, site - 5, true))
        return false;
    replace(site - 5, code, 5);
    writable(m, site - 5, false);
    return true;
}

static bool patch_short(u64 site, const struct sd_map *m, u64 hole, u64 slot)
{
    u8 jump[8] = {0xe9}, code[2] = {0xeb};
    u32 lead = 0;
    u64 pad, stub, entry;

    if (!replaceable(site, 2) || !(pad = find_padding(site, m, &lead)) || !(stub = stub_new(site, hole, 0, false, slot)))
        return false;
    entry = lead ? pad + 2 : pad;
    if (!rel32(entry + 5, stub, jump + 1))
        return false;
    i64 d = (i64)(entry - (site + 2));
    if (d < -128 || d > 127 || !writable(m, pad < site ? pad : site, true) || !writable(m, pad < site ? site : pad, true))
        return false;
    sd_copy((void *)entry, jump, 5); /* nobody jumps into the middle of padding; in line it is skipped from here on */
    if (lead) {
        u8 over[2] = {0xeb, (u8)(lead - 2)};
        sd_copy((void *)pad, over, 2);
    }
    code[1] = (u8)d;
    replace(site, code, 2);
    writable(m, pad, false);
    writable(m, site, false);
    return true;
}

void sd_patch_site(u32 slot, u64 ret, u32 nr)
{
    u64 entry = (u64)sd_slots + (u64)slot * SD_SLOT_BYTES, site = ret - 2, hole;
    const u8 *b = (const u8 *)site;
    struct sd_map m;

    if (tried[slot])
        return;
    take();
    if (!tried[slot]) {
        tried[slot] = 1;
        if (!sd_boot.no_patch && !forbidden && sd_map_find(site, &m, &hole) && m.file && (m.prot & 15) == (PROT_READ | PROT_EXEC) &&
            b[0] == 0x0f && b[1] == 0x05 && (patch_mov(site, nr, &m, hole, entry) || patch_short(site, &m, hole, entry)))
            COUNT(sites_patched);
        else
            COUNT(sites_trapping);
    }
    store_rel(&lock, 0);
}
