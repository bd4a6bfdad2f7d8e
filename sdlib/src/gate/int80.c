/* SPDX-License-Identifier: Apache-2.0
 *
 * int80.c - what a call by int $0x80 means, which a 64-bit program makes with the numbers and structures of i386.
 *
 * It is never patched: whoever does that today does it once. Most such calls are none of our business. Those that use a descriptor which may be one of
 * ours are made as the 64-bit call that means the same, where their arguments are laid out alike. What remains gets ENOSYS, as on a kernel that
 * has no such calls: those that make sockets or processes (in trees that deny something the filter says the same, sdtrace/syscalls.py), change handlers
 * and masks, or would have to be translated.
 */
#include "gate/gate.h"

#define REFUSED 0xffffu

/* Numbers of i386, from arch/x86/entry/syscalls/syscall_32.tbl. */
static const struct {
    u16 nr, as;
} calls[] = {
    {3, __NR_read}, {4, __NR_write}, {6, __NR_close}, {41, __NR_dup}, {63, __NR_dup2}, {330, __NR_dup3}, {168, __NR_poll}, {373, __NR_shutdown},
    {254, __NR_epoll_create}, {329, __NR_epoll_create1}, {255, __NR_epoll_ctl}, {256, __NR_epoll_wait}, {252, __NR_exit_group},
    {436, __NR_close_range},
    /* fork, vfork, clone, clone3, execve, execveat; restart_syscall, sigreturn, rt_sigreturn */
    {2, REFUSED}, {190, REFUSED}, {120, REFUSED}, {435, REFUSED}, {11, REFUSED}, {358, REFUSED}, {0, REFUSED}, {119, REFUSED}, {173, REFUSED},
    /* signal, sigaction, rt_sigaction, sigprocmask, rt_sigprocmask, sigsuspend, rt_sigsuspend, rt_sigtimedwait (both), sigaltstack */
    {48, REFUSED}, {67, REFUSED}, {174, REFUSED}, {126, REFUSED}, {175, REFUSED}, {72, REFUSED}, {179, REFUSED}, {177, REFUSED}, {421, REFUSED},
    {186, REFUSED},
    /* select, _newselect, pselect6, ppoll (both of each), epoll_pwait, epoll_pwait2; prctl, arch_prctl, seccomp; io_uring_* */
    {82, REFUSED}, {142, REFUSED}, {308, REFUSED}, {413, REFUSED}, {309, REFUSED}, {414, REFUSED}, {319, REFUSED}, {441, REFUSED}, {172, REFUSED},
    {384, REFUSED}, {354, REFUSED}, {425, REFUSED}, {426, REFUSED}, {427, REFUSED},
    /* socketcall, sendmmsg, recvmmsg (both), socket, socketpair, bind, connect, listen, accept4, sendto, sendmsg, recvfrom, recvmsg */
    {102, REFUSED}, {345, REFUSED}, {337, REFUSED}, {417, REFUSED}, {359, REFUSED}, {360, REFUSED}, {361, REFUSED}, {362, REFUSED}, {363, REFUSED},
    {364, REFUSED}, {369, REFUSED}, {370, REFUSED}, {371, REFUSED}, {372, REFUSED},
};

/* Also with a descriptor in front, and none of our business unless that is ours. */
static const struct {
    u16 nr, as;
} on_ours[] = {
    {54, __NR_ioctl}, {55, __NR_fcntl}, {221, __NR_fcntl},
    /* readv, writev, preadv, pwritev, preadv2, pwritev2, sendfile, sendfile64, splice, tee, vmsplice, getsockopt, setsockopt */
    {145, REFUSED}, {146, REFUSED}, {333, REFUSED}, {334, REFUSED}, {378, REFUSED}, {379, REFUSED}, {187, REFUSED}, {239, REFUSED},
    {313, REFUSED}, {315, REFUSED}, {316, REFUSED}, {365, REFUSED}, {366, REFUSED},
};

/* Commands whose argument is a number, or a pointer to one. */
static bool is_simple(u32 as, u32 command)
{
    if (as == __NR_ioctl)
        return command == FIONREAD || command == FIONBIO || command == TIOCOUTQ;
    return command <= F_SETFL || command == F_DUPFD_CLOEXEC;
}

static u32 meaning(u32 nr, u64 fd, u32 command)
{
    for (u32 i = 0; i < ARRAY_LEN(calls); i++)
        if (calls[i].nr == nr)
            return calls[i].as;
    if (!sd_sock_of(fd) && !sd_epoll_of(fd))
        return ~0u;
    for (u32 i = 0; i < ARRAY_LEN(on_ours); i++)
        if (on_ours[i].nr == nr)
            return on_ours[i].as != REFUSED && is_simple(on_ours[i].as, command) ? on_ours[i].as : REFUSED;
    return ~0u;
}

long sd_int80_means(const struct ucontext *uc, struct sd_frame *f)
{
    const u64 *r = uc->reg;
    u32 nr = (u32)r[UC_RAX], as = meaning(nr, (u32)r[UC_RBX], (u32)r[UC_RCX]);

    if (as == ~0u)
        return SD_INT80_AS_IT_IS;
    if (as == REFUSED)
        return -ENOSYS;
    *f = (struct sd_frame){.rax = as, .rdi = (u32)r[UC_RBX], .rsi = (u32)r[UC_RCX], .rdx = (u32)r[UC_RDX], .r10 = (u32)r[UC_RSI],
                           .r8 = (u32)r[UC_RDI], .r9 = (u32)r[UC_RBP], .flags = r[UC_EFLAGS]};
    return 0;
}
