/* SPDX-License-Identifier: Apache-2.0
 *
 * ioctl.c - requests about what is unread, unsent and urgent, and the two flags that fcntl sets, too.
 */
#include "poll/poll.h"
#include "ring/cork.h"
#include "sock/far.h"
#include "sock/rx.h"
#include "sock/sock.h"

/* The program's next byte comes by TCP. Another host says so there, behind its doorbells. */
static bool is_behind_ring(struct sock *s, int fd)
{
    s->kcheck |= sd_is_far(s);
    for (u32 i = 0; i < 2 && (s->kcheck & 1) && sd_is_far(s) && !sd_rx_news(&s->e, 0); i++)
        sd_look_at_kernel(s, fd);
    return sd_back_reached(&s->e);
}

/* The peer's kernel would have acknowledged what fits into its window, whether its program has read it or not. */
static u64 unacknowledged(struct sock *s, int fd)
{
    struct tcp_info_window w = {0};
    u64 unread = load_rlx(&s->e.tx->tail) - load_acq(&s->e.tx->head), held = sd_cork_held(s->e.tx, s->e.bytes);
    u32 len = sizeof w;

    if (unread > s->e.bytes || held > s->e.bytes)
        return 0;
    SYS5(__NR_getsockopt, fd, SOL_TCP, TCP_INFO, &w, &len);
    return (unread > w.snd_wnd ? unread - w.snd_wnd : 0) + held;
}

SD_CALL(sd_ioctl)
{
    struct sock *s = sd_sock_enter(f->rdi);
    u32 request = (u32)f->rsi;
    long r = SD_PASS;

    (void)t;
    if (!s)
        return SD_PASS;
    if (sd_bad_ptr((void *)f->rdx)) {
        /* the kernel knows which requests have a pointer there */
    } else if (request == FIOASYNC) {
        if (sd_is_far(s))
            sd_async_soon(s, (int)f->rdi, *(i32 *)f->rdx);
        r = SYS3(__NR_ioctl, f->rdi, f->rsi, f->rdx);
        if (r == 0)
            sd_async_set(s, (int)f->rdi, *(i32 *)f->rdx);
    } else if (request == FIONBIO) {
        r = SYS3(__NR_ioctl, f->rdi, f->rsi, f->rdx);
        if (r == 0)
            store_rlx(&s->b->nonblock, *(i32 *)f->rdx ? 1 : 0);
    } else if (request == FIONREAD && sd_attached(s)) {
        i64 n = sd_rx_bytes(s, (int)f->rdi);
        if (n >= 0) {
            *(i32 *)f->rdx = (i32)n;
            r = 0;
        }
    } else if (request == SIOCATMARK && sd_attached(s) && load_rlx(&s->b->rx_mode) == SD_MODE_RING) {
        if (is_behind_ring(s, (int)f->rdi)) {
            sd_rx_back(s, (int)f->rdi); /* the kernel's answer counts again */
        } else {
            *(i32 *)f->rdx = 0; /* urgent data is never in the ring */
            r = 0;
        }
    } else if (request == TIOCOUTQ && sd_attached(s) && load_rlx(&s->b->tx_mode) == SD_MODE_RING) {
        *(i32 *)f->rdx = (i32)unacknowledged(s, (int)f->rdi);
        r = 0;
    } else if (request == SIOCOUTQNSD && sd_attached(s) && load_rlx(&s->b->tx_mode) == SD_MODE_RING) {
        *(i32 *)f->rdx = (i32)min_u64(sd_cork_held(s->e.tx, s->e.bytes), s->e.bytes);
        r = 0;
    }
    sd_sock_put(s);
    return r;
}
