/* SPDX-License-Identifier: Apache-2.0
 *
 * sites: threads sleep in a call at the very instruction that others use meanwhile, often enough for it to be patched. They have slept there since
 * before the first socket. Handlers come, with SA_RESTART and without: who was asleep goes on behind the instruction, or makes the call anew.
 */
#include "guest.h"
#include <pthread.h>

/* read(): one with its number moved in front, the usual pattern; one that finds it elsewhere; one across a page. */
typedef long reader(int fd, void *buf, size_t len);
long read_moved(int fd, void *buf, size_t len);
long read_xored(int fd, void *buf, size_t len);
long read_across(int fd, void *buf, size_t len);
__asm__(".text\n.balign 16\nread_moved: mov $0, %eax\n syscall\n ret\n.balign 16\n"
        "read_xored: xor %eax, %eax\n syscall\n ret\n.balign 4096\n"
        ".skip 4090\nread_across: mov $0, %eax\n syscall\n ret\n.balign 16\n");

enum { KINDS = 3, THREADS = 2 * KINDS };
static reader *const readers[KINDS] = {read_moved, read_xored, read_across};
static struct sleeper {
    pthread_t id;
    int kind, pipe[2];
    bool restarts;
    volatile int interrupted, handled;
} sleepers[THREADS];
static __thread struct sleeper *self;

static void handler(int number)
{
    (void)number;
    self->handled++;
}

static void *sleeps(void *arg)
{
    char c = 0;
    long n;
    self = arg;
    while ((n = readers[self->kind](self->pipe[0], &c, 1)) != 1 || c != 'x') {
        CHECK(n == -EINTR || n == 1);
        self->interrupted += n == -EINTR;
    }
    return arg;
}

static void start(void)
{
    struct sigaction plain = {.sa_handler = handler}, restart = {.sa_handler = handler, .sa_flags = SA_RESTART};
    CHECK(sigaction(SIGUSR1, &plain, NULL) == 0 && sigaction(SIGUSR2, &restart, NULL) == 0);
    for (int i = 0; i < THREADS; i++) {
        struct sleeper *s = &sleepers[i];
        s->kind = i / 2;
        s->restarts = i % 2;
        CHECK(pipe(s->pipe) == 0 && pthread_create(&s->id, NULL, sleeps, s) == 0);
    }
    sleep_ms(50);
}

static void interrupt_all(int times)
{
    for (int i = 0; i < THREADS; i++) {
        struct sleeper *s = &sleepers[i];
        CHECK(pthread_kill(s->id, s->restarts ? SIGUSR2 : SIGUSR1) == 0);
        for (int ms = 0; s->handled < times && ms < 5000; ms++)
            sleep_ms(1);
        CHECK(s->handled == times);
        sleep_ms(2); /* it sleeps again */
    }
}

static void talk(int fd)
{
    char c;
    for (int i = 0; i < 300; i++) {
        say(fd, "g");
        CHECK(readers[i % KINDS](fd, &c, 1) == 1 && c == 'o');
    }
}

static void accepted(int fd)
{
    char back;
    talk(fd);
    interrupt_all(1);
    talk(fd);
    for (int i = 0; i < THREADS; i++) { /* a byte that is not what they wait for: they come back by the site as it is now */
        CHECK(write(sleepers[i].pipe[1], "y", 1) == 1);
        CHECK(readers[i % KINDS](fd, &back, 0) == 0);
    }
    sleep_ms(5);
    interrupt_all(2);
    talk(fd);
    for (int i = 0; i < THREADS; i++) {
        CHECK(write(sleepers[i].pipe[1], "x", 1) == 1 && pthread_join(sleepers[i].id, NULL) == 0);
        CHECK(sleepers[i].interrupted == (sleepers[i].restarts ? 0 : 2));
    }
    say(fd, "e");
}

static void connected(int fd)
{
    char c;
    for (read_all(fd, &c, 1); c == 'g'; read_all(fd, &c, 1))
        say(fd, "o");
    CHECK(c == 'e');
}

int main(void)
{
    start();
    return guest_main(accepted, connected);
}
