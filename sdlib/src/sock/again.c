/* SPDX-License-Identifier: Apache-2.0
 *
 * again.c - a connection that went back to TCP gets rings once more: to another host, since its link was lost; on one host, since the other end's
 * program has given its socket to another one, and has said so at its last close (HINT_GIVEN, pass.c).
 *
 * Both directions are back, or have never moved: what the old rings held was read, every doorbell and mark of theirs lies before the positions that the way back has
 * published, and nothing is sent for them any more ([H2] [H4] of far.h; the other program has no descriptor left). So it is a TCP connection like any other, at a position that the kernel
 * knows, and [S1] holds for it as for one that was never on a ring. The block goes back to TCP, is offered and paired by the same steps as ever,
 * and the new segment takes the place of the old one in memory.
 *
 * What has to be exact is that nobody who has looked at the old rings goes on with the new ones:
 *   [A2] From `begin` on the block says TCP and both modes say BACK, so whoever comes in looks at no ring. `may` bumps the epoch, then (membarrier)
 *        looks for threads that came in before and are still there: a sleeper is apart if it is not inside of this socket, since it looks at
 *        everything anew when it wakes up, and takes back nothing of another epoch; it says that it sleeps no more before it looks at the epoch.
 *        One that runs has us try again at the next call.
 *   Tokens become free, so that no index is finished that a dead holder had decided for the old rings. Other processes there are none.
 */
#include "sock/far.h"
#include "sock/sock.h"

/* A direction that has never moved to this ring does not do so any more: ours since it is asked not to, the other one since its monitor has stopped
 * telling of it, and is not `heard`, before the link was called lost. */
static bool rx_over(const struct sock *s)
{
    u32 mode = load_rlx(&s->b->rx_mode);

    return mode == SD_MODE_BACK || (mode == SD_MODE_TCP && !sd_sw_published(&s->e));
}

static bool tx_over(const struct sock *s)
{
    u32 mode = load_rlx(&s->b->tx_mode);

    return mode == SD_MODE_BACK || (mode == SD_MODE_TCP && !load_acq(&s->e.tx->sw_ring) && sd_back_asked(&s->e));
}

/* That is what it went back for, and the program itself has nothing against rings. */
static bool wants(const struct sock *s)
{
    const struct sd_block *b = s->b;

    return sd_forsaken(s) && rx_over(s) && tx_over(s) && !b->reason && load_rlx(&b->users) <= 1 && !load_rlx(&b->latched) &&
           !b->tx_shut && !load_rlx(&b->rx_shut) && !load_rlx(&b->rx_err);
}

/* A trace counts the program's bytes by what its first ring has carried. A child that shares our memory changes nothing of ours. */
static bool may_begin(void)
{
    return !sd_tracing(SD_TRACE_BYTES) && !g.no_supervisor && g.cfg->accel && !sd_self()->foreign;
}

/* Both modes say BACK then, unless another thread is about to switch. */
static bool settle(struct sock *s, int fd)
{
    struct sd_block *b = s->b;

    if (cas_u32(&b->rx_mode, SD_MODE_TCP, SD_MODE_BACK) && b->rcvlowat)
        sd_set_int(fd, SOL_SOCKET, SO_RCVLOWAT, (i32)b->rcvlowat);
    cas_u32(&b->tx_mode, SD_MODE_TCP, SD_MODE_BACK);
    return load_rlx(&b->rx_mode) == SD_MODE_BACK && load_rlx(&b->tx_mode) == SD_MODE_BACK;
}

u32 sd_again_begin(struct sock *s, int fd)
{
    struct sd_block *b = s->b;

    if (sd_is_far(s) && load_rlx(&s->seg->lost) == SD_REASON_no_memory && !b->reason)
        b->reason = SD_REASON_no_memory; /* nor would there be any for the next rings */
    if (!wants(s) || !may_begin() || !settle(s, fd))
        return SD_BLOCK_ATTACHED;
    store_rlx(&b->ops, 0);
    if (!cas_u32(&b->state, SD_BLOCK_ATTACHED, SD_BLOCK_TCP))
        return load_acq(&b->state);
    sd_ep_changed(s);
    return SD_BLOCK_TCP;
}

/* [A2] A thread in a call that is none of this socket: inside of another one, asleep, or waiting for a connection. */
static bool apart(const struct sd_tcb *t, const struct sock *s)
{
    const struct sd_frame *f;
    u32 level = load_acq((_Atomic u32 *)&t->level);

    for (u32 l = 0; l < SD_STACK_LEVELS; l++)
        if (load_acq(&t->use[l]) == s)
            return false;
    if (!level || t->exiting)
        return true;
    if (level > 1)
        return false;
    f = *(struct sd_frame *const volatile *)&t->frame[0];
    if (load_acq(&t->use[0]) || *(const volatile u32 *)&t->wakeable)
        return true;
    return f && !((u64)f & SD_FRAME_SHORT) && (f->rax == __NR_accept || f->rax == __NR_accept4);
}

bool sd_again_may(struct sock *s)
{
    const struct sd_tcb *me = sd_self();

    if (me->level > 1)
        return false; /* a handler: what it has interrupted may be inside */
    *(volatile u32 *)&s->epoch = s->epoch + 1;
    if (!g.mt)
        return true;
    sd_membarrier_threads();
    for (const struct sd_tcb *t = sd_tcbs(); t; t = t->next)
        if (t != me && !apart(t, s))
            return false;
    return true;
}

static void free_token(_Atomic u64 *word)
{
    u64 tok = load_rlx(word);

    if (tok)
        sd_tok_cas(word, tok, sd_tok_next(tok, SD_TOK_FREE, 0, 0));
}

void sd_again_ready(struct sock *s)
{
    struct sd_block *b = s->b;

    free_token(&b->token[SD_DIR_RX]);
    free_token(&b->token[SD_DIR_TX]);
    store_rlx(&b->tx_wait, 0);
    b->opt_saved &= 1u << 31; /* that it was on a ring is counted; the options are the kernel's again */
    b->rcvlowat = 0;
    s->probed = s->kcheck = 0;
    store_rlx(&s->tx_in, 0);
    store_rel(&b->tx_mode, SD_MODE_TCP);
    store_rel(&b->rx_mode, SD_MODE_TCP);
}
