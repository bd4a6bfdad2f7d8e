/* SPDX-License-Identifier: Apache-2.0
 *
 * traced.c - a call, with a record of what became of it (trace/trace.c).
 *
 * A call that its handler leaves to the kernel is made here, where its result and duration are known, unless it works only with the program's own
 * registers and stack. Calls that do not come back are told before they are made.
 */
#include "gate/gate.h"
#include "sock/sock.h"

#define SHUT_WR 1

enum { RX = 1, TX = 2, ENDS = 4, AT_SLOT = 8, VECTOR = 16 };

static u32 kind_of(u32 nr)
{
    switch (nr) {
    case __NR_read: case __NR_recvfrom:
        return RX;
    case __NR_readv: case __NR_preadv2: case __NR_recvmsg: case __NR_recvmmsg:
        return RX | VECTOR;
    case __NR_write: case __NR_writev: case __NR_pwritev2: case __NR_sendto: case __NR_sendmsg: case __NR_sendmmsg: case __NR_sendfile:
        return TX;
    case __NR_splice:
        return RX | TX | VECTOR;
    case __NR_exit: case __NR_exit_group: case __NR_execve: case __NR_execveat:
        return ENDS | AT_SLOT;
    case __NR_sigaltstack: case __NR_rt_sigprocmask: case __NR_prctl: case __NR_seccomp: case __NR_arch_prctl:
        return AT_SLOT;
    default:
        return 0;
    }
}

static u64 ring_bytes(const struct sock *s, u32 kind)
{
    const struct sd_block *b = s ? s->b : NULL;

    return b ? (kind & RX ? b->bytes_shm_rx : 0) + (kind & TX ? b->bytes_shm_tx : 0) : 0;
}

/* `moved`: bytes went through the ring. A call that moved none belongs to where its direction is now. */
static u32 path_of(const struct sock *s, u32 kind, u32 bits, bool moved, long answer)
{
    const struct sd_block *b = s ? s->b : NULL;
    u32 mode;

    if (!b || !(kind & (RX | TX)))
        return bits & SD_TRACE_KERNEL ? SD_TRACE_PATH_KERNEL : SD_TRACE_PATH_NONE;
    if (moved)
        return SD_TRACE_PATH_RING;
    mode = load_rlx(kind & RX ? &b->rx_mode : &b->tx_mode) & 0xff;
    if (mode == SD_MODE_BACK)
        return SD_TRACE_PATH_BACK;
    return answer <= 0 && (mode == SD_MODE_RING || mode == SD_MODE_RETIRE) ? SD_TRACE_PATH_RING : SD_TRACE_PATH_KERNEL;
}

/* The connection's end, as the program is told. */
static void see_end(struct sock *s, const struct sd_frame *f, u32 kind, long r)
{
    if ((u32)f->rax == __NR_shutdown && r == 0 && (u32)f->rsi >= SHUT_WR)
        sd_saw_end(s, SD_TRACE_END_SHUT);
    else if (kind == RX && r == 0 && f->rdx)
        sd_saw_end(s, SD_TRACE_END_FIN);
    else if ((kind & RX) && r == -ECONNRESET)
        sd_saw_end(s, SD_TRACE_END_RESET);
}

static struct sock *socket_of(const struct sd_frame *f)
{
    struct sock *s = sd_sock_of(f->rdi);

    return s || (u32)f->rax != __NR_splice ? s : sd_sock_of(f->rdx);
}

static bool takes_descriptor(u32 nr)
{
    switch (nr) {
    case __NR_poll: case __NR_ppoll: case __NR_select: case __NR_pselect6: case __NR_socket: case __NR_epoll_create: case __NR_epoll_create1:
    case __NR_clone: case __NR_clone3: case __NR_fork: case __NR_vfork: case __NR_exit: case __NR_exit_group: case __NR_execve:
    case __NR_rt_sigaction: case __NR_rt_sigprocmask: case __NR_rt_sigsuspend: case __NR_sigaltstack: case __NR_arch_prctl: case __NR_prctl:
    case __NR_seccomp:
        return false;
    default:
        return true;
    }
}

/* Told before it is made: afterwards there may be nobody to tell. */
static long call_and_go(struct sd_frame *f, struct sd_tcb *t, struct sd_trace_record *r)
{
    r->bits = SD_TRACE_NO_RESULT;
    if (g.trace & SD_TRACE_CALLS)
        sd_trace_call(t, r);
    if (r->nr != __NR_exit)
        return sd_call_handler(f, t);
    sd_trace_release(t); /* the handler gives the whole block away */
    return sd_call_handler(f, t);
}

void sd_trace_fault(const struct sd_frame *f, struct sd_tcb *t)
{
    struct sd_trace_record r = {.tsc = sd_tsc(), .result = -EFAULT, .arg = {f->rdi, f->rsi, f->rdx, f->r10}, .nr = (u16)f->rax};

    if (g.trace & SD_TRACE_CALLS)
        sd_trace_call(t, &r);
}

long sd_call_traced(struct sd_frame *f, struct sd_tcb *t)
{
    u32 nr = (u32)f->rax, kind = kind_of(nr), noted = t->noted;
    struct sd_trace_record r = {.tsc = sd_tsc(), .arg = {f->rdi, f->rsi, f->rdx, f->r10}, .nr = (u16)nr};
    struct sock *s = takes_descriptor(nr) ? socket_of(f) : NULL;

    if (s)
        r.sock = 1 + s->id;
    if (kind & ENDS)
        return call_and_go(f, t, &r);
    if (sd_tracing(SD_TRACE_BYTES) && s && !s->shown)
        sd_saw_open(s, s == sd_sock_of(f->rdi) ? (int)f->rdi : (int)f->rdx);
    u64 before = ring_bytes(s, kind);
    t->noted = 0;
    long answer = sd_call_handler(f, t);
    if (answer == SD_PASS && !(kind & AT_SLOT) && nr == (u16)nr && !g.boxed) {
        answer = SYS6(nr, f->rdi, f->rsi, f->rdx, f->r10, f->r8, f->r9);
        t->noted |= SD_TRACE_KERNEL;
    }
    r.ticks = sd_tsc() - r.tsc;
    if (sd_tracing(SD_TRACE_BYTES) && s)
        see_end(s, f, kind, answer);
    r.bits = (u8)t->noted;
    if (answer == SD_PASS || answer == SD_BARE)
        r.bits |= SD_TRACE_KERNEL | SD_TRACE_NO_RESULT;
    else
        r.result = answer;
    r.path = (u8)path_of(s, kind, r.bits, ring_bytes(s, kind) != before, r.result);
    if (sd_tracing(SD_TRACE_CALLS))
        sd_trace_call(t, &r);
    t->noted = noted;
    return answer;
}
