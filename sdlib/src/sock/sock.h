/* SPDX-License-Identifier: Apache-2.0
 *
 * sock.h - inside sock/ and fd/: a connection of ours and what its calls have in common.
 *
 * A connection's life, as this end sees it (block state / rx_mode / tx_mode):
 *   TCP       every call goes to the kernel; operations are counted
 *   OFFERED   the monitor knows of it; still everything on the kernel
 *   PAIRED    the monitor has made a segment; the next call maps it
 *   ATTACHED  both rings are mapped here. rx_mode and tx_mode move on their own:
 *               tx TCP -> RING  at one of our sends, once the other end has attached too
 *               rx TCP -> RING  when the peer's sw_ring says so and all TCP bytes before it are read
 *               RING -> BACK    sw_back; final for these rings
 *             Both BACK after a link to another host was lost, or the peer's program has given its end away: TCP once more, and other rings (again.c)
 *   PINNED    never to be offered; `reason` says why
 */
#ifndef SD_SOCK_H
#define SD_SOCK_H

#include "sd.h"
#include "ring/bell.h"
#include "sock/token.h"

#define LATCH_FIN (1u << 31)
#define LATCH_OWN_RD (1u << 30) /* the program has shut it */
#define LATCH_OWN_WR (1u << 29)
#define LATCH_KEPT (1u << 28) /* rx_err may have one that a recvmmsg has kept; no end of anything */

/* fd/ */
struct sock *sd_sock_new(u32 role);        /* with a fresh block, or NULL (kernel socket then) */
void sd_fd_install(int fd, struct sock *s);/* one more descriptor */
void sd_fd_forget(u64 fd);                 /* the same without freeing anything: no system call */
void sd_fd_remove(u64 fd);                 /* the descriptor goes; the last one frees the socket */
void sd_sock_unref(struct sock *s);        /* the second half of that */
/* [F4] fd/kept.c */
bool sd_is_inside(const struct sd_tcb *t, const struct sock *s);
bool sd_others_inside(const struct sock *s); /* the table does not lead to it by the descriptor that goes */
bool sd_fd_keep(struct sock *s, int fd);
void sd_fd_kept_end(struct sock *s);
u32 sd_fds_kept(void);
/* [F5] fd/closing.c: around the close in the kernel, where there are threads. The first returns the mask of signals, for the second one */
u64 sd_fd_closing(u32 fd, const struct sock *s);
void sd_fd_closed(u32 fd, const struct sock *s, u64 mask);
void sd_fds_closing_after_fork(void);
void sd_fds_kept_after_fork(void);
void sd_last_call_over(struct sock *s); /* close.c */
void sd_sock_put(struct sock *s);          /* end of sd_sock_enter */
void sd_sock_reap(struct sock *s);         /* nothing leads to it any more: frees it, unless a thread is inside */
/* End of `held`, for who sleeps on more than one. */
static inline __attribute__((always_inline)) void sd_sock_let_go(struct sock *s)
{
    if (atomic_fetch_sub(&s->held, 1) == 1 && unlikely(load_acq(&s->dead) == 1))
        sd_sock_reap(s);
}
struct sock *sd_sock_enter(u64 fd);        /* like sd_sock_look, and the socket cannot be unmapped until sd_sock_put */
struct sd_block *sd_block_new(u32 *id);
void sd_block_drop(struct sock *s);
struct sd_area *sd_area_get(u32 index);
void sd_foreign_dup(struct sd_tcb *t, u64 old, long fd);
void sd_foreign_exit(const struct sd_tcb *t);
/* As the supervisor knows it: with the generation, which tells it from those that have had the block before. */
static inline u64 sd_sock_name(const struct sock *s)
{
    return (u64)load_rlx(&s->b->gen) << 32 | s->id;
}

struct sock *sd_sock_carried(u32 id, struct sd_block *b);
void sd_reason(struct sock *s, u32 reason);/* pins a block that is not attached */

/* A call has sent (dir 0) or received n bytes, more than none. */
static inline void sd_sized(struct sock *s, u32 dir, u64 n)
{
    g.proc->sizes[dir][sd_size_class(n)]++;
    if (dir)
        s->b->messages_rx++;
    else
        s->b->messages_tx++;
}

/* Options of the kernel's socket. */
static inline u32 sd_get_int(int fd, int level, int name)
{
    i32 v = 0;
    u32 len = 4;

    SYS5(__NR_getsockopt, fd, level, name, &v, &len);
    return (u32)v;
}

static inline void sd_set_int(int fd, int level, int name, i32 v)
{
    SYS5(__NR_setsockopt, fd, level, name, &v, 4);
}

/* Where the program's next peek begins, -1: not set. */
static inline i32 sd_peek_offset(int fd)
{
    i32 v = -1;
    u32 len = sizeof v;

    return SYS5(__NR_getsockopt, fd, SOL_SOCKET, SO_PEEK_OFF, &v, &len) == 0 ? v : -1;
}

/* sock/lives.c */
bool sd_wait_longer(struct sock *s, int fd, u32 ops);
void sd_peer_came(struct sock *s);
void sd_lived(struct sock *s, u32 state); /* it is over, in that state of its block */
/* Of a connection that has done as many operations as the policy wants: not to be offered yet all the same. */
static inline bool sd_too_young(struct sock *s, int fd, u32 ops)
{
    return g.cfg->patient && (ops < s->due || sd_wait_longer(s, fd, ops));
}

/* sock/life.c */
void sd_tick(struct sock *s, int fd);      /* one operation: offer, attach when it is time */
/* Eager: just accepted, offered at once, but attached by who uses it first: programs that accept for others pass it on as it is (pass.c). */
void sd_born(struct sock *s, int fd);
bool sd_map_segment(struct sock *s, int fd);
void sd_tx_limit(struct sock *s, int fd);  /* SO_SNDBUF may have changed */
void sd_drop(struct sock *s, int fd);      /* the peer broke the ring: reset */
void sd_break(struct sock *s, int fd, u32 reason); /* the same, for what nobody is to blame for */
void sd_reset(struct sock *s, int fd, u32 reason); /* both ends are told: shutdown alone would look like the stream's end */

/* sock/switch.c */
bool sd_try_switch_tx(struct sock *s, int fd);
bool sd_rx_poll_switch(struct sock *s, int fd); /* true: rx is on the ring now */
void sd_tx_back(struct sock *s, int fd, u32 reason);
#define SD_STRAY_BELLS 64 /* in front of the first byte behind the way back: more of them than were thrown out in the middle of ringing */
bool sd_rx_back(struct sock *s, int fd);   /* ring drained up to sw_back: eats the last bell. False: that has not arrived yet */
i64 sd_tx_pos(const struct sock *s, int fd); /* bytes written to the TCP stream so far, -1: unknown */
bool sd_has_error(int fd);
i32 sd_unread(const struct sock *s, int fd); /* bytes of TCP, -1: cannot be told */
i64 sd_rx_pos(struct sock *s, int fd); /* bytes read from the TCP stream so far, -1: unknown */
#define SD_POS_LOST (-2) /* never to be known: the connection is closed, and what is unread cannot be told from doorbells */
void sd_switch_finish(struct sock *s, u32 mode, u64 tcp_pos); /* what a COMMIT of the switch or of the way back has decided: */
void sd_back_finish(struct sock *s, u64 tcp_pos);             /* may run twice */

/* sock/doorbell.c */
struct sd_hold;
void sd_send_bell(struct sock *s, int fd, struct sd_hold *h, u32 more); /* inside, in a direction that is on the ring */
void sd_ring_bell(struct sock *s, int fd);
void sd_ring_bell_late(struct sock *s, int fd); /* the kernel holds it back as it would hold bytes back; sd_uncork() */
void sd_wake_reader(struct sock *s, int fd); /* after sd_data_wanted() */
void sd_look_at_kernel(struct sock *s, int fd); /* eats bells, latches FIN and errors; never blocks */
long sd_park(struct sock *s, int fd, u64 sleeper); /* between sd_sleeper_enter and _leave */
void sd_latch_end(struct sock *s, int fd, u32 err); /* the kernel has said FIN (0) or an error, and will not say it again */

static inline u64 sd_low_water(const struct sock *s) { return min_u64(s->b->rcvlowat, sd_rx_most(&s->e) / 2); } /* SO_RCVLOWAT, of poll */

/* What a call has kept for the next one, 0: nothing. */
static inline u32 sd_kept_error(struct sock *s)
{
    atomic_fetch_and(&s->b->latched, ~LATCH_KEPT);
    return atomic_exchange(&s->b->rx_err, 0);
}

/* sock/token.c: theory of operation in token.h. */
struct sd_hold {
    struct sd_part *part; /* NULL: nobody shares it, or anonymous */
    _Atomic u64 *word;    /* NULL: nobody shares it */
    u64 tok, mark;        /* what we hold it by; without a word they mean nothing, as all but word does then */
    u32 level, dir, as;
};

/* Others may call off what we do, by a mark of ours. All but the word means something only beside it. */
static inline bool sd_hold_marked(const struct sd_hold *h) { return h->word && h->part; }

/* Others may come in: the price of tokens has to be paid. */
static inline bool sd_shared(const struct sock *s) { return g.mt || load_rlx(&s->b->users) > 1; }

void sd_take_shared(struct sock *s, u32 dir, u32 as, struct sd_hold *h);
bool sd_commit_shared(struct sd_hold *h, _Atomic u64 *index, u64 from, u64 to);
bool sd_commit_rare(struct sd_hold *h, u64 to);
void sd_token_finish(struct sock *s, u32 dir, u64 to);
long sd_revocable(struct sd_hold *h, long nr, int fd, u8 *buf, u64 len, u32 flags);
bool sd_bell_enter(struct sock *s, struct sd_hold *h);
bool sd_bells_out(struct sock *s);

#define SD_NOT_PARKED 0xfffffffffffffffeull
#define SD_PARK_UNKNOWN 0xffffffffffffffffull
u64 sd_sleeper_enter(struct sock *s, u64 need); /* for so many bytes to be unread; SD_NEEDS_ROOM */
void sd_sleeper_leave(struct sock *s, u64 before);
#define SD_NEEDS_ROOM 0xffffffffffffffffull
bool sd_sleepers(const struct sock *s, u64 unread);
struct sd_part *sd_part_of(struct sd_tcb *t);   /* claimed if need be; NULL: there is none left */
struct sd_part *sd_part_at(u32 number);
u32 sd_part_number(const struct sd_part *p);
u32 sd_part_level(struct sd_tcb *t);            /* nesting level of handlers; drops marks of levels that were left by siglongjmp */
bool sd_part_gone(const struct sd_part *p);     /* known to be dead */
bool sd_part_stopped(const struct sd_part *p);  /* known to be in no system call, and to make none for now */
bool sd_task_runs(u32 tid);                     /* or would, if it had a CPU; false also where /proc tells nothing */
void sd_part_release(struct sd_tcb *t);
void sd_parts_before_fork(struct sd_tcb *t); /* a handler forks: what it has interrupted starts over, on both sides */
void sd_parts_forget(void);     /* in a forked child: its namespace may be another */
void sd_parts_after_exec(void);

/* E1 and E2 for the owner, no handler involved; everything else is sd_take_shared(). */
static inline void sd_take(struct sock *s, u32 dir, u32 as, struct sd_hold *h)
{
    struct sd_part *p;
    struct sd_tcb *t;

    h->word = NULL;
    if (likely(!sd_shared(s)))
        return;
    t = sd_self();
    p = t->part;
    if (likely(p && t->level == 1 && t->marks <= 1)) {
        t->marks = 1;
        h->part = p;
        h->word = &s->b->token[dir];
        h->level = 0;
        h->mark = sd_mark_set(&p->mark[0], sd_mark_key(s->id, dir), as); /* E1 */
        h->tok = load_rlx(h->word); /* E2 [T1] */
        if (likely((h->tok & 0x3fff) == ((u64)t->part_number << 2 | SD_TOK_BIASED)))
            return;
        sd_mark_clear(&p->mark[0], h->mark);
    }
    sd_take_shared(s, dir, as, h);
}

/* L1, L2 */
static inline void sd_leave(struct sd_hold *h)
{
    if (likely(!h->word))
        return;
    /* Unless it is another's: a handler in the middle has forked, and this is the child. */
    if (h->part && !((load_rlx(&h->part->mark[h->level]) ^ h->mark) >> 3))
        sd_mark_clear(&h->part->mark[h->level], h->mark);
    if (sd_tok_kind(h->tok) == SD_TOK_HELD)
        sd_tok_release(h->word, h->tok);
}

/* Moves an index. False: thrown out, or a handler was here; nothing has happened. */
static inline bool sd_commit_index(struct sd_hold *h, _Atomic u64 *index, u64 from, u64 to)
{
    return likely(!h->word) ? sd_cas_local(index, from, to) : sd_commit_shared(h, index, from, to);
}

static inline bool sd_still_inside(const struct sd_hold *h)
{
    return !sd_hold_marked(h) || load_acq(&h->part->mark[h->level]) == h->mark;
}

/* sock/rx.c, tx.c, room.c */
long sd_rx(struct sock *s, int fd, struct iovec *iov, u64 n, u32 flags);
/* recvmsg, or a part of recvmmsg, the first or a later one; *told: the kernel has filled the header, and its flags are final. */
long sd_rx_msg(struct sock *s, int fd, struct msghdr *m, u32 flags, bool later, bool *told);
long sd_tx(struct sock *s, int fd, struct iovec *iov, u64 n, u32 flags);
long sd_tx_msg(struct sock *s, int fd, struct msghdr *m, u32 flags);
long sd_kernel_tx(struct sock *s, int fd, struct msghdr *m, u32 flags); /* tx_tcp.c; -ERANGE: it is not the kernel's any more */
long sd_kernel_rest(struct sock *s, int fd, struct msghdr *m, u32 flags, u64 *done);
long sd_broken_pipe(u32 flags);            /* SIGPIPE unless MSG_NOSIGNAL; -EPIPE */
long sd_after_reset(struct sock *s, u32 flags);
long sd_after_shutdown(int fd, u32 flags);
bool sd_arm_room(struct sock *s, u64 need);          /* true: there is room already */
long sd_wait_room(struct sock *s, int fd, u64 *deadline, u64 need); /* 0, -EINTR, -EAGAIN */
/* Around calls that let the kernel send or receive on its own; false: look again, it is not on the kernel any more. r: what came of it. */
bool sd_tx_plain_enter(struct sock *s);
bool sd_rx_plain_enter(struct sock *s);
void sd_plain_leave(struct sock *s, u32 which, long r); /* SD_OWES_TX, SD_OWES_RX */
/* sock/owed.c */
#define SD_OWES_RX 1u /* rx_plain of the block */
#define SD_OWES_TX 2u
void sd_owe_plain(struct sock *s, u32 which);  /* 0: it is not counted */
void sd_owed_plain(struct sock *s, u32 which); /* takes it back, if it was counted */
u32 sd_owe_armed(struct sock *s, u32 want);    /* sd_arm(), or, without `want`, sd_room_arm() */
void sd_owed_armed(struct sock *s, u32 armed); /* sd_disarm() */
void sd_owed_before_fork(struct sd_tcb *t);

/* The stream that we read is over, and nobody reads what we send any more, as far as is known. A peer that has shut its sending side alone reads on; so
 * does one of which we only do not want to hear any more. */
static inline bool sd_tx_over(const struct sock *s)
{
    u32 latched = load_rlx(&s->b->latched), hint;

    if (likely(!(latched & LATCH_FIN)))
        return false;
    hint = load_rlx(&s->e.rx->prod_hint);
    return (latched & POLLERR) || (s->b->far && !load_rlx(&s->b->rx_shut)) || (hint & SD_HINT_CLOSED) ||
           !(hint & SD_HINT_SHUT_WR || load_rlx(&s->b->rx_shut));
}
/* The peer has said so, and we have not seen it. By the time that its call returns the program may know, from elsewhere, that there is an end to be told of. */
static inline bool sd_end_comes(const struct sock *s)
{
    return unlikely(load_rlx(&s->e.rx->prod_hint) & (SD_HINT_SHUT_WR | SD_HINT_CLOSED | SD_HINT_ABORT)) && !(load_rlx(&s->b->latched) & LATCH_FIN);
}
/* `kev`, what the kernel says, without the reset that only answers a doorbell which the peer's program had not read when it ended: by TCP that was the end of the stream and
 * no more (sd_end_error()), until something has been sent to nobody. */
static inline u32 sd_without_bells(const struct sock *s, u32 kev)
{
    u32 latched = load_rlx(&s->b->latched), broken = POLLERR | POLLHUP;

    if (likely(!(kev & broken)) || (latched & (LATCH_FIN | LATCH_OWN_RD | POLLERR)) != LATCH_FIN || s->b->far || load_rlx(&s->b->tx_mode) != SD_MODE_RING)
        return kev;
    return (load_rlx(&s->e.rx->prod_hint) & SD_HINT_ABORT) || load_rlx(&s->e.tx->head) != load_rlx(&s->e.tx->tail) ? kev : kev & ~broken;
}
/* Nobody can ring when there is room for what we send. */
static inline bool sd_no_bells(const struct sock *s)
{
    return load_rlx(&s->b->rx_mode) != SD_MODE_RING || (load_rlx(&s->b->latched) & LATCH_FIN) || sd_bells_over(&s->e);
}
#define SD_LOOK_US 10000 /* so often is asked whether a peer that does not make room is still there */
bool sd_peer_left(struct sock *s, int fd); /* nobody reads what is sent: to be asked before bytes go into the ring */
bool sd_peer_died(struct sock *s, int fd); /* of a peer that cannot send any more: asked for by a doorbell */

/* After bytes were put into the ring. Not for others: they may sleep in some poll, and wait for more room than there was. */
static inline void sd_posted(struct sock *s, int fd)
{
    if (unlikely(load_rlx(&s->b->tx_wait)) && !sd_shared(s))
        sd_tx_disarm(&s->e, &s->b->tx_wait);
    if (sd_data_wanted(&s->e))
        sd_wake_reader(s, fd);
}

u64 sd_iov_bytes(const struct iovec *iov, u64 n);

/* sock/pass.c: messages of sockets that are not ours; SD_PASS when nothing of ours is in them. */
long sd_pass_send(struct sd_frame *f, struct sd_tcb *t);
long sd_pass_recv(struct sd_frame *f, struct sd_tcb *t);
long sd_pass_send_many(struct sd_frame *f, struct sd_tcb *t);
long sd_pass_recv_many(struct sd_frame *f, struct sd_tcb *t);
i32 sd_sockopt_int(int fd, int name);      /* sock/sockopt.c */

/* sock/adopt.c: a connection that came in a message from another program. */
void sd_adopt_given(int fd, bool held); /* held: by the message, too, which stays */
void sd_given_alone(struct sock *s, int fd); /* nobody else has it any more, and it is offered */

/* sock/cork.c */
#define SD_SAVED_NODELAY 1u /* in opt_saved */
#define SD_SAVED_CORK 2u
#define SD_SAVED_INQ 4u /* TCP_INQ: the kernel has it, too */
bool sd_corked(const struct sock *s, u32 flags);         /* what is sent now is held back until a segment is full */
void sd_cork_put(struct sock *s, int fd);                /* inside, after bytes were held: uncovers full segments */
void sd_cork_posted(struct sock *s, int fd, u64 tail);   /* afterwards; `tail` as it was before */
void sd_uncork(struct sock *s, int fd);                  /* nothing is held any more */
bool sd_uncover_all(struct sock *s);                     /* its parts */
void sd_uncork_late(struct sock *s, int fd);
bool sd_cork_over(struct sock *s);

/* sock/recall.c */
bool sd_recall(struct sock *s, int fd, u32 why);     /* unread bytes to TCP. False: what is in the ring stays there */
bool sd_recall_wait(struct sock *s, int fd); /* rx_mode RETIRE: until it is over */
void sd_recall_tx(struct sock *s, int fd, u32 reason);   /* what we send, too */
void sd_off_the_ring(struct sock *s, int fd, u32 reason); /* both directions; what is unread comes by TCP, unless its sender is dead (pass.c) */
void sd_out_of_reach(struct sock *s, int fd); /* the socket has a descriptor now that nobody of ours looks at: for good on TCP */
void sd_recall_over(const struct sock *s);   /* attached, and the last descriptor goes */
bool sd_ended(int fd);
bool sd_recall_resend(struct sock *s, int fd, struct sd_hold *h, u64 tcp_pos);

/* sock/option.c */
bool sd_option_keeps(int fd);                /* it has one with which it stays on TCP */
void sd_inq_set(struct sock *s, int fd);     /* sock/sockopt.c */
void sd_option_set(struct sock *s, int fd, u64 level, u64 name);

/* sock/back.c */
void sd_go_back(struct sock *s, int fd, u32 reason); /* to TCP, or never away from it */
void sd_async_soon(struct sock *s, int fd, bool on); /* before the kernel knows, and */
void sd_async_set(struct sock *s, int fd, bool on);  /* afterwards */

/* sock/again.c */
u32 sd_again_begin(struct sock *s, int fd); /* both directions may be back: the block's state, TCP if it is to be offered anew */
bool sd_again_may(struct sock *s);  /* nobody is inside who has seen the old rings */
void sd_again_ready(struct sock *s);/* the new ones are mapped; before ATTACHED */

/* sock/fast.c */
void sd_fast_on(struct sock *s, int fd);   /* if it may be: messages take the short way */

#define MAX_IOV 1024

#endif
