/* SPDX-License-Identifier: Apache-2.0
 *
 * poll.h - readiness calls: what poll.c, select.c, epoll.c and wait.c share, and what fd/ and sock/ call.
 */
#ifndef SD_POLL_H
#define SD_POLL_H

#include "sd.h"

/* ------------------------------------------------------- for fd/ and sock/ */

/* Doorbells of s were eaten: registrations that rely on a bell must look at the ring again. Cheap, takes no lock, makes
 * no system call, may be called anywhere. */
void sd_ep_touched(struct sock *s);
/* Another process holds s from now on, and may eat its doorbells. After it was counted. */
void sd_ep_joined(struct sock *s);
/* The same as sd_ep_touched() after a send that took less than it was given: the program may wait for room though no send said EAGAIN. */
void sd_ep_full(struct sock *s);
/* It has new rings, and the peer does not know yet that we have: all that they say from now on is news. */
void sd_ep_attaches(struct sock *s);
/* Bytes were read of one that is `watched`. */
void sd_ep_emptied(struct sock *s, int fd);
/* An execve follows: registrations with the kernel become the program's own again, as the next image expects them.
 * If the execve fails, the next epoll call of this image takes them back. */
void sd_ep_before_exec(void);
void sd_ep_carried(int epfd); /* in the next image: its connections are registered there again */
void sd_ep_find(void); /* sets that the program has already; all threads are stopped */
void sd_ep_adopt(int epfd, int first); /* first: a descriptor of the same set */
/* Before the kernel is asked: what a supervisor has moved back to TCP meanwhile is registered as that. */
void sd_ep_follow(void);
void sd_ep_give(u64 epfd); /* it is about to go to another process in a message; if it is one */
void sd_ep_came(int epfd); /* it has come so */
void sd_ep_taken_in(int epfd, int from); /* pidfd_getfd of descriptor `from` of some process */
long sd_ep_taken(u64 epfd); /* somebody is about to take it by himself: start/give.c. -EAGAIN: not yet */
bool sd_ep_registers(u64 epfd); /* in a set that a fork has shared */
void sd_ep_before_fork(void); /* a child will share the kernel half of every epoll */

/* ----------------------------------------------------------------- wait.c */

/* End of a wait. Most are over while the ring is looked at, and reading the clock is a system call: the first question only takes the time
 * stamp counter, the next one turns that into an absolute end. The counter's rate is known to one in a hundred; what has passed until then (a
 * spin, less than a millisecond) is taken for a little less than it was, so that no wait ends early. */
struct sd_deadline {
    u64 ns;       /* time-out as given; SD_FOREVER: none; 0: do not wait */
    u64 from_tsc; /* when first asked, 0: not yet */
    u64 end_ns;   /* CLOCK_MONOTONIC, 0: clock not read yet */
};
#define SD_FOREVER (~0ull)

/* False if the kernel would say EINVAL. ts NULL: for ever. */
bool sd_deadline_ts(struct sd_deadline *d, const struct timespec64 *ts);
u64 sd_deadline_left(struct sd_deadline *d); /* ns, 0: over */
/* ns as a timespec for the kernel, NULL for SD_FOREVER. */
struct timespec64 *sd_ns_ts(u64 ns, struct timespec64 *ts);

/* What spinning has brought lately; one per process and one per epoll. Races between threads only cost accuracy. */
struct sd_learn {
    u32 budget_us; /* 0: not set yet */
    u32 avg_us;    /* length of waits that were won, exponential average */
    u32 hold, held; /* so many waits without spinning are left, of so many: somebody else wanted the CPU */
    u32 wait_us;    /* how long it took until somebody rang for a sleeper, plus one, exponential average; 0: not known */
    u32 wake_us;    /* from the bell until a sleeper runs: the least of late */
};
extern struct sd_learn sd_learn_process;

struct sd_spin {
    struct sd_learn *learn;
    u64 start, end, next_kernel, last; /* tsc */
    bool preempted, yields;
};
/* False: do not spin. max_ns bounds it by the caller's time-out. `yields`: there is also a peer that can only run on this CPU. */
bool sd_spin_begin(struct sd_spin *sp, struct sd_learn *l, u64 max_ns, bool yields);
bool sd_spin_more(struct sd_spin *sp);        /* pauses; false when the budget is used up, or the CPU was taken from us */
/* Lets others run on this CPU. True: somebody has, so it may be worth to look and to yield once more; tries counts from 0. */
bool sd_yield(u32 *tries);
/* Spinning takes the CPU from somebody: let him run once and look again. Counts down. */
bool sd_spin_held(struct sd_learn *l);
bool sd_spin_ask_kernel(struct sd_spin *sp);  /* true every 10 us */
void sd_spin_end(struct sd_spin *sp, bool won);
/* What it was for s: it has ended it (won), or nothing has. What another connection has won is none of s. */
static inline void sd_spun(const struct sock *s, bool won)
{
    s->b->spins++;
    s->b->spins_won += won;
}
/* A wait that began at tsc `since` has ended in a park, which began at `from`, by a doorbell or data. `rung`: when the peer says that it has rung, 0: not known. */
void sd_spin_parked(struct sd_learn *l, u64 since, u64 from, u64 rung);
/* Nobody has rung for a sleeper who had expected it soon. `deaf`, here as in naps: there are others that he waits for, and does not hear. */
void sd_spin_forgotten(struct sd_learn *l, bool deaf);
/* Peers on other CPUs mostly ring soon, so it is worth to nap for them: very soon, if that makes deaf. */
bool sd_rung_soon(const struct sd_learn *l, bool deaf);
/* [W4] A name for the sleep that is about to begin, never 0. Where they start nobody can tell, so no two processes have the same. */
u64 sd_sleep_name(void);
/* The peer last waited on this CPU: it can only run if we let it. */
bool sd_peer_here(const struct sock *s);
/* It does, and yielding to it is worth a try. */
bool sd_gives_way(const struct sock *s);

/* ------------------------------------------------------------------ nap.c */

/* Is one to be tried at all, with so much time left? `others`: the TSC when the kernel told of what is not on a ring, 0: long ago. */
bool sd_nap_pays(u64 left, u64 *others);
/* It has brought nothing, or was not possible with this set, which takes time to find out: not for the next waits. */
void sd_nap_cannot(void);
/* The ring of s is empty, and its peer can only run on this CPU, or is waited for `across` CPUs, too. */
bool sd_nap_possible(const struct sock *s, bool across);
#define SD_NAP_SET 128  /* connections, at most, that are napped on at once, */
#define SD_NAP_HOMES 8  /* and processes at their other ends */
/* A short sleep on the rings of n connections (1 to SD_NAP_SET), which are held. > 0: look at the ring, 0: nothing came, sleep on the descriptor; -EINTR: a handler has run. `restarts`: one with
 * SA_RESTART does not end it. `deaf`: not all that is waited for is in the set. `l` learns of the wait that began at tsc `since`. */
long sd_nap(struct sock *const *set, u32 n, bool restarts, bool deaf, struct sd_learn *l, u64 since);
/* [N3] Before and after one, in a call that would hold the file in the kernel. How many were counted is what sd_nap_leave() is to be told, and
 * who goes on to sleep in the kernel at once (0: the call is over). */
u32 sd_nap_enter(struct sock *const *set, u32 n);
void sd_nap_leave(struct sock *const *set, u32 n, u32 sleeper);
/* The poster is asked for a bell: next time the peer may nap for it. */
void sd_nap_offer(struct sock *s);
/* Not if a peer on this CPU had to be napped for lately, though it was yielded to. */
bool sd_yields_pay(void);
bool sd_yield_won(bool won); /* as it was given: has it let the peer run? */

/* A sigset argument of the program, prepared for a call from C. */
struct sd_mask {
    const void *set; /* NULL: none */
    u64 size;
    u64 copy;
    bool copied;
};
void sd_mask_init(struct sd_mask *m, const void *set, u64 size);

/* An address that can only be the program's mistake: the kernel answers EFAULT where we would fault. */
static inline bool sd_bad_ptr(const void *p)
{
    return (u64)p < 4096 || (u64)p >> 47;
}

/* POLLRDNORM and POLLWRNORM say for a TCP socket what IN and OUT say. */
static inline u32 sd_bits_fold(u32 want)
{
    return want | (want & (POLLRDNORM) ? POLLIN : 0) | (want & (POLLWRNORM) ? POLLOUT : 0);
}
static inline u32 sd_bits_spread(u32 ready)
{
    return ready | (ready & POLLIN ? POLLRDNORM : 0) | (ready & POLLOUT ? POLLWRNORM : 0);
}

#define SD_KERNEL_US 50 /* longest that the kernel is not asked while rings keep us busy */

/* ----------------------------------------------------------------- poll.c */

struct sd_pollitem {
    struct sock *s;  /* NULL: the kernel knows best */
    void *ep;        /* an epoll descriptor with registrations of ours */
    u32 want;        /* POLL* as the program asked */
    u32 care;        /* bits that end the wait and are reported */
    u32 armed;
    u32 back;        /* index in the program's array */
};

struct sd_pollset {
    struct pollfd *k; /* fd as given; events for the kernel; revents: the answer for the program at the end */
    struct sd_pollitem *item;
    u32 n;
    u32 ours;     /* items with s or ep */
    bool napped;  /* items with s are counted as napped on ([N3]) */
    u64 began;    /* tsc: the present round of looking, spinning and sleeping */
    bool unasked; /* the answer may be given without asking the kernel */
    bool called;  /* a system call was made */
    bool holds;   /* some of the items are held */
};
/* Waits, and lets go what was held. Returns the number of entries with revents, 0 at the end of the time, or -errno. */
long sd_pollset_wait(struct sd_pollset *p, struct sd_deadline *d, const struct sd_mask *m);
/* Is fd of interest to us? Fills s or ep. */
bool sd_pollitem_find(struct sd_pollitem *it, int fd);
/* The same for an entry of a set that is to be waited on: sd_pollset_wait() lets s go. */
bool sd_pollitem_hold(struct sd_pollset *p, struct sd_pollitem *it, int fd);
void sd_pollset_count(const struct sd_pollset *p);
u32 sd_select_bits(u32 n); /* select.c: how many of n descriptors the kernel looks at */

/* ---------------------------------------------------------------- epoll.c */

void sd_ep_watch(void *ep); /* poll looks at it: from now on what the kernel says of it is true whenever nobody is in it */
bool sd_ep_peek(void *ep);  /* a hot registration could be reported */

#endif
