/* SPDX-License-Identifier: Apache-2.0
 *
 * linux.h - the kernel's user ABI as far as we use it (x86-64), for code that has no libc headers to lean on.
 */
#ifndef SD_LINUX_H
#define SD_LINUX_H

#include <asm/unistd.h>
#include <linux/errno.h>
#include "base.h"

/* memory */
#define PROT_READ 1
#define PROT_WRITE 2
#define PROT_EXEC 4
#define MAP_SHARED 1
#define MAP_PRIVATE 2
#define MAP_FIXED 0x10
#define MAP_ANONYMOUS 0x20
#define MAP_32BIT 0x40
#define MAP_NORESERVE 0x4000
#define MAP_FIXED_NOREPLACE 0x100000

/* descriptors */
#define AT_FDCWD (-100)
#define O_RDONLY 0
#define O_NONBLOCK 04000
#define O_ASYNC 020000
#define O_CLOEXEC 02000000
#define F_DUPFD 0
#define F_GETFD 1
#define F_SETFD 2
#define F_GETFL 3
#define O_ACCMODE 3u
#define O_WRONLY 1u
#define F_SETFL 4
#define F_DUPFD_CLOEXEC 1030
#define F_GET_SEALS 1034
#define F_SEAL_SHRINK 2
#define F_SEAL_GROW 4
#define FD_CLOEXEC 1
#define FIONREAD 0x541b
#define FIONBIO 0x5421
#define FIOASYNC 0x5452
#define SIOCATMARK 0x8905
#define TIOCOUTQ 0x5411 /* SIOCOUTQ */
#define SIOCOUTQNSD 0x894B

/* sockets */
#define AF_INET 2
#define AF_INET6 10
#define SOCK_STREAM 1
#define SOCK_TYPE_MASK 0xf
#define SOCK_NONBLOCK O_NONBLOCK
#define SOCK_CLOEXEC O_CLOEXEC
#define SOL_SOCKET 1
#define SOL_TCP 6
#define SO_ERROR 4
#define SO_TYPE 3
#define SO_OOBINLINE 10
#define SO_LINGER 13
#define SO_SNDBUF 7
#define SO_RCVLOWAT 18
#define SO_ACCEPTCONN 30
#define SO_PROTOCOL 38
#define SO_DOMAIN 39
#define SO_PEEK_OFF 42
#define IPPROTO_TCP 6
#define SO_SNDBUFFORCE 32
#define SO_BUF_LOCK 72
#define SO_RCVTIMEO_OLD 20
#define SO_ATTACH_FILTER 26
#define SO_SNDTIMEO_OLD 21
#define SO_SNDTIMEO_NEW 67
#define SO_COOKIE 57
#define SD_FUTEX_WAKE 1 /* of memory that processes share */
#define TCP_NODELAY 1
#define TCP_MAXSEG 2
#define TCP_CORK 3
#define TCP_NOTSENT_LOWAT 25
#define TCP_INFO 11
#define TCP_ULP 31
#define TCP_INQ 36 /* and TCP_CM_INQ */
#define TCP_ZEROCOPY_RECEIVE 35
#define TCP_ZEROCOPY_RECEIVE 35
#define MSG_OOB 1
#define MSG_PEEK 2
#define MSG_DONTROUTE 4
#define MSG_CTRUNC 8
#define MSG_TRUNC 0x20
#define MSG_DONTWAIT 0x40
#define MSG_WAITALL 0x100
#define MSG_ERRQUEUE 0x2000
#define MSG_NOSIGNAL 0x4000
#define MSG_MORE 0x8000
#define MSG_WAITFORONE 0x10000
#define MSG_ZEROCOPY 0x4000000
#define MSG_CMSG_CLOEXEC 0x40000000
#define MSG_FASTOPEN 0x20000000
#define SHUT_RD 0
#define SHUT_WR 1
#define SHUT_RDWR 2

struct iovec {
    u8 *base;
    u64 len;
};

struct msghdr {
    void *name;
    i32 namelen;
    u32 pad0;
    struct iovec *iov;
    u64 iovlen;
    void *control;
    u64 controllen;
    u32 flags;
    u32 pad1;
};

struct mmsghdr {
    struct msghdr hdr;
    u32 len;
    u32 pad;
};

struct timespec64 {
    i64 sec;
    i64 nsec;
};

/* futexes */
#define FUTEX_WAIT 0
#define FUTEX_WAKE 1
#define FUTEX2_SIZE_U32 2
#define CLOCK_MONOTONIC 1
#ifndef __NR_futex_waitv
#define __NR_futex_waitv 449
#endif
struct futex_waitv {
    u64 val, uaddr;
    u32 flags, reserved;
};

/* struct tcp_info up to the counters we read (linux/tcp.h; the layout only ever grows). */
struct tcp_info_head {
    u8 state;
    u8 rest0[119];
    u64 bytes_acked;    /* offset 120 */
    u64 bytes_received; /* offset 128 */
};
_Static_assert(offsetof(struct tcp_info_head, bytes_acked) == 120, "linux/tcp.h: tcpi_bytes_acked");
struct tcp_info_window {
    struct tcp_info_head head;
    u8 rest1[92];
    u32 snd_wnd; /* offset 228 */
};
_Static_assert(offsetof(struct tcp_info_window, snd_wnd) == 228, "linux/tcp.h: tcpi_snd_wnd");
struct tcp_info_sent {
    struct tcp_info_head head;
    u8 rest2[8];
    u32 notsent;       /* offset 144 */
    u8 rest3[52];
    u64 bytes_sent;    /* offset 200: what was sent again included */
    u64 bytes_retrans; /* offset 208 */
};
_Static_assert(offsetof(struct tcp_info_sent, notsent) == 144 && offsetof(struct tcp_info_sent, bytes_sent) == 200, "linux/tcp.h");
enum tcp_state { TCP_ESTABLISHED = 1, TCP_SYN_SENT = 2, TCP_FIN_WAIT1 = 4, TCP_FIN_WAIT2 = 5, TCP_TIME_WAIT = 6, TCP_CLOSE = 7,
                 TCP_CLOSE_WAIT = 8, TCP_LAST_ACK = 9, TCP_LISTEN = 10, TCP_CLOSING = 11 };

/* readiness */
#define POLLIN 1
#define POLLPRI 2
#define POLLOUT 4
#define POLLERR 8
#define POLLHUP 0x10
#define POLLNVAL 0x20
#define POLLRDNORM 0x40
#define POLLRDBAND 0x80
#define POLLWRNORM 0x100
#define POLLWRBAND 0x200
#define POLLRDHUP 0x2000
#define EPOLL_CTL_ADD 1
#define EPOLL_CTL_DEL 2
#define EPOLL_CTL_MOD 3
#define ERESTARTSYS 512 /* a call of the kernel was interrupted; programs see it where it was kept as a socket's error */
#define EPOLLEXCLUSIVE (1u << 28)
#define EPOLLWAKEUP (1u << 29)
#define EPOLLONESHOT (1u << 30)
#define EPOLLET (1u << 31)

struct pollfd {
    i32 fd;
    int16_t events;
    int16_t revents;
};

struct __attribute__((packed)) epoll_event {
    u32 events;
    u64 data;
};

/* signals */
#define SIGQUIT 3
#define SIGILL 4
#define SIGTRAP 5
#define SIGABRT 6
#define SIGBUS 7
#define SIGFPE 8
#define SIGKILL 9
#define SIGSEGV 11
#define SIGPIPE 13
#define SIGCHLD 17
#define SIGSTOP 19
#define SIGXCPU 24
#define SIGXFSZ 25
#define SIGIO 29
#define SIGSYS 31
#define NSIG 64
#define SIGBIT(s) (1ull << ((s)-1))
#define SA_SIGINFO 4u
#define SA_RESTORER 0x04000000u
#define SA_ONSTACK 0x08000000u
#define SA_RESTART 0x10000000u
#define SA_NODEFER 0x40000000u
#define SIG_BLOCK 0
#define SIG_UNBLOCK 1
#define SIG_SETMASK 2

/* All of them, for this thread. Returns those that were blocked before, for sd_signals_restore(). */
static inline u64 sd_signals_block(void)
{
    u64 all = ~0ull, was = 0;

    SYS4(__NR_rt_sigprocmask, SIG_SETMASK, &all, &was, 8);
    return was;
}

static inline void sd_signals_restore(u64 was) { SYS4(__NR_rt_sigprocmask, SIG_SETMASK, &was, NULL, 8); }

#define SYS_USER_DISPATCH 2

struct ksigaction {
    u64 handler;
    u64 flags;
    u64 restorer;
    u64 mask;
};

struct stack_t_ {
    u64 sp;
    i32 flags;
    u32 pad;
    u64 size;
};

struct siginfo_sys {
    i32 signo, err, code, pad;
    u64 call_addr;
    i32 syscall;
    u32 arch;
};

enum { UC_R8, UC_R9, UC_R10, UC_R11, UC_R12, UC_R13, UC_R14, UC_R15, UC_RDI, UC_RSI, UC_RBP, UC_RBX, UC_RDX, UC_RAX,
       UC_RCX, UC_RSP, UC_RIP, UC_EFLAGS };
struct ucontext {
    u64 flags;
    u64 link;
    struct stack_t_ stack;
    u64 reg[23];
    u64 fpstate;
    u64 reserved[8];
    u64 sigmask;
};

/* processes */
#define CLONE_VM 0x100u
#define CLONE_FILES 0x400u
#define CLONE_VFORK 0x4000u
#define CLONE_SETTLS 0x80000u
#define CLONE_THREAD 0x10000u
#define PR_SET_SYSCALL_USER_DISPATCH 59
#define PR_SYS_DISPATCH_OFF 0
#define PR_SYS_DISPATCH_ON 1
#define PR_SET_NO_NEW_PRIVS 38
#define MEMBARRIER_CMD_GLOBAL_EXPEDITED 2
#define MEMBARRIER_CMD_REGISTER_GLOBAL_EXPEDITED 4
#define MEMBARRIER_CMD_PRIVATE_EXPEDITED 8
#define MEMBARRIER_CMD_REGISTER_PRIVATE_EXPEDITED 16
#define CLOCK_MONOTONIC 1

#endif
