/* SPDX-License-Identifier: Apache-2.0
 *
 * calls.h - the one table of calls that reach C code: X(number's name, class, handler). Everything else is a bare call.
 *   F  always; Q  only if the descriptor in the first argument is ours
 */
#define SD_CALLS(X) \
    X(read, Q, sd_read) X(write, Q, sd_write) X(readv, Q, sd_readv) X(writev, Q, sd_writev) \
    X(preadv2, Q, sd_preadv2) X(pwritev2, Q, sd_pwritev2) \
    X(recvfrom, Q, sd_recvfrom) X(sendto, Q, sd_sendto) X(recvmsg, F, sd_recvmsg) X(sendmsg, F, sd_sendmsg) \
    X(recvmmsg, F, sd_recvmmsg) X(sendmmsg, F, sd_sendmmsg) X(sendfile, F, sd_sendfile) X(splice, F, sd_splice) \
    X(socket, F, sd_socket) X(connect, F, sd_connect) X(accept, F, sd_accept) X(accept4, F, sd_accept4) \
    X(bind, F, sd_bind) X(listen, F, sd_listen) \
    X(close, Q, sd_close) X(close_range, F, sd_close_range) X(dup, Q, sd_dup) X(dup2, F, sd_dup2) X(dup3, F, sd_dup3) \
    X(pidfd_getfd, F, sd_pidfd_getfd) \
    X(fcntl, Q, sd_fcntl) X(ioctl, Q, sd_ioctl) X(shutdown, Q, sd_shutdown) \
    X(setsockopt, Q, sd_setsockopt) X(getsockopt, Q, sd_getsockopt) \
    X(poll, F, sd_poll) X(ppoll, F, sd_ppoll) X(select, F, sd_select) X(pselect6, F, sd_pselect6) \
    X(epoll_create, F, sd_epoll_create) X(epoll_create1, F, sd_epoll_create1) \
    X(epoll_ctl, F, sd_epoll_ctl) X(epoll_wait, Q, sd_epoll_wait) X(epoll_pwait, Q, sd_epoll_pwait) \
    X(epoll_pwait2, Q, sd_epoll_pwait2) \
    X(clone, F, sd_clone) X(clone3, F, sd_clone3) X(fork, F, sd_fork) X(vfork, F, sd_vfork) \
    X(exit, F, sd_exit) X(exit_group, F, sd_exit_group) X(execve, F, sd_execve) X(execveat, F, sd_execveat) \
    X(tkill, F, sd_tkill) X(tgkill, F, sd_tgkill) \
    X(rt_sigaction, F, sd_rt_sigaction) X(rt_sigprocmask, F, sd_rt_sigprocmask) X(rt_sigsuspend, F, sd_rt_sigsuspend) \
    X(sigaltstack, F, sd_sigaltstack) X(arch_prctl, F, sd_arch_prctl) X(unshare, F, sd_unshare) X(prctl, F, sd_prctl) X(seccomp, F, sd_seccomp)
