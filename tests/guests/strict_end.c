/* SPDX-License-Identifier: Apache-2.0
 *
 * strict_end: how programs in seccomp's strict mode end: by a call that is not among the four, by kill of themselves, by exit; a thread beside others, several
 * at the same moment, a child that shares memory, and the same by int $0x80.
 */
#include <pthread.h>
#include <stdatomic.h>
#include <linux/seccomp.h>
#include <sys/prctl.h>
#include <sys/syscall.h>
#include "guest.h"

static int pipe_[2];

static void lock_up(void) { CHECK(prctl(PR_SET_SECCOMP, SECCOMP_MODE_STRICT) == 0); }
static void writes(char c) { CHECK(write(pipe_[1], &c, 1) == 1); }

static void asks(void) { lock_up(), writes('a'), syscall(SYS_getpid), writes('b'); }
static void opens(void) { lock_up(), syscall(SYS_openat, AT_FDCWD, "/", O_RDONLY), writes('b'); }
static void leaves(void) { lock_up(), writes('a'), syscall(SYS_exit, 5); }
static void kills(void)
{
    pid_t own = getpid();
    lock_up(), syscall(SYS_kill, own, SIGTERM), writes('b');
}
static void kills_other(void) { lock_up(), syscall(SYS_kill, 1, SIGKILL), writes('b'); }
static void by_int80(void)
{
    long r = 20; /* getpid */
    lock_up();
    __asm__ volatile("int $0x80" : "+a"(r) : : "r8", "r9", "r10", "r11", "memory");
    writes('b');
}

static void *asks_beside(void *unused)
{
    asks();
    return unused;
}

/* Only that thread ends. */
static void beside(void)
{
    pthread_t thread;
    CHECK(pthread_create(&thread, NULL, asks_beside, NULL) == 0 && pthread_join(thread, NULL) == 0);
    writes('c');
    _exit(7);
}

static bool leader_is_gone(void)
{
    char text[512] = "", path[32];
    snprintf(path, sizeof path, "/proc/%d/stat", (int)getpid());
    int fd = open(path, O_RDONLY);
    ssize_t n = read(fd, text, sizeof text - 1);
    close(fd);
    return n > 0 && strstr(text, ") Z");
}

/* The main thread ends first; the status is that of the last one, or of the end of all. */
static void *outlives(void *whole)
{
    while (!leader_is_gone())
        sleep_ms(1);
    writes('c');
    if (whole)
        _exit(7);
    syscall(SYS_exit, 3);
    return NULL;
}

static void before_another(void *whole)
{
    pthread_t thread;
    CHECK(pthread_create(&thread, NULL, outlives, whole) == 0);
    asks();
}

static void *is_the_last(void *unused)
{
    while (!leader_is_gone())
        sleep_ms(1);
    asks();
    return unused;
}

static void last_of_two(void)
{
    pthread_t thread;
    CHECK(pthread_create(&thread, NULL, is_the_last, NULL) == 0);
    syscall(SYS_exit, 4);
}

static void first_of_two(void) { before_another(NULL); }
static void first_of_a_whole(void) { before_another(""); }

/* ---- at the same moment */

#define ROUNDS 100
static atomic_uint here;

static void together(unsigned threads)
{
    for (unsigned n = atomic_fetch_add(&here, 1) + 1; n < threads; n = atomic_load(&here))
        ;
}

static void *asks_too(void *threads)
{
    lock_up();
    together((unsigned)(uintptr_t)threads);
    syscall(SYS_getpid);
    return NULL;
}

static void *leaves_too(void *threads)
{
    lock_up();
    together((unsigned)(uintptr_t)threads);
    syscall(SYS_exit, 3);
    return NULL;
}

static void *leaves_freely(void *threads)
{
    together((unsigned)(uintptr_t)threads);
    syscall(SYS_exit, 3);
    return NULL;
}

/* The main thread does the first thing, beside one thread for each of the others. How often in some rounds the status was neither of two: SIGKILL, or that of exit. */
static void at_once(const char *name, bool may_exit, unsigned n, void *(*const what[])(void *))
{
    unsigned wrong = 0, rounds = n > 2 ? ROUNDS / 4 : ROUNDS; /* more than there are CPUs meet slowly */

    for (unsigned i = 0; i < rounds; i++) {
        int status;
        atomic_store(&here, 0);
        pid_t child = fork();
        CHECK(child >= 0);
        if (child == 0) {
            pthread_t thread;
            close(socket(AF_INET, SOCK_STREAM, 0));
            for (unsigned k = 1; k < n; k++)
                CHECK(pthread_create(&thread, NULL, what[k], (void *)(uintptr_t)n) == 0);
            what[0]((void *)(uintptr_t)n);
            _exit(1);
        }
        CHECK(waitpid(child, &status, 0) == child);
        wrong += status != SIGKILL && !(may_exit && status == 3 << 8);
    }
    printf("%s: %u of %u wrong\n", name, wrong, rounds);
}

/* Memory is shared: it is the child that ends. */
static void of_a_vfork_child(void)
{
    int status;
    pid_t child = vfork();

    if (child == 0) {
        prctl(PR_SET_SECCOMP, SECCOMP_MODE_STRICT);
        syscall(SYS_getpid);
        syscall(SYS_exit, 1);
    }
    CHECK(child > 0 && waitpid(child, &status, 0) == child);
    printf("vfork child: %x\n", status);
}

static void shows(const char *name, void (*how)(void))
{
    char got[8] = "";
    int status;
    pid_t child;

    CHECK(pipe(pipe_) == 0);
    child = fork();
    CHECK(child >= 0);
    if (child == 0) {
        close(socket(AF_INET, SOCK_STREAM, 0));
        how();
        _exit(1);
    }
    close(pipe_[1]);
    CHECK(waitpid(child, &status, 0) == child);
    CHECK(read(pipe_[0], got, sizeof got - 1) >= 0);
    close(pipe_[0]);
    printf("%s: %s %x\n", name, got, status);
}

int main(void)
{
    close(socket(AF_INET, SOCK_STREAM, 0));
    shows("asks", asks);
    shows("opens", opens);
    shows("leaves", leaves);
    shows("kills", kills);
    shows("kills another", kills_other);
    shows("int80", by_int80);
    shows("beside", beside);
    shows("first", first_of_two);
    shows("first of a whole", first_of_a_whole);
    shows("last", last_of_two);
    at_once("two", false, 2, (void *(*const[])(void *)){asks_too, asks_too});
    at_once("four", false, 4, (void *(*const[])(void *)){asks_too, asks_too, asks_too, asks_too});
    at_once("two and exit", true, 3, (void *(*const[])(void *)){asks_too, leaves_too, asks_too});
    at_once("main by exit", true, 2, (void *(*const[])(void *)){leaves_freely, asks_too});
    at_once("beside exit", true, 2, (void *(*const[])(void *)){asks_too, leaves_freely});
    of_a_vfork_child();
    return 0;
}
