/* SPDX-License-Identifier: Apache-2.0
 *
 * patch.c - make call sites jump to their slots instead of trapping.
 *
 * A site is looked at once, when it has trapped PATCH_AT times in this process: a look costs as much as five traps, and the children of a
 * fork have sites that each of them uses once. Of these they tell their parent, by the area: where its children have trapped as often as that, it looks before the next fork.
 * A site is patched only in private file-backed text that is not writable, and in the vdso
 * (a clock that it cannot read becomes a system call there). What is overwritten:
 *
 *   mov $nr,%eax          the five bytes become `jmp stub`; the stub loads the number. The `syscall` behind stays: a thread that is
 *   syscall               blocked in it returns to the byte behind it or restarts at it, and whoever jumps to it still traps.
 *
 *   syscall               becomes a short jump to a `jmp stub` in padding within 128 bytes. A thread blocked here returns to the byte
 *                         behind; one that restarts finds the short jump, with the number in rax as the kernel has put it there.
 *
 * Padding that takes the five bytes of `jmp stub`:
 *   - int3 between functions;
 *   - the SIB byte and displacement of a no-op of eight bytes or more: `0f 1f 84 <e9 rel32>` is still a no-op of the same length, with any
 *     prefix in front, so whoever runs through it notices nothing, even while we write;
 *   - a no-op of seven bytes, rewritten as `eb 05 <e9 rel32>`.
 *
 * With more than one thread a store must look atomic to other CPUs' instruction fetch: one store within an aligned block of 16 bytes,
 * which no processor fetches in two parts.
 * Stubs lie in pages near the module, since the slots are out of reach of a 32-bit displacement.
 */
#include "gate/gate.h"

_Atomic u64 sd_slot_ret[SD_SLOTS];

#define PAGE 4096ull
#define AREA_BYTES (4 * PAGE)
#define STUB_BYTES 32u

/* sdtrace/release.py has the same two layouts. */
struct stubs {
    u64 base, used;
};
/* What the program had there. */
struct undo {
    u64 at, resume;  /* the second: where a thread that stands there goes on instead; 0: there */
    u64 lo, hi;      /* of the vdso, which may not be split; 0: another mapping */
    u8 n, bytes[15];
};
extern struct stubs sd_stubs[];
extern struct undo sd_undo[];
extern u32 sd_nundo;

#define AREAS 32
#define UNDO_MAX 1024
#define OP_JMP 0xe9
#define OP_JMP_SHORT 0xeb
#define OP_MOV_EAX 0xb8

struct stubs sd_stubs[AREAS];
struct undo sd_undo[UNDO_MAX];
u32 sd_nundo;
static SD_FORKED _Atomic u32 lock; /* taken with all signals blocked, for the time of a few system calls */
static _Atomic u16 traps[SD_SLOTS] __attribute__((section("sd_forked_last"))); /* LOOKED_AT, or how many, and in which generation of forks */
static SD_FORKED u16 generation;
static SD_FORKED u32 looked_at; /* bits of sd_area.site[] */
static bool forbidden;
#define PATCH_AT 3u
#define COUNT_MASK 3u
#define LOOKED_AT 0xffffu

void sd_patch_forbid(void) { forbidden = true; }

void sd_patch_after_fork(void)
{
    store_rlx(&lock, 0);
    generation = (u16)(generation + COUNT_MASK + 1) & 0x7fff; /* never LOOKED_AT; that a count survives its generation does no harm */
}

/* ------------------------------------------------------------------ stores */

static bool one_block(u64 at, u64 n) { return (at & 15) + n <= 16; }

static void store_code(u64 at, const u8 *bytes, u64 n)
{
    if (n > 8 || !one_block(at, n)) { /* a stub that nobody runs yet, or the only thread */
        for (u64 i = n; i--;)
            ((volatile u8 *)at)[i] = bytes[i];
        return;
    }
    u64 from = (at & 15) <= 8 ? at : (at & ~15ull) + 8, word;
    sd_copy(&word, (void *)from, 8);
    sd_copy((u8 *)&word + (at - from), bytes, n);
    __asm__ volatile("movq %1, %0" : "=m"(*(u64 *)from) : "r"(word) : "memory");
}

static long protect(const struct sd_mapping *m, u64 at, u64 n, u32 prot)
{
    u64 lo = at & ~(PAGE - 1), hi = (at + n + PAGE - 1) & ~(PAGE - 1);
    if (m && m->vdso) {
        lo = m->lo;
        hi = m->hi;
    }
    return SYS3(__NR_mprotect, lo, hi - lo, prot);
}

/* Other threads run in these pages: executable all the time. Refused (PR_SET_MDWE, SELinux), or sealed (a vdso, Linux 6.15): the site keeps
 * trapping. */
static bool poke(const struct sd_mapping *m, u64 at, const u8 *bytes, u64 n)
{
    if (protect(m, at, n, PROT_READ | PROT_WRITE | PROT_EXEC) < 0)
        return false;
    store_code(at, bytes, n);
    protect(m, at, n, PROT_READ | PROT_EXEC);
    return true;
}

/* Bytes of the program's, noted before they are changed. */
static bool alter(const struct sd_mapping *m, u64 at, const u8 *bytes, u64 n, u64 resume)
{
    struct undo *u = &sd_undo[sd_nundo];

    if (sd_nundo == UNDO_MAX)
        return false;
    *u = (struct undo){.at = at, .resume = resume, .lo = m->vdso ? m->lo : 0, .hi = m->vdso ? m->hi : 0, .n = (u8)n};
    sd_copy(u->bytes, (const void *)at, n);
    sd_nundo++;
    return poke(m, at, bytes, n);
}

/* With all other threads stopped, and none of them in the middle of what goes. A mapping that is gone stays gone. */
void sd_patch_undo(void)
{
    while (sd_nundo) {
        const struct undo *u = &sd_undo[--sd_nundo];
        struct sd_mapping vdso = {.lo = u->lo, .hi = u->hi, .vdso = true};
        poke(u->hi ? &vdso : NULL, u->at, u->bytes, u->n);
    }
}

static void put_jmp(u8 *out, u64 at, u64 to)
{
    i32 distance = (i32)(to - (at + 5));
    out[0] = OP_JMP;
    sd_copy(out + 1, &distance, 4);
}

/* ------------------------------------------------------------------- stubs */

static bool reaches(u64 from, u64 to)
{
    i64 d = (i64)(to - from);
    return d < 0x7ff00000 && d > -0x7ff00000; /* from anywhere in the padding to anywhere in the area */
}

static u64 stub_place(u64 site)
{
    for (u32 i = 0; i < AREAS; i++) {
        if (!sd_stubs[i].base) {
            u64 at = sd_find_gap(site, AREA_BYTES);
            if (!at || (u64)SYS6(__NR_mmap, at, AREA_BYTES, PROT_READ | PROT_EXEC,
                                 MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED_NOREPLACE, -1, 0) != at)
                return 0;
            sd_stubs[i].base = at;
        }
        if (sd_stubs[i].used + STUB_BYTES <= AREA_BYTES && reaches(site, sd_stubs[i].base)) {
            sd_stubs[i].used += STUB_BYTES;
            return sd_stubs[i].base + sd_stubs[i].used - STUB_BYTES;
        }
    }
    return 0;
}

/* Where a stub that knows the number goes on: past the slot's look at it. */
static u64 known_number(u64 slot, u32 nr)
{
    if (nr >= sizeof sd_class)
        return slot;
    return slot + SD_SLOT_P + (sd_class[nr] == SD_KIND_OURS ? SD_SLOT_DIRECT : sd_class[nr]);
}

/* `[mov $nr,%eax;] jmp *0(%rip); .quad slot`; 0 if there is no place for it. */
static u64 make_stub(u64 site, u64 slot, bool with_nr, u32 nr)
{
    static const u8 jump[6] = { 0xff, 0x25, 0, 0, 0, 0 };
    u8 code[19];
    u64 at = stub_place(site), n = 0;
    if (with_nr) {
        code[0] = OP_MOV_EAX;
        sd_copy(code + 1, &nr, 4);
        n = 5;
        slot = known_number(slot, nr);
    }
    sd_copy(code + n, jump, 6);
    sd_copy(code + n + 6, &slot, 8);
    return at && poke(NULL, at, code, n + 14) ? at : 0;
}

/* ------------------------------------------------------------------- sites */

/* `mov $nr,%eax` in front of the call, without a prefix that makes it another instruction. */
static bool patch_mov(u64 site, const struct sd_mapping *m, u64 slot, u32 nr)
{
    const u8 *p = (const u8 *)site;
    u32 immediate;
    if (site < m->lo + 6 || p[-5] != OP_MOV_EAX || (p[-6] & 0xf0) == 0x40 || p[-6] == 0x66)
        return false;
    sd_copy(&immediate, p - 4, 4);
    if (immediate != nr || (g.mt && !one_block(site - 5, 5)))
        return false;
    u64 stub = make_stub(site, slot, true, nr);
    if (!stub)
        return false;
    u8 jump[5];
    put_jmp(jump, site - 5, stub);
    return alter(m, site - 5, jump, 5, 0);
}

static bool is_run(const u8 *p, u8 byte, u32 n)
{
    while (n--)
        if (*p++ != byte)
            return false;
    return true;
}

static bool is_nop(const u8 *p, u8 modrm) { return p[0] == 0x0f && p[1] == 0x1f && p[2] == modrm; }

/* Where `jmp rel32` can go so that a short jump at site reaches it, or 0. *opens: the two bytes in front have to jump over it. */
static u64 find_padding(u64 site, const struct sd_mapping *m, bool *opens)
{
    u64 lo = site + 2 - 128, hi = site + 2 + 127;
    if (lo < m->lo + 8)
        lo = m->lo + 8;
    if (hi > m->hi - 8)
        hi = m->hi - 8;
    for (u64 at = lo; at <= hi; at++) {
        const u8 *p = (const u8 *)at;
        *opens = false;
        if (is_run(p, 0xcc, 5) && (p[-1] == 0xcc || p[-1] == 0xc3)) /* behind a ret or inside of a run: not an operand of something */
            return at;
        if (is_nop(p - 3, 0x84) && is_run(p, 0, 5))
            return at;
        bool prefixed = p[-3] == 0x66 || p[-3] == 0x2e;
        if (is_nop(p - 2, 0x80) && is_run(p + 1, 0, 4) && !prefixed && (!g.mt || one_block(at - 2, 2))) {
            *opens = true;
            return at;
        }
    }
    return 0;
}

static bool patch_syscall(u64 site, const struct sd_mapping *m, u64 slot)
{
    static const u8 over[2] = { OP_JMP_SHORT, 5 };
    bool opens;
    if (g.mt && !one_block(site, 2))
        return false;
    u64 pad = find_padding(site, m, &opens), stub = pad ? make_stub(site, slot, false, 0) : 0;
    if (!stub)
        return false;
    u8 jump[5], hop[2] = { OP_JMP_SHORT, (u8)(pad - (site + 2)) };
    put_jmp(jump, pad, stub);
    return (!opens || alter(m, pad - 2, over, 2, 0)) && alter(m, pad, jump, 5, site) && alter(m, site, hop, 2, 0);
}

static bool patch(u32 slot, u64 ret, u32 nr)
{
    struct sd_mapping m;
    u64 site = ret - 2, to = (u64)sd_slots + (u64)SD_SLOT_BYTES * slot;
    const u8 *p = (const u8 *)site;
    if (!sd_find_mapping(site, &m) || !m.text || ret > m.hi || p[0] != 0x0f || p[1] != 0x05)
        return false;
    return patch_mov(site, &m, to, nr) || patch_syscall(site, &m, to);
}

/* This process has trapped there. */
static bool is_counted(u32 seen)
{
    return (seen & ~COUNT_MASK) == generation && (seen & COUNT_MASK);
}

/* Counts a trap. True: the site is worth a look. Two threads may count one trap less. */
static bool often(u32 slot)
{
    u32 seen = load_rlx(&traps[slot]);

    if (seen == LOOKED_AT)
        return false;
    if (!is_counted(seen)) {
        COUNT(sites_trapping);
        seen = generation;
    }
    if ((seen & COUNT_MASK) < PATCH_AT)
        store_rlx(&traps[slot], (u16)++seen);
    return (seen & COUNT_MASK) == PATCH_AT;
}

/* With all signals blocked. */
static void look_at(u32 slot, u64 ret, u32 nr)
{
    while (!cas_u32(&lock, 0, 1))
        SYS0(__NR_sched_yield);
    u32 seen = load_rlx(&traps[slot]);
    if (seen != LOOKED_AT) {
        store_rlx(&traps[slot], LOOKED_AT);
        if (patch(slot, ret, nr)) {
            COUNT(sites_patched);
            g.proc->ctr[SD_CTR_sites_trapping] -= is_counted(seen); /* a child's, if not */
        }
    }
    store_rel(&lock, 0);
}

static bool may_patch(void)
{
    return !forbidden && !sd_boot.no_patch && g.cfg->patch;
}

/* In a forked child. */
static void tell_parent(u64 ret, u32 nr)
{
    for (u32 i = 0; i < SD_AREA_SITES; i++) {
        struct sd_site *p = &g.area[0]->site[i];
        u64 image = load_acq(&p->image);
        if (!image && atomic_compare_exchange_strong(&p->image, &image, g.secret)) {
            p->nr = nr;
            store_rlx(&p->seen, 1);
            store_rel(&p->ret, ret);
            return;
        }
        if (image == g.secret && load_acq(&p->ret) == ret) {
            store_rlx(&p->seen, load_rlx(&p->seen) + 1);
            return;
        }
    }
}

void sd_patch_site(u32 slot, u64 ret, u32 nr)
{
    if (generation && g.area[0] && load_rlx(&traps[slot]) != LOOKED_AT)
        tell_parent(ret, nr);
    if (!often(slot) || !may_patch())
        return;
    /* A child that shares our memory may be killed at any moment, and would leave the lock and writable text behind. */
    if (SYS0(__NR_getpid) == (long)g.pid)
        look_at(slot, ret, nr);
}

/* True: bit i is to be set. */
static bool look_for_children(const struct sd_site *p)
{
    u64 old, ret = load_acq(&p->ret);
    i32 slot;

    if (load_rlx(&p->image) != g.secret || !ret || load_rlx(&p->seen) < PATCH_AT)
        return false;
    slot = sd_slot_of(ret, false);
    if (slot < 0)
        return true;
    old = sd_signals_block();
    look_at((u32)slot, ret, p->nr);
    sd_signals_restore(old);
    return true;
}

void sd_patch_for_children(void)
{
    struct sd_area *a = g.area[0];

    if (!a || !may_patch())
        return;
    for (u32 i = 0; i < SD_AREA_SITES && load_rlx(&a->site[i].image); i++)
        if (!(looked_at >> i & 1) && look_for_children(&a->site[i]))
            looked_at |= 1u << i;
}
