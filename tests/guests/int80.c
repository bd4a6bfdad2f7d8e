/* SPDX-License-Identifier: Apache-2.0
 *
 * int80: a 64-bit program that makes 32-bit calls, on its connection, too: what they answer, and that one which waits can be interrupted.
 */
#include "guest.h"
#include <sys/mman.h>
#include <sys/time.h>

enum { READ = 3, WRITE = 4, CLOSE = 6, GETPID = 20, ALARM = 27, DUP = 41, IOCTL = 54, FCNTL = 55, GETPPID = 64, READV = 145, POLL = 168, NO_SUCH = 4000 };

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
    for (int i = 0; i < 200; i++) {
        expect(fd, "ping");
        say(fd, "pong");
    }
    expect_eof(fd);
}

int main(void) { return guest_main(accepted, connected); }
