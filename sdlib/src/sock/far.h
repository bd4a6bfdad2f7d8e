/* SPDX-License-Identifier: Apache-2.0
 *
 * far.h - connections whose other end is on another host.
 *
 * Each host has its own copy of the segment, and its monitor is the other party in it: it carries our bytes to the other copy and brings theirs, late.
 * The TCP connection goes its own way between the hosts meanwhile. Where one host's memory keeps the two in order, three things have to be asked for:
 *
 *   [H1] end:   a FIN or reset can be here before bytes that were written before it. Who hears of it says so in settle_ask and waits until the
 *        monitor has asked the other host what had been written and read, which is final by then, and has put it here: settled. Is that host
 *        out of reach for good (`lost`), bytes may be missing, so the end is a reset whatever the kernel said.
 *   [H2] bells: the library rings none on TCP. It nudges its monitor, if that sleeps (armed, as any reader): by a futex where the monitor's loop says
 *        that it sleeps on the bell word (`direct`), else by the supervisor. Doorbells for a sleeper over there are sent by the monitor here or, for it, by
 *        the supervisor, on a duplicate of our socket that lives for microseconds. Each says `ringing`, by a locked instruction, before it looks for
 *        SD_HINT_LEAVING; who goes back says LEAVING before it looks at `ringing`. So no byte follows the position that the way back publishes but the
 *        program's. Those that stay for others ([B2] [B3] of ring/bell.h) are as on one host: two may be unread.
 *   [H3] the way back: the program's TCP bytes may be there before anything that the monitors say. So it begins in the TCP stream itself, with a
 *        mark (struct sd_mark): behind it come the program's bytes from a counter of the ring on. Doorbells are zeros, a mark begins with
 *        another byte, and nothing else comes behind the switch: no byte has to be announced. The counter may lie before our tail; then what we
 *        have already is thrown away. Only who is `heard` to know of our switch understands a mark.
 *        A direction's first doorbell, which every first byte in a ring asks for, is a greeting: a mark of another kind. Nobody reads a ring before
 *        greeting or mark have shown that its TCP stream, at this very position, comes from the other end of the ring.
 *   [H4] a link that does not come back: the bytes in our ring go by TCP, too. The supervisor takes them there, as its consumer (`pumped`,
 *        sdtrace/pump.py), behind a mark at our head: what the other end had of them, it drops. We go on in the ring until it is empty at one of our sends.
 *        Who reads a mark freezes its ring. Neither `frozen` nor `pumped` may come between the monitor's look at them and its store: it says
 *        `moving` before it looks, by a locked instruction, as we say ours before we look at that.
 */
#ifndef SD_FAR_H
#define SD_FAR_H

#include "sock/sock.h"

static inline bool sd_is_far(const struct sock *s) { return unlikely(s->b->far); }

/* [H4] The supervisor has still bytes to take from the ring, so TCP is not ours yet. */
static inline bool sd_far_busy(const struct sock *s)
{
    u32 pumped = likely(!sd_is_far(s)) ? 0 : load_acq(&s->seg->pumped);

    return pumped == SD_PUMPED_MARK || (pumped == SD_PUMPED_BYTES && load_rlx(&s->e.tx->tail) != load_acq(&s->e.tx->head));
}

/* Nobody uses the other end of these rings any more (again.c). A peer that says so and goes on has but its own connection to lose. */
static inline bool sd_forsaken(const struct sock *s)
{
    return sd_is_far(s) ? load_acq(&s->seg->lost) != 0 : unlikely(load_acq(&s->e.rx->prod_hint) & SD_HINT_GIVEN) != 0;
}

/* Sending goes on by TCP: the peer asks for it or sends nothing any more. */
static inline bool sd_must_go_back(const struct sock *s)
{
    return unlikely(sd_tx_over(s) || sd_back_asked(&s->e)) && !sd_far_busy(s);
}

/* The same, and where nobody reads what is sent. In this order: to ask for the peer may be a byte by TCP, and what follows such a byte is refused as the second send to a
 * dead peer. */
static inline bool sd_must_leave(struct sock *s, int fd)
{
    return sd_must_go_back(s) || (sd_peer_left(s, fd) && !sd_far_busy(s));
}

static inline void sd_tx_leave(struct sock *s, int fd)
{
    sd_tx_back(s, fd, sd_back_asked(&s->e) ? SD_REASON_call : SD_REASON_peer_fin);
}

/* sd_far_look(), beside the kernel's answer to a peek: the end or an error. */
#define SD_FAR_BELL 1 /* eaten */
#define SD_FAR_BYTES 2

void sd_far_nudge(struct sock *s);
bool sd_far_greeted(struct sock *s, int fd); /* our position is the switch: whether the ring is the one of this connection */
bool sd_far_settle(struct sock *s); /* false: what is missing never comes, */
u32 sd_far_why(const struct sock *s); /* for this reason */
void sd_far_nap(void);
/* Looks for the other end's mark; RETIRE ([S5]): while nobody reads the ring. False: there is nothing at all. */
bool sd_far_await(struct sock *s, int fd, u32 mode);
void sd_far_leave(struct sock *s, u32 why); /* both directions, soon: their bytes in the rings are the supervisors' ([H4]) */
void sd_far_deafen(const struct sock *s);                                   /* the program has shut both directions */
void sd_far_overhear(struct sock *s, int fd);                         /* its reading side: what the kernel hides behind that end */
bool sd_far_shut(struct sock *s);                                     /* true: the supervisor shuts our direction, behind what it takes there */
/* Inside. Our direction's way to TCP; the ring is written no more. False: it cannot be told where the bytes go on. */
bool sd_far_back(struct sock *s, int fd, struct sd_hold *h);
/* Inside. `claimed`: what sd_bell_claim() has said, 0: there is no company. `due`: the bell word was asked whether there is a doorbell, and whether it is to stay for
 * others ([B2] of ring/bell.h): one that has come since then is none to eat. */
long sd_far_look(struct sock *s, int fd, struct sd_hold *h, u32 claimed, bool due);
u64 sd_far_doubled(struct sock *s, int fd); /* inside: two doorbells stand there, and the first one has so many bytes; 0: not two */
bool sd_far_skip(struct sock *s, int fd, u64 left, struct sd_hold *h);/* inside: throws TCP bytes away; false: not all are there yet */
i64 sd_far_closed_pos(u64 received, i32 unread, int fd);              /* sd_rx_pos() of a connection that is closed */

#endif
