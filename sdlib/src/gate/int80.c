/* SPDX-License-Identifier: Apache-2.0
 *
 * int80.c - what a call by int $0x80 means, which a 64-bit program makes with the numbers and structures of i386.
 *
 * It is never patched: whoever does that today does it once. Most such calls are none of our business, and go to the kernel as they are. Those that make
 * sockets or processes, wait, or use a descriptor which may be one of ours are made as the 64-bit call that means the same, with arguments translated
 * where i386 lays them out otherwise. What is left gets ENOSYS, as on a kernel that has no such calls, and is listed as REFUSED below: handlers, whose
 * frames would be those of 32-bit code; clone with shared memory; descriptors in control messages, and time-outs of 32 bits, where sockets of ours may be
 * concerned. In trees that deny something the filter refuses the calls that make connections, as long as we are not there (sdtrace/syscalls.py).
 */
#include "base/user.h"
#include "gate/gate.h"
#include "sock/sock.h"

#define AS_IT_IS 0xfffeu
#define REFUSED 0xffffu
#define SOCKETCALL 102u
#define IOV_MAX 1024u

/* Numbers of i386, from arch/x86/entry/syscalls/syscall_32.tbl. */
static const struct {
    u16 nr, as;
} calls[] = {
    {3, __NR_read}, {4, __NR_write}, {6, __NR_close}, {41, __NR_dup}, {63, __NR_dup2}, {330, __NR_dup3}, {168, __NR_poll}, {373, __NR_shutdown},
    {254, __NR_epoll_create}, {329, __NR_epoll_create1}, {255, __NR_epoll_ctl}, {256, __NR_epoll_wait}, {319, __NR_epoll_pwait},
    {441, __NR_epoll_pwait2}, {414, __NR_ppoll}, {436, __NR_close_range}, {252, __NR_exit_group}, {438, __NR_pidfd_getfd},
    {359, __NR_socket}, {360, __NR_socketpair}, {361, __NR_bind}, {362, __NR_connect}, {363, __NR_listen}, {364, __NR_accept4},
    {369, __NR_sendto}, {371, __NR_recvfrom}, {370, __NR_sendmsg}, {372, __NR_recvmsg},
    {2, __NR_fork}, {190, __NR_vfork}, {120, __NR_clone}, {11, __NR_execve}, {358, __NR_execveat},
    {175, __NR_rt_sigprocmask}, {179, __NR_rt_sigsuspend}, {425, __NR_io_uring_setup}, {426, __NR_io_uring_enter}, {427, __NR_io_uring_register},
    /* clone3; sigreturn, rt_sigreturn; signal, sigaction, rt_sigaction, sigprocmask, sigsuspend, rt_sigtimedwait (both), sigaltstack */
    {435, REFUSED}, {119, REFUSED}, {173, REFUSED}, {48, REFUSED}, {67, REFUSED}, {174, REFUSED}, {126, REFUSED}, {72, REFUSED}, {177, REFUSED},
    {421, REFUSED}, {186, REFUSED},
    /* select, _newselect, pselect6 (both), ppoll; prctl, seccomp; sendmmsg, recvmmsg (both) */
    {82, REFUSED}, {142, REFUSED}, {308, REFUSED}, {413, REFUSED}, {309, REFUSED}, {172, REFUSED}, {354, REFUSED}, {345, REFUSED}, {337, REFUSED},
    {417, REFUSED},
};

/* Also with a descriptor in front, and none of our business unless that is ours. */
static const struct {
    u16 nr, as;
} on_ours[] = {
    {54, __NR_ioctl}, {55, __NR_fcntl}, {221, __NR_fcntl}, {145, __NR_readv}, {146, __NR_writev}, {239, __NR_sendfile}, {313, __NR_splice},
    {315, __NR_tee}, {365, __NR_getsockopt}, {366, __NR_setsockopt},
    /* preadv, pwritev, preadv2, pwritev2, sendfile, vmsplice */
    {333, REFUSED}, {334, REFUSED}, {378, REFUSED}, {379, REFUSED}, {187, REFUSED}, {316, REFUSED},
};

/* socketcall: what its first argument means, and how many arguments that has. */
static const struct {
    u16 as;
    u8 n;
} sockets[] = {
    [1] = {__NR_socket, 3}, {__NR_bind, 3}, {__NR_connect, 3}, {__NR_listen, 2}, {__NR_accept, 3}, {__NR_getsockname, 3}, {__NR_getpeername, 3},
    {__NR_socketpair, 4}, {__NR_sendto, 4}, {__NR_recvfrom, 4}, {__NR_sendto, 6}, {__NR_recvfrom, 6}, {__NR_shutdown, 2}, {__NR_setsockopt, 5},
    {__NR_getsockopt, 5}, {__NR_sendmsg, 3}, {__NR_recvmsg, 3}, {__NR_accept4, 4}, {REFUSED, 5}, {REFUSED, 4},
};

/* ------------------------------------------------------------- structures */

struct iovec32 {
    u32 base, len;
};

struct msghdr32 {
    u32 name;
    i32 namelen;
    u32 iov, iovlen, control, controllen, flags;
};

static bool get32(void *to, u64 from, u64 n) { return !from || sd_copy_user(to, (const void *)from, n) != 0; }

/* Room for a list that is too long for what stands in *c. */
static void *room(struct sd_int80 *c, u64 bytes)
{
    long at = SYS6(__NR_mmap, 0, bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);

    if (at < 0 && at > -4096)
        return NULL;
    c->map[c->nmaps].at = (void *)at;
    c->map[c->nmaps++].bytes = bytes;
    return (void *)at;
}

static long vectors(struct sd_int80 *c, u32 from, u64 n, struct iovec **out)
{
    struct iovec32 v;

    *out = n <= ARRAY_LEN(c->iov) ? c->iov : room(c, n * sizeof **out);
    if (!*out)
        return -ENOMEM;
    for (u64 i = 0; i < n; i++) {
        if (get32(&v, from + i * sizeof v, sizeof v))
            return -EFAULT;
        if ((i32)v.len < 0)
            return -EINVAL;
        (*out)[i] = (struct iovec){(u8 *)(u64)v.base, v.len};
    }
    return 0;
}

static long message(struct sd_int80 *c)
{
    struct msghdr32 m;
    long r;

    if (get32(&m, c->f.rsi, sizeof m))
        return -EFAULT;
    if (m.iovlen > IOV_MAX)
        return -EMSGSIZE;
    if (m.control && m.controllen)
        return -ENOSYS;
    c->user = c->f.rsi;
    c->m = (struct msghdr){.name = (void *)(u64)m.name, .namelen = (u32)m.namelen, .iovlen = m.iovlen, .flags = m.flags};
    r = vectors(c, m.iov, m.iovlen, &c->m.iov);
    c->f.rsi = (u64)&c->m;
    return r;
}

/* Arguments or environment of a new program. */
static long strings(struct sd_int80 *c, u64 *list)
{
    u64 from = *list, n = 0, *to;
    u32 one;

    if (!from)
        return 0;
    do {
        if (get32(&one, from + 4 * n++, 4))
            return -EFAULT;
    } while (one);
    to = room(c, 8 * n);
    if (!to)
        return -ENOMEM;
    for (u64 i = 0; i < n; i++) {
        if (get32(&one, from + 4 * i, 4))
            return -EFAULT;
        to[i] = one;
    }
    to[n - 1] = 0; /* another thread may have written there */
    *list = (u64)to;
    return 0;
}

/* ------------------------------------------------------------------ calls */

/* Commands whose argument is a number, or a pointer to one. */
static bool is_simple(u32 as, u32 command)
{
    if (as == __NR_ioctl)
        return command == FIONREAD || command == FIONBIO || command == TIOCOUTQ;
    return command <= F_SETFL || command == F_DUPFD_CLOEXEC;
}

static u32 meaning(u32 nr, u64 fd)
{
    for (u32 i = 0; i < ARRAY_LEN(calls); i++)
        if (calls[i].nr == nr)
            return calls[i].as;
    if (!sd_sock_of(fd) && !sd_epoll_of(fd))
        return AS_IT_IS;
    for (u32 i = 0; i < ARRAY_LEN(on_ours); i++)
        if (on_ours[i].nr == nr)
            return on_ours[i].as;
    return AS_IT_IS;
}

/* Its arguments lie in memory. */
static long of_socketcall(struct sd_frame *f)
{
    u32 which = (u32)f->rdi, arg[6] = {0};

    if (!which || which >= ARRAY_LEN(sockets))
        return -EINVAL;
    if (get32(arg, f->rsi, 4ull * sockets[which].n))
        return -EFAULT;
    if (sockets[which].as == REFUSED)
        return -ENOSYS;
    f->rax = sockets[which].as;
    f->rdi = arg[0], f->rsi = arg[1], f->rdx = arg[2], f->r10 = arg[3], f->r8 = arg[4], f->r9 = arg[5];
    return 0;
}

static long translate(struct sd_int80 *c)
{
    struct sd_frame *f = &c->f;
    struct iovec *v;
    long r;

    switch (f->rax) {
    case __NR_ioctl: case __NR_fcntl:
        return is_simple((u32)f->rax, (u32)f->rsi) ? 0 : -ENOSYS;
    case __NR_getsockopt: case __NR_setsockopt: /* these point to something that is larger with us */
        if (f->rsi == SOL_SOCKET && (f->rdx == SO_RCVTIMEO_OLD || f->rdx == SO_SNDTIMEO_OLD))
            return SD_INT80_AS_IT_IS; /* the kernel keeps it */
        return f->rsi == SOL_SOCKET && f->rdx == SO_ATTACH_FILTER ? -ENOSYS : 0;
    case __NR_clone:
        if (f->rdi & (CLONE_VM | CLONE_THREAD | CLONE_SETTLS) || f->rsi)
            return -ENOSYS;
        f->r10 = f->r8; /* the child's number; between them i386 has the storage of threads */
        return 0;
    case __NR_readv: case __NR_writev:
        if (f->rdx > IOV_MAX)
            return -EINVAL;
        r = vectors(c, (u32)f->rsi, f->rdx, &v);
        f->rsi = (u64)v;
        return r;
    case __NR_sendmsg: case __NR_recvmsg:
        return message(c);
    case __NR_execve:
        r = strings(c, &f->rsi);
        return r ? r : strings(c, &f->rdx);
    case __NR_execveat:
        r = strings(c, &f->rdx);
        return r ? r : strings(c, &f->r10);
    default:
        return 0;
    }
}

long sd_int80_means(const struct ucontext *uc, struct sd_int80 *c)
{
    const u64 *r = uc->reg;
    u32 nr = (u32)r[UC_RAX], as = meaning(nr, (u32)r[UC_RBX]);
    long error;

    c->nmaps = 0;
    c->user = 0;
    if (as == AS_IT_IS && nr != SOCKETCALL)
        return SD_INT80_AS_IT_IS;
    if (as == REFUSED)
        return -ENOSYS;
    c->f = (struct sd_frame){.rax = as, .rdi = (u32)r[UC_RBX], .rsi = (u32)r[UC_RCX], .rdx = (u32)r[UC_RDX], .r10 = (u32)r[UC_RSI],
                             .r8 = (u32)r[UC_RDI], .r9 = (u32)r[UC_RBP], .flags = r[UC_EFLAGS]};
    if (nr == SOCKETCALL && (error = of_socketcall(&c->f)))
        return error;
    error = translate(c);
    if (error)
        sd_int80_over(c, error);
    return error;
}

long sd_int80_over(struct sd_int80 *c, long r)
{
    if (r >= 0 && c->f.rax == __NR_recvmsg && c->user) {
        struct msghdr32 *m = (void *)c->user;
        u32 none = 0;
        if (sd_copy_user(&m->namelen, &c->m.namelen, 4) || sd_copy_user(&m->flags, &c->m.flags, 4) || sd_copy_user(&m->controllen, &none, 4))
            r = -EFAULT;
    }
    while (c->nmaps--)
        SYS2(__NR_munmap, c->map[c->nmaps].at, c->map[c->nmaps].bytes);
    return r;
}
