/* SPDX-License-Identifier: Apache-2.0
 *
 * filter.c - what the kernel must be able to do, and the one filter of the tree.
 *
 * The filters are compiled at build time (sdtrace/build_filter.py) and read here as they are: arrays of struct sock_filter.
 */
#include "keeper.h"
#include "sd_abi.h"

#include <errno.h>
#include <fcntl.h>
#include <linux/filter.h>
#include <stdio.h>
#include <string.h>
#include <sys/prctl.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/utsname.h>
#include <sys/wait.h>
#include <unistd.h>

#ifndef PR_SET_SYSCALL_USER_DISPATCH
#error "linux/prctl.h is older than Linux 5.11"
#endif
#define FILTER_MAX 512 /* instructions; BPF_MAXINSNS is 4096 */

static struct sock_filter program[FILTER_MAX];
static struct sock_fprog fprog = {.filter = program};
static bool denies; /* the supervisor performs calls that may sleep, and that handlers end */

static long sys_seccomp(unsigned int operation, unsigned int flags, void *args)
{
    return syscall(SYS_seccomp, operation, flags, args);
}

/* Does a filter that holds for us already kill who makes this call? Its other ways to say no are errors, with which everything goes on by TCP. */
static bool is_deadly(long nr, long first)
{
    int status = 0;
    pid_t pid = fork_silently();
    if (pid == 0) {
        prctl(PR_SET_DUMPABLE, 0, 0, 0, 0); /* no core of it */
        syscall(nr, first, 0L, 0L, 0L);
        _exit(0);
    }
    while (pid > 0 && waitpid(pid, &status, __WALL) < 0)
        if (errno != EINTR)
            return false;
    return pid > 0 && WIFSIGNALED(status);
}

/* Service managers have filters that allow what they list (SystemCallFilter= of systemd), and none has a name for the library's own call. */
static const char *deadly_call(void)
{
    static const struct {
        const char *name;
        long nr, first; /* with which it does nothing */
    } needed[] = {
        {"seccomp", SYS_seccomp, -1}, {"ptrace", SYS_ptrace, -1}, {"pidfd_getfd", SYS_pidfd_getfd, -1}, {"the library's own call", SD_HC_NR, -1},
    };
    if (prctl(PR_GET_SECCOMP, 0, 0, 0, 0) != SECCOMP_MODE_FILTER)
        return NULL;
    for (size_t i = 0; i < sizeof(needed) / sizeof(needed[0]); i++)
        if (is_deadly(needed[i].nr, needed[i].first))
            return needed[i].name;
    return NULL;
}

int filter_check_kernel(void)
{
    const char *deadly = deadly_call();
    uint32_t action = SECCOMP_RET_USER_NOTIF;
    struct utsname u;
    unsigned major = 0, minor = 0;
    if (deadly) {
        complain("a seccomp filter forbids %s here, by death: a service's SystemCallFilter= may only list what it denies; "
                 "`sddoctor --unit NAME` says more", deadly);
        return EXIT_UNABLE;
    }
    if (sys_seccomp(SECCOMP_GET_ACTION_AVAIL, 0, &action) < 0) {
        complain("this kernel has no seccomp user notification (%s): needs Linux 6.4 with CONFIG_SECCOMP_FILTER",
                 strerror(errno));
        return EXIT_UNABLE;
    }
    /* PTRACE_SET_SYSCALL_USER_DISPATCH_CONFIG came with 6.4 and cannot be asked for without a tracee. */
    if (uname(&u) == 0 && sscanf(u.release, "%u.%u", &major, &minor) == 2 &&
        (major < 6 || (major == 6 && minor < 4))) {
        complain("Linux %s is too old: needs 6.4 or newer", u.release);
        return EXIT_UNABLE;
    }
    return 0;
}

static int read_program(const char *path)
{
    int fd = open(path, O_RDONLY | O_CLOEXEC);
    if (fd < 0)
        return -errno;
    ssize_t n = read(fd, program, sizeof(program));
    int error = n < 0 ? errno : 0;
    close(fd);
    if (error)
        return -error;
    if (n == 0 || n == sizeof(program) || n % (ssize_t)sizeof(program[0]))
        return -EINVAL;
    fprog.len = (unsigned short)(n / (ssize_t)sizeof(program[0]));
    return 0;
}

int filter_load(struct options *o, uint32_t verdict, const char *bin_dir)
{
    char path[PATH_BYTES];
    bool uring_allowed = verdict & VERDICT_URING_ALLOWED && !(verdict & (VERDICT_DENY_TCP | VERDICT_DENY_UDP));
    const char *denied = verdict & VERDICT_DENY_UDP ? "-udp" : verdict & VERDICT_DENY_TCP ? "-tcp" : "";
    int n = snprintf(path, sizeof(path), "%s/../share/sdrun/uring-%s%s%s.bpf", bin_dir, uring_allowed ? "allow" : "deny",
                     denied, told_at_the_end(o) ? "-exit" : "");
    denies = *denied;
    int error = n < (int)sizeof(path) ? read_program(path) : -ENAMETOOLONG;
    if (error) {
        complain("cannot load the filter %s: %s; `make build` makes it", path, strerror(-error));
        return EXIT_UNABLE;
    }
    return 0;
}

int filter_install(void)
{
    /* SPEC_ALLOW: the filter is no sandbox, so it must not switch on mitigations that slow the program down. */
    unsigned int flags = SECCOMP_FILTER_FLAG_NEW_LISTENER | SECCOMP_FILTER_FLAG_SPEC_ALLOW;
    /* socket() and most others natively never say EINTR: once a call has been taken, signals wait for its answer. Its tracer does so, too: sdtrace/notify.py, let_stop(). */
    if (!denies)
        flags |= SECCOMP_FILTER_FLAG_WAIT_KILLABLE_RECV;
    long fd = sys_seccomp(SECCOMP_SET_MODE_FILTER, flags, &fprog);
    if (fd < 0 && errno == EACCES) {
        /* Without CAP_SYS_ADMIN the kernel wants to be sure that no setuid program runs under a filter of ours. */
        if (prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) < 0)
            return -errno;
        fd = sys_seccomp(SECCOMP_SET_MODE_FILTER, flags, &fprog);
    }
    return fd < 0 ? -errno : (int)fd;
}
