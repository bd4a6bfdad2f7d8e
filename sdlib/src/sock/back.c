/* SPDX-License-Identifier: Apache-2.0
 *
 * back.c - what the rings cannot carry: the connection goes back to TCP, or is never moved.
 *
 * Our own direction goes back at once. The other one is the peer's: it is asked to (go_back), and does so before the next byte that it sends;
 * what is in the ring already is read from there. Nobody waits for that here (pass.c has to).
 */
#include "poll/poll.h"
#include "sock/far.h"
#include "sock/sock.h"

void sd_go_back(struct sock *s, int fd, u32 reason)
{
    u32 state = load_acq(&s->b->state);

    if (!sd_attached(s)) {
        if (state == SD_BLOCK_OFFERED || state == SD_BLOCK_PAIRED)
            sd_hypercall(SD_HC_WITHDRAW, sd_sock_name(s), 0);
        sd_reason(s, reason);
        return;
    }
    sd_back_ask(&s->e);
    if (sd_is_far(s))
        sd_far_nudge(s);
    if (load_rlx(&s->b->tx_mode) == SD_MODE_RING)
        sd_tx_back(s, fd, reason);
    if (!load_rlx(&s->b->reason)) {
        s->b->reason = (u16)reason;
        if (load_rlx(&s->b->tx_mode) == SD_MODE_TCP)
            g.proc->moved_back[reason]++; /* before it had begun to send on the ring */
    }
    sd_fast_off();
}

#define FAR_PATIENCE_MS 5000

/* The other end's mark, and all that it sends again of what we have: behind it come the program's bytes. */
static bool is_marked(struct sock *s, int fd)
{
    i64 pos = sd_back_published(&s->e) ? sd_rx_pos(s, fd) : 0;

    return sd_back_published(&s->e) && (pos < 0 || (u64)sd_unread(s, fd) >= sd_back_left(&s->e, (u64)pos));
}

/* SIGIO comes with the kernel's own bytes only. Another host hears late that it is to send those, so we wait for its mark, before the kernel has signals to
 * send. What is unread stays in the ring: edges would tell of it once more. */
void sd_async_soon(struct sock *s, int fd, bool on)
{
    if (!on || g.no_supervisor || !sd_attached(s) || !sd_is_far(s) || load_rlx(&s->b->rx_mode) != SD_MODE_RING || sd_back_published(&s->e))
        return;
    sd_far_leave(s, SD_REASON_option);
    for (u32 i = 0; i < FAR_PATIENCE_MS && !is_marked(s, fd) && !sd_ended(fd); i++) {
        sd_far_await(s, fd, SD_MODE_RING);
        sd_sleep_ns(1000000);
    }
}

void sd_async_set(struct sock *s, int fd, bool on)
{
    if (on)
        sd_go_back(s, fd, SD_REASON_option);
}
