/* SPDX-License-Identifier: Apache-2.0
 *
 * one_altstack [before | told N]: all threads have the same alternate signal stack, as Varnish's have: for a handler that ends the program anyway. Their
 * system calls, from code that was made at run time, must not meet on it.
 *
 *   (none)   they set it when the library is there
 *   before   they have it when the first socket call is made
 *   told N   they have it, and make no socket call; N times over they do the rest when SIGUSR2 says so
 *
 * One of the threads is asleep meanwhile, in a poll that the injection must not end.
 */
#include <poll.h>
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

static pthread_barrier_t ready, begin, end;
static pthread_mutex_t alone = PTHREAD_MUTEX_INITIALIZER;
static int rounds = 1;

static void work(void)
{
    long tid = syscall(SYS_gettid);

    for (int i = 0; i < CALLS; i++)
        CHECK(call(SYS_gettid) == tid);
    has(&alt);
    pthread_mutex_lock(&alone); /* their handlers would meet natively */
    on_it = 0;
    CHECK(pthread_kill(pthread_self(), SIGUSR1) == 0 && on_it);
    pthread_mutex_unlock(&alone);
}

static void *thread(void *unused)
{
    CHECK(sigaltstack(&alt, NULL) == 0);
    pthread_barrier_wait(&ready);
    for (int i = 0; i < rounds; i++) {
        pthread_barrier_wait(&begin);
        work();
        pthread_barrier_wait(&end);
    }
    return unused;
}

static int wakes[2];

static void *sleeper(void *unused)
{
    struct pollfd p = {.fd = wakes[0], .events = POLLIN};

    CHECK(sigaltstack(&alt, NULL) == 0);
    pthread_barrier_wait(&ready);
    CHECK(poll(&p, 1, 60000) == 1);
    has(&alt);
    return unused;
}

static void first_socket(void) { CHECK(close(socket(AF_INET, SOCK_STREAM, 0)) == 0); }

static void wait_to_be_told(void)
{
    sigset_t set;
    int number;

    sigemptyset(&set);
    sigaddset(&set, SIGUSR2);
    CHECK(sigwait(&set, &number) == 0);
}

int main(int argc, char **argv)
{
    struct sigaction act = {.sa_handler = on_signal, .sa_flags = SA_ONSTACK};
    bool told = argc == 3, before = argc > 1;
    pthread_t started[THREADS + 1];
    sigset_t set;

    if (told)
        rounds = atoi(argv[2]);
    if (!before)
        first_socket();
    make_code();
    sigemptyset(&set);
    sigaddset(&set, SIGUSR2);
    CHECK(sigprocmask(SIG_BLOCK, &set, NULL) == 0 && pipe(wakes) == 0);
    CHECK(pthread_barrier_init(&ready, NULL, THREADS + 1) == 0);
    CHECK(pthread_barrier_init(&begin, NULL, THREADS) == 0 && pthread_barrier_init(&end, NULL, THREADS) == 0);
    alt = (stack_t){.ss_sp = malloc(ALT_BYTES), .ss_size = ALT_BYTES};
    CHECK(alt.ss_sp && sigaltstack(&alt, NULL) == 0 && sigaction(SIGUSR1, &act, NULL) == 0);
    for (int i = 0; i < THREADS - 1; i++)
        CHECK(pthread_create(&started[i], NULL, thread, NULL) == 0);
    CHECK(pthread_create(&started[THREADS - 1], NULL, sleeper, NULL) == 0);
    pthread_barrier_wait(&ready);
    if (before && !told)
        first_socket();
    for (int i = 0; i < rounds; i++) {
        if (told) {
            puts("waits");
            fflush(stdout);
            wait_to_be_told();
        }
        pthread_barrier_wait(&begin);
        work();
        pthread_barrier_wait(&end);
    }
    CHECK(write(wakes[1], "w", 1) == 1);
    for (int i = 0; i < THREADS; i++)
        CHECK(pthread_join(started[i], NULL) == 0);
    puts("ok");
    return 0;
}
