/* SPDX-License-Identifier: Apache-2.0
 *
 * int80.h - one call by int $0x80: what int80.c makes of it, and what its parts (int80_*.c) share.
 */
#ifndef SD_INT80_H
#define SD_INT80_H

#include "base/user.h"
#include "gate/gate.h"

#define SD_INT80_AS_IT_IS 1 /* by the kernel, from the gate */
#define SD_INT80_DONE 2     /* the answer is in c->f.rax */
#define SD_INT80_CHILD 3    /* c->f may come back twice */
#define SD_INT80_RETURNED 5 /* from a handler: nothing is answered */
#define SD_INT80_ANEW 4     /* the program's own instruction once more: nothing traps any more */

/* What is told to the program when the call has come back. */
enum { SD_TELL_NOTHING, SD_TELL_TIME, SD_TELL_SETS, SD_TELL_MESSAGE, SD_TELL_MESSAGES, SD_TELL_OFFSET, SD_TELL_ACTION, SD_TELL_MASK };

struct sd_int80 {
    struct sd_frame f; /* the call that means the same */
    u32 nr;            /* as i386 numbers it */
    u32 tell;
    u64 user, user_ts; /* the program's own structures; user_ts: a time-out of 32 bits, or 0 */
    u32 set[3], bits;  /* of select */
    struct timespec64 ts;
    u64 pair[2];       /* a set of signals and its size; an offset */
    u64 *sets;         /* three of them */
    struct ksigaction act, old, before; /* before: of a handler of 32-bit code */
    bool handler;                       /* that one is being set */
    u64 *args, stack;  /* of clone3; the child's, 0: a copy of this one */
    u32 tls;           /* the child's segment: where it is described, 0: none */
    struct msghdr m;
    struct iovec iov[8];
    u32 niov;          /* of them are used */
    struct sd_room *rooms; /* for what is longer */
    u8 *at;
    u64 left;
};

long sd_int80_means(struct ucontext *uc, struct sd_int80 *c); /* 0: c->f, then sd_int80_over(); SD_INT80_*, or -errno */
long sd_int80_over(struct sd_int80 *c, long r);                /* its result as the program is told */
long sd_int80(const u64 *reg); /* gate.S: with the registers of a context */

void *sd_int80_room(struct sd_int80 *c, u64 bytes); /* NULL: no memory */
static inline bool sd_get32(void *to, u64 from, u64 n) { return !from || sd_copy_user(to, (const void *)from, n); }
static inline bool sd_put32(u64 to, const void *from, u64 n) { return !to || sd_copy_user((void *)to, from, n); }

/* int80_msg.c */
long sd_int80_vectors(struct sd_int80 *c, u32 from, u64 n, struct iovec **out);
long sd_int80_message(struct sd_int80 *c, bool sending);
long sd_int80_messages(struct sd_int80 *c, bool sending);
long sd_int80_message_told(struct sd_int80 *c, long r);
long sd_int80_messages_told(struct sd_int80 *c, long r);

/* int80_wait.c */
long sd_int80_time(struct sd_int80 *c, u64 *arg); /* a time-out of 32 bits is the argument */
long sd_int80_select(struct sd_int80 *c);
long sd_int80_wait_told(struct sd_int80 *c, long r);

/* int80_sig.c: SD_INT80_DONE, 0 or -errno */
long sd_int80_signals(struct sd_int80 *c, struct ucontext *uc);
long sd_int80_action_told(struct sd_int80 *c, long r);

/* int80_frame.c */
void sd_signal32(void); /* gate.S: what the kernel has for handlers of 32-bit code */
bool sd_int80_handler(struct sd_int80 *c, u32 sig); /* c->act becomes what is set in its place; false: it is none */
void sd_int80_handler_refused(const struct sd_int80 *c, u32 sig);
void sd_int80_handler_told(u32 sig, struct ksigaction *old); /* what the program reads */
void sd_int80_sigreturn(struct ucontext *uc, u32 nr);

/* int80_float.c */
u64 sd_float32_bytes(const struct ucontext *uc); /* room for the floating point state of i386 */
u32 sd_float32_show(const struct ucontext *uc, u64 above); /* is there now, somewhere above that address; where */
bool sd_float32_back(const struct ucontext *uc, u32 from); /* true: there is no memory at `from` */

/* int80_child.c */
long sd_int80_clone(struct sd_int80 *c);
long sd_int80_start(struct sd_int80 *c, const struct ucontext *uc); /* what SD_INT80_CHILD asks for */

#endif
