/* SPDX-License-Identifier: Apache-2.0
 *
 * handlers WHAT: signal handlers that come in while the connection is in use.
 *
 *   context   what they see of the interrupted call: program counter and stack are the program's
 *   restart   EINTR or none, as the action says; siglongjmp out of a receive
 *   timer     a thousand times a second a handler sends on the socket that the program is sending on: whole records, in order
 *   cancel    pthread_cancel of a thread that sleeps in recv and in accept: its clean-up runs, unwinding works
 */
#include "guest.h"
#include <pthread.h>
#include <setjmp.h>
#include <sys/time.h>
#include <ucontext.h>

static const char *what;
static int conn;

static bool is_text_of_a_file(uintptr_t at)
{
    char line[512];
    bool found = false;
    FILE *maps = fopen("/proc/self/maps", "r");
    while (fgets(line, sizeof line, maps)) {
        unsigned long lo, hi;
        char mode[8], name[256] = "";
        if (sscanf(line, "%lx-%lx %7s %*s %*s %*s %255s", &lo, &hi, mode, name) >= 3 && at >= lo && at < hi)
            found = mode[2] == 'x' && name[0] == '/' && !strstr(name, "memfd");
    }
    fclose(maps);
    return found;
}

static volatile uintptr_t seen_pc, seen_sp, seen_rdi;
static volatile int calls;
static sigjmp_buf back;

static void look(int number, siginfo_t *info, void *context)
{
    ucontext_t *uc = context;
    (void)number, (void)info;
    seen_pc = (uintptr_t)uc->uc_mcontext.gregs[REG_RIP];
    seen_sp = (uintptr_t)uc->uc_mcontext.gregs[REG_RSP];
    seen_rdi = (uintptr_t)uc->uc_mcontext.gregs[REG_RDI];
    calls++;
}

static void leave(int number)
{
    (void)number;
    siglongjmp(back, 1);
}

static void action(int number, void (*plain)(int), void (*with)(int, siginfo_t *, void *), int flags)
{
    struct sigaction a = {.sa_flags = flags}, b;
    if (with)
        a.sa_sigaction = with, a.sa_flags |= SA_SIGINFO;
    else
        a.sa_handler = plain;
    sigfillset(&a.sa_mask);
    CHECK(sigaction(number, &a, NULL) == 0 && sigaction(number, NULL, &b) == 0);
    CHECK(b.sa_sigaction == a.sa_sigaction && (b.sa_flags & 0x7fffffff & ~0x04000000) == (a.sa_flags & 0x7fffffff & ~0x04000000));
    CHECK(sigismember(&b.sa_mask, SIGSYS) == 1 && sigismember(&b.sa_mask, SIGUSR1) == 1);
}

static void alarm_in(int ms)
{
    struct itimerval t = {.it_value.tv_usec = ms * 1000};
    CHECK(setitimer(ITIMER_REAL, &t, NULL) == 0);
}

/* ---- context, restart: the peer answers only after the alarm */

static void see_context(int fd)
{
    char c;
    action(SIGALRM, NULL, look, 0);
    alarm_in(30);
    CHECK(recv(fd, &c, 1, 0) == -1 && errno == EINTR && calls == 1);
    CHECK(is_text_of_a_file(seen_pc));
    CHECK(seen_sp - (uintptr_t)&c + 65536 < 131072);
    action(SIGALRM, NULL, look, SA_RESTART);
    say(fd, "g");
    alarm_in(30);
    CHECK(recv(fd, &c, 1, 0) == 1 && c == 'o' && calls == 2);
    CHECK(is_text_of_a_file(seen_pc) && seen_rdi == (uintptr_t)fd);
}

static void restart(int fd)
{
    char c;
    action(SIGALRM, leave, NULL, 0);
    if (sigsetjmp(back, 1) == 0) {
        alarm_in(30);
        recv(fd, &c, 1, 0);
        CHECK(!"received");
    }
    action(SIGALRM, NULL, look, SA_RESTART);
    say(fd, "g");
    alarm_in(30);
    CHECK(recv(fd, &c, 1, 0) == 1 && c == 'o' && calls == 1);
}

/* ---- timer */

struct record {
    char kind;
    uint32_t seq;
    unsigned char body[120];
};
#define RECORDS 6000

static void send_record(char kind, uint32_t seq)
{
    struct record r = {.kind = kind, .seq = seq};
    memset(r.body, (int)(seq + (unsigned char)kind), sizeof r.body);
    CHECK(send(conn, &r, sizeof r, 0) == (ssize_t)sizeof r);
}

static volatile uint32_t ticks;

static void tick(int number)
{
    int kept = errno;
    (void)number;
    send_record('t', ticks++);
    errno = kept;
}

static void send_with_timer(int fd)
{
    struct itimerval t = {.it_value.tv_usec = 500, .it_interval.tv_usec = 500}, off = {0};
    conn = fd;
    action(SIGALRM, tick, NULL, SA_RESTART);
    CHECK(setitimer(ITIMER_REAL, &t, NULL) == 0);
    for (uint32_t i = 0; i < RECORDS || ticks < 100; i++) {
        send_record('m', i);
        if (i % 64 == 63) /* full buffers would let a signal end a send in the middle, here as there */
            expect(fd, "a");
    }
    CHECK(setitimer(ITIMER_REAL, &off, NULL) == 0);
    CHECK(shutdown(fd, SHUT_WR) == 0);
    expect_eof(fd);
}

static void receive_records(int fd)
{
    uint32_t next[256] = {0};
    struct record r;
    ssize_t n;
    while ((n = recv(fd, &r, sizeof r, MSG_WAITALL)) > 0) {
        CHECK(n == (ssize_t)sizeof r && (r.kind == 'm' || r.kind == 't') && r.seq == next[(unsigned char)r.kind]++);
        for (size_t i = 0; i < sizeof r.body; i++)
            CHECK(r.body[i] == (unsigned char)(r.seq + (unsigned char)r.kind));
        if (r.kind == 'm' && r.seq % 64 == 63)
            say(fd, "a");
    }
    CHECK(n == 0 && next['m'] >= RECORDS && next['t'] >= 100);
}

/* ---- cancel */

static volatile int cleaned;
static void clean(void *arg) { cleaned += *(int *)arg; }

static void *receives(void *arg)
{
    int one = 1;
    char c;
    pthread_cleanup_push(clean, &one);
    while (recv(*(int *)arg, &c, 1, 0) != 0)
        ;
    pthread_cleanup_pop(0);
    return NULL;
}

static void *accepts(void *arg)
{
    int ten = 10;
    pthread_cleanup_push(clean, &ten);
    accept(*(int *)arg, NULL, NULL);
    pthread_cleanup_pop(0);
    return NULL;
}

static void cancel_in(void *(*body)(void *), int fd)
{
    pthread_t t;
    void *result;
    CHECK(pthread_create(&t, NULL, body, &fd) == 0);
    sleep_ms(30);
    CHECK(pthread_cancel(t) == 0 && pthread_join(t, &result) == 0 && result == PTHREAD_CANCELED);
}

static void cancel(int fd)
{
    struct sockaddr_in addr;
    char c;
    cancel_in(receives, fd);
    cancel_in(accepts, listen_loopback(&addr, 1));
    CHECK(cleaned == 11);
    say(fd, "g");
    CHECK(recv(fd, &c, 1, 0) == 1 && c == 'o');
}

static void accepted(int fd)
{
    if (strcmp(what, "timer") == 0)
        send_with_timer(fd);
    else
        (strcmp(what, "context") == 0 ? see_context : strcmp(what, "restart") == 0 ? restart : cancel)(fd);
}

static void connected(int fd)
{
    if (strcmp(what, "timer") == 0) {
        receive_records(fd);
        return;
    }
    expect(fd, "g");
    sleep_ms(100);
    say(fd, "o");
}

int main(int argc, char **argv)
{
    CHECK(argc == 2);
    what = argv[1];
    return guest_main(accepted, connected);
}
