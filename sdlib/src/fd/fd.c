/* SPDX-License-Identifier: Apache-2.0
 *
 * fd.c - which descriptors are ours.
 *
 * The table is a cache of the kernel's truth: an entry appears when a call of ours returned the descriptor and goes
 * before the call that closes it. sd_fdkind[] is what the slots look at; sd_fdent[] says which socket it is. A forked child inherits a
 * copy, a thread shares it, a vfork child (tcb->foreign) may read but never changes it.
 *
 * A socket that goes while other threads are inside one of its calls stays mapped until the last has left:
 *   [F1] enter: use[level] := s, then look at the table again | close: table entry := 0, dead := 1, membarrier, look at all `use`
 *        The membarrier falls before the store of `use` (then the second look sees the entry gone) or after it (then the closing thread
 *        sees `use`). So a call costs two plain stores and no atomic instruction.
 *   [F2] leave: use[level] := 0, then load dead | close as above. Both may find that nobody is inside: dead goes from 1 to 2 once.
 * An operation that was left by siglongjmp is overwritten, or dropped, by the thread's next one.
 */
#include "fd/fd.h"

#define FD_MAX 65536

u8 sd_fdkind[FD_MAX];
u32 sd_fdent[FD_MAX]; /* 1 + number of the socket, perhaps with SD_ENT_CLOSING, or ENT_EPOLL | number; 0: not ours */
static u32 fd_top;

#define CHUNK 256
#define MAX_CHUNKS 512
static struct sock *chunk[MAX_CHUNKS];
static struct sock *free_list;
static u32 nsocks;
static _Atomic u32 pool_lock;

static void *ep_table[FD_MAX]; /* by number, which a struct ep keeps for good. 0: none */
static u32 eps;

static struct sock *sock_at(u32 i) { return &chunk[i / CHUNK][i % CHUNK]; }

u32 sd_fd_top(void) { return fd_top; }

struct sock *sd_sock_of(u64 reg)
{
    u32 fd = (u32)reg, ent;

    if (fd >= FD_MAX)
        return NULL;
    ent = *(volatile u32 *)&sd_fdent[fd];
    return ent && !(ent & (ENT_EPOLL | SD_ENT_CLOSING)) ? sock_at(ent - 1) : NULL;
}

struct sock *sd_sock_named(u32 fd)
{
    u32 ent = fd < FD_MAX ? *(volatile u32 *)&sd_fdent[fd] : 0;

    return ent && !(ent & ENT_EPOLL) ? sock_at((ent & ~SD_ENT_CLOSING) - 1) : NULL;
}

static bool is_alive(const struct sock *s)
{
    return load_acq(&s->refs) && !load_rlx(&s->dead) && s->b && sd_attached(s);
}

/* Our entry of `home`: the thread is inside of another socket already, on the same level. One that was left by siglongjmp keeps its socket mapped. */
static inline struct sock *_Atomic *home_of(struct sd_tcb *t)
{
    u32 level = t->level ? t->level - 1 : 0;

    return &t->home[level < SD_STACK_LEVELS ? level : SD_STACK_LEVELS - 1];
}

struct sock *sd_sock_enter_numbered(u32 ent)
{
    struct sock *s = ent && ent <= nsocks ? sock_at(ent - 1) : NULL;

    if (!s || !g.mt)
        return s && is_alive(s) ? s : NULL;
    store_rel(home_of(sd_self()), s); /* [F1], with `dead` in the place of the table's entry */
    atomic_signal_fence(memory_order_seq_cst);
    if (likely(is_alive(s)))
        return s;
    sd_sock_put_numbered(s);
    return NULL;
}

void sd_sock_put_numbered(struct sock *s)
{
    if (!g.mt)
        return;
    store_rel(home_of(sd_self()), NULL);
    atomic_signal_fence(memory_order_seq_cst);
    if (unlikely(load_rlx(&s->dead) == 1)) /* [F2] */
        sd_sock_reap(s);
}

/* Our entry of `use`; those of deeper levels were left by siglongjmp. */
static inline struct sock *_Atomic *use_of(struct sd_tcb *t)
{
    u32 level = t->level ? t->level - 1 : 0;

    if (likely(!level && t->uses <= 1)) {
        t->uses = 1;
        return &t->use[0];
    }
    if (unlikely(level >= SD_STACK_LEVELS))
        level = SD_STACK_LEVELS - 1; /* handlers six deep: shared by what is above */
    if (unlikely(t->uses > level + 1))
        for (u32 l = level + 1; l < SD_STACK_LEVELS; l++)
            store_rlx(&t->use[l], NULL);
    t->uses = level + 1;
    return &t->use[level];
}

static NOINLINE struct sock *enter_again(u64 fd)
{
    sd_sock_look_again(fd);
    return sd_sock_enter(fd);
}

struct sock *sd_sock_enter(u64 fd)
{
    struct sock *s = sd_sock_of(fd);
    struct sock *_Atomic *use;

    if (!s)
        return unlikely(sd_is_closing(fd)) ? enter_again(fd) : NULL;
    if (!g.mt)
        return s;
    use = use_of(sd_self());
    store_rel(use, s); /* [F1] */
    atomic_signal_fence(memory_order_seq_cst);
    if (likely(sd_sock_of(fd) == s))
        return s;
    store_rel(use, NULL);
    atomic_signal_fence(memory_order_seq_cst);
    if (load_rlx(&s->dead) == 1) /* [F2] the closing thread may have seen us */
        sd_sock_reap(s);
    return enter_again(fd); /* it is being closed, or another one's already */
}

static void sock_release(struct sock *s)
{
    if (s->seg) {
        SYS2(__NR_munmap, s->seg, SD_SEG_HDR_BYTES + 2 * s->e.bytes);
        s->seg = NULL;
    }
    s->b = NULL;
    while (!cas_own(&pool_lock, 0, 1, !g.mt))
        SYS0(__NR_sched_yield);
    s->next_free = free_list;
    free_list = s;
    store_rel(&pool_lock, 0);
}

static bool in_use(const struct sock *s)
{
    for (struct sd_tcb *t = sd_tcbs(); t; t = t->next)
        if (sd_is_inside(t, s))
            return true;
    return false;
}

/* [F3] For who waits for several at once. Hold it, then look whether the table still leads to it | table entry := 0, dead := 1, membarrier, look whether it is held. Let go, then
 * look whether it is dead | as before. One of both sees the other. What is held in vain may be another socket by then: so the count is never set, not even at a birth. sd_sock_let_go() */

/* The table does not lead to s any more. Frees it unless some thread is inside: that one does it then. */
NOINLINE void sd_sock_reap(struct sock *s)
{
    if (load_acq(&s->held))
        return; /* [F3] */
    if (g.mt) {
        sd_membarrier_threads(); /* [F1] [F2] */
        if (in_use(s) || load_acq(&s->held))
            return;
    }
    if (cas_own(&s->dead, 1, 2, !g.mt)) {
        if (unlikely(load_rlx(&s->kept)))
            sd_last_call_over(s); /* [F4] */
        sd_block_drop(s);
        sock_release(s);
    }
}

void sd_sock_put(struct sock *s)
{
    struct sock *_Atomic *use;

    if (!g.mt)
        return;
    use = use_of(sd_self());
    if (load_rlx(use) != s)
        return; /* entered before there were threads */
    store_rel(use, NULL);
    atomic_signal_fence(memory_order_seq_cst);
    if (unlikely(load_rlx(&s->dead) == 1)) /* [F2] */
        sd_sock_reap(s);
}

static struct sock *pool_get(void)
{
    struct sock *s = NULL;

    while (!cas_own(&pool_lock, 0, 1, !g.mt))
        SYS0(__NR_sched_yield);
    if (free_list) {
        s = free_list;
        free_list = s->next_free;
    } else if (nsocks < CHUNK * MAX_CHUNKS) {
        u32 c = nsocks / CHUNK;
        if (!chunk[c])
            chunk[c] = sd_alloc(CHUNK * sizeof(struct sock));
        if (chunk[c])
            s = sock_at(nsocks++);
    }
    store_rel(&pool_lock, 0);
    return s;
}

static u32 index_of(const struct sock *s)
{
    for (u32 c = 0; c < MAX_CHUNKS && chunk[c]; c++)
        if (s >= chunk[c] && s < chunk[c] + CHUNK)
            return c * CHUNK + (u32)(s - chunk[c]);
    return 0;
}

/* A socket on a block that exists: one that lived through execve. */
struct sock *sd_sock_carried(u32 id, struct sd_block *b)
{
    struct sock *s = pool_get();

    if (!s)
        return NULL;
    store_rlx(&s->parked, 0);
    store_rlx(&s->tcp_pos[0], 0);
    store_rlx(&s->tcp_pos[1], 0);
    s->shown = 0;
    store_rlx(&s->refs, 0);
    store_rlx(&s->tx_in, 0);
    store_rlx(&s->attaching, 0);
    s->epoch = 0;
    store_rlx(&s->dead, 0);
    store_rlx(&s->napping, 0);
    store_rlx(&s->napper, 0);
    store_rlx(&s->kept, 0);
    s->id = id;
    s->b = b;
    s->ent = index_of(s) + 1;
    s->seg = NULL;
    s->cookie = 0;
    s->kcheck = 0;
    s->due = 0;
    s->lives = 0;
    s->timed = 0;
    s->yielded = false;
    s->watched = false;
    s->checked_tsc = 0;
    s->asked_tsc = sd_tsc();
    s->regs = NULL;
    return s;
}

struct sock *sd_sock_new(u32 role)
{
    u32 id = 0;
    struct sd_block *b = sd_block_new(&id);
    struct sock *s = b ? sd_sock_carried(id, b) : NULL;

    if (s)
        b->role = (u8)role;
    else if (b)
        store_rel(&b->state, SD_BLOCK_FREE);
    return s;
}

void sd_fd_install(int fd, struct sock *s)
{
    if ((u32)fd >= FD_MAX)
        return; /* stays on the kernel: the table does not reach that far */
    add_own(&s->refs, 1, !g.mt);
    sd_fdent[fd] = s->ent;
    if ((u32)fd >= fd_top)
        fd_top = (u32)fd + 1;
    *(volatile u8 *)&sd_fdkind[fd] = SD_KIND_OURS;
}

void sd_fd_forget(u64 reg)
{
    u32 fd = (u32)reg;

    if (fd < FD_MAX) {
        *(volatile u8 *)&sd_fdkind[fd] = 0;
        *(volatile u32 *)&sd_fdent[fd] = 0;
    }
}

static inline void unref(struct sock *s)
{
    if (add_own(&s->refs, -1u, !g.mt) != 1)
        return;
    cas_own(&s->dead, 0, 1, !g.mt); /* [F1] */
    sd_sock_reap(s);
}

void sd_sock_unref(struct sock *s) { unref(s); }

void sd_fd_remove(u64 reg)
{
    struct sock *s = sd_sock_of(reg);
    u32 fd = (u32)reg;

    if (fd >= FD_MAX)
        return;
    *(volatile u8 *)&sd_fdkind[fd] = 0;
    *(volatile u32 *)&sd_fdent[fd] = 0;
    if (s)
        unref(s);
}

/* [F4] [F5] The parent's; here nobody is inside. */
void sd_fds_kept_after_fork(void)
{
    sd_fds_closing_after_fork();
    for (u32 i = 0; sd_fds_kept() && i < nsocks; i++)
        sd_fd_kept_end(sock_at(i));
}

void *sd_epoll_of(u64 reg)
{
    u32 fd = (u32)reg, ent = fd < FD_MAX ? *(volatile u32 *)&sd_fdent[fd] : 0;

    return ent & ENT_EPOLL ? ep_table[ent & ~ENT_EPOLL] : NULL;
}

static void set_epoll(u32 fd, u32 ent)
{
    sd_fdent[fd] = ent;
    if (fd >= fd_top)
        fd_top = fd + 1;
    sd_fdkind[fd] = SD_KIND_OURS;
}

bool sd_epoll_set(u64 reg, void *ep, u32 *number)
{
    u32 fd = (u32)reg;

    if (fd >= FD_MAX || (!*number && eps == FD_MAX - 1))
        return false;
    if (!*number)
        *number = ++eps;
    ep_table[*number] = ep;
    set_epoll(fd, ENT_EPOLL | *number);
    return true;
}

void sd_epoll_dup(u64 from, u64 to)
{
    if ((u32)to < FD_MAX && sd_epoll_of(from))
        set_epoll((u32)to, sd_fdent[(u32)from]);
}

void sd_epoll_forget(u64 reg)
{
    if (sd_epoll_of(reg))
        sd_fd_forget(reg);
}
