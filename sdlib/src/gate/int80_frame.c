/* SPDX-License-Identifier: Apache-2.0
 *
 * int80_frame.c - handlers that are set by int $0x80, which the kernel takes for 32-bit code.
 *
 * Natively such a handler runs in compatibility mode, on a frame as i386 has it, where the stack pointer was, cut to 32 bits; sigreturn by
 * int $0x80 gives back what that frame has room for: the lower halves of eight registers, and a program counter of 32 bits. So it works for 32-bit
 * code in a program whose stack and interrupted code lie below 4 GiB, and any other program dies of SIGSEGV in it.
 *
 * A signal may come in while we are at work, far above 4 GiB. So the kernel has a handler of ours (sd_signal32, gate.S), and to all the rest of
 * the library that is what the program has set: show.c gives it the program's own context. On the program's stack it makes the other frame, and
 * a record of where the first one is; sigreturn, which traps, finds that record and takes what the handler has changed back to the kernel's frame,
 * through which the interrupted call goes on. Of a frame that the program has made up itself there is no record: what is in it holds.
 *
 * The rest of a register stays if its lower half does: more than natively. The floating point state: int80_float.c.
 */
#include "gate/int80.h"

#define RT_SIGRETURN 173u
#define SA_RESETHAND 0x80000000u
#define USER_DS 0x2bu
#define CS_64 0x33u
#define CS_32 0x23u
#define ADJUSTABLE 0x50dd5u /* flags that a context may change: AC RF OF DF TF SF ZF AF PF CF */
#define BELOW_CALL 512     /* what enter.S may have pushed there */
#define STEPPING 0x10500u   /* RF DF TF: off in a handler */

enum { UC_SEGMENTS = UC_EFLAGS + 1, UC_ERR, UC_TRAPNO, UC_OLDMASK, UC_CR2 };

struct context32 {
    u16 gs, gsh, fs, fsh, ds, dsh, es, esh;
    u32 di, si, bp, sp, bx, dx, cx, ax, trapno, err, ip;
    u16 cs, csh;
    u32 flags, sp_at_signal;
    u16 ss, ssh;
    u32 fpstate, oldmask, cr2;
};

struct frame32 {
    u32 back;
    i32 sig;
    struct context32 c;
    u8 unused[624];
    u32 mask_above;
    u8 code[8];
};

struct rt_frame32 {
    u32 back;
    i32 sig;
    u32 info, uc;
    u32 words[32]; /* siginfo */
    u32 flags, link, stack[3];
    struct context32 c;
    u32 mask[2];
    u8 code[8];
};
_Static_assert(sizeof(struct context32) == 88, "arch/x86/include/uapi/asm/sigcontext.h");
_Static_assert(sizeof(struct frame32) == 732 && sizeof(struct rt_frame32) == 268, "arch/x86/include/asm/sigframe.h");

/* Below the kernel's frame. What is above `to` is popped by iretq. */
struct sd_room32 {
    u64 rax, rdx, rcx;
    u64 rip, cs, flags, rsp, ss;
    u32 pad[3]; /* of i386's alignment: 4 before 16 */
    union {
        struct frame32 plain;
        struct rt_frame32 rt;
    } f;
    u64 secret, uc; /* the record */
};
_Static_assert(sizeof(struct sd_room32) == 824, "ROOM32_BYTES in gate.S");

struct sd_room32 *sd_frame32(u32 sig, const struct siginfo_sys *si, const struct ucontext *uc, struct sd_room32 *here);
static struct ksigaction handlers[NSIG + 1]; /* as the program has set them */

bool sd_int80_handler(struct sd_int80 *c, u32 sig)
{
    if (c->act.handler <= 1 || sig - 1 >= NSIG)
        return false;
    c->before = handlers[sig];
    handlers[sig] = c->act;
    c->act.handler = (u64)sd_signal32;
    c->act.restorer = (u64)sd_restorer;
    c->act.flags |= SA_SIGINFO | SA_RESTORER;
    return true;
}

void sd_int80_handler_refused(const struct sd_int80 *c, u32 sig) { handlers[sig] = c->before; }

void sd_int80_handler_told(u32 sig, struct ksigaction *old)
{
    if (sig - 1 >= NSIG || old->handler != (u64)sd_signal32)
        return;
    old->handler = handlers[sig].handler;
    old->flags = handlers[sig].flags;
    old->restorer = handlers[sig].restorer;
}

/* ------------------------------------------------------------------ the way in */

/* siginfo: its first three words are the same; then come addresses and times, which are shorter. */
static void tell_info(u32 *to, u32 sig, const struct siginfo_sys *si)
{
    static const u8 sent[] = {4, 5, 6, 8}, child[] = {4, 5, 6, 8, 10}, fault[] = {4}, io[] = {4, 6}, call[] = {4, 6, 7};
    const u32 *from = (const u32 *)si;
    const u8 *words = sent;
    u32 n = 3;

    if (si->code > 0 && si->code < 0x80) { /* the kernel's own, of this signal */
        words = sig == SIGCHLD ? child : sig == SIGIO ? io : sig == SIGSYS ? call : fault;
        n = sig == SIGCHLD ? 5 : sig == SIGIO ? 2 : sig == SIGSYS ? 3 : 1;
    }
    sd_zero(to, 128);
    for (u32 i = 0; i < 3; i++)
        to[i] = from[i];
    for (u32 i = 0; i < n; i++)
        to[3 + i] = from[words[i]];
}

static struct context32 context_of(const struct ucontext *uc)
{
    const u64 *r = uc->reg;

    return (struct context32){.ds = USER_DS, .es = USER_DS, .di = (u32)r[UC_RDI], .si = (u32)r[UC_RSI], .bp = (u32)r[UC_RBP], .sp = (u32)r[UC_RSP],
                              .bx = (u32)r[UC_RBX], .dx = (u32)r[UC_RDX], .cx = (u32)r[UC_RCX], .ax = (u32)r[UC_RAX], .trapno = (u32)r[UC_TRAPNO],
                              .err = (u32)r[UC_ERR], .ip = (u32)r[UC_RIP], .cs = (u16)r[UC_SEGMENTS], .flags = (u32)r[UC_EFLAGS],
                              .sp_at_signal = (u32)r[UC_RSP], .ss = (u16)(r[UC_SEGMENTS] >> 48), .oldmask = (u32)uc->sigmask, .cr2 = (u32)r[UC_CR2]};
}

static u32 low(const void *p) { return (u32)(u64)p; }

static void plain_frame(struct sd_room32 *m, u32 sig, const struct ucontext *uc)
{
    struct frame32 *f = &m->f.plain;

    sd_zero(f, sizeof *f);
    f->back = low(f->code);
    f->sig = (i32)sig;
    f->c = context_of(uc);
    f->mask_above = (u32)(uc->sigmask >> 32);
    *(u64 *)f->code = 0x80cd00000077b858; /* pop %eax; mov $sigreturn, %eax; int $0x80 */
    m->rdx = m->rcx = 0;
}

static void rt_frame(struct sd_room32 *m, u32 sig, const struct siginfo_sys *si, const struct ucontext *uc)
{
    struct rt_frame32 *f = &m->f.rt;

    sd_zero(f, sizeof *f);
    f->back = low(f->code);
    f->sig = (i32)sig;
    f->info = low(f->words);
    f->uc = low(&f->flags);
    tell_info(f->words, sig, si);
    f->stack[0] = (u32)uc->stack.sp, f->stack[1] = (u32)uc->stack.flags, f->stack[2] = (u32)uc->stack.size;
    f->c = context_of(uc);
    f->mask[0] = (u32)uc->sigmask, f->mask[1] = (u32)(uc->sigmask >> 32);
    *(u64 *)f->code = 0x80cd000000adb8; /* mov $rt_sigreturn, %eax; int $0x80 */
    m->rdx = f->info, m->rcx = f->uc;
}

/* Where the handler can have its frame: `here`, unless we were interrupted on a stack of ours. Then it is below the call that was made on the program's. */
static struct sd_room32 *room_on_its_stack(struct sd_room32 *here, u64 above)
{
    const struct sd_tcb *t = sd_self();
    u64 own = t ? t->hi - t->lo : 0;

    if (!t || (u64)here - t->lo >= own)
        return here;
    for (u32 l = t->level < SD_STACK_LEVELS ? t->level : SD_STACK_LEVELS; l; l--) {
        u64 f = (u64)t->frame[l - 1] & ~(u64)SD_FRAME_SHORT;
        if (f && f - t->lo >= own)
            return (struct sd_room32 *)((f - BELOW_CALL - above) & ~15ull) - 1;
    }
    return here;
}

/* From sd_signal32, which pops what is in *m. */
struct sd_room32 *sd_frame32(u32 sig, const struct siginfo_sys *si, const struct ucontext *uc, struct sd_room32 *here)
{
    const struct ksigaction *a = &handlers[sig];
    struct sd_room32 *m = room_on_its_stack(here, sd_float32_bytes(uc));
    u32 state = sd_float32_show(uc, (u64)(m + 1));

    if (a->flags & SA_SIGINFO)
        rt_frame(m, sig, si, uc);
    else
        plain_frame(m, sig, uc);
    *(a->flags & SA_SIGINFO ? &m->f.rt.c.fpstate : &m->f.plain.c.fpstate) = state;
    if (a->flags & SA_RESTORER)
        m->f.plain.back = (u32)a->restorer;
    m->rax = sig;
    m->rip = (u32)a->handler;
    m->cs = CS_32;
    m->flags = (uc->reg[UC_EFLAGS] & ~(u64)STEPPING) | 0x200;
    m->rsp = low(&m->f);
    m->ss = USER_DS;
    m->secret = g.secret ^ low(&m->f);
    m->uc = (u64)uc;
    return m;
}

/* ---------------------------------------------------------------- the way back */

static void give(u64 *reg, u32 v)
{
    if ((u32)*reg != v)
        *reg = v;
}

static void give_back(struct ucontext *uc, const struct context32 *c, u64 mask)
{
    u64 *r = uc->reg;

    give(&r[UC_RDI], c->di), give(&r[UC_RSI], c->si), give(&r[UC_RBP], c->bp), give(&r[UC_RSP], c->sp);
    give(&r[UC_RBX], c->bx), give(&r[UC_RDX], c->dx), give(&r[UC_RCX], c->cx), give(&r[UC_RAX], c->ax);
    give(&r[UC_RIP], c->ip);
    r[UC_EFLAGS] = (r[UC_EFLAGS] & ~(u64)ADJUSTABLE) | (c->flags & ADJUSTABLE);
    r[UC_SEGMENTS] = (r[UC_SEGMENTS] & 0x0000ffffffff0000) | (u64)(c->cs | 3) | (u64)(c->ss | 3) << 48;
    uc->sigmask = mask & ~SIGBIT(SIGSYS);
}

void sd_int80_sigreturn(struct ucontext *uc, u32 nr)
{
    bool rt = nr == RT_SIGRETURN;
    u64 f = (u32)((u32)uc->reg[UC_RSP] - (rt ? 4 : 8)), room = f - offsetof(struct sd_room32, f), record[2];
    u64 context = f + (rt ? offsetof(struct rt_frame32, c) : offsetof(struct frame32, c)), mask;
    u32 above = 0;
    struct ucontext *kernel;
    struct context32 c;

    if (sd_get32(&c, context, sizeof c) || sd_get32(&mask, f + offsetof(struct rt_frame32, mask), rt ? 8 : 0) ||
        sd_get32(&above, f + offsetof(struct frame32, mask_above), rt ? 0 : 4)) {
        uc->reg[UC_RIP] = 0; /* SIGSEGV */
        return;
    }
    if (!rt)
        mask = c.oldmask | (u64)above << 32;
    if (sd_get32(record, room + offsetof(struct sd_room32, secret), sizeof record) || record[0] != (g.secret ^ (u32)f))
        record[1] = 0;
    kernel = record[1] ? (struct ucontext *)record[1] : uc;
    if (sd_float32_back(kernel, c.fpstate)) {
        uc->reg[UC_RIP] = 0;
        return;
    }
    give_back(kernel, &c, mask);
    if (kernel == uc)
        return;
    uc->reg[UC_RIP] = *(u64 *)(record[1] - 8); /* as if a handler of 64 bits had returned */
    uc->reg[UC_RSP] = record[1];
    uc->reg[UC_SEGMENTS] = (uc->reg[UC_SEGMENTS] & 0x0000ffffffff0000) | CS_64 | (u64)USER_DS << 48;
}
