/* SPDX-License-Identifier: Apache-2.0
 *
 * keeper.c - holds the listener until the last task is gone, whatever becomes of the supervisor.
 *
 * Theory of operation
 * -------------------
 * While any descriptor of the listener is open, notified calls wait for an answer; when the last one closes, they all fail
 * with ENOSYS. The supervisor is a large program that may die, so this small one holds the listener as well:
 *
 *   STARTING  Python is on its way, or not even started: a program that is done in a moment never pays for it. Notifications are received here. The one that every exec makes is answered at once (nothing
 *             is injected yet, so nothing can depend on it): a program without sockets never waits for Python.
 *             The others are queued: they are what the supervisor is for.
 *   SERVING   the supervisor has said READY and got the queue. Notifications are still received here, at once whatever it is doing: until then signals end
 *             their calls' wait. They go into the page shared with it. While this process is stopped, or if it dies, it receives by itself.
 *             It is looked after: one that makes no round of its loop for start_limit_ms(), while a notification waits, is killed.
 *             If it dies, a successor is started, and it is STARTING again: what waited still waits, the successor is given what its
 *             predecessor had put into keeping (vault.c), and serves on. Not for ever: see SUCCESSORS_MAX.
 *   ALONE     no supervisor could be started, or kept alive, or it has given everything back (--detach). Every call is let through, every request of the library gets ENOSYS, with which
 *             it keeps new connections on TCP. Where something may be denied (strict), nobody is left to decide: calls
 *             that could make a connection fail with EACCES, so that killing the supervisor is no way around a policy.
 *
 * Whatever the dead one had received must be answered too: no other holder is shown it again, but any holder may answer it.
 * That is the queue as handed over, and `keepsake.notif` and `.taken`.
 */
#include "keeper.h"

#include <errno.h>
#include <poll.h>
#include <signal.h>
#include <stdio.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <sys/pidfd.h>
#include <sys/prctl.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

/* Python starts at the first call that needs it, or when the program has lived so long that it may come to one. */
#define SUPERVISOR_DELAY_MS 30
/* How often a supervisor is looked at. It may hang for longer than all that it waits for: the monitor, a program that does not stop. */
#define LOOK_MS 2000
/* How often a supervisor may die before we believe that it always will; ending it for its slowness counts several times. */
#define SUCCESSORS_MAX 8
#define COST_OF_HANGING 3

struct keeper_state g = {.launcher = -1, .control = -1, .supervisor_fd = -1};

static int64_t now_ms(void)
{
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return (int64_t)t.tv_sec * 1000 + t.tv_nsec / 1000000;
}

/* Another supervisor, if there is a tree for it to serve: back to STARTING. */
static bool succeed(void)
{
    bool never_served = g.state == STARTING && !g.successors; /* then nothing depends on it */
    if (g.state == ALONE || never_served || !g.nlisteners || g.over || ++g.deaths > SUCCESSORS_MAX)
        return false;
    g.successors++;
    rescue();
    refill_queue();
    answer_outstanding();
    memset(g.keepsake, 0, KEEPSAKE_BYTES);
    g.state = STARTING;
    g.ready = false;
    g.moved_ms = 0;
    g.supervisor = 0;
    start_supervisor();
    return true;
}

/* Another sdrun attaches to what was given back, and has the listeners: we leave, but not between taking a notification and answering it. */
static volatile sig_atomic_t leave;

static void on_leave(int number)
{
    (void)number;
    leave = 1;
}

static bool from_supervisor(void)
{
    struct message m;
    int fd, got = channel_receive(g.control, &m, &fd);
    if (got <= 0)
        return false; /* it ends; its pidfd tells when */
    if (m.kind == MSG_LISTENER && fd >= 0 && g.nlisteners < LISTENERS_MAX)
        g.listeners[g.nlisteners++] = fd;
    else if (m.kind == MSG_KEEP)
        vault_keep(&m, fd);
    else if (fd >= 0)
        close(fd);
    if (m.kind == MSG_DROP)
        vault_drop(m.status);
    if (m.kind == MSG_CLEAR || m.kind == MSG_ALONE)
        vault_clear();
    if (m.kind == MSG_ALONE) {
        g.state = ALONE;
        signal(SIGTERM, on_leave);
    }
    if (m.kind == MSG_VERDICT)
        g.verdict = m.flags;
    if (m.kind == MSG_VERDICT && g.launcher >= 0)
        channel_send(g.launcher, &m, -1);
    if (m.kind == MSG_READY) {
        g.ready = true;
        hand_over();
    }
    return true;
}

static void supervisor_gone(void)
{
    if (waitpid(g.supervisor, &g.supervisor_status, WNOHANG) != g.supervisor)
        return; /* not yet */
    struct pollfd last_words = {.fd = g.control, .events = POLLIN};
    while (poll(&last_words, 1, 0) == 1 && last_words.revents & POLLIN && from_supervisor())
        ;
    close(g.control);
    close(g.supervisor_fd);
    g.control = g.supervisor_fd = -1;
    if (!succeed())
        go_alone();
}

static void end_supervisor(void)
{
    g.deaths += COST_OF_HANGING - 1;
    kill(g.supervisor, SIGKILL); /* its pidfd tells when */
}

#ifndef SECCOMP_IOCTL_NOTIF_SET_FLAGS /* Linux 6.6 */
#define SECCOMP_IOCTL_NOTIF_SET_FLAGS SECCOMP_IOW(4, __u64)
#define SECCOMP_USER_NOTIF_FD_SYNC_WAKE_UP 1ul
#endif

static void from_launcher(void)
{
    struct message m;
    int fd, got = channel_receive(g.launcher, &m, &fd);
    if (got > 0 && m.kind == MSG_LISTENER && fd >= 0) {
        g.listeners[g.nlisteners++] = fd;
        ioctl(fd, SECCOMP_IOCTL_NOTIF_SET_FLAGS, SECCOMP_USER_NOTIF_FD_SYNC_WAKE_UP); /* on its CPU, and at once: signals end its wait until then */
    }
    close(g.launcher);
    g.launcher = -1;
    hand_over();
}

/* Is somebody waiting whom the supervisor does not serve? Asked every LOOK_MS. */
static void watch_supervisor(void)
{
    bool waiting = g.keepsake->notif.id || g.keepsake->received != g.keepsake->begun;
    if (now_ms() < g.look_ms)
        return;
    g.look_ms = now_ms() + LOOK_MS;
    if (!waiting || g.keepsake->beat != g.beat || !g.moved_ms) {
        g.beat = g.keepsake->beat;
        g.moved_ms = now_ms();
    } else if (now_ms() - g.moved_ms >= start_limit_ms()) {
        fprintf(stderr, "sdrun: keeper: the supervisor hangs, and is ended\n");
        end_supervisor();
    }
}

/* True when there is nothing left to do. A tree that is gone before the supervisor is ready is handed over all the same where a report is wanted:
 * how it ended has to be told. */
static bool done(void)
{
    const struct options *o = g.start->options;
    if (g.launcher >= 0 || (attaching() && g.state == STARTING && g.supervisor_fd >= 0))
        return false;
    if (g.nlisteners && !g.over)
        return false;
    return !(g.over && g.nlisteners && told_at_the_end(o) && g.state == STARTING && g.supervisor_fd >= 0);
}

static bool receives(void) { return g.state == SERVING ? has_room() : g.state == ALONE || !attaching(); }

/* From one listener: notifications, or that the last task under it has gone. */
static void from_listener(int i, short events)
{
    if (events & POLLIN && receives())
        (g.state == SERVING ? receive_for_supervisor : receive_notification)(g.listeners[i]);
    if (!(events & POLLHUP))
        return;
    if (g.start->options->attach) {
        close(g.listeners[i]);
        g.listeners[i] = g.listeners[--g.nlisteners];
        g.over = !g.nlisteners;
    } else {
        g.over = true;
    }
}

/* How long to wait, in milliseconds; -1: for ever. */
static int64_t patience(void)
{
    int64_t left = g.state == STARTING ? g.deadline_ms - now_ms() : g.state == ALONE ? -1 : has_room() ? LOOK_MS : 1;
    if (g.state != STARTING || left > 0)
        return left;
    if (g.supervisor)
        end_supervisor();
    start_supervisor();
    return 100;
}

/* SIGTERM comes only here, if it has a handler. */
static int wait_for_events(struct pollfd *p, nfds_t n, int64_t ms)
{
    struct timespec t = {ms / 1000, ms % 1000 * 1000000};
    sigset_t term, before;
    if (g.state != ALONE)
        return poll(p, n, (int)ms);
    sigemptyset(&term);
    sigaddset(&term, SIGTERM);
    sigprocmask(SIG_BLOCK, &term, NULL);
    sigprocmask(SIG_SETMASK, NULL, &before);
    sigdelset(&before, SIGTERM);
    return ppoll(p, n, ms < 0 ? NULL : &t, &before);
}

static void serve(void)
{
    do {
        /* Of a listener that is not received from only the end of the tree is of interest: poll always reports POLLHUP. */
        struct pollfd p[3 + LISTENERS_MAX] = {
            {.fd = g.launcher, .events = POLLIN},
            {.fd = g.supervisor_fd, .events = POLLIN},
            {.fd = g.control, .events = POLLIN},
        };
        int n = g.nlisteners;
        g.began |= n > 0;
        for (int i = 0; i < n; i++)
            p[3 + i] = (struct pollfd){.fd = g.over ? -1 : g.listeners[i], .events = receives() ? POLLIN : 0};
        if (wait_for_events(p, (nfds_t)(3 + n), patience()) < 0)
            continue;
        if (g.state == SERVING)
            watch_supervisor();
        if (p[0].revents)
            from_launcher();
        if (p[2].revents & POLLIN)
            from_supervisor();
        if (p[1].revents)
            supervisor_gone();
        while (n--)
            from_listener(n, p[3 + n].revents);
    } while (!done() && !leave);
}

/* The supervisor writes the report after the last task has gone: closing the channel tells it that no listener will come. */
static void finish(void)
{
    const struct options *o = g.start->options;
    if (g.supervisor_fd >= 0) {
        if (g.state != SERVING && !told_at_the_end(o))
            kill(g.supervisor, SIGKILL);
        close(g.control);
        while (waitpid(g.supervisor, &g.supervisor_status, 0) < 0 && errno == EINTR)
            ;
    }
    if (g.began && (g.supervisor_status || g.supervisor <= 0))
        keeper_obituary(o);
}

/* ------------------------------------------------------------------ start */

void start_supervisor(void)
{
    int pair[2];
    if (g.supervisor || g.state != STARTING)
        return;
    if (channel_pair(pair) < 0) {
        go_alone();
        return;
    }
    g.supervisor = fork();
    if (g.supervisor == 0)
        run_supervisor(g.start, pair[1], g.keepsake_fd, g.successors ? (int)g.verdict : -1);
    close(pair[1]);
    g.control = pair[0];
    g.deadline_ms = now_ms() + start_limit_ms();
    g.supervisor_fd = g.supervisor > 0 ? pidfd_open(g.supervisor, 0) : -1;
    if (g.supervisor_fd < 0)
        go_alone();
}

static void keeper_main(const struct keeper *k)
{
    keeper_detach(k);
    g.keepsake_fd = make_keepsake(&g.keepsake);
    if (g.keepsake_fd < 0 && k->options->must_check)
        _exit(EXIT_UNABLE); /* the launcher waits for a verdict, and says that there is none */
    g.launcher = k->launcher;
    g.must_check = k->options->must_check;
    g.deadline_ms = now_ms() + SUPERVISOR_DELAY_MS;
    g.start = k;
    if (g.keepsake_fd < 0)
        go_alone(); /* no supervisor, but the tree needs a keeper: its listener may be on its way already */
    if (g.must_check || told_at_the_end(k->options))
        start_supervisor();
    serve();
    finish();
    _exit(0);
}

/* Orphans of its PID namespace are children of process 1, who would wait for this one until the tree's end, which is its own. A child that is cloned without a
 * signal, by itself, is none to wait() and waitpid(); and what leaves it behind (the monitor, if it is the first one) is to come to it instead. */
static int start_beside_first(struct keeper *k)
{
    pid_t keeper = fork_silently();
    if (keeper == 0) {
        prctl(PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0);
        keeper_main(k);
    }
    k->pid = keeper;
    return keeper < 0 ? -errno : 0;
}

int keeper_start(struct keeper *k)
{
    if (getpid() == 1)
        return start_beside_first(k);
    pid_t *told = mmap(NULL, sizeof(*told), PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
    if (told == MAP_FAILED)
        return -errno;
    pid_t middle = fork_silently();
    if (middle < 0)
        return -errno;
    if (middle == 0) {
        pid_t keeper = fork_silently();
        if (keeper == 0)
            keeper_main(k);
        *told = keeper;
        _exit(keeper < 0 ? errno : 0);
    }
    int status;
    while (waitpid(middle, &status, __WALL) < 0)
        if (errno != EINTR)
            return -errno;
    k->pid = *told;
    munmap(told, sizeof(*told));
    return WIFEXITED(status) ? -WEXITSTATUS(status) : -EAGAIN;
}
