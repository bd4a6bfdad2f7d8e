/* SPDX-License-Identifier: Apache-2.0
 *
 * sockopt.c - setsockopt and getsockopt. The kernel has the values; where doorbells need others, the program is shown its own.
 */
#include "base/user.h"
#include "poll/poll.h"
#include "sock/far.h"
#include "sock/rx.h"
#include "sock/sock.h"

i32 sd_sockopt_int(int fd, int name)
{
    i32 v = -1;
    u32 len = 4;

    return SYS5(__NR_getsockopt, fd, SOL_SOCKET, name, &v, &len) < 0 ? -1 : v;
}

/* Whoever waits for room on the ring is woken, as the kernel wakes who waits in there. */
static void set_tx_limit(struct sock *s, int fd)
{
    u64 before = s->e.tx_bytes;

    sd_tx_limit(s, fd);
    if (s->e.tx_bytes <= before || !load_rlx(&s->e.tx->tx_armed)) /* [W2], with the limit in the place of head */
        return;
    if (s->regs)
        sd_ep_touched(s);
    if (g.mt)
        sd_rouse();
}

/* The options that we have changed for the doorbells' sake while tx is on the ring: the program keeps its own values. */
static u32 saved_bit(u32 level, u32 name)
{
    return level != SOL_TCP ? 0 : name == TCP_NODELAY ? 1 : name == TCP_CORK ? 2 : 0;
}

/* Doorbells are single bytes, so the kernel's low-water mark stays at 1; it says what the program's would be there. */
static long set_lowat(struct sock *s, const struct sd_frame *f)
{
    long r = SYS5(__NR_setsockopt, f->rdi, f->rsi, f->rdx, f->r10, f->r8);
    i32 one = 1;

    if (r == 0) {
        s->b->rcvlowat = (u32)sd_sockopt_int((int)f->rdi, SO_RCVLOWAT);
        SYS5(__NR_setsockopt, f->rdi, SOL_SOCKET, SO_RCVLOWAT, &one, 4);
        sd_fast_off(); /* knows nothing of it */
        sd_ep_touched(s);
    }
    return r;
}

/* Also TCP_CM_INQ. */
void sd_inq_set(struct sock *s, int fd)
{
    if (sd_get_int(fd, SOL_TCP, TCP_INQ))
        s->b->opt_saved |= SD_SAVED_INQ;
    else
        s->b->opt_saved &= ~SD_SAVED_INQ;
}

SD_CALL(sd_setsockopt)
{
    struct sock *s = sd_sock_enter(f->rdi);
    u32 level = (u32)f->rsi, name = (u32)f->rdx, bit = saved_bit(level, name);
    long r = SD_PASS;

    (void)t;
    if (!s)
        return SD_PASS;
    if (level == SOL_SOCKET)
        s->timed = 0; /* is asked for anew */
    if (bit && load_rlx(&s->b->tx_mode) == SD_MODE_RING && (i32)f->r8 >= 4 && !sd_bad_ptr((void *)f->r10)) {
        bool on = *(i32 *)f->r10;
        s->b->opt_saved = on ? s->b->opt_saved | bit : s->b->opt_saved & ~bit;
        if (bit == SD_SAVED_CORK)
            sd_tx_unplan(&s->e); /* the short way knows nothing of it */
        if (on == (bit == SD_SAVED_NODELAY))
            sd_uncork(s, (int)f->rdi); /* TCP_NODELAY pushes once, also what is corked */
        r = 0;
    } else if (sd_attached(s) && level == SOL_SOCKET && name == SO_RCVLOWAT && load_rlx(&s->b->rx_mode) != SD_MODE_BACK) {
        r = set_lowat(s, f);
    } else if (sd_attached(s) && ((level == SOL_SOCKET && (name == SO_SNDBUF || name == SO_SNDBUFFORCE)) ||
                                  (level == SOL_TCP && name == TCP_NOTSENT_LOWAT))) {
        r = SYS5(__NR_setsockopt, f->rdi, f->rsi, f->rdx, f->r10, f->r8);
        if (r == 0)
            set_tx_limit(s, (int)f->rdi);
    } else if (level == SOL_TCP && name == TCP_ULP) {
        r = SYS5(__NR_setsockopt, f->rdi, f->rsi, f->rdx, f->r10, f->r8);
        if (r == 0)
            sd_go_back(s, (int)f->rdi, SD_REASON_option); /* the kernel's TLS sees the kernel's bytes, once it has its keys */
    } else {
        r = SYS5(__NR_setsockopt, f->rdi, f->rsi, f->rdx, f->r10, f->r8);
        if (r == 0 && level == SOL_TCP && name == TCP_INQ)
            sd_inq_set(s, (int)f->rdi);
        else if (r == 0)
            sd_option_set(s, (int)f->rdi, level, name);
    }
    sd_sock_put(s);
    return r;
}

/* TCP_ZEROCOPY_RECEIVE: what the kernel says of bytes that it cannot map: none are mapped, so many are to be read in the ordinary way. */
static long map_nothing(struct sock *s, const struct sd_frame *f)
{
    struct { u64 address; u32 length, skip, inq; i32 err; } *z = (void *)f->r10;
    i32 *len = (i32 *)f->r8;
    i64 n = sd_rx_bytes(s, (int)f->rdi);

    if (n < 0 || sd_bad_ptr(len) || sd_bad_ptr(z) || *len < (i32)sizeof *z || (z->address & 4095))
        return SD_PASS;
    z->length = 0;
    z->skip = z->inq = (u32)n;
    z->err = 0;
    return 0;
}

static bool reads_ring(const struct sock *s) { return sd_attached(s) && load_rlx(&s->b->rx_mode) == SD_MODE_RING; }

/* SO_ERROR tells of an error once, be it the kernel's or one that we have taken from it, or kept for it. */
static i32 take_error(struct sock *s, int fd)
{
    i32 error = sd_sockopt_int(fd, SO_ERROR);

    if (error == 0 && s->b->role) { /* how a non-blocking connect learns that it is done */
        s->b->established = 1;
        if (g.cfg->upgrade == SD_UPGRADE_EAGER)
            sd_tick(s, fd);
    }
    if ((error == ECONNRESET || error == ETIMEDOUT) && reads_ring(s) && !(load_rlx(&s->b->latched) & LATCH_FIN) && !load_rlx(&s->b->rx_shut)) {
        sd_latch_end(s, fd, (u32)error); /* the kernel says it once */
        error = 0;
    }
    if (error == 0 && reads_ring(s)) {
        if (!(load_rlx(&s->b->latched) & LATCH_FIN) || sd_is_far(s))
            sd_look_at_kernel(s, fd);
        error = (i32)sd_kept_error(s); /* what we have taken from the kernel */
    } else if (error == 0 && load_rlx(&s->b->rx_err)) {
        error = (i32)sd_kept_error(s); /* recvmmsg has */
    }
    return error;
}

/* It is taken whatever the program has room for. */
static long get_error(struct sock *s, const struct sd_frame *f)
{
    i32 *len = (i32 *)f->r8, error, n;

    if (sd_bad_ptr(len) || *len < 0)
        return SD_PASS;
    n = (i32)min_u64((u64)*len, sizeof error);
    error = take_error(s, (int)f->rdi);
    if (error < 0)
        return SD_PASS; /* no descriptor any more */
    if (n && (sd_bad_ptr((void *)f->r10) || sd_copy_user((void *)f->r10, &error, (u64)n)))
        return -EFAULT;
    *len = n;
    return 0;
}

SD_CALL(sd_getsockopt)
{
    struct sock *s = sd_sock_enter(f->rdi);
    u32 level = (u32)f->rsi, name = (u32)f->rdx, bit = saved_bit(level, name);
    long r = SD_PASS;

    (void)t;
    if (!s)
        return SD_PASS;
    if (bit && load_rlx(&s->b->tx_mode) == SD_MODE_RING) {
        r = SYS5(__NR_getsockopt, f->rdi, f->rsi, f->rdx, f->r10, f->r8); /* lengths and pointers are the kernel's business */
        if (r == 0 && *(i32 *)f->r8 > 0) /* little-endian: the first byte, however many were asked for */
            *(u8 *)f->r10 = s->b->opt_saved & bit ? 1 : 0;
    } else if (s->b->rcvlowat && level == SOL_SOCKET && name == SO_RCVLOWAT && load_rlx(&s->b->rx_mode) != SD_MODE_BACK) {
        r = SYS5(__NR_getsockopt, f->rdi, f->rsi, f->rdx, f->r10, f->r8);
        if (r == 0 && *(i32 *)f->r8 >= 4)
            *(i32 *)f->r10 = (i32)s->b->rcvlowat;
    } else if (unlikely(level == SOL_TCP && name == TCP_ZEROCOPY_RECEIVE) && reads_ring(s)) {
        r = map_nothing(s, f);
    } else if (level == SOL_SOCKET && name == SO_ERROR) {
        r = get_error(s, f);
    }
    sd_sock_put(s);
    return r;
}
