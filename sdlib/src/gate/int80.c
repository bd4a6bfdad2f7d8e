/* SPDX-License-Identifier: Apache-2.0
 *
 * int80.c - what a call by int $0x80 means, which a 64-bit program makes with the numbers and structures of i386.
 *
 * It is never patched: whoever does that today does it once. Most such calls are none of our business, and go to the kernel as they are. Those that make
 * sockets or processes, wait, or use a descriptor which may be one of ours are made as the 64-bit call that means the same, with arguments translated
 * where i386 lays them out otherwise (int80_*.c). What is left gets ENOSYS, as on a kernel that has no such calls: TLS for a thread, which would be a
 * segment. In trees that deny something the filter refuses the calls that make connections, as long as we are not there (sdtrace/syscalls.py).
 */
#include "gate/int80.h"
#include "gate/calls.h"
#include "sock/sock.h"

#define AS_IT_IS 0xfffeu
#define RETURNS 0xffffu
#define SOCKETCALL 102u
#define IOV_MAX 1024u
#define CHUNK 65536u
#define PR_SET_SECCOMP 22

/* Numbers of i386, from arch/x86/entry/syscalls/syscall_32.tbl. */
static const struct {
    u16 nr, as;
} calls[] = {
    {3, __NR_read}, {4, __NR_write}, {6, __NR_close}, {41, __NR_dup}, {63, __NR_dup2}, {330, __NR_dup3}, {168, __NR_poll}, {373, __NR_shutdown},
    {254, __NR_epoll_create}, {329, __NR_epoll_create1}, {255, __NR_epoll_ctl}, {256, __NR_epoll_wait}, {319, __NR_epoll_pwait},
    {441, __NR_epoll_pwait2}, {309, __NR_ppoll}, {414, __NR_ppoll}, {436, __NR_close_range}, {252, __NR_exit_group}, {438, __NR_pidfd_getfd},
    {82, __NR_select}, {142, __NR_select}, {308, __NR_pselect6}, {413, __NR_pselect6},
    {359, __NR_socket}, {360, __NR_socketpair}, {361, __NR_bind}, {362, __NR_connect}, {363, __NR_listen}, {364, __NR_accept4},
    {369, __NR_sendto}, {371, __NR_recvfrom}, {370, __NR_sendmsg}, {372, __NR_recvmsg}, {345, __NR_sendmmsg}, {337, __NR_recvmmsg}, {417, __NR_recvmmsg},
    {2, __NR_fork}, {190, __NR_vfork}, {120, __NR_clone}, {435, __NR_clone3}, {11, __NR_execve}, {358, __NR_execveat},
    {48, __NR_rt_sigaction}, {67, __NR_rt_sigaction}, {174, __NR_rt_sigaction}, {126, __NR_rt_sigprocmask}, {175, __NR_rt_sigprocmask},
    {72, __NR_rt_sigsuspend}, {179, __NR_rt_sigsuspend}, {186, __NR_sigaltstack}, {172, __NR_prctl}, {354, __NR_seccomp},
    {425, __NR_io_uring_setup}, {426, __NR_io_uring_enter}, {427, __NR_io_uring_register},
    {119, RETURNS}, {173, RETURNS}, /* sigreturn, rt_sigreturn */
};

/* Also with a descriptor in front, and none of our business unless that is ours. */
static const struct {
    u16 nr, as;
} on_ours[] = {
    {54, __NR_ioctl}, {55, __NR_fcntl}, {221, __NR_fcntl}, {145, __NR_readv}, {146, __NR_writev}, {378, __NR_preadv2}, {379, __NR_pwritev2},
    {187, __NR_sendfile}, {239, __NR_sendfile}, {313, __NR_splice}, {315, __NR_tee}, {365, __NR_getsockopt}, {366, __NR_setsockopt},
};

/* socketcall: what its first argument means, and how many arguments that has. */
static const struct {
    u16 as;
    u8 n;
} sockets[] = {
    [1] = {__NR_socket, 3}, {__NR_bind, 3}, {__NR_connect, 3}, {__NR_listen, 2}, {__NR_accept, 3}, {__NR_getsockname, 3}, {__NR_getpeername, 3},
    {__NR_socketpair, 4}, {__NR_sendto, 4}, {__NR_recvfrom, 4}, {__NR_sendto, 6}, {__NR_recvfrom, 6}, {__NR_shutdown, 2}, {__NR_setsockopt, 5},
    {__NR_getsockopt, 5}, {__NR_sendmsg, 3}, {__NR_recvmsg, 3}, {__NR_accept4, 4}, {__NR_recvmmsg, 5}, {__NR_sendmmsg, 4},
};

/* ----------------------------------------------------------------- memory */

struct sd_room {
    struct sd_room *next;
    u64 bytes;
};

void *sd_int80_room(struct sd_int80 *c, u64 bytes)
{
    void *p;

    bytes = (bytes + 15) & ~15ull;
    if (bytes > c->left) {
        u64 want = bytes + sizeof(struct sd_room) < CHUNK ? CHUNK : bytes + sizeof(struct sd_room);
        long at = SYS6(__NR_mmap, 0, want, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
        if (at < 0 && at > -4096)
            return NULL;
        *(struct sd_room *)at = (struct sd_room){c->rooms, want};
        c->rooms = (struct sd_room *)at;
        c->at = (u8 *)(c->rooms + 1);
        c->left = want - sizeof(struct sd_room);
    }
    p = c->at;
    c->at += bytes;
    c->left -= bytes;
    return p;
}

/* Arguments or environment of a new program. */
static long strings(struct sd_int80 *c, u64 *list)
{
    u64 from = *list, n = 0, *to;
    u32 one;

    if (!from)
        return 0;
    do {
        if (sd_get32(&one, from + 4 * n++, 4))
            return -EFAULT;
    } while (one);
    to = sd_int80_room(c, 8 * n);
    if (!to)
        return -ENOMEM;
    for (u64 i = 0; i < n; i++) {
        if (sd_get32(&one, from + 4 * i, 4))
            return -EFAULT;
        to[i] = one;
    }
    to[n - 1] = 0; /* another thread may have written there */
    *list = (u64)to;
    return 0;
}

/* ------------------------------------------------------------------ calls */

/* Commands whose argument is a number, or a pointer to one. Of the others we want to know nothing: they are the kernel's. */
static bool is_simple(u32 as, u32 command)
{
    if (as == __NR_ioctl)
        return command == FIONREAD || command == FIONBIO || command == TIOCOUTQ || command == FIOASYNC || command == SIOCATMARK ||
               command == SIOCOUTQNSD;
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
    if (sd_get32(arg, f->rsi, 4ull * sockets[which].n))
        return -EFAULT;
    f->rax = sockets[which].as;
    f->rdi = arg[0], f->rsi = arg[1], f->rdx = arg[2], f->r10 = arg[3], f->r8 = arg[4], f->r9 = arg[5];
    return 0;
}

static long pieces(struct sd_int80 *c)
{
    struct sd_frame *f = &c->f;
    struct iovec *v;
    long r;

    if (f->rdx > IOV_MAX)
        return -EINVAL;
    r = sd_int80_vectors(c, (u32)f->rsi, f->rdx, &v);
    f->rsi = (u64)v;
    if ((u32)f->rax == __NR_preadv2 || (u32)f->rax == __NR_pwritev2) { /* the place is one word */
        f->r10 |= f->r8 << 32;
        f->r8 = 0;
    }
    return r;
}

/* sendfile: a place of 32 bits. */
static long place(struct sd_int80 *c)
{
    u32 at;

    if (c->nr != 187 || !c->f.rdx)
        return 0;
    if (sd_get32(&at, c->f.rdx, sizeof at))
        return -EFAULT;
    c->user = c->f.rdx;
    c->pair[0] = at;
    c->f.rdx = (u64)c->pair;
    c->tell = SD_TELL_OFFSET;
    return 0;
}

/* These point to something that is larger with us. */
static long option(const struct sd_frame *f)
{
    bool time = f->rdx == SO_RCVTIMEO_OLD || f->rdx == SO_SNDTIMEO_OLD;

    return f->rsi == SOL_SOCKET && (time || f->rdx == SO_ATTACH_FILTER) ? SD_INT80_AS_IT_IS : 0;
}

/* The program's filter may kill for any call of ours, such as the return from this handler: so all is made ready for it, and then it is the program that
 * installs it. */
static long own_filter(struct sd_frame *f)
{
    bool dispatch = (u32)f->rax == __NR_prctl && (u32)f->rdi == PR_SET_SYSCALL_USER_DISPATCH;
    bool filter = (u32)f->rax == __NR_prctl ? (u32)f->rdi == PR_SET_SECCOMP : f->rdi <= 1;
    bool strict = (u32)f->rax == __NR_prctl ? f->rsi == 1 : f->rdi == 0;
    long r;

    if (dispatch)
        return -EINVAL;
    if (!filter)
        return SD_INT80_AS_IT_IS;
    r = (u32)f->rax == __NR_prctl ? sd_prctl(f, sd_self()) : sd_seccomp(f, sd_self());
    if (!strict)
        return SD_INT80_ANEW;
    f->rax = (u64)(r == SD_PASS ? -EINVAL : r); /* the kernel itself has none of it beside a filter */
    return SD_INT80_DONE;
}

static long child(struct sd_int80 *c)
{
    if ((u32)c->f.rax == __NR_fork || (u32)c->f.rax == __NR_vfork)
        c->f = (struct sd_frame){.rax = __NR_clone, .rdi = (u32)c->f.rax == __NR_vfork ? CLONE_VFORK | SIGCHLD : SIGCHLD};
    return sd_int80_clone(c);
}

static long translate(struct sd_int80 *c, struct ucontext *uc)
{
    struct sd_frame *f = &c->f;
    long r;

    switch (f->rax) {
    case __NR_ioctl: case __NR_fcntl:
        return is_simple((u32)f->rax, (u32)f->rsi) ? 0 : SD_INT80_AS_IT_IS;
    case __NR_getsockopt: case __NR_setsockopt:
        return option(f);
    case __NR_fork: case __NR_vfork: case __NR_clone: case __NR_clone3:
        return child(c);
    case __NR_readv: case __NR_writev: case __NR_preadv2: case __NR_pwritev2:
        return pieces(c);
    case __NR_sendfile:
        return place(c);
    case __NR_sendmsg: case __NR_recvmsg:
        return sd_int80_message(c, f->rax == __NR_sendmsg);
    case __NR_recvmmsg:
        r = sd_int80_messages(c, false);
        return r || c->nr == 417 ? r : sd_int80_time(c, &f->r8);
    case __NR_sendmmsg:
        return sd_int80_messages(c, true);
    case __NR_ppoll:
        return c->nr == 309 ? sd_int80_time(c, &f->rdx) : 0;
    case __NR_select: case __NR_pselect6:
        return sd_int80_select(c);
    case __NR_rt_sigaction: case __NR_sigaltstack:
        return sd_int80_signals(c, uc);
    case __NR_rt_sigprocmask: case __NR_rt_sigsuspend:
        return c->nr == 126 || c->nr == 72 ? sd_int80_signals(c, uc) : 0;
    case __NR_prctl: case __NR_seccomp:
        return own_filter(f);
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

long sd_int80_means(struct ucontext *uc, struct sd_int80 *c)
{
    const u64 *r = uc->reg;
    u32 nr = (u32)r[UC_RAX], as = meaning(nr, (u32)r[UC_RBX]);
    long error;

    c->nr = nr;
    c->tell = SD_TELL_NOTHING;
    c->user_ts = 0;
    c->niov = 0;
    c->handler = false;
    c->rooms = NULL;
    c->left = 0;
    if (as == AS_IT_IS && nr != SOCKETCALL)
        return SD_INT80_AS_IT_IS;
    if (as == RETURNS) {
        sd_int80_sigreturn(uc, nr);
        return SD_INT80_RETURNED;
    }
    c->f = (struct sd_frame){.rax = as, .rdi = (u32)r[UC_RBX], .rsi = (u32)r[UC_RCX], .rdx = (u32)r[UC_RDX], .r10 = (u32)r[UC_RSI],
                             .r8 = (u32)r[UC_RDI], .r9 = (u32)r[UC_RBP], .flags = r[UC_EFLAGS]};
    if (nr == SOCKETCALL && (error = of_socketcall(&c->f)))
        return error;
    error = translate(c, uc);
    if (error && error != SD_INT80_CHILD)
        sd_int80_over(c, -EINTR); /* of an error nothing is told */
    return error;
}

static long told(struct sd_int80 *c, long r)
{
    u32 word = (u32)c->pair[c->tell == SD_TELL_MASK];

    switch (c->tell) {
    case SD_TELL_TIME: case SD_TELL_SETS:
        return sd_int80_wait_told(c, r);
    case SD_TELL_MESSAGE:
        return sd_int80_message_told(c, r);
    case SD_TELL_MESSAGES:
        sd_int80_wait_told(c, -EINTR); /* the time alone */
        return sd_int80_messages_told(c, r);
    case SD_TELL_ACTION:
        return sd_int80_action_told(c, r);
    case SD_TELL_MASK: case SD_TELL_OFFSET:
        return r >= 0 && c->user && sd_put32(c->user, &word, sizeof word) ? -EFAULT : r;
    default:
        return r;
    }
}

long sd_int80_over(struct sd_int80 *c, long r)
{
    r = told(c, r);
    while (c->rooms) {
        struct sd_room *gone = c->rooms;
        c->rooms = gone->next;
        SYS2(__NR_munmap, gone, gone->bytes);
    }
    return r;
}
