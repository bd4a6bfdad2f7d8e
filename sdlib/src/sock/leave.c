/* SPDX-License-Identifier: Apache-2.0
 *
 * leave.c - a program that locks itself up (seccomp) gets back what is its own.
 *
 * A filter may kill for every call that the program itself does not make: a membarrier before sleeping, a doorbell, even the return from a
 * trap. So before it is installed all connections go back to TCP, in both directions, as they do before somebody gets them who sees no ring (pass.c): what
 * is unread is sent again there, also if the peer was just about to switch. Afterwards each call of the program goes to the kernel as it is
 * (sd_boxed), but for bytes that a peer which has gone has left in a ring: they are handed out first, which takes no system call.
 *
 * Of a connection to another host the bytes stay in the ring, and a peer that does not answer within FAR_PATIENCE_MS goes back with its next send.
 */
#include "sock/far.h"
#include "sock/sock.h"

#define PATIENCE_MS 200
#define FAR_PATIENCE_MS 5000

static void nap(void) { sd_sleep_ns(1000000); }

/* Doorbells that stand before the program's next byte on TCP. */
static void eat_bells(struct sock *s, int fd)
{
    u8 bell;
    u64 left;
    i64 pos;

    for (u32 i = 0; i < PATIENCE_MS; i++) {
        pos = sd_rx_pos(s, fd);
        left = pos < 0 ? 0 : sd_back_left(&s->e, (u64)pos);
        if (!left)
            return;
        if (SYS6(__NR_recvfrom, fd, &bell, left, MSG_DONTWAIT | MSG_TRUNC, 0, 0) <= 0) /* TCP copies nothing with that */
            nap();
    }
}

static void leave(struct sock *s, int fd)
{
    u32 rx = load_rlx(&s->b->rx_mode);

    if (!sd_is_far(s)) {
        sd_off_the_ring(s, fd, SD_REASON_call);
        return;
    }
    store_rel(&s->e.rx->go_back, SD_GO_BACK_CALL);
    if (rx == SD_MODE_RING)
        sd_ring_bell(s, fd); /* a peer that sleeps hears of it */
    sd_far_leave(s, SD_REASON_call);
    sd_tx_back(s, fd, SD_REASON_call);
    for (u32 i = 0; i < FAR_PATIENCE_MS && load_rlx(&s->b->rx_mode) == SD_MODE_RING && !sd_back_published(&s->e); i++) {
        sd_look_at_kernel(s, fd);
        if (load_rlx(&s->b->latched) & LATCH_FIN)
            break;
        nap();
    }
    if (load_rlx(&s->b->rx_mode) == SD_MODE_RING && sd_back_published(&s->e))
        eat_bells(s, fd);
}

void sd_socks_leave(void)
{
    for (u32 fd = 0; fd < sd_fd_top(); fd++) {
        struct sock *s = sd_sock_of(fd);
        if (!s)
            continue;
        if (!sd_attached(s))
            sd_reason(s, SD_REASON_call);
        else if (load_rlx(&s->b->tx_mode) != SD_MODE_BACK || load_rlx(&s->b->rx_mode) == SD_MODE_RING)
            leave(s, (int)fd);
    }
}

/* Bytes in a ring that the program has not read; else the descriptor is the kernel's alone. */
static bool has_bytes(u64 fd)
{
    struct sock *s = sd_sock_of(fd);

    return s && sd_attached(s) && load_rlx(&s->b->rx_mode) == SD_MODE_RING && sd_rx_avail(&s->e) > 0;
}

/* poll and ppoll: with bytes in a ring the answer is known. */
static long boxed_poll(struct pollfd *p, u64 n)
{
    long ready = 0;

    for (u64 i = 0; i < n && p; i++)
        ready += p[i].fd >= 0 && (p[i].events & POLLIN) && has_bytes((u64)p[i].fd);
    if (!ready)
        return SD_PASS;
    for (u64 i = 0; i < n; i++)
        p[i].revents = p[i].fd >= 0 && has_bytes((u64)p[i].fd) ? (int16_t)(p[i].events & (POLLIN | POLLRDNORM)) : 0;
    return ready;
}

/* SD_PASS: the kernel, as it is. SD_ORDINARY: our own way, which makes no system call then. */
long sd_boxed(struct sd_frame *f)
{
    struct sock *s;

    switch ((u32)f->rax) {
    case __NR_read: case __NR_readv: case __NR_recvfrom: case __NR_recvmsg:
        if (has_bytes(f->rdi))
            return SD_ORDINARY;
        s = sd_sock_of(f->rdi);
        if (s && sd_attached(s) && load_rlx(&s->b->rx_mode) == SD_MODE_RING)
            cas_u32(&s->b->rx_mode, SD_MODE_RING, SD_MODE_BACK);
        return SD_PASS;
    case __NR_poll: case __NR_ppoll:
        return boxed_poll((struct pollfd *)f->rdi, (u32)f->rsi);
    case __NR_close:
        sd_fd_forget(f->rdi);
        return SD_PASS;
    case __NR_clone: case __NR_clone3: case __NR_fork: case __NR_vfork: case __NR_exit: case __NR_rt_sigaction: case __NR_rt_sigprocmask:
    case __NR_rt_sigsuspend: case __NR_sigaltstack: case __NR_arch_prctl: case __NR_prctl: case __NR_seccomp:
        return SD_ORDINARY;
    }
    return SD_PASS;
}
