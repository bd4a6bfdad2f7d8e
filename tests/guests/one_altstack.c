/* SPDX-License-Identifier: Apache-2.0
 *
 * one_altstack.c - all threads have the same alternate signal stack, as Varnish's have: for a handler that ends the program anyway. Their system
 * calls, from code that was made at run time, must not meet on it.
 */
#include <pthread.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include "guest.h"

enum { THREADS = 4, CALLS = 4000, ALT_BYTES = 80 * 1024 };

static stack_t alt;
static long (*call)(long nr);
static volatile sig_atomic_t on_it;

/* On a page that can be written: sites there are left alone. */
static void make_code(void)
{
    static const unsigned char code[] = {0x48, 0x89, 0xf8, 0x0f, 0x05, 0xc3}; /* mov %rdi,%rax; syscall; ret */
    void *page = mmap(NULL, 4096, PROT_READ | PROT_WRITE | PROT_EXEC, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);

    CHECK(page != MAP_FAILED);
    memcpy(page, code, sizeof code);
    call = (long (*)(long))page;
}

static void on_signal(int number)
{
    char here;

    (void)number;
    on_it = &here >= (char *)alt.ss_sp && &here < (char *)alt.ss_sp + alt.ss_size;
}

static void has(const stack_t *wanted)
{
    stack_t now;

    CHECK(sigaltstack(NULL, &now) == 0);
    CHECK(now.ss_sp == wanted->ss_sp && now.ss_size == wanted->ss_size && now.ss_flags == wanted->ss_flags);
}

static void *work(void *unused)
{
    long tid = syscall(SYS_gettid);

    CHECK(sigaltstack(&alt, NULL) == 0);
    for (int i = 0; i < CALLS; i++)
        CHECK(call(SYS_gettid) == tid);
    has(&alt);
    return unused;
}

int main(void)
{
    struct sigaction act = {.sa_handler = on_signal, .sa_flags = SA_ONSTACK};
    pthread_t thread[THREADS];

    CHECK(close(socket(AF_INET, SOCK_STREAM, 0)) == 0);
    make_code();
    alt = (stack_t){.ss_sp = malloc(ALT_BYTES), .ss_size = ALT_BYTES};
    CHECK(alt.ss_sp && sigaltstack(&alt, NULL) == 0 && sigaction(SIGUSR1, &act, NULL) == 0);
    for (int i = 0; i < THREADS; i++)
        CHECK(pthread_create(&thread[i], NULL, work, NULL) == 0);
    work(NULL);
    for (int i = 0; i < THREADS; i++)
        CHECK(pthread_join(thread[i], NULL) == 0);
    CHECK(raise(SIGUSR1) == 0 && on_it);
    puts("ok");
    return 0;
}
