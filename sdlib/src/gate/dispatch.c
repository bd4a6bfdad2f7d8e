/* SPDX-License-Identifier: Apache-2.0
 *
 * dispatch.c - from a call's number to its handler.
 */
#include "gate/calls.h"
#include "gate/gate.h"
#include "sd.h"

_Static_assert(offsetof(struct sd_tcb, top) == 0 && offsetof(struct sd_tcb, level) == 8, "enter.S");
_Static_assert(offsetof(struct sd_tcb, alt_lo) == 32 && offsetof(struct sd_tcb, alt_hi) == 40, "enter.S");
_Static_assert(offsetof(struct sd_tcb, frame) == 64, "enter.S");
_Static_assert(offsetof(struct ucontext, reg) + 8 * UC_RIP == 168 && SD_LIB_BASE >> SD_LIB_WINDOW == 0x551000 && SD_LIB_WINDOW == 24, "gate.S");
_Static_assert(sizeof(struct sd_frame) == 15 * 8 && offsetof(struct sd_frame, next) == 14 * 8, "enter.S");

#define CLASS_F SD_KIND_OURS
#define CLASS_Q 13

/* What the slots look up with the low 16 bits of eax: the distance from P. */
#define X(nr, class, handler) [__NR_##nr] = CLASS_##class,
const u8 sd_class[65536] = {SD_CALLS(X)};
#undef X

#define X(nr, class, handler) [__NR_##nr] = handler,
static const sd_handler table[] = {SD_CALLS(X)};
#undef X

long sd_call_handler(struct sd_frame *f, struct sd_tcb *t)
{
    u32 nr = (u32)f->rax; /* the kernel ignores the upper half, too */

    if (unlikely(nr >= ARRAY_LEN(table) || !table[nr]))
        return SD_PASS; /* x32, or a number above 65535: not what its low 16 bits looked like */
    if (unlikely(g.boxed)) {
        long r = sd_boxed(f);
        if (r != SD_ORDINARY)
            return r;
    }
    return table[nr](f, t);
}

void sd_take_over(void)
{
    u32 n;

    if (*(volatile u32 *)&sd_boot.ncarry == SD_CARRY_ADOPT) {
        sd_adopt_all(&sd_boot.ncarry);
        return;
    }
    n = __atomic_exchange_n(&sd_boot.ncarry, 0, __ATOMIC_ACQ_REL); /* two threads may come first */
    if (n)
        sd_socks_carried(sd_boot.carry, n < SD_CARRY_MAX ? n : SD_CARRY_MAX);
}

/* Connections are to be taken over, or calls are traced. */
static NOINLINE long sd_call_rare(struct sd_frame *f, struct sd_tcb *t)
{
    if (sd_boot.ncarry)
        sd_take_over();
    return g.trace ? sd_call_traced(f, t) : sd_call_handler(f, t);
}

void sd_dispatch(struct sd_frame *f, struct sd_tcb *t)
{
    u64 p = f->next;
    long r;

    if (likely(!*(const volatile u64 *)&sd_boot.ncarry)) /* and `trace` beside it */
        r = sd_call_handler(f, t);
    else
        r = sd_call_rare(f, t);
    if (r == SD_PASS) {
        f->next = p;
    } else if (r == SD_BARE) {
        f->next = p + SD_SLOT_BARE;
    } else {
        f->rax = (u64)r;
        f->next = p + SD_SLOT_RET;
    }
}
