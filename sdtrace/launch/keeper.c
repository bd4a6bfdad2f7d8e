/* SPDX-License-Identifier: Apache-2.0
 *
 * keeper.c - holds the listener until the last task is gone, whatever becomes of the supervisor.
 *
 * Theory of operation
 * -------------------
 * While any descriptor of the listener is open, notified calls wait for an answer; when the last one closes, they all fail
 * with ENOSYS. The supervisor is a large program that may die, so this small one holds the listener as well:
 *
 *   STARTING  Python is on its way. Notifications are received here. The one that every exec makes is answered at once (nothing
 *             is injected yet, so nothing can depend on it): a program without sockets never waits for Python.
 *             The others are queued: they are what the supervisor is for.
 *   SERVING   the supervisor has said READY and got the queue; only it receives.
 *   ALONE     the supervisor is gone. Every call is let through, every request of the library gets ENOSYS, with which
 *             it keeps new connections on TCP.
 *
 * On the way to ALONE, whatever the dead one had received must be answered too: no other holder is shown it again, but any
 * holder may answer it. That is the queue as handed over, and `keepsake.notif`, which the kernel itself filled in.
 */
#include "keeper.h"

#include "sd_abi.h"

#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <signal.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <sys/pidfd.h>
#include <sys/resource.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

#define READY_TIMEOUT_MS 10000
#define QUEUE_MAX 1024

enum state { STARTING, SERVING, ALONE };

static struct {
    enum state state;
    int launcher;       /* -1 once the command runs */
    int control;        /* channel to the supervisor; -1: gone */
    int supervisor_fd;  /* pidfd; -1: gone */
    pid_t supervisor;
    int listener;       /* -1: not here yet */
    bool ready;         /* MSG_READY has come */
    bool must_check;
    int64_t deadline_ms;
    struct keepsake *keepsake;
    struct { struct seccomp_notif notif; uint32_t flags; } queue[QUEUE_MAX];
    int queued;
} g = {.launcher = -1, .control = -1, .supervisor_fd = -1, .listener = -1};

static int64_t now_ms(void)
{
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return (int64_t)t.tv_sec * 1000 + t.tv_nsec / 1000000;
}

/* Fail open. ENOENT means that the task is gone or its call was interrupted: nothing is left to answer. */
static void let_through(const struct seccomp_notif *n)
{
    struct seccomp_notif_resp r = {.id = n->id};
    if (n->data.nr == SD_HC_NR)
        r.error = -ENOSYS;
    else
        r.flags = SECCOMP_USER_NOTIF_FLAG_CONTINUE;
    if (ioctl(g.listener, SECCOMP_IOCTL_NOTIF_SEND, &r) < 0 && errno != ENOENT && errno != EINPROGRESS)
        fprintf(stderr, "sdrun: keeper: cannot answer a system call: %s\n", strerror(errno));
}

static void receive_notification(void)
{
    struct seccomp_notif n = {0};
    if (ioctl(g.listener, SECCOMP_IOCTL_NOTIF_RECV, &n) < 0)
        return; /* the task went away between poll and here */
    bool at_once = g.state == ALONE || n.data.nr == SYS_arch_prctl || g.queued == QUEUE_MAX;
    if (at_once)
        let_through(&n);
    if (g.state == STARTING && g.queued < QUEUE_MAX) {
        g.queue[g.queued].notif = n;
        g.queue[g.queued++].flags = at_once ? NOTIF_ANSWERED : 0;
    }
}

/* STARTING -> SERVING, as soon as there is both a listener and a supervisor to hand it to. */
static void hand_over(void)
{
    struct message m = {.kind = MSG_LISTENER};
    if (g.state != STARTING || !g.ready || g.listener < 0)
        return;
    g.state = SERVING;
    int error = channel_send(g.control, &m, g.listener);
    m.kind = MSG_NOTIF;
    for (int i = 0; !error && i < g.queued; i++) {
        m.notif = g.queue[i].notif;
        m.flags = g.queue[i].flags;
        error = channel_send(g.control, &m, -1);
    }
    m.kind = MSG_GO;
    if (!error)
        channel_send(g.control, &m, -1); /* an error is its death: seen by its pidfd */
}

static void supervisor_gone(void)
{
    int status;
    if (waitpid(g.supervisor, &status, WNOHANG) != g.supervisor)
        return;
    close(g.control);
    close(g.supervisor_fd);
    g.control = g.supervisor_fd = -1;
    g.state = ALONE;
    if (g.launcher >= 0 && g.must_check) {
        close(g.launcher); /* the launcher sees the end of the channel and says so */
        g.launcher = -1;
    }
    if (g.listener < 0)
        return;
    keeper_rescue(g.keepsake);
    if (g.keepsake->notif.id)
        let_through(&g.keepsake->notif);
    for (int i = 0; i < g.queued; i++)
        if (!(g.queue[i].flags & NOTIF_ANSWERED))
            let_through(&g.queue[i].notif);
}

static void from_supervisor(void)
{
    struct message m;
    int fd, got = channel_receive(g.control, &m, &fd);
    if (fd >= 0)
        close(fd);
    if (got <= 0)
        return; /* it ends; its pidfd tells when */
    if (m.kind == MSG_VERDICT && g.launcher >= 0)
        channel_send(g.launcher, &m, -1);
    if (m.kind == MSG_READY) {
        g.ready = true;
        hand_over();
    }
}

static void from_launcher(void)
{
    struct message m;
    int fd, got = channel_receive(g.launcher, &m, &fd);
    if (got > 0 && m.kind == MSG_LISTENER && fd >= 0)
        g.listener = fd;
    close(g.launcher);
    g.launcher = -1;
    hand_over();
}

/* True when there is nothing left to do. */
static bool done(short listener_events)
{
    if (g.launcher >= 0)
        return false;
    if (g.listener >= 0 && !(listener_events & POLLHUP))
        return false;
    return true;
}

static void serve(void)
{
    for (;;) {
        /* While the supervisor serves, only the end of the tree is of interest: poll always reports POLLHUP. */
        struct pollfd p[] = {
            {.fd = g.listener, .events = g.state == SERVING ? 0 : POLLIN},
            {.fd = g.launcher, .events = POLLIN},
            {.fd = g.supervisor_fd, .events = POLLIN},
            {.fd = g.control, .events = POLLIN},
        };
        int64_t left = g.state == STARTING ? g.deadline_ms - now_ms() : -1;
        if (g.state == STARTING && left <= 0) {
            kill(g.supervisor, SIGKILL);
            left = 100;
        }
        if (poll(p, sizeof(p) / sizeof(p[0]), (int)left) < 0)
            continue;
        if (p[1].revents)
            from_launcher();
        if (p[3].revents & POLLIN)
            from_supervisor();
        if (p[2].revents)
            supervisor_gone();
        if (p[0].revents & POLLIN && g.state != SERVING)
            receive_notification();
        if (done(p[0].revents))
            return;
    }
}

/* The supervisor writes the report after the last task has gone: closing the channel tells it that no listener will come. */
static void finish(void)
{
    if (g.supervisor_fd < 0)
        return;
    if (g.state != SERVING) {
        close(g.control);
        g.control = -1;
    }
    while (waitpid(g.supervisor, NULL, 0) < 0 && errno == EINTR)
        ;
}

/* ------------------------------------------------------------------ start */

/* fork() without SIGCHLD: one that is blocked now would stay pending in the command. */
static pid_t fork_silently(void)
{
    return (pid_t)syscall(SYS_clone, 0, NULL, NULL, NULL, NULL);
}

static void close_all_but(int *keep, int n)
{
    unsigned next = 3;
    for (;;) {
        int lowest = -1;
        for (int i = 0; i < n; i++)
            if (keep[i] >= (int)next && (lowest < 0 || keep[i] < lowest))
                lowest = keep[i];
        if (lowest < 0)
            break;
        if ((unsigned)lowest > next)
            close_range(next, (unsigned)lowest - 1, 0);
        next = (unsigned)lowest + 1;
    }
    close_range(next, ~0U, 0);
}

/* Own session, default dispositions, nothing held open: no terminal, pipe or directory may wait for us. */
static void detach(const struct keeper *k)
{
    setsid();
    for (int s = 1; s < NSIG; s++)
        signal(s, SIG_DFL);
    sigset_t none;
    sigemptyset(&none);
    sigprocmask(SIG_SETMASK, &none, NULL);
    /* Where the program's own limits are tight, ours need not be. */
    static const int limits[] = {RLIMIT_NOFILE, RLIMIT_AS, RLIMIT_DATA, RLIMIT_CPU, RLIMIT_STACK};
    for (size_t i = 0; i < sizeof(limits) / sizeof(limits[0]); i++) {
        struct rlimit r;
        if (getrlimit(limits[i], &r) == 0) {
            r.rlim_cur = r.rlim_max;
            setrlimit(limits[i], &r);
        }
    }
    if (chdir("/") < 0)
        _exit(EXIT_UNABLE);
    umask(077);
    int null = open("/dev/null", O_RDWR | O_CLOEXEC);
    for (int fd = 0; fd < 3; fd++)
        if (fd < 2 || !k->options->explain)
            dup2(null, fd);
    close_all_but((int[]){k->launcher, k->root_pidfd}, 2);
}

static int make_keepsake(void)
{
    int fd = memfd_create("sdrun-keepsake", MFD_CLOEXEC);
    if (fd < 0 || ftruncate(fd, PATH_BYTES) < 0)
        return -1;
    g.keepsake = mmap(NULL, PATH_BYTES, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
    return g.keepsake == MAP_FAILED ? -1 : fd;
}

static char *text(const char *format, ...)
{
    char *s;
    va_list args;
    va_start(args, format);
    if (vasprintf(&s, format, args) < 0)
        _exit(EXIT_UNABLE);
    va_end(args);
    return s;
}

/* The program's loader and Python settings are not for us. */
static void clean_environment(void)
{
    extern char **environ;
    char **to = environ;
    for (char **from = environ; *from; from++)
        if (strncmp(*from, "LD_", 3) && strncmp(*from, "PYTHON", 6) && strncmp(*from, "MALLOC_", 7))
            *to++ = *from;
    *to = NULL;
}

static void run_supervisor(const struct keeper *k, int control, int keepsake)
{
    const struct options *o = k->options;
    char *args[SETS_MAX + 16], *python = text("%s/python3", k->bin_dir);
    int n = 0;
    args[n++] = python;
    args[n++] = "-I"; /* the program's directory and user packages are not for us either */
    args[n++] = "-m";
    args[n++] = "sdtrace.supervisor";
    args[n++] = text("--control=%d", control);
    args[n++] = text("--keepsake=%d", keepsake);
    args[n++] = text("--root-pidfd=%d", k->root_pidfd);
    args[n++] = text("--root-pid=%d", k->root_pid);
    args[n++] = text("--command=%s", k->command_path);
    if (o->report)
        args[n++] = text("--report=%s", o->report);
    if (o->policy)
        args[n++] = text("--policy=%s", o->policy);
    if (o->explain)
        args[n++] = "--explain";
    if (o->no_accel)
        args[n++] = "--no-accel";
    if (o->must_check)
        args[n++] = "--verdict";
    for (int i = 0; i < o->nsets; i++)
        args[n++] = text("--set=%s", o->sets[i]);
    args[n] = NULL;
    fcntl(control, F_SETFD, 0);
    fcntl(keepsake, F_SETFD, 0);
    fcntl(k->root_pidfd, F_SETFD, 0);
    clean_environment();
    execv(python, args);
    _exit(EXIT_NOT_FOUND);
}

static void keeper_main(const struct keeper *k)
{
    int pair[2];
    detach(k);
    int keepsake = make_keepsake();
    if (keepsake < 0 || channel_pair(pair) < 0)
        _exit(EXIT_UNABLE); /* the launcher cannot send the listener then, and says so */
    g.launcher = k->launcher;
    g.must_check = k->options->must_check;
    g.deadline_ms = now_ms() + READY_TIMEOUT_MS;
    g.supervisor = fork();
    if (g.supervisor == 0)
        run_supervisor(k, pair[1], keepsake);
    close(pair[1]);
    close(keepsake);
    g.control = pair[0];
    g.supervisor_fd = g.supervisor > 0 ? pidfd_open(g.supervisor, 0) : -1;
    if (g.supervisor_fd < 0)
        g.state = ALONE;
    close(k->root_pidfd);
    serve();
    finish();
    _exit(0);
}

int keeper_start(struct keeper *k)
{
    pid_t middle = fork_silently();
    if (middle < 0)
        return -errno;
    if (middle == 0) {
        pid_t keeper = fork_silently();
        if (keeper == 0)
            keeper_main(k);
        _exit(keeper < 0 ? errno : 0);
    }
    int status;
    while (waitpid(middle, &status, __WALL) < 0)
        if (errno != EINTR)
            return -errno;
    return WIFEXITED(status) ? -WEXITSTATUS(status) : -EAGAIN;
}
