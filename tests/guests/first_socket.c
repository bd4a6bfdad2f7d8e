/* SPDX-License-Identifier: Apache-2.0
 *
 * Sockets in a loop, each of which must work, until a line comes in: `first_socket HOW` first makes itself hard to inject.
 * Prints "go" when it begins and "done N" in the end. */
#include "guest.h"

#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/syscall.h>
#include <sys/time.h>

static void one_more_filter(void)
{
    /* struct sock_filter and sock_fprog of linux/filter.h, which musl does not come with: "return ALLOW". */
    struct { uint16_t code; uint8_t jt, jf; uint32_t k; } allow = {.code = 0x06, .k = 0x7fff0000};
    struct { uint16_t len; void *filter; } program = {.len = 1, .filter = &allow};
    CHECK(prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) == 0);
    CHECK(prctl(PR_SET_SECCOMP, 2, &program, 0, 0) == 0);
}

static void on_alarm(int signal) { (void)signal; }

static void tick(long us)
{
    struct sigaction act = {.sa_handler = on_alarm, .sa_flags = SA_RESTART};
    struct itimerval often = {{0, us}, {0, us}};
    CHECK(sigaction(SIGALRM, &act, NULL) == 0 && setitimer(ITIMER_REAL, &often, NULL) == 0);
}

static void make_hard(const char *how)
{
    if (!strcmp(how, "ticks"))
        tick(150);
    if (!strcmp(how, "not-dumpable"))
        CHECK(prctl(PR_SET_DUMPABLE, 0, 0, 0, 0) == 0);
    if (!strcmp(how, "gs-in-use"))
        CHECK(syscall(SYS_arch_prctl, 0x1001 /* ARCH_SET_GS */, 0x1000) == 0);
    if (!strcmp(how, "address-taken"))
        CHECK(mmap((void *)0x551000000000, 4096, PROT_READ, MAP_PRIVATE | MAP_ANONYMOUS | 0x100000, -1, 0) != MAP_FAILED);
    if (!strcmp(how, "reserves")) /* as MariaDB, for its buffer pool: what mmap gives out is far below where it is else */
        CHECK(mmap(NULL, 8ul << 40, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0) != MAP_FAILED);
    if (!strcmp(how, "own-seccomp-filter"))
        one_more_filter();
    if (!strcmp(how, "ignores-sigtrap"))
        signal(SIGTRAP, SIG_IGN);
}

int main(int argc, char **argv)
{
    struct pollfd input = {.fd = 0, .events = POLLIN};
    long n = 0;
    make_hard(argc > 1 ? argv[1] : "");
    puts("go");
    fflush(stdout);
    do {
        struct sockaddr_in a = {.sin_family = AF_INET, .sin_addr.s_addr = htonl(INADDR_LOOPBACK)};
        int fd = socket(AF_INET, SOCK_STREAM, 0);
        CHECK(fd >= 0);
        CHECK(bind(fd, (struct sockaddr *)&a, sizeof(a)) == 0 && listen(fd, 1) == 0);
        CHECK(close(fd) == 0);
        n++;
    } while (poll(&input, 1, 1) == 0);
    tick(0);
    printf("done %ld\n", n);
    if (argc > 1 && !strcmp(argv[1], "ignores-sigtrap")) {
        raise(SIGTRAP);
        puts("still ignored");
    }
    return 0;
}
