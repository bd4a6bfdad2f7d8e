/* SPDX-License-Identifier: Apache-2.0
 *
 * far.c - what a connection to another host has to ask its monitor for (far.h).
 */
#include "sock/far.h"

#define NAP_NS 50000
#define SETTLE_NS 10000000000ull /* a link that is down comes back, or its monitor says that it is lost */
#define RINGING_NS 2000000000ull /* who rings is in there for microseconds */

void sd_far_nap(void) { sd_sleep_ns(NAP_NS); }

/* The bell word of our direction is the monitor's here: 1 while it has not heard the last nudge [B1]. Where its loop sleeps on that word itself (`direct`),
 * waking it takes one call. It takes `direct` back before it looks for the last time at a word that it waits for no more. */
void sd_far_nudge(struct sock *s)
{
    if (!sd_bell_take(&s->e))
        return;
    if (load_acq(&s->seg->direct) && !load_acq(&s->seg->pumped)) {
        SYS5(__NR_futex, &s->e.tx->bell, SD_FUTEX_WAKE, 1, 0, 0);
    } else if (sd_hypercall(SD_HC_NUDGE, sd_sock_name(s), 0) != 0)
        sd_bell_give_back(&s->e); /* no supervisor: its monitor knows that, and does not sleep */
    COUNT_OF(s, bells_tx);
}

void sd_far_leave(struct sock *s, u32 why) { sd_hypercall(SD_HC_NUDGE, sd_sock_name(s), why); }

bool sd_far_settle(struct sock *s)
{
    u32 ask = atomic_fetch_add(&s->seg->settle_ask, 1) + 1;

    sd_far_nudge(s);
    for (u64 until = sd_now_ns() + SETTLE_NS; sd_now_ns() < until;) {
        if ((i32)(load_acq(&s->seg->settled) - ask) >= 0) /* [H1] */
            return true;
        if (load_acq(&s->seg->lost))
            return false;
        sd_far_nap();
    }
    return false;
}

u32 sd_far_why(const struct sock *s)
{
    u32 lost = load_acq(&s->seg->lost);

    return lost && lost < SD_REASON_COUNT ? lost : SD_REASON_link_lost;
}

/* ----------------------------------------------------------------- our way back */

/* LEAVING is said. Afterwards nobody rings on our socket any more. */
static void bells_out(struct sock *s)
{
    for (u64 until = sd_now_ns() + RINGING_NS; load_acq(&s->seg->ringing) && sd_now_ns() < until;) /* [H2] */
        sd_far_nap();
}

static void mark_of(const struct sock *s, u64 at, struct sd_mark *m)
{
    *m = (struct sd_mark){SD_MARK_MAGIC, {s->seg->far_id[0], s->seg->far_id[1]}, at};
}

static bool alone(const struct sock *s) { return sd_hypercall(SD_HC_NUDGE, sd_sock_name(s), 0) == -ENOSYS; }

/* The bytes to send now, `done` of our mark and of what follows it; 0: all are sent. */
static u64 next_part(const struct sock *s, u64 done, struct sd_mark *m, u8 **part)
{
    u64 at = load_rlx(&s->seg->mark_at), counter = at + done - sizeof *m, place;

    if (done < sizeof *m) {
        mark_of(s, at, m);
        *part = (u8 *)m + done;
        return sizeof *m - done;
    }
    place = (counter - load_rlx(&s->e.tx->base)) & (s->e.bytes - 1);
    *part = s->e.tx_ring + place;
    return min_u64(load_rlx(&s->e.tx->tail) - counter, s->e.bytes - place);
}

/* Whoever is thrown out of here has sent a part, or nothing: the position tells. The monitor brings what is in the ring; without a supervisor there
 * may be none, so it goes behind the mark. */
static bool send_mark(struct sock *s, int fd, struct sd_hold *h)
{
    struct sd_seg *seg = s->seg;
    struct sd_mark m;
    u64 n, done, until = sd_now_ns() + SETTLE_NS;
    i64 pos = sd_tx_pos(s, fd);
    u8 *part;
    long r;

    if (pos < 0)
        return true; /* the connection is over: the kernel will say so */
    if (!load_rlx(&seg->mark_from)) {
        store_rlx(&seg->mark_at, alone(s) ? load_acq(&s->e.tx->head) : load_rlx(&s->e.tx->tail));
        store_rlx(&seg->mark_from, (u64)pos + 1);
    }
    for (;;) {
        done = (u64)pos - (load_rlx(&seg->mark_from) - 1);
        n = next_part(s, done, &m, &part);
        if (!n)
            return true;
        if (n > s->e.bytes || sd_now_ns() >= until)
            return false;
        r = sd_revocable(h, __NR_sendmsg, fd, part, n, MSG_DONTWAIT | MSG_NOSIGNAL);
        if (r == -EAGAIN) {
            sd_far_nap();
        } else if (r <= 0) {
            return true; /* thrown out, or over */
        } else {
            pos += r;
            until = sd_now_ns() + SETTLE_NS;
        }
    }
}

/* The other end has told all that it ever will ([H1]), and does not read: it has closed, or is dead. A mark would be answered with a reset, of which the
 * program's next send would hear instead of its second one. */
static bool nobody_reads(const struct sock *s)
{
    u32 hint = load_acq(&s->e.rx->prod_hint);

    return (load_rlx(&s->b->latched) & LATCH_FIN) && ((hint & SD_HINT_CLOSED) || !(hint & SD_HINT_SHUT_WR || load_rlx(&s->b->rx_shut)));
}

bool sd_far_back(struct sock *s, int fd, struct sd_hold *h)
{
    for (u64 until = sd_now_ns() + SETTLE_NS; sd_now_ns() < until; sd_far_nap()) {
        u32 pumped = load_acq(&s->seg->pumped);
        if (pumped == SD_PUMPED_BYTES && !sd_far_busy(s))
            return true; /* [H4] its mark is there already */
        if (pumped == SD_PUMPED_BYTES)
            sd_far_nudge(s); /* what was held back until now */
        if (!pumped && load_acq(&s->seg->heard)) {
            bells_out(s);
            return nobody_reads(s) || send_mark(s, fd, h);
        }
    }
    return false;
}

bool sd_far_shut(struct sock *s)
{
    if (!sd_far_busy(s))
        return false;
    store_rel(&s->seg->pump_end, 1);
    return sd_hypercall(SD_HC_NUDGE, sd_sock_name(s), 0) == 0; /* it looks again, whatever it has seen before */
}

/* ----------------------------------------------------------------- their way back */

/* The program's place for peeks is not where we look, nor moved by it. */
static long look_ahead(const struct sock *s, int fd, u8 *seen, u64 n)
{
    i32 at = unlikely(s->b->reason) ? sd_peek_offset(fd) : -1;
    long r;

    if (at >= 0)
        sd_set_int(fd, SOL_SOCKET, SO_PEEK_OFF, -1);
    r = SYS6(__NR_recvfrom, fd, seen, n, MSG_DONTWAIT | MSG_PEEK, 0, 0);
    if (at >= 0)
        sd_set_int(fd, SOL_SOCKET, SO_PEEK_OFF, at);
    return r;
}

/* [H3] Up to `at` the bytes come by the ring; 0: they have, else why they do not. */
static u32 ring_ends_before(struct sock *s, u64 at)
{
    if ((i64)(at - load_rlx(&s->e.rx->head)) > (i64)s->e.bytes)
        return SD_REASON_hostile;
    for (u64 until = sd_now_ns() + SETTLE_NS; (i64)(load_acq(&s->e.rx->tail) - at) < 0;) {
        if (load_acq(&s->seg->lost) || sd_now_ns() >= until)
            return SD_REASON_link_lost;
        sd_far_nudge(s);
        sd_far_nap();
    }
    return 0;
}

static u64 freeze(struct sock *s)
{
    atomic_exchange(&s->seg->frozen, 1); /* [H4] */
    for (u64 until = sd_now_ns() + RINGING_NS; load_acq(&s->seg->moving) && sd_now_ns() < until;)
        sd_far_nap();
    return load_acq(&s->e.rx->tail);
}

/* The mark stays where it is: sd_rx_back() throws it away with the bytes that we have. 0, or why the connection is of no use any more. */
static u32 heed(struct sock *s, int fd, u64 at)
{
    u64 head = load_rlx(&s->e.rx->head), tail, have;
    bool recall = load_rlx(&s->b->rx_mode) == SD_MODE_RETIRE && (i64)(head - at) >= 0;
    u32 why = recall ? 0 : ring_ends_before(s, at);
    i64 pos;

    if (why)
        return why;
    tail = freeze(s);
    if (recall) { /* [S5] what is unread comes by TCP, for somebody else to read */
        tail = head;
        store_rel(&s->e.rx->tail, tail);
    }
    have = tail - at;
    pos = sd_rx_pos(s, fd);
    if (have > s->e.bytes)
        return SD_REASON_hostile;
    if (pos < 0)
        return SD_REASON_position;
    if (alone(s))
        cas_u32(&s->e.tx->go_back, 0, SD_GO_BACK_CALL); /* our direction follows, of which no supervisor hears */
    store_rlx(&s->e.rx->sw_back_at, tail);
    store_rel(&s->e.rx->sw_back, (u64)pos + sizeof(struct sd_mark) + have + 1); /* [S2] */
    return 0;
}

static bool same(const u8 *a, const u8 *b, u64 n)
{
    for (u64 i = 0; i < n; i++)
        if (a[i] != b[i])
            return false;
    return true;
}

static bool is_over(int fd)
{
    struct pollfd p = {fd, POLLRDHUP, 0};
    struct timespec64 zero = {0, 0};

    return SYS5(__NR_ppoll, &p, 1, &zero, 0, 8) > 0;
}

static bool is_mark(const struct sock *s, u64 magic, const u8 *seen, u64 n)
{
    struct sd_mark wanted;

    mark_of(s, 0, &wanted);
    wanted.magic = magic;
    return same(seen, (u8 *)&wanted, min_u64(n, offsetof(struct sd_mark, at)));
}

bool sd_far_greeted(struct sock *s, int fd)
{
    u8 seen[sizeof(struct sd_mark)];
    long r = look_ahead(s, fd, seen, sizeof seen);
    bool ours = r > 0 && (is_mark(s, SD_GREET_MAGIC, seen, (u64)r) || is_mark(s, SD_MARK_MAGIC, seen, (u64)r));

    if (r == -EAGAIN || r == -EINTR)
        return false;
    if (ours && r < (long)sizeof seen && !is_over(fd)) {
        sd_far_nap(); /* the rest comes */
        return false;
    }
    if (r > 0 && (!ours || r < (long)sizeof seen))
        sd_drop(s, fd); /* of another connection, or no honest peer */
    else if (r < 0)
        sd_latch_end(s, fd, (u32)-r); /* the kernel says it once */
    return true; /* without a byte it was over before anybody could greet */
}

static void look_at_mark(struct sock *s, int fd, const u8 *seen, u64 n)
{
    struct sd_mark m;
    u32 why;

    if (!is_mark(s, SD_MARK_MAGIC, seen, n) || (n < sizeof m && is_over(fd))) {
        sd_drop(s, fd); /* no honest peer */
    } else if (n < sizeof m) {
        sd_far_nap(); /* the rest comes */
    } else {
        sd_copy((u8 *)&m, seen, sizeof m);
        if ((why = heed(s, fd, m.at)))
            sd_break(s, fd, why);
    }
}

/* How many bytes of these the first doorbell has, 0: it is none. A greeting is as good as one. */
static u64 first_bell(const struct sock *s, const u8 *seen, u64 n)
{
    if (n && !seen[0])
        return 1;
    return n >= sizeof(struct sd_mark) && is_mark(s, SD_GREET_MAGIC, seen, n) ? sizeof(struct sd_mark) : 0;
}

u64 sd_far_doubled(struct sock *s, int fd)
{
    u8 seen[sizeof(struct sd_mark) + 1];
    long r = look_ahead(s, fd, seen, sizeof seen);
    u64 size = r > 0 ? first_bell(s, seen, (u64)r) : 0;

    return size && (u64)r > size && !seen[size] && !sd_back_published(&s->e) ? size : 0;
}

long sd_far_look(struct sock *s, int fd, struct sd_hold *h, u32 claimed, bool due)
{
    u8 seen[2 * sizeof(struct sd_mark)];
    long r = look_ahead(s, fd, seen, sizeof seen);
    bool more = false;
    u64 size;

    if (r <= 0 || sd_back_published(&s->e))
        return r > 0 ? SD_FAR_BYTES : r;
    size = first_bell(s, seen, (u64)r);
    if (!size) {
        look_at_mark(s, fd, seen, (u64)r);
        return SD_FAR_BYTES;
    }
    if (!due && sd_bell_due(&s->e))
        return SD_FAR_BYTES;
    for (; !claimed && size < (u64)r && !seen[size]; size++)
        more = true; /* [B3], or two monitors, one after the other, have rung for the same */
    if (sd_revocable(h, __NR_recvmsg, fd, seen, size, MSG_DONTWAIT) != (long)size)
        return SD_FAR_BYTES;
    if (more)
        sd_bell_eaten(&s->e);
    if (claimed)
        sd_bell_ate(&s->e, claimed);
    else
        sd_bell_eaten(&s->e);
    return SD_FAR_BELL;
}

bool sd_far_skip(struct sock *s, int fd, u64 left, struct sd_hold *h)
{
    if (left > s->e.bytes + 2 * sizeof(struct sd_mark)) {
        sd_drop(s, fd);
        return false;
    }
    while (left) { /* TCP copies nothing with MSG_TRUNC */
        long r = sd_revocable(h, __NR_recvmsg, fd, s->e.rx_ring, min_u64(left, s->e.bytes), MSG_DONTWAIT | MSG_TRUNC);
        if (r <= 0)
            return false;
        left -= (u64)r;
    }
    return true;
}

/* Received counts a FIN as one. Of a connection that was reset nobody knows whether there was one. */
i64 sd_far_closed_pos(u64 received, i32 unread, int fd)
{
    if (sd_has_error(fd))
        return SD_POS_LOST;
    return (i64)received - 1 - unread;
}

bool sd_far_await(struct sock *s, int fd, u32 mode)
{
    struct sd_hold h;
    long r;

    sd_take(s, SD_DIR_RX, SD_MARK_EAT, &h);
    r = load_rlx(&s->b->rx_mode) != mode ? SD_FAR_BYTES : sd_far_look(s, fd, &h, 0, true);
    sd_leave(&h);
    if (r < 0 && r != -EAGAIN && r != -EINTR)
        sd_latch_end(s, fd, (u32)-r); /* the kernel says it once */
    if (sd_back_published(&s->e) && !sd_back_reached(&s->e)) /* the peer has gone back by itself: what is in the ring stays there */
        cas_u32(&s->b->rx_mode, SD_MODE_RETIRE, SD_MODE_RING);
    return r > 0;
}

/* ----------------------------------------------------------------- a program that hears nothing more */

/* TCP answers what comes then with a reset, of which both programs are told: the other one by its next send. Of what comes by TCP the kernel does so. (Its sender
 * has gone back without a mark: nobody_reads().) */
void sd_far_deafen(const struct sock *s)
{
    if (load_acq(&s->seg->deaf))
        return;
    store_rlx(&s->seg->deaf_at, load_acq(&s->e.rx->tail));
    store_rel(&s->seg->deaf, 1);
}

static u32 heard_since(struct sock *s, int fd)
{
    u64 at = load_rlx(&s->seg->deaf_at), head = load_rlx(&s->e.rx->head);
    u16 unspec[8] = {0};

    if (load_rlx(&s->b->rx_mode) == SD_MODE_RING && (i64)(load_acq(&s->e.rx->tail) - at) > 0) {
        freeze(s);
        s->e.rx_tail_seen = head;
        store_rel(&s->e.rx->tail, (i64)(head - at) > 0 ? head : at); /* which nobody reads */
        SYS3(__NR_connect, fd, unspec, sizeof unspec);
    } else if (!sd_has_error(fd)) {
        return 0;
    }
    return sd_get_int(fd, SOL_SOCKET, SO_ERROR);
}

/* The program has shut its reading side. Both: what comes is an error. That alone: the other end may have gone back to TCP, where it is read as ever. */
void sd_far_overhear(struct sock *s, int fd)
{
    struct sd_hold h;
    u32 err = 0;
    long r = 0;

    if ((load_rlx(&s->b->latched) & (LATCH_FIN | POLLERR)) == (LATCH_FIN | POLLERR))
        return;
    sd_take(s, SD_DIR_RX, SD_MARK_EAT, &h);
    if (load_acq(&s->seg->deaf))
        err = heard_since(s, fd);
    else if (load_rlx(&s->b->rx_mode) == SD_MODE_RING)
        r = sd_far_look(s, fd, &h, 0, true);
    sd_leave(&h);
    if (r < 0 && r != -EAGAIN && r != -EINTR)
        sd_latch_end(s, fd, (u32)-r);
    if (!err)
        return;
    store_rel(&s->b->rx_err, err);
    atomic_fetch_or(&s->b->latched, LATCH_FIN | POLLRDHUP | POLLERR | POLLHUP);
}
