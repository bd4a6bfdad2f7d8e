/* SPDX-License-Identifier: Apache-2.0
 *
 * int80_float: what a handler set by int $0x80, 32-bit code, finds as floating point state in its frame (the i387's as FSAVE writes it, FXSAVE's behind it), and
 * what becomes of what it changes there. The interrupted code lies below 4 GiB, as its stack does; a receive that sleeps on a connection, or a system call.
 */
#include "guest.h"
#include <sys/mman.h>

enum { RT_SIGACTION = 174, SIGRETURN = 119 };
#define SA_RESTORER_ 0x04000000u
#define LOW 0x10000000
#define CODE (LOW + 0x1000)
#define COPY (LOW + 0x2000)
#define ELSEWHERE (LOW + 0x8000)
#define STACK_TOP (LOW + 0x20000)

/* The handler notes where the state is, copies 112 + 512 bytes of it to COPY, and does as it is told. */
struct told {
    uint32_t count, at, how; /* how: 0 nothing; 1 changes it in place; 2 says that there is none; 3 changes a copy, and names that */
};
#define TOLD ((volatile struct told *)LOW)

struct i387 {
    uint32_t cw, sw, tag, ip, cs, data, ds;
    uint8_t st[8][10];
    uint16_t status, magic;
    uint8_t fx[512];
};
#define SEEN ((const struct i387 *)COPY)

extern const char code_begin[], h_float[], r_plain[], low_call[], code_end[];
__asm__(".pushsection .rodata\ncode_begin:\n"
        ".code32\n"
        "h_float:\n incl 0x10000000\n mov 84(%esp), %esi\n mov %esi, 0x10000004\n test %esi, %esi\n jz 9f\n"
        " mov $0x10002000, %edi\n mov $156, %ecx\n rep movsl\n"
        " mov 84(%esp), %esi\n mov 0x10000008, %eax\n cmp $2, %eax\n jne 1f\n movl $0, 84(%esp)\n ret\n"
        "1: cmp $3, %eax\n jne 2f\n mov $0x10008000, %edi\n mov %edi, 84(%esp)\n mov $1024, %ecx\n rep movsl\n mov $0x10008000, %esi\n"
        "2: test %eax, %eax\n jz 9f\n"
        " movl $0xffff0c7f, (%esi)\n"         /* the control word: rounds to zero */
        " movl $0x40000000, 32(%esi)\n movl $0x0, 28(%esi)\n movl $0x80000000, 32(%esi)\n movw $0x4000, 36(%esi)\n" /* st(0) = 2 */
        " movl $0x3f80, 136(%esi)\n"          /* MXCSR: rounds down */
        " movl $0x12345678, 320(%esi)\n"      /* xmm3: 112 + 160 + 3 * 16 */
        "9: xor %eax, %eax\n ret\n"
        "r_plain: pop %eax\n mov $119, %eax\n int $0x80\n"
        ".code64\n"
        "low_call: syscall\n ret\ncode_end:\n.popsection\n");

static uint32_t code_at(const char *label) { return (uint32_t)(CODE + (label - code_begin)); }

struct state {
    uint16_t cw, pad;
    uint32_t mxcsr;
    long double st0, st1;
    uint64_t xmm3[2], xmm9[2];
    long r;
};

/* nr(a, b, c) by low_call on the low stack, with a floating point state, and what it is afterwards. */
void with_state(struct state *s, long nr, long a, long b, long c, const char *at);
__asm__(".text\nwith_state:\n push %rbx\n push %rbp\n push %r12\n push %r13\n push %r14\n"
        "mov %rdi, %r12\n mov %r9, %r14\n mov %rsp, %rbp\n"
        "finit\n fldcw (%r12)\n fldt 32(%r12)\n fldt 16(%r12)\n ldmxcsr 4(%r12)\n movups 48(%r12), %xmm3\n movups 64(%r12), %xmm9\n"
        "mov %rsi, %rax\n mov %rdx, %rdi\n mov %rcx, %rsi\n mov %r8, %rdx\n mov $0x10020000, %esp\n push %rbp\n call *%r14\n pop %rsp\n"
        "mov %rax, 80(%r12)\n fnstcw (%r12)\n stmxcsr 4(%r12)\n movups %xmm3, 48(%r12)\n movups %xmm9, 64(%r12)\n fstpt 16(%r12)\n fstpt 32(%r12)\n finit\n"
        "pushq $0x1f80\n ldmxcsr (%rsp)\n pop %rax\n pop %r14\n pop %r13\n pop %r12\n pop %rbp\n pop %rbx\n ret\n");

static void low_memory(void)
{
    char *p = mmap((void *)LOW, 0x40000, PROT_READ | PROT_WRITE | PROT_EXEC, MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED_NOREPLACE, -1, 0);
    CHECK(p == (char *)LOW);
    memcpy(p + 0x1000, code_begin, (size_t)(code_end - code_begin));
}

static void set(int number)
{
    struct { uint32_t handler, flags, restorer, mask[2]; } *a = (void *)(LOW + 0x800);
    long r;
    a->handler = code_at(h_float), a->flags = SA_RESTORER_ | SA_RESTART, a->restorer = code_at(r_plain), a->mask[0] = a->mask[1] = 0;
    __asm__ volatile("int $0x80" : "=a"(r) : "a"(RT_SIGACTION), "b"(number), "c"(a), "d"(0), "S"(8) : "memory", "r8", "r9", "r10", "r11");
    CHECK(r == 0);
}

static const struct state before = {.cw = 0x37f, .mxcsr = 0x1f80, .st0 = 3.25L, .st1 = -0.0L, .xmm3 = {0x1111222233334444, 5}, .xmm9 = {6, 0x7777888899990000}};

static void expect_shown(uint32_t count)
{
    CHECK(TOLD->count == count && TOLD->at);
    CHECK(SEEN->magic == 0 && SEEN->cw == 0xffff037f && (SEEN->sw >> 11 & 7) == 6 && SEEN->sw >> 16 == 0xffff && SEEN->status == (uint16_t)SEEN->sw);
    CHECK(SEEN->tag == 0xffff4fff); /* the first valid, the second zero, the others empty */
    CHECK(SEEN->cs == 0x33 && SEEN->ds >> 16 == 0xffff);
    CHECK(memcmp(SEEN->st[0], &before.st0, 10) == 0 && memcmp(SEEN->st[1], &before.st1, 10) == 0);
    CHECK(memcmp(SEEN->fx + 32, &before.st0, 10) == 0 && memcmp(SEEN->fx + 160 + 48, before.xmm3, 16) == 0 && memcmp(SEEN->fx + 160 + 144, before.xmm9, 16) == 0);
    CHECK(memcmp(SEEN->fx + 24, &before.mxcsr, 4) == 0);
    uint32_t says[5];
    memcpy(says, SEEN->fx + 464, sizeof says);
    CHECK(says[0] == 0x46505853 && says[1] == says[4] + 4 + 112);
}

static void expect_back(const struct state *s, uint32_t how)
{
    bool changed = how == 1 || how == 3;
    if (how == 2) { /* as at the program's start */
        CHECK(s->cw == 0x37f && s->mxcsr == 0x1f80 && !s->xmm3[0] && !s->xmm3[1] && !s->xmm9[0] && !s->xmm9[1]);
        return;
    }
    CHECK(s->cw == (changed ? 0xc7f : 0x37f) && s->mxcsr == (changed ? 0x3f80 : 0x1f80));
    CHECK(s->st0 == (changed ? 2.0L : 3.25L) && memcmp(&s->st1, &before.st1, 10) == 0);
    CHECK(s->xmm3[0] == (changed ? 0x1111222212345678 : before.xmm3[0]) && s->xmm3[1] == 5 && memcmp(s->xmm9, before.xmm9, 16) == 0);
}

static pid_t peer;

static void accepted(int fd)
{
    char pid[16], *buf = (char *)LOW + 0x900;
    low_memory();
    set(SIGUSR1);
    snprintf(pid, sizeof pid, "%15d", (int)getpid());
    say(fd, pid);
    for (uint32_t i = 0; i < 40; i++) {
        struct state s = before;
        bool sleeps = i % 8 >= 4;
        TOLD->how = i % 4;
        if (sleeps) {
            say(fd, "g"); /* the other end signals and sends a byte */
            with_state(&s, 0, fd, (long)buf, 1, (const char *)(uintptr_t)code_at(low_call));
            CHECK(s.r == 1 && *buf == 'o');
        } else {
            with_state(&s, 62, getpid(), SIGUSR1, 0, (const char *)(uintptr_t)code_at(low_call));
            CHECK(s.r == 0);
        }
        expect_shown(i + 1);
        expect_back(&s, i % 4);
    }
    say(fd, "e");
}

static void connected(int fd)
{
    char pid[16] = "", c;
    read_all(fd, pid, 15);
    peer = atoi(pid);
    for (read_all(fd, &c, 1); c == 'g'; read_all(fd, &c, 1)) {
        sleep_ms(5); /* it sleeps */
        CHECK(kill(peer, SIGUSR1) == 0);
        sleep_ms(5);
        say(fd, "o");
    }
    CHECK(c == 'e');
}

int main(void) { return guest_main(accepted, connected); }
