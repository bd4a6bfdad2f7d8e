/* SPDX-License-Identifier: Apache-2.0
 *
 * block.c - areas, socket blocks and the counters of this process.
 *
 * An area is shared by all processes that descend from the one that asked for it, by fork. They take blocks from it with
 * compare-and-swap on the block's state; `users` counts the processes that hold the socket. A process that dies without a word leaves
 * `users` too high: such a connection is only never upgraded any more.
 */
#include "fd/fd.h"
#include "poll/poll.h"

static struct sd_proc early_proc; /* of a forked child that finds no slot, or has given it back */

#define COUNTERS_AT offsetof(struct sd_proc, ctr) /* and all that follows */

static bool take(struct sd_proc *p)
{
    return load_rlx(&p->pid) == 0 && cas_u32(&p->pid, 0, g.pid);
}

/* One that others have had, if it is free; else the next, which nobody has had yet. */
static struct sd_proc *take_proc(struct sd_area *a)
{
    u32 top = (u32)min_u64(load_rlx(&a->procs_top), SD_AREA_PROCS), start = load_rlx(&a->next_proc);

    for (u32 k = 0; k < top; k++) {
        struct sd_proc *p = &a->proc[(start + k) % top];
        if (take(p))
            return p;
    }
    for (u32 i = top; i < SD_AREA_PROCS; i++) {
        cas_u32(&a->procs_top, i, i + 1);
        if (take(&a->proc[i]))
            return &a->proc[i];
    }
    return NULL;
}

/* `before`: what was counted before; NULL: nothing. False: there is no free slot. */
static bool claim_proc(struct sd_area *a, u32 ppid, const struct sd_proc *before)
{
    struct sd_proc *p = take_proc(a);

    if (!p)
        return false;
    store_rlx(&a->next_proc, (u32)(p - a->proc) + 1);
    p->ppid = ppid;
    p->execs = 0;
    if (before)
        sd_copy((u8 *)p + COUNTERS_AT, (const u8 *)before + COUNTERS_AT, sizeof *p - COUNTERS_AT);
    else
        sd_zero((u8 *)p + COUNTERS_AT, sizeof *p - COUNTERS_AT);
    g.proc = p;
    return true;
}

struct sd_area *sd_area_get(u32 index)
{
    struct sd_area *a;
    long fd, at;

    if (index >= SD_MAX_AREAS)
        return NULL;
    if (g.area[index])
        return g.area[index];
    if (g.no_supervisor)
        return NULL;
    fd = sd_hypercall_fd(SD_HC_AREA, index, 0);
    if (fd < 0)
        return NULL;
    at = SYS6(__NR_mmap, 0, sizeof(struct sd_area), PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
    SYS1(__NR_close, fd);
    if (at < 0 && at > -4096)
        return NULL;
    a = (struct sd_area *)at;
    if (a->magic != SD_AREA_MAGIC || a->version != SD_ABI_VERSION || a->bytes != sizeof *a) {
        SYS2(__NR_munmap, a, sizeof *a);
        g.no_supervisor = 1;
        return NULL;
    }
    g.area[index] = a;
    if (index == 0) {
        g.cfg = &a->cfg;
        claim_proc(a, 0, g.proc);
    }
    return a;
}

/* 1 + id of the block of a connection that was never offered, which this process has freed last: the next connection finds it in the caches, and goes nowhere near other processes' words. */
static SD_FORKED u32 last_freed;

static struct sd_block *claim(u32 n, u32 i, u32 *id)
{
    struct sd_block *b = &g.area[n]->block[i];

    if (load_rlx(&b->state) != SD_BLOCK_FREE || !cas_u32(&b->state, SD_BLOCK_FREE, SD_BLOCK_TCP))
        return NULL;
    u32 gen = load_rlx(&b->gen);
    sd_zero_words((u8 *)b + 8, sizeof *b - 8);
    store_rlx(&b->gen, gen);
    store_rlx(&b->users, 1);
    b->owner_pid = g.pid;
    *id = n << 16 | i;
    return b;
}

struct sd_block *sd_block_new(u32 *id)
{
    struct sd_block *b;
    u32 last = last_freed;

    if (last && (b = claim((last - 1) >> 16, (last - 1) & 0xffff, id)))
        return b;
    for (u32 n = 0; n < SD_MAX_AREAS; n++) {
        struct sd_area *a = sd_area_get(n);
        if (!a)
            return NULL;
        u32 start = load_rlx(&a->next_free);
        for (u32 k = 0; k < SD_AREA_BLOCKS; k++) {
            u32 i = (start + k) % SD_AREA_BLOCKS;
            if (!(b = claim(n, i, id)))
                continue;
            store_rlx(&a->next_free, i + 1);
            return b;
        }
    }
    return NULL;
}

/* The bytes of a connection are counted in one place as long as somebody has it: others may be adding to them. */
static void fold_bytes(struct sd_block *b)
{
    if (b->far) {
        COUNT_N(bytes_rdma_tx, b->bytes_shm_tx);
        COUNT_N(bytes_rdma_rx, b->bytes_shm_rx);
    } else {
        COUNT_N(bytes_shm_tx, b->bytes_shm_tx);
        COUNT_N(bytes_shm_rx, b->bytes_shm_rx);
    }
    COUNT_N(bytes_tcp_tx, b->bytes_tcp);
    b->bytes_shm_tx = b->bytes_shm_rx = b->bytes_tcp = 0;
}

/* Counts a connection whose end is over. */
static void fold(struct sd_block *b)
{
    COUNT(conns_total);
    if (b->opt_saved & (1u << 31)) { /* was on the ring, in one direction at least */
        if (b->far)
            COUNT(conns_rdma);
        else
            COUNT(conns_shm);
        return;
    }
    COUNT(conns_tcp);
    u32 r = b->reason;
    if (!r) {
        u32 st = load_rlx(&b->state);
        r = st == SD_BLOCK_OFFERED ? SD_REASON_peer_plain
          : st == SD_BLOCK_PAIRED || st == SD_BLOCK_ATTACHED ? SD_REASON_not_switched
          : !g.cfg->accel ? g.cfg->reason : SD_REASON_few_ops;
    }
    if (r < SD_REASON_COUNT)
        g.proc->tcp_reasons[r]++;
}

void sd_block_drop(struct sock *s)
{
    struct sd_block *b = s->b;
    u32 st = load_rlx(&b->state);

    if (load_acq(&b->users) != 1 && atomic_fetch_sub(&b->users, 1) != 1) /* who has it alone is the only one who could give it to others */
        return; /* another process goes on with it and counts it */
    sd_lived(s, st);
    fold_bytes(b);
    if (sd_tracing(SD_TRACE_BYTES))
        sd_saw_end(s, SD_TRACE_END_CLOSED);
    if (b->established)
        fold(b);
    if (st == SD_BLOCK_OFFERED || st == SD_BLOCK_PAIRED)
        sd_hypercall(SD_HC_WITHDRAW, sd_sock_name(s), 1);
    b->established = 0;
    store_rel(&b->gen, load_rlx(&b->gen) + 1); /* nobody else writes it */
    store_rel(&b->state, SD_BLOCK_FREE);
    if (st == SD_BLOCK_TCP) /* the supervisor may still have to clear up behind others */
        last_freed = 1 + s->id;
}

void sd_reason(struct sock *s, u32 reason)
{
    if (load_rlx(&s->b->state) == SD_BLOCK_ATTACHED)
        return;
    s->b->reason = (u16)reason;
    store_rel(&s->b->state, SD_BLOCK_PINNED);
}

void sd_socks_before_fork(void)
{
    u32 top = sd_fd_top();

    for (u32 fd = 0; fd < top; fd++) {
        struct sock *s = sd_sock_look(fd); /* what is about to be closed is not the child's; what is from here on may be, and is counted */
        if (s) {
            /* a duplicate descriptor finds its socket marked already */
            if (s->kcheck & 0x80000000u)
                continue;
            s->kcheck |= 0x80000000u;
            atomic_fetch_add(&s->b->users, 1);
            if (s->seg) {
                sd_fence_end(&s->e); /* [W3] the child does not know of it */
                sd_rx_awake(&s->e);  /* [W4] others may sleep on it from now on */
                sd_ep_joined(s);
            }
        }
    }
    for (u32 fd = 0; fd < top; fd++) {
        struct sock *s = sd_sock_named(fd);
        if (s)
            s->kcheck &= 0x7fffffffu;
    }
}

void sd_socks_after_fork_child(void)
{
    u32 parent = g.proc->pid;

    sd_fds_kept_after_fork();
    if (!g.area[0] || !claim_proc(g.area[0], parent, NULL)) {
        if (g.area[0])
            store_rlx(&g.area[0]->slotless, 1);
        sd_zero(&early_proc, sizeof early_proc);
        g.proc = &early_proc;
    }
    /* later areas of the parent are ours too: the mapping is inherited; new ones are not shared */
}

/* Of a forked child of which there is nothing to tell: the next one has it, instead of the next of the slots that the supervisor has to free. */
static void give_slot_back(void)
{
    struct sd_area *a = g.area[0];
    struct sd_proc *p = g.proc;
    const u64 *counted = (const u64 *)((const u8 *)p + COUNTERS_AT);

    if (!a || p < a->proc || p >= a->proc + SD_AREA_PROCS || !p->ppid)
        return;
    for (u32 i = 0; i < (sizeof *p - COUNTERS_AT) / 8; i++)
        if (counted[i])
            return;
    g.proc = &early_proc;
    store_rlx(&a->next_proc, (u32)(p - a->proc));
    cas_u32(&p->pid, g.pid, 0);
}

static bool counted_once(struct sock *s, u32 fd)
{
    for (u32 i = 0; i < fd; i++)
        if (sd_sock_of(i) == s)
            return false;
    return true;
}

void sd_socks_exit(void)
{
    u32 top = sd_fd_top();
    bool owns = false;

    for (u32 fd = 0; fd < top; fd++) {
        struct sock *s = sd_sock_of(fd);
        owns |= s && s->b && s->b->owner_pid == g.pid;
        if (s && sd_attached(s) && load_rlx(&s->b->users) <= 1 && sd_bell_due(&s->e)) /* unread, it would turn our end into a reset */
            load_rlx(&s->b->rx_mode) == SD_MODE_RING && sd_back_reached(&s->e) ? (void)sd_rx_back(s, (int)fd) : sd_look_at_kernel(s, (int)fd);
        if (s && s->b && sd_attached(s) && load_rlx(&s->b->users) <= 1)
            sd_recall_over(s);
        if (sd_tracing(SD_TRACE_BYTES) && s && s->b && load_rlx(&s->b->users) <= 1)
            sd_saw_end(s, SD_TRACE_END_CLOSED);
        if (s && s->b && load_rlx(&s->b->users) <= 1)
            sd_lived(s, load_rlx(&s->b->state));
        if (s && s->b && (load_rlx(&s->refs) == 1 || counted_once(s, fd)) && load_rlx(&s->b->users) > 1)
            atomic_fetch_sub(&s->b->users, 1);
    }
    if (!owns) /* else the supervisor looks for whose connection it was */
        give_slot_back();
}
