/* SPDX-License-Identifier: Apache-2.0
 *
 * int80_sig.c - actions, masks and the alternate stack of signals, as i386 lays them out (int80.c).
 *
 * A handler that is set here is 32-bit code: int80_frame.c.
 */
#include "gate/int80.h"

#define SA_RESETHAND 0x80000000u

struct action32 { /* rt_sigaction; sigaction has the mask, of 32 bits, behind the handler */
    u32 handler, flags, restorer, mask[2];
};

struct old_action32 {
    u32 handler, mask, flags, restorer;
};

struct stack32 {
    u32 sp;
    i32 flags;
    u32 size;
};

static long action_in(struct sd_int80 *c, u64 from)
{
    struct action32 a;
    struct old_action32 o;

    if (c->nr == 174) {
        if (sd_get32(&a, from, sizeof a))
            return -EFAULT;
        c->act = (struct ksigaction){a.handler, a.flags, a.restorer, a.mask[0] | (u64)a.mask[1] << 32};
    } else {
        if (sd_get32(&o, from, sizeof o))
            return -EFAULT;
        c->act = (struct ksigaction){o.handler, o.flags, o.restorer, o.mask};
    }
    c->handler = sd_int80_handler(c, (u32)c->f.rdi);
    return 0;
}

/* signal(number, what) answers with the old one. */
static long simple_action(struct sd_int80 *c)
{
    c->act = (struct ksigaction){.handler = (u32)c->f.rsi, .flags = SA_RESETHAND | SA_NODEFER};
    c->handler = sd_int80_handler(c, (u32)c->f.rdi);
    c->f.rsi = (u64)&c->act;
    c->f.rdx = (u64)&c->old;
    c->f.r10 = 8;
    c->tell = SD_TELL_ACTION;
    return 0;
}

static long action(struct sd_int80 *c)
{
    u64 from = c->f.rsi;
    long r = from ? action_in(c, from) : 0;

    if (c->nr == 67)
        c->f.r10 = 8;
    c->user = c->f.rdx;
    c->tell = SD_TELL_ACTION;
    c->f.rsi = from ? (u64)&c->act : 0;
    c->f.rdx = c->user ? (u64)&c->old : 0;
    return r;
}

long sd_int80_action_told(struct sd_int80 *c, long r)
{
    const struct ksigaction *k = &c->old;
    struct action32 a = {(u32)k->handler, (u32)k->flags, (u32)k->restorer, {(u32)k->mask, (u32)(k->mask >> 32)}};
    struct old_action32 o = {(u32)k->handler, (u32)k->mask, (u32)k->flags, (u32)k->restorer};

    if (r < 0 && c->handler)
        sd_int80_handler_refused(c, (u32)c->f.rdi);
    if (r < 0)
        return r;
    if (c->nr == 48)
        return (long)k->handler; /* of 64 bits, as the kernel answers */
    if (!c->user)
        return r;
    return (c->nr == 174 ? sd_put32(c->user, &a, sizeof a) : sd_put32(c->user, &o, sizeof o)) ? -EFAULT : r;
}

/* A mask of 32 bits: those above are 0. */
static long old_mask(struct sd_int80 *c)
{
    u64 from = c->f.rsi;

    c->user = c->f.rdx;
    c->tell = SD_TELL_MASK;
    c->pair[0] = 0;
    if (from && sd_get32(c->pair, from, 4))
        return -EFAULT;
    c->f.rsi = from ? (u64)&c->pair[0] : 0;
    c->f.rdx = c->user ? (u64)&c->pair[1] : 0;
    c->f.r10 = 8;
    return 0;
}

static long old_suspend(struct sd_int80 *c)
{
    c->pair[0] = (u32)c->f.rdx;
    c->f.rdi = (u64)c->pair;
    c->f.rsi = 8;
    return 0;
}

static long alt_stack(struct sd_int80 *c, struct ucontext *uc)
{
    struct stack_t_ ss = {0}, old = {0};
    struct stack32 in, out;
    u64 user = c->f.rsi;
    long r;

    if (c->f.rdi) {
        if (sd_get32(&in, c->f.rdi, sizeof in))
            return -EFAULT;
        ss = (struct stack_t_){.sp = in.sp, .flags = in.flags, .size = in.size};
    }
    r = sd_alt_change(uc, c->f.rdi ? &ss : NULL, &old);
    if (r < 0)
        return r;
    out = (struct stack32){(u32)old.sp, old.flags, (u32)old.size};
    c->f.rax = 0;
    return user && sd_put32(user, &out, sizeof out) ? -EFAULT : SD_INT80_DONE;
}

long sd_int80_signals(struct sd_int80 *c, struct ucontext *uc)
{
    switch (c->nr) {
    case 48:
        return simple_action(c);
    case 67: case 174:
        return action(c);
    case 126:
        return old_mask(c);
    case 72:
        return old_suspend(c);
    default:
        return alt_stack(c, uc);
    }
}
