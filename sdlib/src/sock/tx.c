/* SPDX-License-Identifier: Apache-2.0
 *
 * tx.c - sending: into the ring, or by the kernel (tx_tcp.c), through the switch.
 */
#include "poll/poll.h"
#include "ring/cork.h"
#include "ring/dates.h"
#include "ring/vec.h"
#include "sock/far.h"
#include "sock/sock.h"

/* As far as we know already, or else by the peer's word, which is looked at again. True of a broken ring: a send finds out. */
static bool room_for(struct sock *s, u64 need)
{
    i64 room = need == 1 ? 1 : sd_tx_room(&s->e);

    if (room >= 0 && (u64)room < need)
        room = sd_tx_look(&s->e);
    return room < 0 || (u64)room >= need;
}

static inline u64 spare(const struct sock *s, u64 want)
{
    return want > sd_tx_spare(&s->e) ? sd_tx_spare(&s->e) : 0;
}

/* Others that send (threads, processes, a handler that comes in while we wait) must not cut a small message in two, nor a signal end it in the
 * middle: one that does not fit waits until it does. */
static inline u64 room_needed(const struct sock *s, u64 want, bool nb)
{
    u64 need = nb ? spare(s, want) + 1 : want <= s->e.tx_bytes / 4 ? want : 1;

    return unlikely(sd_tx_refused(&s->e)) ? max_u64(need, sd_tx_least(&s->e)) : need;
}

/* How many of `want` bytes go behind `behind` others that are held back. */
static inline u64 share(struct sock *s, u64 want, u64 behind, u64 leave)
{
    u64 taken = behind + leave;
    i64 room = leave ? sd_tx_room(&s->e) : 0;

    if (leave && room >= 0 && (u64)room < want + taken)
        room = sd_tx_look(&s->e);
    return !leave || room < 0 ? want : (u64)room > taken ? min_u64(want, (u64)room - taken) : 0;
}

/* A handler sends on the socket on which its own thread is copying into the ring, or was when a handler left it by siglongjmp. In the first
 * case it will go on copying, over whatever we would put there: the ring is not used any more, and its commit fails. */
static NOINLINE void tx_nested(struct sock *s)
{
    struct sd_tcb *t = sd_self();
    u64 outer = load_rlx(&s->tx_in), here = (u64)__builtin_frame_address(0);
    bool live;

    if (outer >= t->lo + SD_OWN_ALT && outer < t->hi)
        live = (t->top - outer) / SD_STACK_SLICE + 1 < t->level;
    else
        live = outer > here && (outer < t->alt_hi || outer < t->lo + SD_OWN_ALT); /* both on a sigaltstack */
    if (live)
        cas_u32(&s->b->tx_mode, SD_MODE_RING, SD_MODE_RETIRE);
}

/* Alone, a handler may still come in between and send on the same socket; when it is done, the tail is not where we have copied to, or the
 * ring is not used any more (tx_nested). */
static bool put_commit(struct sock *s, struct sd_hold *h, _Atomic u64 *index, u64 from, u64 n)
{
    if (!h->word && !sd_cas_local(&s->tx_in, (u64)h, 0))
        return false;
    return sd_commit_index(h, index, from, from + n); /* [R1] [C1] */
}

/* hold: what is put there is held back (cork.h). Else nothing is, any more: *late is what sd_uncork_late() has to know. */
static inline __attribute__((always_inline)) i64 put(struct sock *s, int fd, struct iovec *iov, u64 n, u64 skip, u64 need, u64 want, u64 leave, bool hold, bool *late)
{
    _Atomic u64 *index = hold ? &s->e.tx->held : &s->e.tx->tail;
    struct sd_block *b = s->b;
    struct sd_hold h;
    u64 behind = 0;
    i64 took;

    for (;;) {
        sd_take(s, SD_DIR_TX, SD_MARK_OP, &h);
        if (!h.word) {
            if (unlikely(load_rlx(&s->tx_in)))
                tx_nested(s);
            store_rlx(&s->tx_in, (u64)&h);
            atomic_signal_fence(memory_order_seq_cst); /* before the tail is read: a handler that comes in between sees it */
        }
        if (unlikely(hold))
            behind = sd_cork_begin(&s->e);
        else if (unlikely(sd_cork_held(s->e.tx, s->e.bytes)))
            *late = sd_uncover_all(s);
        u64 from = load_rlx(index);
        took = 0;
        if (load_rlx(&b->tx_mode) == SD_MODE_RING && room_for(s, need + behind)) /* or a broken ring, which the gathering tells */
            took = sd_tx_gather(&s->e, iov, n, skip, behind, share(s, want, behind, leave));
        if (took > 0 && !hold)
            sd_tx_dated(&s->e, from); /* [O1] */
        bool done = took <= 0 || put_commit(s, &h, index, from, (u64)took);
        if (unlikely(hold) && done && took > 0)
            sd_cork_put(s, fd);
        if (done && took > 0) {
            b->bytes_shm_tx += (u64)took;
            if (!hold) /* so much may go the short way before sd_peer_left() is asked again */
                sd_tx_plan(&s->e, (u64)took * SD_PLAN_MESSAGES);
        }
        if (!h.word)
            store_rlx(&s->tx_in, 0);
        sd_leave(&h);
        if (sd_tracing(SD_TRACE_BYTES) && done && took > 0)
            sd_saw_ring(s, 0, from, iov, skip, (u64)took);
        if (done)
            return took;
    }
}

static i64 ring_put(struct sock *s, int fd, struct iovec *iov, u64 n, u64 skip, u64 need, u64 want, u64 leave, bool *late)
{
    return put(s, fd, iov, n, skip, need, want, leave, false, late);
}

static NOINLINE i64 ring_hold(struct sock *s, int fd, struct iovec *iov, u64 n, u64 skip, u64 need, u64 want, u64 leave)
{
    u64 tail = load_rlx(&s->e.tx->tail);
    bool late;
    i64 r = put(s, fd, iov, n, skip, need, want, leave, true, &late);

    sd_cork_posted(s, fd, tail);
    return r;
}

/* The peer had read all that we have sent: then TCP knows nothing of its end, and takes one more send, which nobody reads. */
static bool had_read_all(const struct sock *s)
{
    return load_acq(&s->e.tx->head) == load_rlx(&s->e.tx->tail);
}

/* The peer's FIN has come long ago, so its kernel has nothing more to say of it by itself. It answers a doorbell with a reset if the peer is gone; also one
 * that the peer had not read when it went. */
bool sd_peer_died(struct sock *s, int fd)
{
    struct pollfd p = {fd, 0, 0};
    struct timespec64 zero = {0, 0};
    u64 now = sd_tsc();

    COUNT(calls_kernel);
    if (SYS5(__NR_ppoll, &p, 1, &zero, 0, 8) == 1) {
        s->probed = true; /* the next send looks again */
        return !had_read_all(s);
    }
    s->probed = !s->probed || now - s->asked_tsc >= SD_LOOK_US * g.tsc_per_us; /* the next send looks for the answer */
    if (s->probed) {
        s->asked_tsc = now;
        sd_ring_bell(s, fd);
    }
    return false;
}

/* Nobody reads the ring of a peer that has gone, so bytes put there would be taken as sent for as long as they fit, where TCP says so with
 * the second send. A peer that closes leaves a hint; that it was killed only the kernel knows, which is asked every SD_LOOK_US. */
bool sd_peer_left(struct sock *s, int fd)
{
    struct pollfd p = {fd, POLLRDHUP, 0};
    struct timespec64 zero = {0, 0};
    u64 now = sd_tsc();

    if (!(load_rlx(&s->e.rx->prod_hint) & SD_HINT_CLOSED) && !s->probed && now - s->asked_tsc < SD_LOOK_US * g.tsc_per_us)
        return false;
    /* Also where the end that the kernel reports is our own: going back for it would leave unread bytes of ours in a ring that is over. */
    bool own = load_rlx(&s->b->rx_shut) && !(load_rlx(&s->e.rx->prod_hint) & SD_HINT_CLOSED);
    if (unlikely((load_rlx(&s->b->latched) & LATCH_FIN) || own) && !sd_is_far(s))
        return sd_peer_died(s, fd);
    s->asked_tsc = now;
    COUNT(calls_kernel);
    if (unlikely(own))
        return sd_ended(fd);
    if (SYS5(__NR_ppoll, &p, 1, &zero, 0, 8) != 1)
        return false;
    if (load_rlx(&s->b->rx_mode) == SD_MODE_RING) {
        sd_look_at_kernel(s, fd); /* FIN or reset, as it is told with our rings in mind */
        if (s->kcheck & 1)
            sd_look_at_kernel(s, fd); /* it stood behind a doorbell */
    }
    return true;
}

long sd_broken_pipe(u32 flags)
{
    struct sd_tcb *t = sd_self();

    if (!(flags & MSG_NOSIGNAL))
        SYS3(__NR_tgkill, SYS0(__NR_getpid), t->tid, SIGPIPE);
    return -EPIPE;
}

/* The program has shut this direction: EPIPE and its signal, or the error that the socket has had since, as the kernel says it. No byte. */
long sd_after_shutdown(int fd, u32 flags)
{
    long r = SYS6(__NR_sendto, fd, 0, 0, MSG_DONTWAIT | (flags & MSG_NOSIGNAL), 0, 0);

    return r < 0 ? r : sd_broken_pipe(flags); /* another thread is about to shut it */
}

/* Reported once, then a broken pipe, as TCP does. */
long sd_after_reset(struct sock *s, u32 flags)
{
    u32 err = atomic_exchange(&s->b->rx_err, 0);

    return err ? -(long)err : sd_broken_pipe(flags);
}

/* The peer has gone, or somebody has asked: what is left of the message goes by TCP (-ERANGE), unless there is an error to tell. */
static NOINLINE long leave_ring(struct sock *s, int fd, u32 flags, bool nb, u64 sent)
{
    if (sent && (nb || (load_rlx(&s->b->latched) & POLLERR)))
        return (long)sent;
    if (load_rlx(&s->b->latched) & POLLERR)
        return sd_after_reset(s, flags);
    sd_tx_leave(s, fd);
    return -ERANGE;
}

/* What a send that does not wait says of a full ring. 0: there is room by now, or nobody who will ever make any. */
static NOINLINE long no_room(struct sock *s, int fd, u64 need, u64 sent)
{
    if (sent) {
        sd_ep_full(s); /* who waits for room now must be woken though nobody was told EAGAIN */
        return (long)sent;
    }
    if (sd_arm_room(s, need))
        return 0;
    if (sd_rx_poll_switch(s, fd)) { /* the doorbell comes from there */
        sd_look_at_kernel(s, fd); /* a dead peer never makes room */
        COUNT(calls_kernel);
        if (sd_tx_over(s) && !sd_far_busy(s))
            return 0;
    }
    sd_ep_full(s);
    s->e.tx_full = (u32)load_rlx(&s->e.tx->tail) + 1;
    sd_tx_unplan(&s->e);
    return -EAGAIN;
}

/* Blocking: how much of the message the ring has taken before the direction went back is in *done, and the rest goes by TCP. */
static long ring_tx(struct sock *s, int fd, struct iovec *iov, u64 n, u32 flags, bool nb, u64 *done)
{
    u64 want = sd_iov_bytes(iov, n), sent = *done, deadline = 0;
    u64 calls = g.proc->ctr[SD_CTR_calls_kernel];
    bool hold = unlikely((s->b->opt_saved & SD_SAVED_CORK) | (flags & MSG_MORE)) && sd_corked(s, flags), late = false;

    for (;;) {
        if (s->b->tx_shut)
            return sent ? (long)sent : sd_after_shutdown(fd, flags);
        if (unlikely(load_rlx(&s->b->latched) & POLLERR) || sd_must_leave(s, fd)) {
            *done = sent;
            return leave_ring(s, fd, flags, nb, sent);
        }
        u64 need = room_needed(s, want - sent, nb);
        u64 leave = nb ? spare(s, want - sent) : 0;
        i64 r = unlikely(hold) ? ring_hold(s, fd, iov, n, sent, need, want - sent, leave)
                               : ring_put(s, fd, iov, n, sent, need, want - sent, leave, &late);
        if (unlikely(late)) {
            late = false;
            sd_uncork_late(s, fd);
        }
        if (unlikely(r < 0)) {
            if (r == SD_FAULT)
                return sent ? (long)sent : -EFAULT;
            sd_drop(s, fd);
            return sent ? (long)sent : -ECONNRESET;
        }
        sent += (u64)r;
        if (r > 0 && likely(!hold))
            sd_posted(s, fd);
        if (sent == want)
            break;
        if (unlikely(hold))
            sd_uncork(s, fd); /* or there will never be room */
        if (load_rlx(&s->b->tx_mode) != SD_MODE_RING) {
            *done = sent;
            return sent && nb ? (long)sent : -ERANGE;
        }
        if (nb) {
            long full = no_room(s, fd, need, sent);
            if (full)
                return full;
            continue;
        }
        long w = sd_wait_room(s, fd, &deadline, need);
        if (w < 0)
            return sent ? (long)sent : w;
        fd = sd_fd_after_wait(s, fd);
    }
    if (calls == g.proc->ctr[SD_CTR_calls_kernel])
        COUNT(calls_library);
    return (long)sent;
}

#define KERNEL_ONLY (MSG_OOB | MSG_ZEROCOPY | MSG_FASTOPEN)

/* The mark has a place in TCP's stream, so the rest of this direction is TCP's, and what counts unread bytes has to know of it. */
static NOINLINE void urgent(struct sock *s, int fd)
{
    if (sd_attached(s))
        sd_hint_say(&s->e, SD_HINT_URGENT), sd_nap_end(s);
    if (load_rlx(&s->b->tx_mode) == SD_MODE_RING)
        sd_tx_back(s, fd, SD_REASON_flag);
    else
        sd_go_back(s, fd, SD_REASON_flag);
}

long sd_tx_msg(struct sock *s, int fd, struct msghdr *m, u32 flags)
{
    struct sd_block *b = s->b;
    bool nb = (flags & MSG_DONTWAIT) || load_rlx(&b->nonblock);
    u64 done = 0;
    bool kernel = unlikely(flags & KERNEL_ONLY) || unlikely(m->controllen); /* timestamps and the like belong to the kernel's stream */
    long r;

    sd_tick(s, fd);
    if (unlikely(load_rlx(&b->latched) & (POLLERR | LATCH_KEPT))) {
        if (load_rlx(&b->latched) & POLLERR)
            return sd_after_reset(s, flags);
        if ((r = -(long)sd_kept_error(s)))
            return r;
    }
    if (unlikely(flags & MSG_OOB))
        urgent(s, fd);
    else if (kernel && load_rlx(&b->tx_mode) == SD_MODE_RING)
        sd_tx_back(s, fd, SD_REASON_flag);
    do {
        if (unlikely(load_rlx(&b->tx_mode) == SD_MODE_RETIRE))
            sd_tx_back(s, fd, SD_REASON_stalled);
        if (load_rlx(&b->tx_mode) == SD_MODE_RING || (!kernel && sd_attached(s) && sd_try_switch_tx(s, fd)))
            r = ring_tx(s, fd, m->iov, m->iovlen, flags, nb, &done);
        else
            r = unlikely(done) ? sd_kernel_rest(s, fd, m, flags, &done) : sd_kernel_tx(s, fd, m, flags);
    } while (r == -ERANGE && (fd = sd_fd_after_wait(s, fd)) >= 0);
    if (r > 0)
        sd_sized(s, 0, (u64)r);
    return r;
}

long sd_tx(struct sock *s, int fd, struct iovec *iov, u64 n, u32 flags)
{
    struct msghdr m = {.iov = iov, .iovlen = n};

    return sd_tx_msg(s, fd, &m, flags);
}
