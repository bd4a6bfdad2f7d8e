/* SPDX-License-Identifier: Apache-2.0
 *
 * sd.h - what the parts of the library call in each other (abi <- arch <- base <- ring <- fd <- poll <- sock <- gate <- start).
 */
#ifndef SD_H
#define SD_H

#include "base/base.h"
#include "base/linux.h"
#include "ring/bell.h"
#include "ring/ring.h"
#include "ring/switch.h"

/* ------------------------------------------------------------------ gate */

#define SD_SLOTS 4096
#define SD_SLOT_BYTES 128
#define SD_SLOT_P 30
#define SD_SLOT_RET 2  /* from P: the jump back behind the bare instruction */
#define SD_SLOT_BARE 43 /* from P: bare instruction whose child comes back through sd_child */
#define SD_SLOT_DIRECT 73 /* from P: into C, for a stub that knows the number */

/* Pushed by sd_entry on the program's stack; lowest address first. */
struct sd_frame {
    u64 r15, r14, r13, r12, rbx, rbp, rax, r9, r8, r10, rdx, rsi, rdi, flags;
    u64 next; /* at entry P of the slot; sd_dispatch sets where to go on */
};

#define SD_FRAME_SHORT 1u /* of the short way: another layout */
#define SD_STACK_LEVELS 6
#define SD_STACK_SLICE (64 * 1024)
#define SD_OWN_ALT (64 * 1024)
#define SD_CONTEXT_REGS 18
#define SD_FOREIGN_COUNTED 4

/* What a handler on the program's small sigaltstack has interrupted: altstack.c. */
struct sd_aside {
    u64 uc; /* the context that it was shown */
    u64 level;
    u64 rip, rsp; /* as shown */
    u64 reg[SD_CONTEXT_REGS];
};

/* What an operation has counted itself in and takes back at its end: sock/owed.c. */
struct sd_owed {
    struct sock *s; /* NULL: nothing */
    u32 armed;      /* as sd_arm gave it */
    u32 plain;      /* SD_OWES_* */
};

/* One per thread, at the top of its stack mapping. %gs base: its distance from sd_nobody (enter.S). Offsets 0, 8, 32, 40 and 64 are known to enter.S, that of own_alt to gate.S. */
struct sd_tcb {
    u64 top;              /* stack of level 0 starts here and grows down: the block's own address; of sd_nobody 0 */
    u32 level;            /* entries of this thread that are active; of sd_nobody 1 */
    u32 foreign;          /* child of vfork or clone(CLONE_VM): shares the parent's tables and must not change them */
    u64 lo, hi;           /* this thread's library stacks; the lowest part is SD_OWN_ALT */
    u64 alt_lo, alt_hi;   /* the program's sigaltstack */
    u32 tid, exiting;
    u32 clone_flags;      /* of the clone that is about to run */
    u32 flags;            /* SD_TCB_* */
    struct sd_frame *frame[SD_STACK_LEVELS]; /* bit 0: SD_FRAME_SHORT */
    struct sd_tcb *next;  /* all of them */
    struct sd_part *part; /* of this thread in area 0, NULL: none yet */
    u32 part_number;
    u32 foreign_dups;     /* of a foreign one: 1 + highest descriptor to which it has moved a socket of ours, 0: none */
    u32 marks;            /* levels that may have a mark there */
    u32 uses;             /* levels that may have an entry in `use` */
    struct sock *_Atomic use[SD_STACK_LEVELS]; /* sockets that this thread is inside of: fd/fd.c [F1] */
    struct sd_trace_channel *channel; /* trace/trace.c; NULL: none yet */
    struct sd_trace_record *records;
    u32 noted;            /* SD_TRACE_KERNEL, ...: of the call that is being made */
    u32 wakeable;         /* asleep in a call that may end at once with 1 less than this: whoever made it looks again. 0: not so */
    u64 own_alt;          /* what the kernel has as its sigaltstack while the program's is small, lowest address; 0: it is not. altstack.c */
    u64 small_lo, small_hi; /* the program's then; alt_lo and alt_hi are 0 */
    u32 nasides;
    u32 alt_shared;       /* another thread has the same sigaltstack since, and found the kernel with it for this one */
    struct sd_aside asides[SD_STACK_LEVELS];
    struct sd_owed owed[SD_STACK_LEVELS];
    u64 foreign_counted[SD_FOREIGN_COUNTED]; /* cookies of sockets among whose users a foreign one is counted, as it has moved them; 0: none */
    struct sock *_Atomic home[SD_STACK_LEVELS]; /* and those on whose words it wakes somebody up: poll/nap.c [N2] */
    u64 rouse_at;         /* gate/rouse.c: where the call that it sleeps in has its buffer, or its list */
    u32 rouse;            /* SD_ROUSE_*, and above it a number of this sleep */
    u8 bell;              /* looked at by who sleeps for one */
};

_Static_assert(offsetof(struct sd_tcb, level) == 8, "sdtrace/shrink.py reads it");
_Static_assert(offsetof(struct sd_tcb, wakeable) == 212, "sdtrace/rouse.py reads it");
_Static_assert(offsetof(struct sd_tcb, own_alt) == 216 && SD_OWN_ALT == 65536, "gate.S, sdtrace/stacks.py");
_Static_assert(sizeof(struct sd_tcb) <= 2048, "start/tcb.c");

#define SD_WAKE_AS(value) (1u + (value)) /* in `wakeable` */
#define SD_TCB_SIGSYS_BLOCKED 1u /* the program believes that it has blocked SIGSYS */
#define SD_TCB_CLEAR_SIGHAND 2u  /* the clone about to run resets the child's handlers */

/* A handler answers with the value for rax, or: */
#define SD_PASS ((long)0x8000000000000000)  /* let the kernel do this very call at the slot, registers as they came */
#define SD_BARE ((long)0x8000000000000001)  /* the same, but a child may come back (fork, clone) */
#define SD_ORDINARY ((long)0x8000000000000002) /* sd_boxed: by its handler */
typedef long (*sd_handler)(struct sd_frame *f, struct sd_tcb *t);
#define SD_CALL(name) long name(struct sd_frame *f, struct sd_tcb *t)

extern u8 sd_fdkind[65536]; /* 0: bare call; SD_KIND_OURS: C code; SD_KIND_FAST and _SHARED: sock/fast.c first. Distances from P */
#define SD_KIND_OURS 8
#define SD_KIND_FAST 68
#define SD_KIND_SHARED 85
#define SD_KIND_CLOSING SD_SLOT_DIRECT /* C code as well, but another number: fd/closing.c */
extern u32 sd_fdent[65536]; /* which socket: fd/fd.c */
#define SD_ENT_CLOSING (1u << 30) /* fd/closing.c; sockets, and epoll sets, have numbers below that */

/* --------------------------------------------------------------- process */

struct sd_global {
    u32 pid;             /* thread group id */
    u32 mt;              /* 1 once the process has, or had, more than one thread, or is cloned with shared memory */
    u32 trace;           /* SD_TRACE_CALLS, SD_TRACE_BYTES: sd_boot's, for good */
    u32 boxed;           /* the program has a seccomp filter of its own, or tables of descriptors that ours cannot follow: no call but its own */
    u32 no_supervisor;   /* a hypercall has failed with ENOSYS: never ask again */
    u32 nareas;
    u32 moved;           /* of the areas, as far as epoll sets know: sd_ep_follow() */
    u32 faulted;         /* a call has ended in a mistake of ours (gate/fault.c): nothing is offered any more */
    struct sd_area *area[SD_MAX_AREAS];
    struct sd_proc *proc; /* never NULL: private until an area is mapped */
    const struct sd_config *cfg; /* never NULL */
    u64 tsc_per_us;
    u64 secret;          /* random, nobody else's */
};
extern struct sd_global g;

#define COUNT(name) (sd_note(SD_CTR_##name), g.proc->ctr[SD_CTR_##name]++)
#define COUNT_N(name, n) (g.proc->ctr[SD_CTR_##name] += (u64)(n))
#define COUNT_OF(s, name) (COUNT(name), (s)->b->name++) /* of one connection, too */

#ifndef SD_HOSTED
extern const struct sd_tcb sd_nobody;

/* NULL: none yet. */
static inline struct sd_tcb *sd_self(void)
{
    struct sd_tcb *t;
    __asm__("mov %%gs:%1, %0" : "=r"(t) : "m"(sd_nobody.top));
    return t;
}

static inline void sd_set_self(const struct sd_tcb *t)
{
    __asm__ volatile("wrgsbase %0" : : "r"(t ? (u64)t - (u64)&sd_nobody : 0) : "memory");
}
#else
struct sd_tcb *sd_self(void);
#endif

static inline __attribute__((always_inline)) u32 sd_size_class(u64 n)
{
    u32 size = 63 - (u32)__builtin_clzll(2 * n - 1);

    return size < SD_SIZES ? size : SD_SIZES - 1;
}

/* ----------------------------------------------------------------- trace */

#ifndef SD_HOSTED
#define sd_tracing(what) unlikely(g.trace & (what))
#else
#define sd_tracing(what) false
#endif
struct iovec;
struct sock;
/* trace/trace.c. `len` bytes of s, from place `pos` of the stream of direction `dir` on (0: sent, 1: received), are `skip` bytes into iov; NULL: they
 * are nowhere that we could read. */
void sd_saw_ring(struct sock *s, u32 dir, u64 counter, const struct iovec *iov, u64 skip, u64 len);
void sd_saw_tcp(struct sock *s, int fd, u32 dir, const struct iovec *iov, u64 skip, u64 len);
u64 sd_saw_place(struct sock *s, int fd, u32 dir, u64 len); /* where the last `len` bytes of TCP stand in the program's stream */
void sd_saw(struct sock *s, u32 dir, u64 pos, const struct iovec *iov, u64 skip, u64 len);
void sd_saw_open(struct sock *s, int fd);
void sd_saw_end(struct sock *s, u32 how);
void sd_trace_call(struct sd_tcb *t, const struct sd_trace_record *r);
void sd_trace_release(struct sd_tcb *t);
void sd_noted(u32 bit);

/* Of what is counted, what the trace tells of the call. `which` is a constant. */
static inline void sd_note(u32 which)
{
    u32 bit = which == SD_CTR_calls_kernel ? SD_TRACE_KERNEL : which == SD_CTR_parks ? SD_TRACE_PARKED : which == SD_CTR_bells_tx ? SD_TRACE_BELL
            : which == SD_CTR_spins ? SD_TRACE_SPUN : 0;

    if (bit && sd_tracing(SD_TRACE_CALLS))
        sd_noted(bit);
}

/* gate/rouse.c: a sleep that another thread of the program may end, as if there were news. Begun before the last look. */
enum { SD_ROUSE_NOT, SD_ROUSE_MAY, SD_ROUSE_CALLED, SD_ROUSE_HEARD, SD_ROUSE_STATES };
struct sd_rouse {
    u64 at;    /* of a sleep that a handler has interrupted, */
    u32 state; /* which goes on as that then */
    bool begun;
};
struct sd_rouse sd_rouse_begin_shared(const void *at);
void sd_rouse_end_shared(const struct sd_rouse *r);
void sd_rouse(void); /* all that sleep for room, in poll or for readiness: they look again */

static inline struct sd_rouse sd_rouse_begin(const void *at)
{
    return likely(!g.mt) ? (struct sd_rouse){.begun = false} : sd_rouse_begin_shared(at);
}

static inline void sd_rouse_end(const struct sd_rouse *r)
{
    if (unlikely(r->begun))
        sd_rouse_end_shared(r);
}

/* -EINTR, or 0. Of its own each time: the kernel writes what is left into the time that it is given, so a loop that gives it twice no longer sleeps. */
static inline long sd_sleep_ns(i64 ns)
{
    struct timespec64 ts = {0, ns};

    return SYS5(__NR_ppoll, 0, 0, &ts, 0, 8);
}

long sd_hypercall(u32 op, u64 a, u64 b);
long sd_hypercall_fd(u32 op, u64 a, u64 b); /* for those that answer with a descriptor */
void *sd_alloc(u64 bytes);  /* zeroed, never returned to the system; NULL on failure. Size classes of 64 bytes and powers of two */
void sd_free(void *p, u64 bytes);
void sd_membarrier(void);   /* MEMBARRIER_CMD_GLOBAL_EXPEDITED: all processes under sdrun */
void sd_membarrier_threads(void); /* the threads of this process */
u64 sd_now_ns(void);        /* CLOCK_MONOTONIC */

/* ------------------------------------------------- descriptors and sockets */

struct reg; /* an epoll registration (poll/epoll.h) */

/* This process's view of one socket of ours. Never unmapped, so a stale pointer is harmless; `gen` tells reuse. */
struct sock {
    _Atomic u32 refs;  /* descriptors of this process */
    _Atomic u32 dead;  /* last descriptor closed */
    u32 id;            /* block id */
    u32 ent;           /* what leads to it in sd_fdent[] */
    struct sd_block *b;
    struct sd_seg *seg; /* NULL until attached */
    struct sd_end e;    /* the two rings, as ring.h sees them */
    u8 timed;           /* SO_RCVTIMEO: 0 not known, 1 none, 2 some; sock/rx.c */
    bool yielded;       /* a receive has given its peer the CPU, in vain: fast.c */
    bool watched;       /* it lies in a set that poll or another set looks at: sd_ep_emptied() */
    u8 lives;           /* 1 + the place of its kind in the area, once it has done as much as makes an offer worth it; sock/lives.c */
    u32 due;            /* not to be offered before so many operations */
    u64 woken_tsc;      /* when the reader was last rung for */
    u64 checked_tsc;    /* when the kernel socket was last looked at */
    u64 asked_tsc;      /* when a sender has last asked the kernel whether the peer is still there */
    u32 mss;            /* TCP_MAXSEG, once it was needed */
    u32 probed;         /* ... and has rung so that the peer's kernel says so */
    u64 cookie;         /* SO_COOKIE, once attached or a child that shares our memory was made; 0: not asked for yet */
    u32 kcheck;         /* the kernel has said something (FIN, error): look before saying EAGAIN */
    _Atomic u64 tx_in; /* inside of a send, when nobody shares it: address of the hold; a handler may come in between */
    _Atomic u32 attaching;
    u32 epoch;         /* which rings those are, counted by again.c; the upper bits of what sd_arm gives */
    _Atomic u32 parked; /* threads that sleep on it, waiting for a doorbell (not counted when nobody shares it) */
    struct reg *regs;   /* its epoll registrations */
    struct sock *next_free;
    _Atomic u64 tcp_pos[2];  /* bytes sent and received on TCP, as far as traced; where the kernel does not tell any more */
    u64 shown;          /* its cookie, once the trace knows it */
    _Atomic u32 napping; /* [N3] threads of several that nap for a call which holds the file (poll/nap.c) */
    _Atomic u32 napper;  /* that has gone from there to sleep in the kernel, 0: none has */
    _Atomic u32 held;   /* [F3] threads that are in poll or select for it, and for others */
    _Atomic u32 kept;   /* [F4] 1 + a duplicate of its last descriptor, which was closed while others waited in a call on it */
};

struct sock *sd_sock_of(u64 fd);  /* NULL if the descriptor is not one of ours; fd as it stands in the register, whose upper half the kernel ignores */
static inline bool sd_is_still(const struct sock *s, int fd) /* fd, which has led to it */
{
#ifdef SD_HOSTED
    return sd_sock_of((u64)(u32)fd) == s;
#else
    return *(const volatile u32 *)&sd_fdent[fd] == s->ent;
#endif
}
static inline bool sd_is_closing(u64 fd) /* by another thread */
{
#ifdef SD_HOSTED
    (void)fd;
    return false;
#else
    return (u32)fd < ARRAY_LEN(sd_fdent) && *(const volatile u32 *)&sd_fdent[(u32)fd] & SD_ENT_CLOSING;
#endif
}
struct sock *sd_sock_look_again(u64 fd); /* [F5] fd/closing.c */
/* The same for a call that is to be made on it: if another thread closes it, when that is done. */
static inline struct sock *sd_sock_look(u64 fd)
{
    struct sock *s = sd_sock_of(fd);

    return !s && unlikely(sd_is_closing(fd)) ? sd_sock_look_again(fd) : s;
}
NOINLINE int sd_fd_moved(const struct sock *s, int fd);
/* [F4] The descriptor that a call goes on with that has waited. */
static inline int sd_fd_after_wait(const struct sock *s, int fd) { return likely(sd_is_still(s, fd)) ? fd : sd_fd_moved(s, fd); }
bool sd_attached(const struct sock *s); /* the segment is mapped: ring and kernel together decide readiness */
struct sock *sd_sock_enter_numbered(u32 ent); /* attached, and alive: it cannot be unmapped until sd_sock_put_numbered; one at a time. NULL: none */
void sd_sock_put_numbered(struct sock *s);
u32 sd_fd_top(void); /* one above the highest descriptor ever ours */
void *sd_epoll_of(u64 fd);        /* struct ep of an epoll descriptor that has registrations of ours, or NULL */
bool sd_epoll_set(u64 fd, void *ep, u32 *number); /* structure is held (poll/epoll.h); *number: 0 for a new one. False: the table does not reach that far */
void sd_epoll_dup(u64 from, u64 to);
void sd_epoll_forget(u64 fd);

/* Readiness of an attached socket in EPOLL* bits. `kev` is what the kernel has just said of the descriptor (0: was not asked). Eats doorbells,
 * notices the peer's switch, latches FIN and errors. rx on TCP: IN/PRI come from kev; on the ring: from the ring. The same for OUT. */
u32 sd_ready(struct sock *s, int fd, u32 kev);
/* What to ask the kernel when the program wants `want` (IN OUT PRI RDHUP...) of this socket: OUT is dropped once we write to the ring, IN is
 * added where a doorbell must wake us. */
u32 sd_kernel_want(const struct sock *s, u32 want);
/* Before parking: count ourselves as a waiter in the rings (rx if IN wanted, tx if OUT wanted and the ring is full). No barrier: the caller
 * issues one sd_membarrier() for all if one of them asks for it by SD_ARM_BARRIER, then looks again with sd_ready(s, fd, 0). Returns what was armed,
 * to be given to sd_disarm. */
u32 sd_arm(struct sock *s, u32 want);
#define SD_ARM_BARRIER 0x80u
#define SD_ARM_EPOCH 8 /* bits from here on; what was armed in other rings is not taken back in these */
#define SD_ARM_NAMED 4u /* by the caller: our sleep has a name there ([W4], bell.h) */
void sd_disarm(struct sock *s, u32 armed);
/* [B2] The doorbell may not be eaten yet. */
bool sd_bell_stays(const struct sock *s);
void sd_bell_was_heard(struct sock *s, int fd); /* [B3] it stays for others, and we wait for the next one */
/* No doorbell is sure to reach us (unread TCP bytes in front of it; one that has to stay, though we wait for more): the wait must be cut to 1 ms. */
bool sd_needs_timer(const struct sock *s, u32 want);
/* The poster: true if the peer napped, alone, and is awake now; false: it may need a bell. poll/nap.c */
bool sd_nap_end(struct sock *s);
void sd_nap_disturb(struct sock *s); /* whoever naps on our word of it looks again */
void sd_nap_await(struct sock *s);   /* [N3] before a descriptor of it is closed: whoever naps on it sleeps in the kernel, or is back */
extern _Atomic u64 sd_restarting; /* a bit for each signal whose handler lets calls go on; gate/signal.c */
/* Worth spinning for? The peer runs on another CPU and spinning has paid lately. */
bool sd_spin_pays(const struct sock *s);

/* poll/ep_*.c, called by sock/ */
void sd_ep_changed(struct sock *s);          /* attached, switched or went back: registrations with the kernel follow */
void sd_ep_fd_closed(struct sock *s, int fd); /* before the last close(2) of fd */

/* handlers, one a call; the table is gate/calls.h */
SD_CALL(sd_read); SD_CALL(sd_write); SD_CALL(sd_readv); SD_CALL(sd_writev); SD_CALL(sd_preadv2); SD_CALL(sd_pwritev2);
SD_CALL(sd_recvfrom); SD_CALL(sd_sendto); SD_CALL(sd_recvmsg); SD_CALL(sd_sendmsg); SD_CALL(sd_recvmmsg); SD_CALL(sd_sendmmsg);
SD_CALL(sd_sendfile); SD_CALL(sd_splice); SD_CALL(sd_tee);
SD_CALL(sd_socket); SD_CALL(sd_connect); SD_CALL(sd_accept); SD_CALL(sd_accept4); SD_CALL(sd_bind); SD_CALL(sd_listen);
SD_CALL(sd_close); SD_CALL(sd_close_range); SD_CALL(sd_dup); SD_CALL(sd_dup2); SD_CALL(sd_dup3); SD_CALL(sd_pidfd_getfd); SD_CALL(sd_fcntl); SD_CALL(sd_ioctl);
SD_CALL(sd_shutdown); SD_CALL(sd_setsockopt); SD_CALL(sd_getsockopt);
SD_CALL(sd_poll); SD_CALL(sd_ppoll); SD_CALL(sd_select); SD_CALL(sd_pselect6);
SD_CALL(sd_epoll_create); SD_CALL(sd_epoll_create1); SD_CALL(sd_epoll_ctl); SD_CALL(sd_epoll_wait); SD_CALL(sd_epoll_pwait); SD_CALL(sd_epoll_pwait2);
SD_CALL(sd_clone); SD_CALL(sd_clone3); SD_CALL(sd_fork); SD_CALL(sd_vfork); SD_CALL(sd_exit); SD_CALL(sd_exit_group);
SD_CALL(sd_execve); SD_CALL(sd_execveat);
SD_CALL(sd_tkill); SD_CALL(sd_tgkill);
SD_CALL(sd_rt_sigaction); SD_CALL(sd_rt_sigprocmask); SD_CALL(sd_rt_sigsuspend); SD_CALL(sd_sigaltstack);
SD_CALL(sd_arch_prctl); SD_CALL(sd_unshare); SD_CALL(sd_prctl); SD_CALL(sd_seccomp);

/* sock/, called by start/ around fork and exec */
void sd_fast_off(void);                       /* sockets are about to be shared, or used by several threads */
void sd_socks_before_vfork(void);             /* cookies are known from here on */
void sd_socks_before_fork(void);              /* blocks are now shared by one process more */
void sd_socks_after_fork_child(void);         /* claim a proc slot, reset locks that only vanished threads held */
u32 sd_socks_before_exec(struct sd_carry *out, u32 max, const struct sd_tcb *t); /* connections that survive; pins what cannot be carried */
void sd_socks_exec_failed(const struct sd_carry *out, u32 n, const struct sd_tcb *t);
void sd_socks_carried(const struct sd_carry *c, u32 n); /* a fresh image takes them over at its first entry into C */
extern u32 sd_adopt[SD_ADOPT_MAX];            /* sock/adopt.c: what a program has that was running before us */
void sd_adopt_all(u32 *to_do);                /* takes it over; returns when that is done, whoever does it. *to_do becomes 0 then */
void sd_socks_leave(void);                    /* all go back to TCP, for good */
long sd_boxed(struct sd_frame *f);
void sd_stand_aside(void);
void sd_socks_exit(void);                     /* exit_group: fold blocks, give up users */

/* gate/, start/ */
void sd_dispatch(struct sd_frame *f, struct sd_tcb *t);
struct sd_tcb *sd_tcb_new(u64 rsp);
struct sd_tcb *sd_tcbs(void); /* all of them, also those of threads that are gone */
u64 sd_pick_stack(struct sd_tcb *t, struct sd_frame *f);
void sd_child_start(struct sd_tcb *parent);
long sd_init_c(void);
long sd_unhook_c(void);
long sd_give_c(void);
void sd_sigsys(int sig, struct siginfo_sys *si, struct ucontext *uc);
u64 sd_strip_sigsys(const void *user_set, u64 size, u64 *out); /* 1 if a copy without SIGSYS is in *out and has to be used */

#endif
