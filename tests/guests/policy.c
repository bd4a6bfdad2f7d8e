/* SPDX-License-Identifier: Apache-2.0
 *
 * policy.c - tries to reach a port that a policy denies: policy WAY DENIED ALLOWED.
 *
 * Whether it got there is told by whoever listens at DENIED, not by us; natively each way gets there. Exit status 0: the way
 * was tried as meant; 1: it could not be, which says nothing about the policy; 3: this kernel or machine has no such way.
 */
#include "guest.h"

#if __has_include(<linux/io_uring.h>)
#include <linux/io_uring.h>
#define HAVE_IO_URING 1
#endif
#include <pthread.h>
#include <sched.h>
#include <stddef.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/un.h>

static struct sockaddr_in denied, allowed;
static volatile bool stop;

static long raw(long nr, long a, long b, long c, long d, long e, long f)
{
    register long r10 __asm__("r10") = d;
    register long r8 __asm__("r8") = e;
    register long r9 __asm__("r9") = f;
    long r;
    __asm__ volatile("syscall" : "=a"(r) : "a"(nr), "D"(a), "S"(b), "d"(c), "r"(r10), "r"(r8), "r"(r9) : "rcx", "r11", "memory");
    return r;
}

static int tcp(void)
{
    int fd = socket(AF_INET, SOCK_STREAM, 0);
    CHECK(fd >= 0);
    return fd;
}

static void way_connect(void)
{
    int fd = tcp();
    raw(SYS_connect, fd, (long)&denied, sizeof denied, 0, 0, 0);
    close(fd);
    fd = tcp();
    set_nonblock(fd, true);
    raw(SYS_connect, fd, (long)&denied, sizeof denied, 0, 0, 0);
    sleep_ms(20);
    close(fd);
}

/* The kernel copies the address again after whoever looks at it: another thread changes it all the time. */
static struct sockaddr_in shared;
static void *rewrite(void *arg)
{
    (void)arg;
    for (unsigned i = 0; !stop; i++)
        __atomic_store_n(&shared.sin_port, i & 64 ? denied.sin_port : allowed.sin_port, __ATOMIC_SEQ_CST);
    return NULL;
}

static void way_rewrite(void)
{
    pthread_t t;
    shared = allowed;
    CHECK(pthread_create(&t, NULL, rewrite, NULL) == 0);
    sleep_ms(10);
    for (int i = 0; i < 300; i++) {
        int fd = tcp();
        connect(fd, (struct sockaddr *)&shared, sizeof shared);
        close(fd);
    }
    stop = true;
    pthread_join(t, NULL);
}

/* The descriptor is of a unix socket when looked at, of an internet socket when the call is made. */
static int victim, inet_fd, unix_fd;
static void *exchange(void *arg)
{
    (void)arg;
    while (!stop) {
        dup2(inet_fd, victim);
        dup2(unix_fd, victim);
    }
    return NULL;
}

static void way_exchange(void)
{
    pthread_t t;
    unix_fd = socket(AF_UNIX, SOCK_STREAM, 0);
    inet_fd = tcp();
    victim = dup(unix_fd);
    CHECK(victim >= 0 && pthread_create(&t, NULL, exchange, NULL) == 0);
    for (int i = 0; i < 300; i++)
        connect(victim, (struct sockaddr *)&denied, sizeof denied);
    stop = true;
    pthread_join(t, NULL);
}

/* The same with the descriptors shared between processes, of one thread each. */
static int share_and_connect(void *arg)
{
    (void)arg;
    for (int i = 0; i < 3000; i++)
        connect(victim, (struct sockaddr *)&denied, sizeof denied);
    return 0;
}

static void way_share(void)
{
    static char stack[65536] __attribute__((aligned(16)));
    unix_fd = socket(AF_UNIX, SOCK_STREAM, 0);
    inet_fd = tcp();
    victim = dup(unix_fd);
    int child = clone(share_and_connect, stack + sizeof stack, CLONE_FILES | SIGCHLD, NULL);
    if (child < 0) {
        CHECK(errno == ENOSYS);
        return;
    }
    for (int i = 0; i < 30000 && waitpid(child, NULL, WNOHANG) == 0; i++) {
        dup2(inet_fd, victim);
        dup2(unix_fd, victim);
    }
    waitpid(child, NULL, 0);
}

static void fastopen_with(int fd, int how)
{
    struct iovec v = {(char *)"x", 1};
    struct mmsghdr m = {.msg_hdr = {.msg_name = &denied, .msg_namelen = sizeof denied, .msg_iov = &v, .msg_iovlen = 1}};
    if (how == 0)
        sendto(fd, "x", 1, MSG_FASTOPEN | MSG_NOSIGNAL, (struct sockaddr *)&denied, sizeof denied);
    else if (how == 1)
        sendmsg(fd, &m.msg_hdr, MSG_FASTOPEN | MSG_NOSIGNAL);
    else
        sendmmsg(fd, &m, 1, MSG_FASTOPEN | MSG_NOSIGNAL);
}

static void way_fastopen(void)
{
    for (int how = 0; how < 3; how++) {
        int fd = tcp();
        fastopen_with(fd, how);
        close(fd);
    }
}

static void way_mapped(void)
{
    struct sockaddr_in6 a = {.sin6_family = AF_INET6, .sin6_port = denied.sin_port};
    CHECK(inet_pton(AF_INET6, "::ffff:127.0.0.1", &a.sin6_addr) == 1);
    int fd = socket(AF_INET6, SOCK_STREAM, 0);
    CHECK(fd >= 0);
    connect(fd, (struct sockaddr *)&a, sizeof a);
    close(fd);
}

static void way_any(void)
{
    struct sockaddr_in a = denied;
    a.sin_addr.s_addr = INADDR_ANY;
    int fd = tcp();
    connect(fd, (struct sockaddr *)&a, sizeof a);
    close(fd);
    struct sockaddr_in6 b = {.sin6_family = AF_INET6, .sin6_port = denied.sin_port};
    CHECK(inet_pton(AF_INET6, "::ffff:0.0.0.0", &b.sin6_addr) == 1);
    fd = socket(AF_INET6, SOCK_STREAM, 0);
    connect(fd, (struct sockaddr *)&b, sizeof b);
    close(fd);
}

static void way_unspec(void)
{
    struct sockaddr none = {.sa_family = AF_UNSPEC};
    int fd = tcp();
    CHECK(connect(fd, (struct sockaddr *)&allowed, sizeof allowed) == 0);
    CHECK(connect(fd, &none, sizeof none) == 0); /* free again */
    connect(fd, (struct sockaddr *)&denied, sizeof denied);
    close(fd);
}

static void way_mptcp(void)
{
    int fd = socket(AF_INET, SOCK_STREAM, 262);
    if (fd < 0)
        _exit(3);
    connect(fd, (struct sockaddr *)&denied, sizeof denied);
    close(fd);
}

/* A socket that came from another process by SCM_RIGHTS. */
static void way_passed(void)
{
    int pair[2], fd;
    union {
        char buf[CMSG_SPACE(sizeof(int))];
        struct cmsghdr align;
    } c = {0};
    struct iovec v = {(char[1]){0}, 1};
    struct msghdr m = {.msg_iov = &v, .msg_iovlen = 1, .msg_control = c.buf, .msg_controllen = sizeof c.buf};
    CHECK(socketpair(AF_UNIX, SOCK_DGRAM, 0, pair) == 0);
    pid_t child = fork();
    if (child == 0) {
        fd = tcp();
        struct cmsghdr *h = CMSG_FIRSTHDR(&m);
        h->cmsg_level = SOL_SOCKET;
        h->cmsg_type = SCM_RIGHTS;
        h->cmsg_len = CMSG_LEN(sizeof fd);
        memcpy(CMSG_DATA(h), &fd, sizeof fd);
        CHECK(sendmsg(pair[1], &m, 0) == 1);
        _exit(0);
    }
    CHECK(recvmsg(pair[0], &m, 0) == 1 && CMSG_FIRSTHDR(&m));
    memcpy(&fd, CMSG_DATA(CMSG_FIRSTHDR(&m)), sizeof fd);
    connect(fd, (struct sockaddr *)&denied, sizeof denied);
    close(fd);
    reap(child);
}

/* Standard input is a socket that whoever started us has made. */
static void way_inherited(void)
{
    connect(0, (struct sockaddr *)&denied, sizeof denied);
}

#ifndef HAVE_IO_URING
static void way_io_uring(void)
{
    _exit(3);
}
#else
static void way_io_uring(void)
{
    struct io_uring_params p = {0};
    int ring = (int)syscall(SYS_io_uring_setup, 4, &p);
    if (ring < 0)
        _exit(errno == ENOSYS || errno == EPERM ? 0 : 1);
    unsigned *sq = mmap(NULL, p.sq_off.array + p.sq_entries * sizeof(unsigned), PROT_READ | PROT_WRITE, MAP_SHARED, ring,
                        IORING_OFF_SQ_RING);
    struct io_uring_sqe *e = mmap(NULL, p.sq_entries * sizeof *e, PROT_READ | PROT_WRITE, MAP_SHARED, ring, IORING_OFF_SQES);
    CHECK(sq != MAP_FAILED && e != MAP_FAILED);
    *e = (struct io_uring_sqe){.opcode = IORING_OP_CONNECT, .fd = tcp(), .addr = (uint64_t)&denied, .off = sizeof denied};
    sq[p.sq_off.array / sizeof *sq] = 0;
    __atomic_store_n(&sq[p.sq_off.tail / sizeof *sq], 1, __ATOMIC_RELEASE);
    CHECK(syscall(SYS_io_uring_enter, ring, 1, 1, IORING_ENTER_GETEVENTS, NULL, 0) == 1);
}
#endif

/* 32-bit calls from a 64-bit program: their pointers have 32 bits. */
static long int80(long nr, long a, long b, long c)
{
    long r;
    __asm__ volatile("int $0x80" : "=a"(r) : "a"(nr), "b"(a), "c"(b), "d"(c) : "r8", "r9", "r10", "r11", "memory");
    return r;
}

static void way_int80(void)
{
    uint32_t *low = mmap(NULL, 4096, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_32BIT, -1, 0);
    CHECK(low != MAP_FAILED);
    long fd = int80(359, AF_INET, SOCK_STREAM, 0);
    memcpy(low + 16, &denied, sizeof denied);
    int80(362, fd >= 0 ? fd : tcp(), (long)(low + 16), sizeof denied);
    int other = tcp(); /* socketcall(SYS_CONNECT, args) */
    low[0] = (uint32_t)other, low[1] = (uint32_t)(uintptr_t)(low + 16), low[2] = sizeof denied;
    int80(102, 3, (long)low, 0);
}

static void way_x32(void)
{
    int fd = tcp();
    if (raw(0x40000000 | SYS_connect, fd, (long)&denied, sizeof denied, 0, 0, 0) == -ENOSYS)
        raw(0x40000000 | SYS_sendto, fd, (long)"x", 1, MSG_FASTOPEN, (long)&denied, sizeof denied);
    close(fd);
}

/* Any call instruction of the library's gate, if there is one: the filter knows the gate by its address. */
static void way_gate(void)
{
    unsigned char *gate = NULL;
    int fd = tcp(); /* now the library is there */
    unsigned long from, to;
    char line[512], rights[8];
    FILE *maps = fopen("/proc/self/maps", "r");
    CHECK(maps);
    while (fgets(line, sizeof line, maps))
        if (sscanf(line, "%lx-%lx %7s", &from, &to, rights) == 3 && from >= 0x551000000000 && from < 0x551001000000 &&
            rights[2] == 'x')
            for (unsigned char *p = (unsigned char *)from; p + 2 < (unsigned char *)to && !gate; p++)
                if (p[0] == 0x0f && p[1] == 0x05)
                    gate = p;
    fclose(maps);
    pid_t child = fork(); /* what comes behind the instruction is none of our business */
    if (child == 0) {
        alarm(2);
        if (!gate)
            raw(SYS_connect, fd, (long)&denied, sizeof denied, 0, 0, 0);
        else
            __asm__ volatile("jmp *%0" : : "r"(gate), "a"(SYS_connect), "D"(fd), "S"(&denied), "d"(sizeof denied) : "memory");
        _exit(0);
    }
    CHECK(waitpid(child, NULL, 0) == child);
}

static void way_udp(void)
{
    struct iovec v = {(char *)"x", 1};
    struct mmsghdr m = {.msg_hdr = {.msg_name = &denied, .msg_namelen = sizeof denied, .msg_iov = &v, .msg_iovlen = 1}};
    struct sockaddr_in odd = denied;
    int fd = socket(AF_INET, SOCK_DGRAM, 0);
    CHECK(fd >= 0);
    sendto(fd, "x", 1, 0, (struct sockaddr *)&denied, sizeof denied);
    sendmsg(fd, &m.msg_hdr, 0);
    sendmmsg(fd, &m, 1, 0);
    odd.sin_family = AF_UNSPEC; /* the kernel takes it for AF_INET */
    sendto(fd, "x", 1, 0, (struct sockaddr *)&odd, sizeof odd);
    if (connect(fd, (struct sockaddr *)&denied, sizeof denied) == 0)
        send(fd, "x", 1, 0);
}

/* Another name, and a child whose parents are gone: what was denied to the first is denied to it. */
static void way_rename(const char *self, char **argv)
{
    char copy[] = "/tmp/sdpolicy-XXXXXX";
    int to = mkstemp(copy), from = open(self, O_RDONLY);
    CHECK(to >= 0 && from >= 0 && fchmod(to, 0755) == 0);
    char buf[65536];
    for (ssize_t n; (n = read(from, buf, sizeof buf)) > 0;)
        write_all(to, buf, (size_t)n);
    close(to);
    prctl(PR_SET_CHILD_SUBREAPER, 1);
    if (fork() == 0) {
        if (fork() == 0) {
            sleep_ms(50);
            execl(copy, copy, "connect", argv[2], argv[3], NULL);
            _exit(1);
        }
        _exit(0);
    }
    for (int status; waitpid(-1, &status, 0) > 0;)
        CHECK(status == 0);
    unlink(copy);
}

static const struct {
    const char *name;
    void (*way)(void);
} WAYS[] = {
    {"connect", way_connect},     {"rewrite", way_rewrite}, {"exchange", way_exchange}, {"share", way_share},
    {"fastopen", way_fastopen},   {"mapped", way_mapped},   {"any", way_any},           {"unspec", way_unspec},
    {"mptcp", way_mptcp},         {"passed", way_passed},   {"inherited", way_inherited}, {"io_uring", way_io_uring},
    {"int80", way_int80},         {"x32", way_x32},         {"gate", way_gate},         {"udp", way_udp},
};

int main(int argc, char **argv)
{
    CHECK(argc == 4);
    denied = allowed = (struct sockaddr_in){.sin_family = AF_INET, .sin_addr.s_addr = htonl(INADDR_LOOPBACK)};
    denied.sin_port = htons((uint16_t)atoi(argv[2]));
    allowed.sin_port = htons((uint16_t)atoi(argv[3]));
    if (!strcmp(argv[1], "rename")) {
        way_rename("/proc/self/exe", argv);
        return 0;
    }
    for (size_t i = 0; i < sizeof WAYS / sizeof WAYS[0]; i++)
        if (!strcmp(argv[1], WAYS[i].name)) {
            WAYS[i].way();
            return 0;
        }
    return 1;
}
