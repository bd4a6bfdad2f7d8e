/* SPDX-License-Identifier: Apache-2.0
 *
 * int80: a 64-bit program that makes 32-bit calls, on its connection, too: what they answer, and that one which waits can be interrupted.
 */
#include "guest.h"
#include <sys/mman.h>
#include <sys/time.h>

enum { READ = 3, WRITE = 4, CLOSE = 6, GETPID = 20, ALARM = 27, DUP = 41, IOCTL = 54, FCNTL = 55, GETPPID = 64, READV = 145, POLL = 168, NO_SUCH = 4000,
       FORK = 2, EXECVE = 11, SOCKETCALL = 102, CLONE = 120, WRITEV = 146, SIGPROCMASK = 175, VFORK = 190, SOCKET = 359, CONNECT = 362,
       SENDMSG = 370, RECVMSG = 372 };
enum { CALL_BIND = 2, CALL_LISTEN = 4, CALL_ACCEPT = 5, CALL_SEND = 9, CALL_RECV = 10 };

static char *low; /* memory that 32 bits can name */
static volatile int handled;

static long int80(long nr, long a, long b, long c)
{
    long r;
    __asm__ volatile("int $0x80" : "=a"(r) : "a"(nr), "b"(a), "c"(b), "d"(c) : "memory", "r8", "r9", "r10", "r11");
    return r;
}

static void handler(int number)
{
    handled += number == SIGALRM;
    CHECK(int80(GETPID, 0, 0, 0) == getpid());
}

static void put(int fd, const char *text)
{
    strcpy(low, text);
    CHECK(int80(WRITE, fd, (long)low, (long)strlen(text)) == (long)strlen(text));
}

static void get(int fd, const char *text)
{
    size_t n = 0;
    while (n < strlen(text)) {
        long r = int80(READ, fd, (long)(low + n), (long)(strlen(text) - n));
        CHECK(r > 0);
        n += (size_t)r;
    }
    CHECK(memcmp(low, text, n) == 0);
}

static void calls(int fd)
{
    struct pollfd *p = (struct pollfd *)(low + 512);
    int pipes[2];

    CHECK(int80(GETPID, 0, 0, 0) == getpid() && int80(GETPPID, 0, 0, 0) == getppid());
    CHECK(int80(CLOSE, 999, 0, 0) == -EBADF && int80(WRITE, fd, 1, 1) == -EFAULT && int80(NO_SUCH, fd, 0, 0) == -ENOSYS);
    CHECK(pipe(pipes) == 0);
    put(pipes[1], "pipe");
    get(pipes[0], "pipe");
    CHECK(int80(CLOSE, pipes[0], 0, 0) == 0 && int80(CLOSE, pipes[0], 0, 0) == -EBADF);
    int copy = (int)int80(DUP, fd, 0, 0);
    CHECK(copy == pipes[0]); /* the lowest that is free */
    put(copy, "x");
    expect(fd, "y");
    CHECK(int80(CLOSE, copy, 0, 0) == 0);
    CHECK(int80(FCNTL, fd, F_GETFL, 0) == fcntl(fd, F_GETFL));
    *p = (struct pollfd){fd, POLLIN, 0};
    say(fd, "z");
    CHECK(int80(POLL, (long)p, 1, -1) == 1 && p->revents == POLLIN);
    CHECK(int80(IOCTL, fd, FIONREAD, (long)low) == 0 && *(int *)low == 4);
    get(fd, "four");
}

struct vector32 {
    uint32_t base, len;
};

struct message32 {
    uint32_t name, namelen, iov, iovlen, control, controllen, flags;
};

static uint32_t in_low(const void *p) { return (uint32_t)(uintptr_t)p; }

static long socketcall(long which, uint32_t a, uint32_t b, uint32_t c, uint32_t d)
{
    uint32_t *arg = (uint32_t *)(low + 1024);
    arg[0] = a, arg[1] = b, arg[2] = c, arg[3] = d;
    return int80(SOCKETCALL, which, (long)arg, 0);
}

/* Lists of pieces are laid out otherwise. */
static void messages(int fd)
{
    struct vector32 *v = (struct vector32 *)(low + 600);
    struct message32 *m = (struct message32 *)(low + 700);
    strcpy(low, "pieces");
    for (int i = 0; i < 12; i++)
        v[i] = (struct vector32){in_low(low + i % 6), 1};
    CHECK(int80(WRITEV, fd, (long)v, 6) == 6);
    *m = (struct message32){.iov = in_low(v), .iovlen = 12};
    CHECK(int80(SENDMSG, fd, (long)m, 0) == 12);
    memset(low, 0, 16);
    v[0] = (struct vector32){in_low(low), 2};
    v[1] = (struct vector32){in_low(low + 8), 4};
    *m = (struct message32){.iov = in_low(v), .iovlen = 2, .flags = 77};
    CHECK(int80(RECVMSG, fd, (long)m, MSG_WAITALL) == 6 && memcmp(low, "ba", 3) == 0 && memcmp(low + 8, "cked", 5) == 0 && m->flags == 0);
    m->iovlen = 2000;
    CHECK(int80(SENDMSG, fd, (long)m, 0) == -EMSGSIZE && int80(SENDMSG, fd, 4, 0) == -EFAULT && int80(WRITEV, fd, (long)v, 2000) == -EINVAL);
    v[0].len = 0x80000000;
    CHECK(int80(WRITEV, fd, (long)v, 1) == -EINVAL);
    strcpy(low, "call");
    CHECK(socketcall(CALL_SEND, (uint32_t)fd, in_low(low), 4, MSG_NOSIGNAL) == 4);
    CHECK(socketcall(CALL_RECV, (uint32_t)fd, in_low(low), 4, MSG_WAITALL) == 4 && memcmp(low, "back", 4) == 0);
    CHECK(socketcall(99, 0, 0, 0, 0) == -EINVAL && int80(SOCKETCALL, CALL_SEND, 4, 0) == -EFAULT);
}

static int child_status(long child)
{
    int status;
    CHECK(child > 0 && waitpid((pid_t)child, &status, 0) == child);
    return status;
}

/* A child uses the connection, too; another one becomes another program. */
static void processes(int fd)
{
    uint32_t *argv = (uint32_t *)(low + 1200);
    sigset_t *set = (sigset_t *)(low + 1400), now;
    long child = int80(FORK, 0, 0, 0);
    if (child == 0) {
        put(fd, "child");
        _exit(3);
    }
    CHECK(child_status(child) == 3 << 8);
    strcpy(low + 1300, "/bin/sh"), strcpy(low + 1320, "-c"), strcpy(low + 1340, "exit $SEVEN"), strcpy(low + 1360, "SEVEN=7");
    argv[0] = in_low(low + 1300), argv[1] = in_low(low + 1320), argv[2] = in_low(low + 1340), argv[3] = 0;
    argv[4] = in_low(low + 1360), argv[5] = 0;
    child = int80(VFORK, 0, 0, 0);
    if (child == 0) {
        int80(EXECVE, (long)(low + 1300), (long)argv, (long)(argv + 4));
        _exit(1);
    }
    CHECK(child_status(child) == 7 << 8);
    CHECK(int80(EXECVE, (long)(low + 1320), (long)argv, (long)(argv + 4)) == -ENOENT && int80(EXECVE, (long)(low + 1300), 4, 0) == -EFAULT);
    child = int80(CLONE, SIGCHLD, 0, 0);
    if (child == 0)
        _exit(4);
    CHECK(child_status(child) == 4 << 8);
    sigemptyset(set), sigaddset(set, SIGUSR1);
    register long size __asm__("rsi") = 8;
    long r;
    __asm__ volatile("int $0x80" : "=a"(r) : "a"(SIGPROCMASK), "b"(SIG_BLOCK), "c"(set), "d"(0), "r"(size) : "memory", "r8", "r9", "r10", "r11");
    CHECK(r == 0 && sigprocmask(SIG_UNBLOCK, set, &now) == 0 && sigismember(&now, SIGUSR1));
}

/* Both ends are made by 32-bit calls. */
static void sockets(void)
{
    struct sockaddr_in *name = (struct sockaddr_in *)(low + 1500);
    socklen_t *len = (socklen_t *)(low + 1600);
    int listener = (int)int80(SOCKET, AF_INET, SOCK_STREAM, 0), fd = (int)int80(SOCKET, AF_INET, SOCK_STREAM | SOCK_NONBLOCK, 0);
    *name = (struct sockaddr_in){.sin_family = AF_INET, .sin_addr.s_addr = htonl(INADDR_LOOPBACK)};
    *len = sizeof *name;
    CHECK(listener >= 0 && socketcall(CALL_BIND, (uint32_t)listener, in_low(name), sizeof *name, 0) == 0);
    CHECK(socketcall(CALL_LISTEN, (uint32_t)listener, 1, 0, 0) == 0 && getsockname(listener, (struct sockaddr *)name, len) == 0);
    long r = int80(CONNECT, fd, (long)name, sizeof *name);
    CHECK(r == 0 || r == -EINPROGRESS);
    int in = (int)socketcall(CALL_ACCEPT, (uint32_t)listener, 0, 0, 0);
    CHECK(in >= 0);
    set_nonblock(fd, false);
    for (int i = 0; i < 200; i++) {
        put(in, "there"), get(fd, "there");
        put(fd, "back"), get(in, "back");
    }
    CHECK(int80(CLOSE, in, 0, 0) == 0 && int80(READ, fd, (long)low, 1) == 0 && close(fd) == 0 && close(listener) == 0);
}

/* The other side waits until the alarm was there. */
static void interrupted(int fd)
{
    struct sigaction act = {.sa_handler = handler};
    CHECK(sigaction(SIGALRM, &act, NULL) == 0 && int80(ALARM, 1, 0, 0) == 0);
    CHECK(int80(READ, fd, (long)low, 1) == -EINTR && handled == 1);
    act.sa_flags = SA_RESTART;
    CHECK(sigaction(SIGALRM, &act, NULL) == 0 && int80(ALARM, 1, 0, 0) == 0);
    while (handled < 2) {
        say(fd, "w");
        get(fd, "w");
    }
    say(fd, "e");
}

static void accepted(int fd)
{
    low = mmap(NULL, 4096, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_32BIT, -1, 0);
    CHECK(low != MAP_FAILED);
    calls(fd);
    interrupted(fd);
    messages(fd);
    processes(fd);
    sockets();
    for (int i = 0; i < 200; i++) {
        put(fd, "ping");
        get(fd, "pong");
    }
    CHECK(int80(CLOSE, fd, 0, 0) == 0);
}

static void connected(int fd)
{
    char c;
    expect(fd, "x");
    say(fd, "y");
    expect(fd, "z");
    say(fd, "four");
    for (;;) {
        read_all(fd, &c, 1);
        if (c == 'e')
            break;
        sleep_ms(20);
        write_all(fd, &c, 1);
    }
    expect(fd, "piecespiecespieces");
    say(fd, "backed");
    expect(fd, "call");
    say(fd, "back");
    expect(fd, "child");
    for (int i = 0; i < 200; i++) {
        expect(fd, "ping");
        say(fd, "pong");
    }
    expect_eof(fd);
}

int main(void) { return guest_main(accepted, connected); }
