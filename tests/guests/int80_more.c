/* SPDX-License-Identifier: Apache-2.0
 *
 * int80_more WHAT: a 64-bit program that makes 32-bit calls whose structures i386 lays out otherwise, or that come back on another stack.
 *
 *   messages  sendmmsg, recvmmsg, control messages with descriptors
 *   signals   actions, masks, the alternate stack
 *   threads   clone and clone3 with shared memory
 *   filter    prctl, and a seccomp filter
 */
#include "int80_call.h"
#include <linux/filter.h>
#include <linux/seccomp.h>
#include <sched.h>
#include <sys/prctl.h>

enum { CALL_RECVMMSG = 19, CALL_SENDMMSG = 20 };

static const char *what;

/* ---- messages */

struct vector32 {
    uint32_t base, len;
};

struct message32 {
    uint32_t name, namelen, iov, iovlen, control, controllen, flags;
};

struct many32 {
    struct message32 m;
    uint32_t len;
};

struct control32 {
    uint32_t len;
    int32_t level, type, fd[3];
};

static void many(int fd)
{
    struct vector32 *v = (struct vector32 *)(low + 1024);
    struct many32 *m = (struct many32 *)(low + 2048);
    uint32_t *arg = (uint32_t *)(low + 3000);
    strcpy(low, "abcdef");
    for (uint32_t i = 0; i < 3; i++) {
        v[i] = (struct vector32){at(low + 2 * i), 2};
        m[i] = (struct many32){{.iov = at(v + i), .iovlen = 1}, 99};
    }
    CHECK(int80(SENDMMSG, fd, at(m), 3, MSG_NOSIGNAL, 0) == 3);
    CHECK(m[0].len == 2 && m[1].len == 2 && m[2].len == 2);
    arg[0] = (uint32_t)fd, arg[1] = at(m), arg[2] = 2, arg[3] = MSG_NOSIGNAL;
    CHECK(int80(SOCKETCALL, CALL_SENDMMSG, at(arg), 0, 0, 0) == 2);
    CHECK(int80(SENDMMSG, fd, 8, 1, 0, 0) == -EFAULT && int80(SENDMMSG, fd, at(m), 0, 0, 0) == 0);
    memset(low, 0, 16);
    m[1].m.flags = 77;
    for (int have = 0; have < 6;) { /* as much as there is */
        int n = (int)int80(RECVMMSG, fd, at(m), 2, MSG_WAITFORONE, 0);
        CHECK(n == 1 || n == 2);
        have += (int)m[0].len + (n == 2 ? (int)m[1].len : 0);
        CHECK(m[n - 1].m.flags == 0);
    }
    arg[4] = 0;
    say(fd, "g");
    arg[2] = 1, arg[3] = 0;
    CHECK(int80(SOCKETCALL, CALL_RECVMMSG, at(arg), 0, 0, 0) == 1 && m[0].len == 1 && low[0] == 'o');
    say(fd, "g");
    CHECK(int80(RECVMMSG_64, fd, at(m), 1, 0, 0) == 1 && m[0].len == 1 && low[0] == 'o');
}

static long message(int call, int fd, struct control32 *c, uint32_t controllen, int flags)
{
    struct vector32 *v = (struct vector32 *)(low + 1024);
    struct message32 *m = (struct message32 *)(low + 2048);
    *v = (struct vector32){at(low), 1};
    *m = (struct message32){.iov = at(v), .iovlen = 1, .control = at(c), .controllen = controllen};
    return int80(call, fd, at(m), flags, 0, 0);
}

/* A pipe and the connection itself are sent to ourselves. */
static void descriptors(int fd)
{
    struct message32 *m = (struct message32 *)(low + 2048);
    struct control32 *c = (struct control32 *)(low + 2200);
    int pair[2], pipes[2], first;
    CHECK(socketpair(AF_UNIX, SOCK_STREAM, 0, pair) == 0 && pipe(pipes) == 0);
    first = dup(0);
    CHECK(first > 0 && close(first) == 0);
    *c = (struct control32){20, SOL_SOCKET, SCM_RIGHTS, {pipes[1], fd}};
    CHECK(message(SENDMSG, pair[0], c, 20, 0) == 1);
    memset(c, 0, sizeof *c);
    CHECK(message(RECVMSG, pair[1], c, 20, 0) == 1 && m->controllen == 20 && m->flags == 0);
    CHECK(c->len == 20 && c->level == SOL_SOCKET && c->type == SCM_RIGHTS && c->fd[0] == first && c->fd[1] == first + 1);
    CHECK(write(c->fd[0], "p", 1) == 1);
    expect(pipes[0], "p");
    say(c->fd[1], "g");
    expect(fd, "o");
    CHECK(close(c->fd[0]) == 0 && close(c->fd[1]) == 0);
    /* Room for one of two. */
    *c = (struct control32){20, SOL_SOCKET, SCM_RIGHTS, {pipes[1], pipes[0]}};
    CHECK(message(SENDMSG, pair[0], c, 20, 0) == 1);
    CHECK(message(RECVMSG, pair[1], c, 16, MSG_CMSG_CLOEXEC) == 1 && m->controllen == 16 && (m->flags & MSG_CTRUNC));
    CHECK(c->len == 16 && c->fd[0] == first && fcntl(c->fd[0], F_GETFD) == FD_CLOEXEC && fcntl(first + 1, F_GETFD) == -1);
    CHECK(close(c->fd[0]) == 0);
    c->len = 11;
    CHECK(message(SENDMSG, pair[0], c, 16, 0) == -EINVAL);
    c->len = 20;
    CHECK(message(SENDMSG, pair[0], c, 16, 0) == -EINVAL && message(SENDMSG, pair[0], c, 8, 0) == -EINVAL);
    *c = (struct control32){16, SOL_SOCKET, SCM_RIGHTS, {999}};
    CHECK(message(SENDMSG, pair[0], c, 16, 0) == -EBADF);
}

/* ---- signals */

struct action32 {
    uint32_t handler, flags, restorer, mask[2];
};

struct old_action32 {
    uint32_t handler, mask, flags, restorer;
};

struct stack32 {
    uint32_t sp;
    int32_t flags;
    uint32_t size;
};

static volatile uintptr_t handled_at;
static volatile int handled;

static void handler(int number)
{
    struct stack32 *s = (struct stack32 *)(low + 512);
    handled_at = (uintptr_t)&number;
    handled++;
    *s = (struct stack32){at(low + 4096), 0, 8192};
    long r = int80(SIGALTSTACK, at(s), at(s + 1), 0, 0, 0);
    bool on = handled_at - (uintptr_t)(low + 16384) < 32768;
    CHECK(on ? r == -EPERM : r == 0);
    if (!on) {
        CHECK(s[1].flags == SS_DISABLE);
        s->flags = SS_DISABLE;
        CHECK(int80(SIGALTSTACK, at(s), 0, 0, 0, 0) == 0);
    } else {
        CHECK(int80(SIGALTSTACK, 0, at(s + 1), 0, 0, 0) == 0 && s[1].flags == SS_ONSTACK && s[1].sp == at(low + 16384));
    }
}

static void actions(void)
{
    struct action32 *a = (struct action32 *)low, *old = a + 1;
    struct old_action32 *oa = (struct old_action32 *)(low + 128);
    struct sigaction s = {.sa_handler = handler, .sa_flags = SA_ONSTACK}, now;
    *a = (struct action32){(uint32_t)(uintptr_t)SIG_IGN, SA_RESTART, 0, {0x400, 1}};
    CHECK(int80(RT_SIGACTION, SIGUSR1, at(a), at(old), 8, 0) == 0 && old->handler == 0);
    CHECK(sigaction(SIGUSR1, &s, &now) == 0 && now.sa_handler == SIG_IGN && now.sa_flags & SA_RESTART && sigismember(&now.sa_mask, 11));
    CHECK(int80(RT_SIGACTION, SIGUSR1, 0, at(old), 8, 0) == 0 && old->handler == at((void *)(uintptr_t)handler) && old->flags & SA_ONSTACK);
    CHECK(int80(RT_SIGACTION, SIGUSR1, 0, at(old), 4, 0) == -EINVAL && int80(RT_SIGACTION, 65, 0, at(old), 8, 0) == -EINVAL);
    CHECK(int80(RT_SIGACTION, SIGUSR1, 8, 0, 8, 0) == -EFAULT && int80(RT_SIGACTION, SIGKILL, at(a), 0, 8, 0) == -EINVAL);
    CHECK(int80(SIGACTION, SIGUSR1, 0, at(oa), 0, 0) == 0 && oa->handler == at((void *)(uintptr_t)handler) && oa->flags & SA_ONSTACK);
    CHECK(int80(SIGNAL, SIGUSR2, 1, 0, 0, 0) == 0 && int80(SIGNAL, SIGUSR2, 0, 0, 0, 0) == 1);
    CHECK(int80(SIGNAL, SIGUSR1, 1, 0, 0, 0) == (long)(uintptr_t)handler && raise(SIGUSR1) == 0 && handled == 0);
    CHECK(sigaction(SIGUSR1, &s, NULL) == 0);
}

static void masks(void)
{
    uint32_t *set = (uint32_t *)low;
    sigset_t now;
    set[0] = 1u << (SIGUSR2 - 1), set[1] = 77, set[2] = 0;
    CHECK(int80(SIGPROCMASK, SIG_BLOCK, at(set), at(set + 1), 0, 0) == 0 && set[1] == 0);
    CHECK(sigprocmask(SIG_SETMASK, NULL, &now) == 0 && sigismember(&now, SIGUSR2) == 1 && sigismember(&now, SIGUSR1) == 0);
    CHECK(int80(SIGPROCMASK, 9, at(set), 0, 0, 0) == -EINVAL && int80(SIGPROCMASK, SIG_BLOCK, 8, 0, 0, 0) == -EFAULT);
    CHECK(int80(SIGPROCMASK, SIG_SETMASK, at(set + 2), at(set + 1), 0, 0) == 0 && set[1] == 1u << (SIGUSR2 - 1));
    set[0] = 1u << (SIGUSR1 - 1);
    CHECK(int80(SIGPROCMASK, SIG_BLOCK, at(set), 0, 0, 0) == 0 && raise(SIGUSR1) == 0 && handled == 0);
    CHECK(int80(SIGSUSPEND, 0, 0, 0, 0, 0) == -EINTR && handled == 1);
    CHECK(sigprocmask(SIG_SETMASK, NULL, &now) == 0 && sigismember(&now, SIGUSR1) == 1);
    CHECK(int80(SIGPROCMASK, SIG_UNBLOCK, at(set), 0, 0, 0) == 0);
}

static void alternate_stack(uint32_t size)
{
    struct stack32 *s = (struct stack32 *)(low + 256);
    stack_t now;
    int before = handled;
    *s = (struct stack32){at(low + 16384), 0, size};
    CHECK(int80(SIGALTSTACK, at(s), at(s + 1), 0, 0, 0) == 0 && s[1].flags == SS_DISABLE);
    CHECK(sigaltstack(NULL, &now) == 0 && now.ss_sp == low + 16384 && now.ss_size == size && now.ss_flags == 0);
    CHECK(raise(SIGUSR1) == 0 && handled == before + 1 && handled_at - (uintptr_t)(low + 16384) < size);
    CHECK(int80(SIGALTSTACK, 0, at(s + 1), 0, 0, 0) == 0 && s[1].sp == s->sp && s[1].size == size && s[1].flags == 0);
    s->flags = 5;
    CHECK(int80(SIGALTSTACK, at(s), 0, 0, 0, 0) == -EINVAL);
    s->flags = 0, s->size = 1000;
    CHECK(int80(SIGALTSTACK, at(s), 0, 0, 0, 0) == -ENOMEM && int80(SIGALTSTACK, 8, 0, 0, 0, 0) == -EFAULT);
    s->flags = SS_DISABLE;
    CHECK(int80(SIGALTSTACK, at(s), 0, 0, 0, 0) == 0 && sigaltstack(NULL, &now) == 0 && now.ss_flags == SS_DISABLE);
    CHECK(raise(SIGUSR1) == 0 && handled == before + 2 && handled_at - (uintptr_t)(low + 16384) >= 65536);
}

/* ---- threads: the child goes on behind the instruction, on its own stack, with all registers */

static int conn;
static volatile double seen;

long body(double in_a_register);
long body(double in_a_register)
{
    seen = in_a_register;
    say(conn, "child");
    return 5;
}

long start(long nr, long a, long b, long c, long d, long e);
__asm__(".text\nstart:\n push %rbx\n push %rbp\n push %r12\n push %r15\n"
        "mov %rdi, %rax\n mov %rsi, %rbx\n mov %rdx, %r10\n mov %rcx, %rdx\n mov %r10, %rcx\n mov %r8, %rsi\n mov %r9, %rdi\n"
        "lea body(%rip), %r12\n mov $0x1234, %r15d\n movsd two_and_a_half(%rip), %xmm0\n"
        "int $0x80\n test %eax, %eax\n jnz 1f\n"
        "xor %ebp, %ebp\n cmp $0x1234, %r15\n jne 2f\n call *%r12\n 2: mov %eax, %ebx\n mov $1, %eax\n int $0x80\n hlt\n"
        "1: pop %r15\n pop %r12\n pop %rbp\n pop %rbx\n ret\n"
        "two_and_a_half: .double 2.5\n");

static void end_of_child(long child, int fd)
{
    int status;
    CHECK(child > 0);
    CHECK(waitpid((pid_t)child, &status, __WALL) == child && status == 5 << 8 && seen == 2.5);
    expect(fd, "o");
    seen = 0;
}

static void threads(int fd)
{
    uint64_t *args = (uint64_t *)low;
    int *word = (int *)(low + 256);
    conn = fd;
    end_of_child(start(CLONE, CLONE_VM | CLONE_FS | CLONE_FILES | SIGCHLD, at(low + 32768), 0, 0, 0), fd);
    memset(args, 0, 88);
    args[0] = CLONE_VM | CLONE_FS | CLONE_FILES | CLONE_VFORK, args[4] = SIGCHLD, args[5] = at(low + 16384), args[6] = 16384;
    end_of_child(start(CLONE3, at(args), 88, 0, 0, 0), fd);
    args[0] = 0, args[5] = args[6] = 0;
    long child = int80(CLONE3, at(args), 64, 0, 0, 0);
    if (child == 0) {
        say(fd, "child");
        _exit(5);
    }
    seen = 2.5;
    end_of_child(child, fd);
    CHECK(int80(CLONE3, at(args), 40, 0, 0, 0) == -EINVAL && int80(CLONE3, 8, 64, 0, 0, 0) == -EFAULT);
    *word = 1;
    child = start(CLONE, CLONE_VM | CLONE_FS | CLONE_FILES | CLONE_SIGHAND | CLONE_THREAD | CLONE_SYSVSEM | CLONE_CHILD_CLEARTID, at(low + 32768), 0, 0, at(word));
    CHECK(child > 0);
    while (*(volatile int *)word)
        int80(FUTEX, at(word), 0, 1, 0, 0);
    CHECK(seen == 2.5);
    expect(fd, "o");
}

/* ---- filter */

static void filter(int fd)
{
    struct sock_filter *list = (struct sock_filter *)low;
    struct {
        uint16_t len, pad;
        uint32_t filter;
    } *program = (void *)(low + 512);
    struct sock_filter code[] = {
        BPF_STMT(BPF_LD | BPF_W | BPF_ABS, 4), BPF_JUMP(BPF_JMP | BPF_JEQ | BPF_K, 0x40000003, 1, 0), BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_ALLOW),
        BPF_STMT(BPF_LD | BPF_W | BPF_ABS, 0), BPF_JUMP(BPF_JMP | BPF_JEQ | BPF_K, GETPPID, 0, 1), BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_ERRNO | 77),
        BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_ALLOW)};
    char name[16];
    strcpy(low + 600, "renamed");
    CHECK(int80(PRCTL, PR_SET_NAME, at(low + 600), 0, 0, 0) == 0 && prctl(PR_GET_NAME, name) == 0 && strcmp(name, "renamed") == 0);
    CHECK(int80(PRCTL, 99999, 0, 0, 0, 0) == -EINVAL);
    for (int by_prctl = 0; by_prctl < 2; by_prctl++) {
        pid_t child = fork();
        if (child == 0) {
            memcpy(list, code, sizeof code);
            program->len = sizeof code / sizeof *code, program->filter = at(list);
            CHECK(int80(PRCTL, PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) == 0 && int80(GETPPID, 0, 0, 0, 0, 0) == getppid());
            CHECK((by_prctl ? int80(PRCTL, PR_SET_SECCOMP, SECCOMP_MODE_FILTER, at(program), 0, 0)
                            : int80(SECCOMP, SECCOMP_SET_MODE_FILTER, 0, at(program), 0, 0)) == 0);
            CHECK(int80(GETPPID, 0, 0, 0, 0, 0) == -77 && getppid() > 0);
            say(fd, "child");
            expect(fd, "o");
            _exit(0);
        }
        reap(child);
    }
}

/* ---- */

static void accepted(int fd)
{
    map_low();
    if (strcmp(what, "messages") == 0) {
        many(fd);
        descriptors(fd);
    } else if (strcmp(what, "signals") == 0) {
        actions();
        masks();
        alternate_stack(32768);
        alternate_stack(4096);
    } else {
        (strcmp(what, "threads") == 0 ? threads : filter)(fd);
    }
}

static void connected(int fd)
{
    if (strcmp(what, "messages") == 0) {
        expect(fd, "abcdefabcd");
        say(fd, "uvwxyz");
        for (int i = 0; i < 3; i++) {
            expect(fd, "g");
            say(fd, "o");
        }
    } else if (strcmp(what, "signals") != 0) {
        for (int i = 0; i < (strcmp(what, "threads") == 0 ? 4 : 2); i++) {
            expect(fd, "child");
            say(fd, "o");
        }
    }
}

int main(int argc, char **argv)
{
    CHECK(argc == 2);
    what = argv[1];
    return guest_main(accepted, connected);
}
