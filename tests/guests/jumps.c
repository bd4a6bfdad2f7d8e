/* SPDX-License-Identifier: Apache-2.0
 * Signal handlers run in the middle of everything: they use the connection themselves, and they jump out of a blocked
 * read with siglongjmp; no byte is lost or doubled. */
#include "guest.h"
#include <setjmp.h>
#include <sys/time.h>

static sigjmp_buf out;
static volatile sig_atomic_t ticks, jumps;

static void count(int signal) { ticks += signal == SIGALRM; }

static void jump(int signal)
{
    jumps += signal == SIGALRM;
    siglongjmp(out, 1);
}

static void every(long us, void (*handler)(int), int flags)
{
    struct sigaction act = {.sa_handler = handler, .sa_flags = flags};
    struct itimerval t = {{0, us}, {0, us}};
    CHECK(sigaction(SIGALRM, &act, NULL) == 0 && setitimer(ITIMER_REAL, &t, NULL) == 0);
}

static void accepted(int fd)
{
    static unsigned char got[5000], want[5000];
    struct prng r = {21};
    every(700, count, SA_RESTART);
    for (int i = 0; i < 2000; i++) {
        size_t n = prng_next(&r) % sizeof got + 1;
        prng_fill(&r, want, n);
        read_all(fd, got, n);
        CHECK(memcmp(got, want, n) == 0);
        write_all(fd, got, 1);
    }
    CHECK(ticks > 0);
    if (!sigsetjmp(out, 1))
        every(20000, jump, 0); /* not before there is a place to jump to, however busy the machine is */
    if (jumps < 5) {
        char c;
        (void)!read(fd, &c, 1); /* nothing comes until we say so */
        CHECK(!"a read that returned without a jump");
    }
    every(0, count, 0);
    say(fd, "g");
    expect(fd, "after the jumps");
}

static void connected(int fd)
{
    static unsigned char data[5000], back;
    struct prng r = {21};
    for (int i = 0; i < 2000; i++) {
        size_t n = prng_next(&r) % sizeof data + 1;
        prng_fill(&r, data, n);
        write_all(fd, data, n);
        read_all(fd, &back, 1);
        CHECK(back == data[0]);
    }
    expect(fd, "g");
    say(fd, "after the jumps");
}

int main(void) { return guest_main(accepted, connected); }
