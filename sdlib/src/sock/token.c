/* SPDX-License-Identifier: Apache-2.0
 *
 * token.c - taking and giving back a direction: waiting, throwing out. The protocol is token.h.
 */
#include "poll/poll.h"
#include "sock/sock.h"

#ifndef SPINS /* tests/hosted explores every single one */
#define SPINS 100
#endif
#define QUICK_NS 100000ull /* a bias that did not last this long was not worth its revocation */

/* --------------------------------------------------------------- barriers */

/* Between all sharers of s, of which we are one. */
static void barrier(const struct sock *s)
{
    if (load_rlx(&s->b->users) > 1)
        sd_membarrier();
    else
        sd_membarrier_threads();
}

/* ------------------------------------------------------- finish and throw out */

/* Completes what somebody has decided; all of it may be done twice, by him and by us. */
void sd_token_finish(struct sock *s, u32 dir, u64 to)
{
    u32 mode = load_acq(dir == SD_DIR_TX ? &s->b->tx_mode : &s->b->rx_mode);

    if (dir == SD_DIR_RX)
        sd_index_finish(&s->e.rx->head, to);
    else if (mode == SD_MODE_RING)
        sd_index_finish(&s->e.tx->tail, to);
    else if (mode == SD_MODE_RETIRE)
        sd_back_finish(s, to);
    else if ((mode & 0xff) == SD_MODE_SWITCH)
        sd_switch_finish(s, mode, to);
}

static void doze(u32 *rounds)
{
    if (++*rounds < SPINS)
        cpu_relax();
    else if (*rounds < 2 * SPINS)
        SYS0(__NR_sched_yield);
    else
        sd_sleep_ns(1000000);
}

/* A system call of p, in its level l, for the region m, is not in progress and will come to nothing if it is made. */
static void call_off(struct sd_part *p, u32 l, u64 m)
{
    u32 rounds = 0;

    store_rel(&p->io[l].len, 0); /* behind the membarrier of V2: p set it before it looked at its mark for the last time */
    if (p == sd_self()->part)
        return; /* a handler in the middle of it: we are in its place */
    while (load_acq(&p->mark[l]) == sd_mark_as(m, SD_MARK_VOID) && !sd_part_gone(p) &&
           !sd_part_stopped(p))
        doze(&rounds);
}

/* Who was about to eat it is thrown out. Maybe it is eaten, maybe not: a bell too many is harmless, one that is missed is not. */
static void bell_gone(struct sock *s)
{
    sd_bell_eaten(&s->e);
    if (s->regs)
        sd_ep_touched(s);
}

/* V1 to V3. False: p was faster. */
static bool throw_out(struct sock *s, struct sd_part *p, u32 l, u64 m, u32 dir, bool gone)
{
    u64 was = m;

    /* First, so that whoever goes on after us, should we die here, knows. If p was faster the ring is given up for nothing. */
    if (dir == SD_DIR_TX && sd_mark_state(m) == SD_MARK_OP && !gone)
        cas_u32(&s->b->tx_mode, SD_MODE_RING, SD_MODE_RETIRE);
    if (dir == SD_DIR_RX && sd_mark_state(m) == SD_MARK_EAT && sd_attached(s))
        bell_gone(s);
    if (!sd_mark_void(&p->mark[l], m))
        return false;
    barrier(s);
    if (load_acq(&p->mark[l]) != sd_mark_as(m, SD_MARK_VOID))
        return false;
    if (sd_mark_state(was) == SD_MARK_EAT || sd_mark_state(was) == SD_MARK_BELL)
        call_off(p, l, m);
    return true;
}

/* R3 for one mark: returns when p is not inside any more, by itself or by us. */
static void see_out(struct sock *s, struct sd_part *p, u32 l, u64 key, u32 dir)
{
    u64 limit = dir == SD_DIR_TX ? SD_VOID_TX_NS : SD_VOID_RX_NS, end = 0, first = 0, to, m;
    u32 rounds = 0;

    for (;;) {
        m = load_acq(&p->mark[l]); /* [T1] */
        u32 state = sd_mark_state(m);
        if (!sd_mark_about(m, key) || state == SD_MARK_IDLE || state == SD_MARK_BELL)
            return;
        first = first ? first : m >> 20;
        if (m >> 20 != first)
            return; /* out, and in again: then by another token, and ours is void */
        if (state == SD_MARK_VOID) { /* by somebody who may not have come to V3 yet [T6] */
            barrier(s);
            if (load_acq(&p->mark[l]) == m)
                return;
            continue;
        }
        if (state == SD_MARK_COMMIT) {
            if (!sd_mark_to(&p->mark[l], &p->to[l], m, &to))
                continue;
            sd_token_finish(s, dir, to);
            barrier(s); /* F2 [T3] */
            sd_mark_void(&p->mark[l], m);
            continue;
        }
        if (rounds < 2 * SPINS) {
            doze(&rounds);
            continue;
        }
        u64 now = sd_now_ns();
        end = end ? end : now + limit;
        bool gone = sd_part_gone(p);
        if (gone || now >= end)
            throw_out(s, p, l, m, dir, gone);
        else
            doze(&rounds);
    }
}

/* Waits until no other thread is inside a bell of this direction. After the mode was changed and a membarrier, so that none begins. True: one was
 * thrown out, and nobody can say whether its byte was sent. */
bool sd_bells_out(struct sock *s)
{
    struct sd_area *a = g.area[0];
    u64 key = sd_mark_key(s->id, SD_DIR_TX);
    u32 top = a ? load_acq(&a->parts_top) : 0;
    bool any = false;

    for (u32 i = 1; i < top && i < SD_AREA_PARTS; i++)
        for (u32 l = 0; l < SD_PART_LEVELS; l++) {
            struct sd_part *p = &a->part[i];
            u64 end = 0, m;
            u32 rounds = 0;
            while (m = load_acq(&p->mark[l]), sd_mark_state(m) == SD_MARK_BELL && sd_mark_about(m, key)) {
                doze(&rounds);
                u64 now = rounds > 2 * SPINS ? sd_now_ns() : 0;
                end = end ? end : now ? now + SD_VOID_TX_NS : 0;
                if (p == sd_self()->part || (now && (now >= end || sd_part_gone(p))))
                    any |= throw_out(s, p, l, m, SD_DIR_TX, true);
            }
        }
    return any;
}

/* ------------------------------------------------------------ the way in */

/* We are a handler. The same thread, further down, may be inside the same region: it is thrown out, by the rules for others. */
static void nested(struct sock *s, struct sd_part *p, u32 level, u64 key, u32 dir)
{
    for (u32 l = 0; l < level && l < SD_PART_LEVELS; l++) {
        u64 m = load_rlx(&p->mark[l]), to;
        u32 state = sd_mark_state(m);
        if (!sd_mark_about(m, key))
            continue;
        if (state == SD_MARK_COMMIT && sd_mark_to(&p->mark[l], &p->to[l], m, &to))
            sd_token_finish(s, dir, to);
        if (state == SD_MARK_OP && dir == SD_DIR_TX)
            cas_u32(&s->b->tx_mode, SD_MODE_RING, SD_MODE_RETIRE);
        if (state == SD_MARK_EAT) {
            if (dir == SD_DIR_RX)
                bell_gone(s);
            store_rlx(&p->io[l].len, 0); /* it is not in the call: we are in its place */
        }
        if (state == SD_MARK_OP || state == SD_MARK_EAT || state == SD_MARK_COMMIT)
            sd_mark_void(&p->mark[l], m);
    }
}

static u32 now_units(void) { return (u32)(sd_tsc() >> 10); }

/* The anonymous cannot be thrown out. */
static bool may_bias(u32 me)
{
    return me && likely(!(g.cfg->without & SD_WITHOUT_tokens));
}

/* R3 and R4 from a token that is revoked from `p`. */
static bool claim_revoked(struct sock *s, struct sd_hold *h, u64 tok, u64 key)
{
    struct sd_part *p = sd_part_at(sd_tok_part(tok));
    _Atomic u32 *at = &s->b->biased_at[h->dir];
    u32 me = sd_part_number(h->part);
    bool bias;

    if (p != h->part) {
        barrier(s); /* R2 */
        for (u32 l = 0; p && l < SD_PART_LEVELS; l++)
            see_out(s, p, l, key, h->dir);
    }
    bias = may_bias(me) && (u64)(now_units() - load_rlx(at)) << 10 > QUICK_NS * g.tsc_per_us / 1000;
    u64 want = sd_tok_next(tok, bias ? SD_TOK_BIASED : SD_TOK_HELD, me, 0);
    if (h->part)
        h->mark = sd_mark_set(&h->part->mark[h->level], key, h->as);
    if (sd_tok_cas(h->word, tok, want)) { /* R4 */
        store_rlx(at, now_units());
        h->tok = want;
        return true;
    }
    if (h->part)
        sd_mark_clear(&h->part->mark[h->level], h->mark);
    return false;
}

/* Somebody else is HELD: true once it is time to throw him out. */
static bool overdue(const struct sd_hold *h, u64 tok, u32 *rounds, u64 *end)
{
    struct sd_part *p = sd_part_at(sd_tok_part(tok));
    u64 now;

    doze(rounds);
    if (*rounds <= 2 * SPINS)
        return false;
    now = sd_now_ns();
    *end = *end ? *end : now + (h->dir == SD_DIR_TX ? SD_VOID_TX_NS : SD_VOID_RX_NS);
    return now >= *end || (p && sd_part_gone(p));
}

void sd_take_shared(struct sock *s, u32 dir, u32 as, struct sd_hold *h)
{
    struct sd_tcb *t = sd_self();
    struct sd_part *p = sd_part_of(t);
    u32 level = sd_part_level(t), me, rounds = 0;
    u64 key = sd_mark_key(s->id, dir), tok, end = 0, waited_for = 0;

    if (unlikely(level >= SD_PART_LEVELS))
        p = NULL;
    h->part = p;
    h->word = &s->b->token[dir];
    h->level = level;
    h->dir = dir;
    h->as = as;
    me = sd_part_number(p);
    if (unlikely(level) && p)
        nested(s, p, level, key, dir);
    for (;;) {
        if (p)
            h->mark = sd_mark_set(&p->mark[level], key, as); /* E1 */
        tok = h->tok = load_rlx(h->word); /* E2 [T1] */
        if (likely(me && sd_tok_mine(tok, me)))
            return;
        if (sd_tok_kind(tok) == SD_TOK_FREE) {
            h->tok = may_bias(me) ? sd_tok_want(tok, me) : sd_tok_next(tok, SD_TOK_HELD, me, 0);
            if (sd_tok_cas(h->word, tok, h->tok)) {
                if (sd_tok_kind(h->tok) == SD_TOK_BIASED)
                    store_rlx(&s->b->biased_at[dir], now_units());
                return;
            }
        }
        if (p)
            sd_mark_clear(&p->mark[level], h->mark); /* whoever takes the token from us must not wait for us while we wait */
        if (waited_for != tok) { /* another one, or he has been in and out meanwhile */
            waited_for = tok;
            rounds = 0;
            end = 0;
        }
        if (sd_tok_kind(tok) == SD_TOK_REVOKED) {
            if (claim_revoked(s, h, tok, key))
                return;
        } else if (sd_tok_kind(tok) == SD_TOK_BIASED || (sd_tok_kind(tok) == SD_TOK_HELD && overdue(h, tok, &rounds, &end))) {
            u64 next;
            sd_tok_revoke(h->word, tok, &next); /* R1 */
        }
    }
}

bool sd_commit_shared(struct sd_hold *h, _Atomic u64 *index, u64 from, u64 to)
{
    if (h->part) {
        if (!sd_mark_commit(&h->part->mark[h->level], &h->part->to[h->level], h->mark, to)) /* C1, C2 */
            return false;
        sd_tok_cas(index, from, to); /* C3: fails only if somebody has done it for us */
        return true;
    }
    return sd_cas_local(index, from, to);
}

/* C1 and C2 of the switch and of the way back; the caller finishes. */
bool sd_commit_rare(struct sd_hold *h, u64 to)
{
    return !sd_hold_marked(h) || sd_mark_commit(&h->part->mark[h->level], &h->part->to[h->level], h->mark, to);
}

/* One receive or send that whoever throws us out can turn into nothing. -EINTR: it was. */
long sd_revocable(struct sd_hold *h, long nr, int fd, u8 *buf, u64 len, u32 flags)
{
    struct msghdr m = {0};
    struct sd_part_io *io;
    long r;

    if (!sd_hold_marked(h))
        return SYS6(nr == __NR_recvmsg ? __NR_recvfrom : __NR_sendto, fd, buf, len, flags, 0, 0);
    io = &h->part->io[h->level];
    io->base = (u64)buf;
    store_rel(&io->len, len);
    atomic_signal_fence(memory_order_seq_cst); /* the length before the last look at the mark; call_off() stores it after V2 */
    if (!sd_still_inside(h))
        return -EINTR;
    m.iov = (struct iovec *)io;
    m.iovlen = 1;
    r = SYS3(nr, fd, &m, flags);
    return r == 0 && !sd_still_inside(h) ? -EINTR : r;
}

/* ------------------------------------------------------------------ bells */

/* Marks us as sending a doorbell, until sd_leave(); false: the direction is not on the ring. */
bool sd_bell_enter(struct sock *s, struct sd_hold *h)
{
    struct sd_tcb *t = sd_self();

    h->word = NULL;
    if (sd_shared(s)) {
        struct sd_part *p = sd_part_of(t);
        u32 level = sd_part_level(t);
        if (!p || level >= SD_PART_LEVELS) { /* anonymous: exclude the way back by the token */
            sd_take_shared(s, SD_DIR_TX, SD_MARK_OP, h);
        } else {
            h->part = p;
            h->word = &s->b->token[SD_DIR_TX]; /* not held: a bell only has to be seen */
            h->tok = 0;
            h->level = level;
            h->mark = sd_mark_set(&p->mark[level], sd_mark_key(s->id, SD_DIR_TX), SD_MARK_BELL);
        }
    }
    if (load_rlx(&s->b->tx_mode) == SD_MODE_RING) /* behind the mark, as E2 is behind E1 */
        return true;
    sd_leave(h);
    return false;
}
