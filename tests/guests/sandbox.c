/* SPDX-License-Identifier: Apache-2.0
 *
 * sandbox HOW: a program locks itself up in the middle of a conversation and goes on with what it has allowed itself.
 *
 *   strict   seccomp strict mode: read, write, _exit, sigreturn
 *   list     a filter that kills for everything but read, write, poll and exit_group
 */
#include "guest.h"
#include <linux/filter.h>
#include <linux/seccomp.h>
#include <stddef.h>
#include <sys/prctl.h>
#include <sys/syscall.h>

static const char *how;

static void lock_up(void)
{
    struct sock_filter list[] = {
        BPF_STMT(BPF_LD | BPF_W | BPF_ABS, offsetof(struct seccomp_data, nr)),
        BPF_JUMP(BPF_JMP | BPF_JEQ | BPF_K, __NR_read, 5, 0),  BPF_JUMP(BPF_JMP | BPF_JEQ | BPF_K, __NR_write, 4, 0),
        BPF_JUMP(BPF_JMP | BPF_JEQ | BPF_K, __NR_poll, 3, 0),  BPF_JUMP(BPF_JMP | BPF_JEQ | BPF_K, __NR_exit_group, 2, 0),
        BPF_JUMP(BPF_JMP | BPF_JEQ | BPF_K, __NR_exit, 1, 0),  BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_KILL_PROCESS),
        BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_ALLOW),
    };
    struct sock_fprog program = {sizeof list / sizeof list[0], list};

    CHECK(prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) == 0);
    if (strcmp(how, "strict") == 0)
        CHECK(prctl(PR_SET_SECCOMP, SECCOMP_MODE_STRICT) == 0);
    else
        CHECK(prctl(PR_SET_SECCOMP, SECCOMP_MODE_FILTER, &program) == 0);
}

static void talk(int fd, bool first)
{
    unsigned char c = 0;
    for (int i = 0; i < 200; i++) {
        if (first && write(fd, &c, 1) != 1)
            syscall(SYS_exit, 3);
        if (read(fd, &c, 1) != 1)
            syscall(SYS_exit, 4);
        if (!first && write(fd, &c, 1) != 1)
            syscall(SYS_exit, 5);
    }
}

static void accepted(int fd)
{
    pid_t child = fork(); /* the one in the box; we report */
    CHECK(child >= 0);
    if (child == 0) {
        char unread[100];
        lock_up();
        for (size_t n = 0; n < sizeof unread;) {
            ssize_t got = read(fd, unread + n, sizeof unread - n);
            if (got <= 0)
                syscall(SYS_exit, 6);
            n += (size_t)got;
        }
        talk(fd, true);
        syscall(SYS_exit, 0);
    }
    close(fd);
    reap(child);
}

static void connected(int fd)
{
    char unread[100] = "unread";
    write_all(fd, unread, sizeof unread);
    sleep_ms(20);
    talk(fd, false);
    expect_eof(fd);
}

int main(int argc, char **argv)
{
    CHECK(argc == 2);
    how = argv[1];
    return guest_main(accepted, connected);
}
