/* SPDX-License-Identifier: Apache-2.0
 *
 * born FD FIFO: a program that makes its first calls before the one by which every libc begins (arch_prctl): only then can a test do something
 * between an execve and the new program's birth. It waits for FIFO to be opened for writing, then lives, and answers on FD as the peer of
 * tests/guests/handover.c expects it. Without any libc: -nostdlib -static.
 */
#include <sys/syscall.h>

static char tls[256];

static long call(long nr, long a, long b, long c)
{
    long r;
    __asm__ volatile("syscall" : "=a"(r) : "0"(nr), "D"(a), "S"(b), "d"(c) : "rcx", "r11", "memory");
    return r;
}

static int number(const char *text)
{
    int n = 0;
    while (*text)
        n = n * 10 + *text++ - '0';
    return n;
}

__attribute__((used)) static void live(long *stack)
{
    char **argv = (char **)(stack + 1), c;
    int fd = number(argv[1]);
    call(SYS_close, call(SYS_open, (long)argv[2], 0, 0), 0, 0);
    call(SYS_arch_prctl, 0x1002 /* ARCH_SET_FS */, (long)tls, 0);
    while (call(SYS_read, fd, (long)&c, 1) == 1) {
        c++;
        if (call(SYS_write, fd, (long)&c, 1) != 1)
            call(SYS_exit_group, 1, 0, 0);
    }
    call(SYS_exit_group, 0, 0, 0);
}

__asm__(".globl _start\n_start: mov %rsp, %rdi\n and $-16, %rsp\n call live\n");
