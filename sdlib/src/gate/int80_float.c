/* SPDX-License-Identifier: Apache-2.0
 *
 * int80_float.c - the floating point state in a frame of i386 (int80_frame.c), which its handler may look at and change.
 *
 * In the kernel's frame of 64 bits it is one area: what FXSAVE writes, in whose last words the kernel says how much follows (XSAVE). On i386 the state of the
 * i387 comes first, as FSAVE writes it, and then that area. So the handler has a copy of both, and when it returns goes back what it has left there, the
 * registers of the i387 from the first one: into the kernel's frame, which the kernel restores.
 */
#include "gate/int80.h"

#define MAGIC1 0x46505853u /* FP_XSTATE_MAGIC1 */
#define ALIGN 64
#define LEGACY 512     /* of FXSAVE */
#define HEADER 64      /* of XSAVE, behind it: which parts there are */
#define LONGEST (64 * 1024)
#define X87_AND_SSE 3
#define CW_INIT 0x37f
#define MXCSR_INIT 0x1f80
enum { EMPTY = 3, SPECIAL = 2, ZERO = 1, VALID = 0 }; /* tags */

struct i387 { /* struct _fpstate_32, up to what FXSAVE has */
    u32 cw, sw, tag, ip, cs, data, ds;
    u8 st[8][10];
    u16 status, magic; /* 0: FXSAVE's area follows */
};
_Static_assert(sizeof(struct i387) == 112, "arch/x86/include/uapi/asm/sigcontext.h");

struct area {
    u16 cw, sw;
    u8 tag, pad;
    u16 op;
    u64 ip, data;
    u32 mxcsr, mxcsr_mask;
    u8 st[8][16];
    u8 xmm[16][16];
    u8 unused[48];
    struct { /* struct _fpx_sw_bytes */
        u32 magic, whole;
        u64 parts;
        u32 size, pad[7];
    } says;
    u64 there; /* XSAVE's header begins */
};
_Static_assert(offsetof(struct area, there) == LEGACY, "arch/x86/include/asm/fpu/types.h");

static bool has_more(const struct area *a) { return a->says.magic == MAGIC1 && a->says.size >= LEGACY + HEADER && a->says.size <= LONGEST; }
static u32 size_of(const struct area *a) { return has_more(a) ? a->says.size : LEGACY; }

u64 sd_float32_bytes(const struct ucontext *uc)
{
    const struct area *a = (const struct area *)uc->fpstate;

    return a ? (sizeof(struct i387) + ALIGN + size_of(a) + 4 + 15) & ~15ull : 0;
}

/* ------------------------------------------------------------------ the way in */

static u32 tag_of(const u8 *st)
{
    u32 exponent = (u32)(st[8] | st[9] << 8) & 0x7fff;
    u64 significand;

    sd_copy(&significand, st, 8);
    if (!exponent)
        return significand ? SPECIAL : ZERO;
    return exponent == 0x7fff || !(significand >> 63) ? SPECIAL : VALID;
}

/* Tags belong to registers; what lies in memory is ordered from the top of the stack on. */
static u32 tags_of(const struct area *a)
{
    u32 top = a->sw >> 11 & 7, tags = 0xffff0000;

    for (u32 i = 0; i < 8; i++)
        tags |= (a->tag >> i & 1 ? tag_of(a->st[(i - top) & 7]) : (u32)EMPTY) << 2 * i;
    return tags;
}

/* The room above `m` is sd_float32_bytes() long. Where the state is, as the frame says. */
u32 sd_float32_show(const struct ucontext *uc, u64 above)
{
    const struct area *a = (const struct area *)uc->fpstate;
    u64 at = ((above + sizeof(struct i387) + ALIGN - 1) & ~(u64)(ALIGN - 1)) - sizeof(struct i387);
    struct i387 *i = (struct i387 *)at;
    struct area *to = (struct area *)(i + 1);
    u16 ds;

    if (!a)
        return 0;
    __asm__("mov %%ds, %0" : "=r"(ds));
    *i = (struct i387){.cw = a->cw | 0xffff0000, .sw = a->sw | 0xffff0000, .tag = tags_of(a), .ip = (u32)a->ip, .cs = (u16)uc->reg[UC_EFLAGS + 1],
                       .data = (u32)a->data, .ds = ds | 0xffff0000, .status = a->sw};
    for (u32 k = 0; k < 8; k++)
        sd_copy(i->st[k], a->st[k], 10);
    sd_copy(to, a, size_of(a) + (has_more(a) ? 4 : 0)); /* with the second magic word behind it */
    if (has_more(a))
        to->says.whole += sizeof *i;
    return (u32)at;
}

/* ---------------------------------------------------------------- the way back */

static void clear(struct area *to)
{
    sd_zero(to, offsetof(struct area, unused));
    to->cw = CW_INIT;
    to->mxcsr = MXCSR_INIT;
    if (has_more(to))
        to->there = 0;
}

static u8 used(u32 tags)
{
    u8 bits = 0;

    for (u32 i = 0; i < 8; i++)
        bits |= (u8)(((tags >> 2 * i & 3) != EMPTY) << i);
    return bits;
}

static void take_i387(struct area *to, const struct i387 *i)
{
    to->cw = (u16)i->cw;
    to->sw = (u16)i->sw;
    to->tag = used(i->tag);
    to->op = (u16)(i->cs >> 16);
    to->ip = i->ip;
    to->data = i->data;
    for (u32 k = 0; k < 8; k++)
        sd_copy(to->st[k], i->st[k], 10);
}

/* What is behind FXSAVE's area is taken if the area says what it said before. */
static bool take_area(struct area *to, u64 from)
{
    struct area a;

    if (sd_get32(&a, from, LEGACY))
        return true;
    if (has_more(to) && a.says.magic == MAGIC1 && a.says.size == to->says.size && a.says.parts == to->says.parts) {
        if (sd_get32(&to->there, from + LEGACY, to->says.size - LEGACY))
            return true;
    } else if (has_more(to)) {
        to->there = X87_AND_SSE;
    }
    sd_copy(to, &a, offsetof(struct area, says));
    return false;
}

bool sd_float32_back(const struct ucontext *uc, u32 from)
{
    struct area *to = (struct area *)uc->fpstate;
    struct i387 i;

    if (!to)
        return false;
    if (!from) {
        clear(to);
        return false;
    }
    if (sd_get32(&i, from, sizeof i) || take_area(to, (u64)from + sizeof i))
        return true;
    take_i387(to, &i);
    if (has_more(to))
        to->there |= X87_AND_SSE;
    return false;
}
