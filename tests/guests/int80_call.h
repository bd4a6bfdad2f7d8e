/* SPDX-License-Identifier: Apache-2.0
 *
 * int80_call.h - calls by int $0x80 of a 64-bit program, whose structures lie where 32 bits can name them.
 */
#ifndef INT80_CALL_H
#define INT80_CALL_H

#include "guest.h"
#include <sys/mman.h>

enum { EXIT = 1, WRITE = 4, GETPPID = 64, SIGNAL = 48, SIGACTION = 67, SIGSUSPEND = 72, OLD_SELECT = 82, SOCKETCALL = 102, CLONE = 120, SIGPROCMASK = 126,
       SELECT = 142, PRCTL = 172, RT_SIGACTION = 174, SIGALTSTACK = 186, FUTEX = 240, PSELECT6 = 308, PPOLL = 309, RECVMMSG = 337, SENDMMSG = 345, SECCOMP = 354,
       SENDMSG = 370, RECVMSG = 372, PSELECT6_64 = 413, PPOLL_64 = 414, RECVMMSG_64 = 417, CLONE3 = 435 };

static char *low; /* 128 KiB that 32 bits can name */

static void map_low(void)
{
    low = mmap(NULL, 131072, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_32BIT, -1, 0);
    CHECK(low != MAP_FAILED);
}

UNUSED static long int80(long nr, long a, long b, long c, long d, long e)
{
    const long arg[] = {nr, a, b, c, d, e};
    const long *r = arg;
    __asm__ volatile("lea -128(%%rsp), %%rsp\n push %%rbx\n"
                     "mov 8(%%rax), %%rbx\n mov 16(%%rax), %%rcx\n mov 24(%%rax), %%rdx\n mov 32(%%rax), %%rsi\n mov 40(%%rax), %%rdi\n"
                     "mov (%%rax), %%rax\n int $0x80\n pop %%rbx\n lea 128(%%rsp), %%rsp"
                     : "+a"(r) : : "rcx", "rdx", "rsi", "rdi", "r8", "r9", "r10", "r11", "memory", "cc");
    return (long)r;
}

UNUSED static long int80_6(long nr, long a, long b, long c, long d, long e, long f)
{
    const long arg[] = {nr, a, b, c, d, e, f};
    const long *r = arg;
    __asm__ volatile("lea -128(%%rsp), %%rsp\n push %%rbx\n push %%rbp\n"
                     "mov 8(%%rax), %%rbx\n mov 16(%%rax), %%rcx\n mov 24(%%rax), %%rdx\n mov 32(%%rax), %%rsi\n mov 40(%%rax), %%rdi\n mov 48(%%rax), %%rbp\n"
                     "mov (%%rax), %%rax\n int $0x80\n pop %%rbp\n pop %%rbx\n lea 128(%%rsp), %%rsp"
                     : "+a"(r) : : "rcx", "rdx", "rsi", "rdi", "r8", "r9", "r10", "r11", "memory", "cc");
    return (long)r;
}

static uint32_t at(const void *p) { return (uint32_t)(uintptr_t)p; }

#endif
