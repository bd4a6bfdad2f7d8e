/* SPDX-License-Identifier: Apache-2.0
 *
 * int80_child.c - processes and threads that are made by int $0x80 (int80.c).
 *
 * The call is made in our SIGSYS handler, where it may not come back twice on one stack. A child that has a copy of all memory has a copy of the handler's frame, too,
 * and leaves by that; a child of vfork gets a copy as well. One with a stack of its own begins there, with what the frame would have given it: the registers below
 * its stack pointer (gate.S: sd_child_on), the mask, which our handler has set already, and the floating point state.
 *
 * CLONE_SETTLS is a segment of i386 here, one of three that each thread has (set_thread_area). A child inherits its parent's; so that one is set before, and put back behind.
 */
#include "gate/int80.h"

#define BELOW (19 * 8) /* of the child's stack; gate.S */
#define ARGS 11        /* words of struct clone_args that are known to us */
#define PAGE 4096
#define SET_THREAD_AREA 243 /* of i386: there are no others */
#define GET_THREAD_AREA 244
enum { ARG_FLAGS, ARG_PIDFD, ARG_CHILD_TID, ARG_PARENT_TID, ARG_EXIT_SIGNAL, ARG_STACK, ARG_STACK_SIZE, ARG_TLS };
#define FP_XSTATE_MAGIC1 0x46505853u
#define FP_MAGIC_AT 464 /* of struct _fpx_sw_bytes in the FXSAVE area: magic, size, features */

long sd_child_on(long nr, u64 a, u64 b, u64 c, u64 d, u64 e); /* gate.S; the child's stack is below the one asked for by BELOW */

/* clone(flags, stack, parent's tid, TLS, child's tid), or clone3. */
long sd_int80_clone(struct sd_int80 *c)
{
    u64 flags;

    if ((u32)c->f.rax == __NR_clone3) {
        c->args = sd_int80_room(c, 8 * ARGS);
        if (!c->args)
            return -ENOMEM;
        if (c->f.rsi < 64 || c->f.rsi > 8 * ARGS)
            return c->f.rsi < 64 ? -EINVAL : -E2BIG; /* more than is known: no kernel has it */
        sd_zero(c->args, 8 * ARGS);
        if (sd_get32(c->args, (u32)c->f.rdi, c->f.rsi))
            return -EFAULT;
        c->f.rdi = (u64)c->args;
        c->stack = c->args[ARG_STACK] + c->args[ARG_STACK_SIZE];
        flags = c->args[ARG_FLAGS];
        c->args[ARG_FLAGS] &= ~(u64)CLONE_SETTLS;
        c->tls = (u32)c->args[ARG_TLS];
    } else {
        c->args = NULL;
        c->tls = (u32)c->f.r10;
        c->f.r10 = c->f.r8; /* the child's number; between them i386 has the storage of threads */
        c->stack = (u32)c->f.rsi;
        flags = (u32)c->f.rdi;
        c->f.rdi &= ~(u64)CLONE_SETTLS;
    }
    if ((flags & CLONE_VM) && !c->stack && !(flags & CLONE_VFORK))
        return -ENOSYS;
    if (!(flags & CLONE_SETTLS))
        c->tls = 0;
    else if (!c->tls)
        return -EFAULT;
    if (!c->stack) { /* a copy */
        if (c->args)
            c->args[ARG_FLAGS] &= ~(u64)CLONE_VM;
        else
            c->f.rdi &= ~(u64)CLONE_VM;
    }
    return SD_INT80_CHILD;
}

/* struct user_desc, of which only its first word concerns us. */
struct segment {
    u32 number, base, limit, flags;
};

static long area(u32 call, u64 at)
{
    u64 reg[UC_EFLAGS + 1] = {0};

    reg[UC_RAX] = call;
    reg[UC_RBX] = at;
    return sd_int80(reg);
}

/* Ours becomes what the child shall have. `was` keeps the old one, in memory that int $0x80 can reach. */
static long lend_segment(u32 wanted, struct segment **was)
{
    struct segment copy;
    long at, r;

    if (sd_get32(&copy, wanted, sizeof copy))
        return -EFAULT;
    if ((i32)copy.number == -1)
        return -EINVAL; /* set_thread_area would choose one */
    at = SYS6(__NR_mmap, 0, PAGE, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_32BIT, -1, 0);
    if (at < 0 && at > -PAGE)
        return at;
    *was = (struct segment *)at;
    (*was)->number = copy.number;
    r = area(GET_THREAD_AREA, (u64)at);
    if (r >= 0)
        r = area(SET_THREAD_AREA, wanted);
    if (r < 0)
        SYS2(__NR_munmap, at, PAGE);
    return r;
}

static void segment_back(struct segment *was, bool child)
{
    if (!child)
        area(SET_THREAD_AREA, (u64)was);
    SYS2(__NR_munmap, was, PAGE);
}

/* As at the program's instruction. */
static void float_state(const struct ucontext *uc)
{
    const u32 *sw = (const u32 *)(uc->fpstate + FP_MAGIC_AT);

    if (!uc->fpstate)
        return;
    if (sw[0] == FP_XSTATE_MAGIC1)
        __asm__ volatile("xrstor64 (%0)" : : "r"(uc->fpstate), "a"(sw[2]), "d"(sw[3]) : "memory");
    else
        __asm__ volatile("fxrstor64 (%0)" : : "r"(uc->fpstate) : "memory");
}

/* What sd_child_on pops: r15 first, rip last. False: there is no memory. */
static bool put_registers(const struct ucontext *uc, u64 stack)
{
    static const u8 order[] = {UC_R15, UC_R14, UC_R13, UC_R12, UC_R11, UC_R10, UC_R9, UC_R8, UC_RBP, UC_RDI, UC_RSI, UC_RDX, UC_RCX, UC_RBX,
                               UC_EFLAGS, UC_RIP};
    u64 list[ARRAY_LEN(order)];

    for (u32 i = 0; i < ARRAY_LEN(order); i++)
        list[i] = uc->reg[order[i]];
    return !sd_copy_user((void *)(stack - sizeof list), list, sizeof list);
}

static long on_own_stack(struct sd_int80 *c, const struct ucontext *uc)
{
    struct sd_frame *f = &c->f;

    if (!put_registers(uc, c->stack))
        return -EFAULT;
    if (c->args)
        c->args[ARG_STACK_SIZE] -= BELOW;
    else
        f->rsi = c->stack - BELOW;
    float_state(uc);
    return sd_child_on((long)f->rax, f->rdi, f->rsi, f->rdx, f->r10, f->r8);
}

long sd_int80_start(struct sd_int80 *c, const struct ucontext *uc)
{
    struct sd_frame *f = &c->f;
    struct sd_tcb *t = sd_self();
    struct segment *was = NULL;
    long child = 0;

    if (!t)
        t = sd_tcb_new((u64)f);
    if (!t)
        return -ENOMEM;
    if (c->tls)
        child = lend_segment(c->tls, &was);
    if (child < 0)
        return child;
    t->level++; /* what the program's handler has interrupted is below */
    sd_call_handler(f, t);
    t->level--;
    child = c->stack ? on_own_stack(c, uc) : SYS5(f->rax, f->rdi, f->rsi, f->rdx, f->r10, f->r8);
    if (child == 0) /* a copy */
        sd_child_start(t);
    if (was)
        segment_back(was, child == 0);
    return child;
}
