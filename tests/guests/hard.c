/* SPDX-License-Identifier: Apache-2.0
 *
 * A call on the connection changes nothing but rax, rcx and r11: general registers, flags, the red zone, and all the state that XSAVE knows
 * (x87, SSE, AVX, AVX-512 where there is). The same for calls made by generated code: in writable memory, across a cache line, across a page.
 */
#include "guest.h"
#include <cpuid.h>
#include <sys/mman.h>
#include <sys/syscall.h>

enum { STATE_MAX = 16384, ROUNDS = 200, LONGEST = 3000 };
static unsigned char before[STATE_MAX] __attribute__((aligned(64))), after[STATE_MAX] __attribute__((aligned(64)));
static unsigned char byte, bytes[LONGEST + 1];

/* A pattern in every vector component that this machine has; returns the mask of what was filled. */
static uint64_t fill(unsigned char *state)
{
    unsigned a, b, c, d;
    uint64_t filled = 0;
    __cpuid_count(0xd, 0, a, b, c, d);
    CHECK(b <= STATE_MAX);
    uint64_t have = a & 0xe6; /* SSE, AVX, opmask and the two parts of AVX-512 */
    memset(state, 0, STATE_MAX);
    __asm__ volatile("xsave64 %0" : "+m"(*(unsigned char(*)[STATE_MAX])state) : "a"(3), "d"(0));
    for (int part = 1; part < 8; part++) {
        unsigned offset = 160, size = 256;
        if (!(have >> part & 1))
            continue;
        if (part > 1) {
            __cpuid_count(0xd, part, a, b, c, d);
            size = a;
            offset = b;
        }
        for (unsigned i = 0; i < size; i++)
            state[offset + i] = (unsigned char)(i * 7 + (unsigned)part * 31 + 1);
        filled |= 1u << part;
    }
    *(uint64_t *)(state + 512) = filled | 1;
    return filled;
}

static void compare(uint64_t filled)
{
    for (int part = 1; part < 8; part++) {
        unsigned a = 256, b = 160, c, d;
        if (!(filled >> part & 1))
            continue;
        if (part > 1)
            __cpuid_count(0xd, part, a, b, c, d);
        CHECK(memcmp(before + b, after + b, a) == 0);
    }
}

static long vectors(long nr, long fd, void *buf, long len)
{
    uint64_t filled = fill(before);
    long r;
    memset(after, 0, sizeof after);
    register long r10 __asm__("r10") = 0, r8 __asm__("r8") = 0, r9 __asm__("r9") = 0;
    __asm__ volatile("mov $-1, %%eax\n mov $-1, %%edx\n xrstor64 (%[b])\n mov %[nr], %%rax\n mov %[len], %%rdx\n syscall\n mov %%rax, %%r12\n"
                     "mov $-1, %%eax\n mov $-1, %%edx\n xsave64 (%[a])\n mov %%r12, %[r]"
                     : [r] "=&r"(r)
                     : [b] "r"(before), [a] "r"(after), [nr] "r"(nr), [len] "r"(len), "D"(fd), "S"(buf), "r"(r10), "r"(r8), "r"(r9)
                     : "rax", "rdx", "rcx", "r11", "r12", "memory");
    compare(filled);
    return r;
}

/* In: rdi fd. All other registers get patterns; the flags, too, and 128 bytes below the stack. Out: 0 if all is as it was; result in rax. */
long registers(long nr, long fd, void *buf);
__asm__("registers:\n push %rbx\n push %rbp\n push %r12\n push %r13\n push %r14\n push %r15\n"
        " mov %rdi, %rax\n mov %rsi, %rdi\n mov %rdx, %rsi\n mov $1, %edx\n"
        " mov $0x1111, %ebx\n mov $0x2222, %ebp\n mov $0x3333, %r12d\n mov $0x4444, %r13d\n mov $0x5555, %r14d\n mov $0x6666, %r15d\n"
        " xor %r10d, %r10d\n xor %r8d, %r8d\n xor %r9d, %r9d\n movq $0x7777, -8(%rsp)\n movq $0x8888, -128(%rsp)\n"
        " stc\n syscall\n"
        " jnc 1f\n cmp $0x1111, %rbx\n jne 1f\n cmp $0x2222, %rbp\n jne 1f\n cmp $0x3333, %r12\n jne 1f\n cmp $0x4444, %r13\n jne 1f\n"
        " cmp $0x5555, %r14\n jne 1f\n cmp $0x6666, %r15\n jne 1f\n cmp $1, %rdx\n jne 1f\n test %r10, %r10\n jne 1f\n test %r8, %r8\n jne 1f\n"
        " cmpq $0x7777, -8(%rsp)\n jne 1f\n cmpq $0x8888, -128(%rsp)\n jne 1f\n jmp 2f\n"
        "1: mov $-9999, %rax\n"
        "2: pop %r15\n pop %r14\n pop %r13\n pop %r12\n pop %rbp\n pop %rbx\n ret\n");

/* mov %rdi,%rax; mov %rsi,%rdi; mov %rdx,%rsi; mov $1,%edx; syscall; ret, so that the syscall begins at `at` */
static long (*generated(unsigned char *at))(long, long, void *)
{
    static const unsigned char code[] = {0x48, 0x89, 0xf8, 0x48, 0x89, 0xf7, 0x48, 0x89, 0xd6, 0xba, 1, 0, 0, 0, 0x0f, 0x05, 0xc3};
    memcpy(at - 14, code, sizeof code);
    return (long (*)(long, long, void *))(void *)(at - 14);
}

/* A write from a buffer that ends too soon, behind `bytes`. The kernel fails, or takes what fits into the page that it was filling: if that ends
 * within what can be read, the call is a short one. Returns what was taken. */
static long too_soon(int fd, unsigned char *edge, long n)
{
    long have = n < 300 ? n : 300;

    memcpy(edge - have, bytes + 1, (size_t)have);
    long taken = vectors(SYS_write, fd, edge - have, n > 600 ? n : 700);
    CHECK(taken == -EFAULT || (taken > 0 && taken <= have));
    return taken > 0 ? taken : 0;
}

/* Some hundred bytes at a time: the library copies them by vector registers. One byte more on each side, and a buffer that ends too soon. */
static void longer(int fd, bool first)
{
    static const long sizes[] = {64, 257, 300, 320, 511, 512, 513, 700, 1024, 1279, 1280, 1281, LONGEST - 1};
    unsigned char *edge = (unsigned char *)mmap(NULL, 2 * 4096, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0) + 4096;

    CHECK(munmap(edge, 4096) == 0);
    for (int i = 0; i < 20; i++)
        for (unsigned k = 0; k < sizeof sizes / sizeof *sizes; k++)
            for (int turn = 0; turn < 2; turn++) {
                bool writes = (turn == 0) == first;
                long n = sizes[k];
                for (long at = 0; at <= LONGEST; at++)
                    bytes[at] = writes ? (unsigned char)(at * 13 + i) : 0xa5;
                if (writes) {
                    long taken = too_soon(fd, edge, n);
                    CHECK(taken == n || vectors(SYS_write, fd, bytes + 1 + taken, n - taken) == n - taken);
                    continue;
                }
                for (long got = 0, r; got < n; got += r)
                    CHECK((r = vectors(SYS_read, fd, bytes + 1 + got, n - got)) > 0);
                CHECK(bytes[0] == 0xa5 && (n == LONGEST || bytes[n + 1] == 0xa5));
                for (long at = 1; at <= n; at++)
                    CHECK(bytes[at] == (unsigned char)(at * 13 + i));
            }
}

static void exchange(int fd, bool first)
{
    unsigned char *memory = mmap(NULL, 3 * 4096, PROT_READ | PROT_WRITE | PROT_EXEC, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    CHECK(memory != MAP_FAILED);
    long (*way[])(long, long, void *) = {registers, generated(memory + 100), generated(memory + 64 * 5 - 1), generated(memory + 4095)};
    for (int i = 0; i < ROUNDS; i++)
        for (int k = 0; k < 5; k++)
            for (int turn = 0; turn < 2; turn++) {
                long nr = (turn == 0) == first ? SYS_write : SYS_read;
                byte = nr == SYS_write ? (unsigned char)(i + k) : 0;
                CHECK((k < 4 ? way[k](nr, fd, &byte) : vectors(nr, fd, &byte, 1)) == 1 && byte == (unsigned char)(i + k));
            }
    longer(fd, first);
    CHECK(mprotect(memory, 3 * 4096, PROT_READ | PROT_EXEC) == 0); /* and as a JIT that has finished */
    for (int i = 0; i < 50; i++) {
        byte = 'j';
        CHECK(way[3](first ? SYS_write : SYS_read, fd, &byte) == 1 && byte == 'j');
        CHECK(way[2](first ? SYS_read : SYS_write, fd, &byte) == 1 && byte == 'j');
    }
}

static void accepted(int fd) { exchange(fd, false); }
static void connected(int fd) { exchange(fd, true); }

int main(void) { return guest_main(accepted, connected); }
