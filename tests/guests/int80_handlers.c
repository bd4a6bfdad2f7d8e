/* SPDX-License-Identifier: Apache-2.0
 *
 * int80_handlers WHAT: handlers that a 64-bit program sets by int $0x80. The kernel takes them for 32-bit code, gives them a frame of i386, and
 * cuts everything to 32 bits when they return. So they are 32-bit code here, and the calls that they interrupt are made by code below 4 GiB, on a
 * stack below 4 GiB.
 *
 *   frames    what a handler sees, plain and with siginfo; nested ones; on the alternate stack; masks; what is read back; signal()
 *   interrupt handlers that use the connection while a receive on it sleeps, with SA_RESTART and without
 *   strict    strict mode, asked for by int $0x80: read, write and exit, of both kinds
 *   tls       set_thread_area
 */
#include "guest.h"
#include <asm/ldt.h>
#include <linux/seccomp.h>
#include <sys/mman.h>
#include <sys/prctl.h>

enum { EXIT = 1, READ = 3, WRITE = 4, GETPID = 20, KILL = 37, SIGNAL = 48, SIGACTION = 67, PRCTL = 172, RT_SIGACTION = 174, SET_THREAD_AREA = 243, GET_THREAD_AREA = 244,
       SECCOMP = 354 };
#define SA_RESTORER_ 0x04000000u

/* What the 32-bit code writes and reads; at LOW. */
#define LOW 0x10000000
struct seen {
    uint32_t esp, cs, sig, info, context, count, pid, wrote;
    int32_t fd;     /* to write a byte to; -1: none */
    uint32_t again; /* signal to raise in the handler, once */
    char text[8];
};
#define SEEN ((volatile struct seen *)LOW)
#define CODE (LOW + 0x1000)
#define STACK_TOP (LOW + 0x20000) /* of 64 KiB */
#define ALT (LOW + 0x30000)       /* 64 KiB */

extern const char code_begin[], h_plain[], r_plain[], r_rt[], low_call[], code_end[];
__asm__(".pushsection .rodata\ncode_begin:\n"
        ".code32\n"
        "h_plain:\n mov %esp, 0x10000000\n mov %cs, %ecx\n mov %ecx, 0x10000004\n"
        " mov 4(%esp), %eax\n mov %eax, 0x10000008\n mov 8(%esp), %eax\n mov %eax, 0x1000000c\n mov 12(%esp), %eax\n mov %eax, 0x10000010\n"
        " mov 8(%esp), %esi\n cmp $0x10000000, %esi\n jb 3f\n mov $0x10000600, %edi\n mov $5, %ecx\n rep movsl\n"
        " mov 12(%esp), %esi\n mov $0x10000640, %edi\n mov $24, %ecx\n rep movsl\n"
        "3:"
        " incl 0x10000014\n mov $20, %eax\n int $0x80\n mov %eax, 0x10000018\n"
        " mov 0x10000020, %ebx\n test %ebx, %ebx\n js 1f\n mov $4, %eax\n mov $0x10000028, %ecx\n mov $1, %edx\n int $0x80\n mov %eax, 0x1000001c\n"
        "1: mov 0x10000024, %ecx\n test %ecx, %ecx\n jz 2f\n movl $0, 0x10000024\n mov 0x10000018, %ebx\n mov $37, %eax\n int $0x80\n"
        "2: xor %ebx, %ebx\n xor %esi, %esi\n xor %edi, %edi\n xor %ebp, %ebp\n ret\n"
        "r_plain: pop %eax\n mov $119, %eax\n int $0x80\n"
        "r_rt: mov $173, %eax\n int $0x80\n"
        ".code64\n"
        "low_call: syscall\n ret\ncode_end:\n.popsection\n");

static uint32_t code_at(const char *label) { return (uint32_t)(CODE + (label - code_begin)); }

/* nr(a, b, c) by an instruction below 4 GiB, on a stack below 4 GiB, with a pattern in registers that the frame has room for. */
long on_low_stack(long nr, long a, long b, long c, long at, long stack);
__asm__(".text\non_low_stack:\n push %rbx\n push %rbp\n push %r12\n push %r13\n push %r14\n push %r15\n"
        "mov %rsp, %r13\n mov %r9, %rsp\n push %r13\n mov %rdi, %rax\n mov %rsi, %rdi\n mov %rdx, %rsi\n mov %rcx, %rdx\n mov %r8, %r12\n"
        "mov $0x11111111, %ebx\n mov $0x22222222, %ebp\n movabs $0x3333333344444444, %r14\n mov $0x5555555566666666, %r15\n"
        "call *%r12\n"
        "cmp $0x11111111, %ebx\n jne 1f\n cmp $0x22222222, %ebp\n jne 1f\n movabs $0x3333333344444444, %rcx\n cmp %rcx, %r14\n jne 1f\n"
        "mov $0x5555555566666666, %rcx\n cmp %rcx, %r15\n jne 1f\n cmp $0x10000000, %r12\n jb 1f\n"
        "2: pop %rsp\n pop %r15\n pop %r14\n pop %r13\n pop %r12\n pop %rbp\n pop %rbx\n ret\n"
        "1: mov $-1000, %rax\n jmp 2b\n");

static int low_syscall(long nr, long a, long b, long c) { return (int)on_low_stack(nr, a, b, c, code_at(low_call), STACK_TOP); }

static long int80(long nr, long a, long b, long c, long d)
{
    long r;
    __asm__ volatile("int $0x80" : "=a"(r) : "a"(nr), "b"(a), "c"(b), "d"(c), "S"(d) : "memory", "r8", "r9", "r10", "r11");
    return r;
}

struct action32 {
    uint32_t handler, flags, restorer, mask[2];
};

static struct action32 *action(void) { return (struct action32 *)(LOW + 0x800); }

static void set(int number, uint32_t flags, uint32_t mask)
{
    bool rt = flags & SA_SIGINFO;
    *action() = (struct action32){code_at(h_plain), flags | SA_RESTORER_, code_at(rt ? r_rt : r_plain), {mask, 0}};
    CHECK(int80(RT_SIGACTION, number, (long)action(), 0, 8) == 0);
}

static void low_memory(void)
{
    char *p = mmap((void *)LOW, 0x40000, PROT_READ | PROT_WRITE | PROT_EXEC, MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED_NOREPLACE, -1, 0);
    CHECK(p == (char *)LOW);
    memcpy(p + 0x1000, code_begin, (size_t)(code_end - code_begin));
    SEEN->fd = -1;
    SEEN->text[0] = 'h';
}

/* ---- frames */

static void expect_handled(int number, uint32_t count)
{
    CHECK(SEEN->count == count && SEEN->cs == 0x23 && SEEN->sig == (uint32_t)number && SEEN->pid == (uint32_t)getpid());
    CHECK(SEEN->esp < STACK_TOP && SEEN->esp > STACK_TOP - 0x10000 && SEEN->esp % 16 == 12);
}

static void plain_and_rt(void)
{
    uint32_t count = SEEN->count;
    set(SIGUSR1, 0, 0);
    CHECK(low_syscall(62, getpid(), SIGUSR1, 0) == 0); /* kill */
    expect_handled(SIGUSR1, count + 1);
    set(SIGUSR1, SA_SIGINFO, 0);
    CHECK(low_syscall(62, getpid(), SIGUSR1, 0) == 0);
    expect_handled(SIGUSR1, count + 2);
    const uint32_t *info = (uint32_t *)(LOW + 0x600), *context = (uint32_t *)(LOW + 0x640); /* copies */
    CHECK(info[0] == SIGUSR1 && info[1] == 0 && (int)info[2] == SI_USER && info[3] == (uint32_t)getpid() && info[4] == getuid());
    CHECK(context[5 + 14] == code_at(low_call) + 2 && context[5 + 8] == 0x11111111 && context[5 + 11] == 0); /* ip, bx, ax */
}

static void nested(void)
{
    uint32_t count = SEEN->count;
    set(SIGUSR2, SA_SIGINFO, 0);
    set(SIGUSR1, 0, 0);
    for (int i = 0; i < 3; i++) {
        SEEN->again = SIGUSR2;
        CHECK(low_syscall(62, getpid(), SIGUSR1, 0) == 0);
        CHECK(SEEN->count == count + 2 * (uint32_t)i + 2 && SEEN->sig == SIGUSR2);
    }
    set(SIGUSR1, 0, 1u << (SIGUSR2 - 1)); /* then it comes when the first one returns */
    SEEN->again = SIGUSR2;
    uint32_t before = SEEN->count;
    CHECK(low_syscall(62, getpid(), SIGUSR1, 0) == 0 && SEEN->count == before + 2);
    sigset_t now;
    CHECK(sigprocmask(SIG_SETMASK, NULL, &now) == 0 && !sigismember(&now, SIGUSR1) && !sigismember(&now, SIGUSR2));
}

static void alternate_stack(void)
{
    stack_t on = {.ss_sp = (void *)ALT, .ss_size = 0x10000}, off = {.ss_flags = SS_DISABLE};
    uint32_t count = SEEN->count;
    CHECK(sigaltstack(&on, NULL) == 0);
    set(SIGUSR1, SA_ONSTACK, 0);
    CHECK(low_syscall(62, getpid(), SIGUSR1, 0) == 0 && SEEN->count == count + 1 && SEEN->esp - ALT < 0x10000);
    CHECK(sigaltstack(&off, NULL) == 0);
}

static void read_back(void)
{
    struct sigaction now;
    struct action32 *old = action() + 1;
    set(SIGUSR1, SA_RESTART, 1u << (SIGUSR2 - 1));
    CHECK(sigaction(SIGUSR1, NULL, &now) == 0 && now.sa_handler == (void (*)(int))(uintptr_t)code_at(h_plain));
    CHECK(now.sa_flags & SA_RESTART && !(now.sa_flags & SA_SIGINFO) && sigismember(&now.sa_mask, SIGUSR2));
    CHECK(int80(RT_SIGACTION, SIGUSR1, 0, (long)old, 8) == 0 && old->handler == code_at(h_plain) && old->restorer == code_at(r_plain));
    CHECK(old->flags == (SA_RESTART | SA_RESTORER_) && old->mask[0] == 1u << (SIGUSR2 - 1));
    CHECK(int80(RT_SIGACTION, SIGKILL, (long)action(), 0, 8) == -EINVAL && int80(RT_SIGACTION, 77, (long)action(), 0, 8) == -EINVAL);
    CHECK(int80(SIGNAL, SIGUSR1, 1, 0, 0) == code_at(h_plain));
    CHECK(int80(SIGNAL, SIGUSR1, 0, 0, 0) == 1);
    uint32_t *o = (uint32_t *)(action() + 2);
    o[0] = code_at(h_plain), o[1] = 1u << (SIGUSR2 - 1), o[2] = SA_RESETHAND | SA_RESTORER_, o[3] = code_at(r_plain);
    CHECK(int80(SIGACTION, SIGUSR1, (long)o, 0, 0) == 0);
    uint32_t count = SEEN->count;
    CHECK(low_syscall(62, getpid(), SIGUSR1, 0) == 0 && SEEN->count == count + 1);
    CHECK(sigaction(SIGUSR1, NULL, &now) == 0 && now.sa_handler == SIG_DFL);
}

static void segv(void)
{
    uint32_t count = SEEN->count;
    set(SIGSEGV, SA_RESETHAND, 0);
    CHECK(low_syscall(62, getpid(), SIGSEGV, 0) == 0 && SEEN->count == count + 1 && SEEN->sig == SIGSEGV);
}

static void frames(int fd)
{
    for (int i = 0; i < 2; i++) {
        plain_and_rt();
        nested();
        alternate_stack();
        read_back();
        segv();
    }
    pid_t child = fork();
    if (child == 0) { /* inherited; not by a new program */
        plain_and_rt();
        _exit(0);
    }
    reap(child);
    say(fd, "e");
}

/* ---- a receive that sleeps is interrupted */

static void interrupts(int fd)
{
    char *buf = (char *)LOW + 0x900;
    int n;
    SEEN->fd = fd;
    for (int i = 0; i < 20; i++) {
        uint32_t count = SEEN->count;
        set(SIGUSR1, (i & 1 ? SA_SIGINFO : 0) | (i & 2 ? SA_RESTART : 0), 0);
        say(fd, "g"); /* the other end signals, waits for the handler's byte, and sends one */
        while ((n = low_syscall(0, fd, (long)buf, 1)) == -EINTR)
            CHECK(!(i & 2));
        CHECK(n == 1 && *buf == 'o');
        CHECK(SEEN->count == count + 1 && SEEN->wrote == 1 && SEEN->cs == 0x23);
    }
    SEEN->fd = -1;
    say(fd, "e");
}

/* ---- strict mode */

static void strict(int fd)
{
    for (int how = 0; how < 3; how++) {
        pid_t child = fork();
        if (child == 0) {
            strcpy((char *)LOW + 0x900, "child");
            CHECK((how ? int80(SECCOMP, SECCOMP_SET_MODE_STRICT, 0, 0, 0) : int80(PRCTL, PR_SET_SECCOMP, SECCOMP_MODE_STRICT, 0, 0)) == 0);
            CHECK(int80(WRITE, fd, LOW + 0x900, 2, 0) == 2 && write(fd, "ild", 3) == 3 && int80(READ, fd, LOW + 0x900, 1, 0) == 1);
            if (how == 2)
                int80(15, LOW + 0x900, 0, 0, 0); /* chmod: the number of rt_sigreturn in the other table */
            int80(EXIT, 7, 0, 0, 0);
        }
        int status;
        CHECK(waitpid(child, &status, 0) == child);
        CHECK(how == 2 ? WIFSIGNALED(status) : WIFEXITED(status) && WEXITSTATUS(status) == 7);
    }
}

static void tls(int fd)
{
    struct user_desc *d = (struct user_desc *)(LOW + 0x900), *seen = d + 1;
    *d = (struct user_desc){.entry_number = (uint32_t)-1, .base_addr = LOW, .limit = 0xfffff, .seg_32bit = 1, .limit_in_pages = 1, .useable = 1};
    CHECK(int80(SET_THREAD_AREA, (long)d, 0, 0, 0) == 0 && d->entry_number >= 12 && d->entry_number <= 14);
    say(fd, "e");
    seen->entry_number = d->entry_number;
    CHECK(int80(GET_THREAD_AREA, (long)seen, 0, 0, 0) == 0 && seen->base_addr == LOW && seen->limit == 0xfffff);
}

static const char *what;
static pid_t peer;

static void accepted(int fd)
{
    low_memory();
    char pid[16];
    snprintf(pid, sizeof pid, "%15d", (int)getpid());
    say(fd, pid);
    (strcmp(what, "frames") == 0 ? frames : strcmp(what, "interrupt") == 0 ? interrupts : strcmp(what, "strict") == 0 ? strict : tls)(fd);
}

static void connected(int fd)
{
    char pid[16] = "", c;
    read_all(fd, pid, 15);
    peer = atoi(pid);
    if (strcmp(what, "strict") == 0) {
        for (int i = 0; i < 3; i++) {
            expect(fd, "child");
            say(fd, "o");
        }
        return;
    }
    for (read_all(fd, &c, 1); c == 'g'; read_all(fd, &c, 1)) {
        sleep_ms(5); /* it sleeps */
        CHECK(kill(peer, SIGUSR1) == 0);
        expect(fd, "h");
        say(fd, "o");
    }
    CHECK(c == 'e');
}

int main(int argc, char **argv)
{
    CHECK(argc == 2);
    what = argv[1];
    return guest_main(accepted, connected);
}
