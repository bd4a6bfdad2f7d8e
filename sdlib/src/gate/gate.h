/* SPDX-License-Identifier: Apache-2.0
 *
 * gate.h - inside gate/ and start/.
 */
#ifndef SD_GATE_H
#define SD_GATE_H

#include "sd.h"

extern u8 sd_slots[], sd_gate_start[], sd_gate_end[];

/* start/strict.c */
extern u8 sd_strict; /* some thread is in strict mode, or was */
long sd_strict_mode(const struct sd_tcb *t);
void sd_strict_trap(const struct siginfo_sys *si, const struct ucontext *uc); /* comes back if it is of another filter */
bool sd_strict_alone(void); /* no thread has another filter */
void sd_threads_are(u32 n);
void sd_thread_comes(void);
void sd_thread_ends(struct sd_tcb *t);
void sd_threads_uncounted(void); /* from here on some may come and go without a word */
extern _Atomic u64 sd_slot_ret[SD_SLOTS]; /* where the program goes on behind the slot's site */
extern const u8 sd_class[65536];
extern struct sd_boot sd_boot;
void sd_restorer(void);
void sd_signal(void);                 /* what the kernel knows as the handler of every signal that the program handles */
extern _Atomic u64 sd_signals[NSIG + 1]; /* the program's own */
void sd_signal_fault(void);           /* the same for SIGSEGV and SIGBUS, whether the program handles them or not */
void sd_signal_inside(void); /* to jump to, as a handler of the kernel's */
extern u8 sd_signal_returned[], sd_trap_done[];
long sd_trap(u64 nr, u64 a, u64 b, u64 c, const struct sd_frame *f, struct sd_tcb *t);
void sd_trapped(struct ucontext *uc);
bool sd_raise_lets_in(u32 how, u64 *set, u64 *old);
void sd_show_frame(struct ucontext *uc, const struct sd_frame *f); /* as if the call of that frame were about to be made */
u64 sd_shown_end(struct ucontext *uc); /* the handler has come back: the context to restore */
extern u8 sd_sys_ret[]; /* behind the instruction of sd_sys */
bool sd_roused(const struct siginfo_sys *si, struct ucontext *uc); /* gate/rouse.c: it was for our own sleep */

/* A pointer that the kernel would not refuse at first sight. */
static inline bool sd_plausible(const void *p) { return (u64)p >= 4096 && !((u64)p >> 47); }

void sd_without_area(void); /* start/init.c: counters and configuration of our own */
void sd_take_over(void); /* gate/dispatch.c: connections that lived through execve */
long sd_call_handler(struct sd_frame *f, struct sd_tcb *t);
long sd_call_traced(struct sd_frame *f, struct sd_tcb *t); /* gate/traced.c */
void sd_trace_fault(const struct sd_frame *f, struct sd_tcb *t); /* the same for one that ends with EFAULT where it is */
void sd_patch_site(u32 slot, u64 ret, u32 nr); /* once for each site */
void sd_patch_for_children(void); /* before a fork */
i32 sd_slot_of(u64 ret, bool must); /* gate/signal.c */
void sd_patch_forbid(void);
void sd_patch_after_fork(void);
void sd_patch_undo(void);
void sd_actions_own(void); /* signal.c: every action as the program means it */
/* gate/altstack.c */
void sd_alt_learn(struct sd_tcb *t); /* a new thread's */
void sd_alt_part(struct ucontext *uc, struct sd_tcb *t); /* of one with alt_shared that has trapped */
long sd_alt_change(struct ucontext *uc, const struct stack_t_ *ss, struct stack_t_ *old); /* in a SIGSYS handler */
static inline bool sd_on_own_alt(const struct sd_tcb *t, u64 at) { return t && t->own_alt && at - t->own_alt < SD_OWN_ALT; }
struct ucontext *sd_alt_move(struct sd_tcb *t, const struct ucontext *uc, const struct ucontext *shown, u32 level);
struct sd_aside *sd_alt_aside(struct sd_tcb *t, const struct ucontext *uc); /* of a context that was moved, once; NULL: it was not, or need not */
long sd_install_sigsys(void); /* gate/signal.c */
long sd_adopt_handlers(void);
/* gate/fault.c */
bool sd_is_fault(u32 sig);
long sd_fault_adopt(u32 sig, const struct ksigaction *act);
long sd_fault_action(u32 sig, const struct ksigaction *act, struct ksigaction *old, bool foreign);
u64 sd_fault_route(int sig, const struct siginfo_sys *si, struct ucontext *uc);
void sd_faults_reset(void);
void sd_faults_own(bool ignored_only);
void sd_faults_back(void);
void sd_tcbs_after_fork(struct sd_tcb *self); /* start/tcb.c */
void sd_tcbs_unmap(void);                     /* no thread is in C any more */

/* gate/maps.c, under the patch lock only: one static buffer. False, 0: /proc does not tell. */
struct sd_mapping {
    u64 lo, hi;
    bool vdso; /* may not be split */
    bool text; /* file-backed, private, r-x; or the vdso */
};
bool sd_find_mapping(u64 addr, struct sd_mapping *m);
u64 sd_find_gap(u64 addr, u64 bytes); /* where `bytes` are free below addr, at most 1 GiB away */

#endif
