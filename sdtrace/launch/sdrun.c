/* SPDX-License-Identifier: Apache-2.0
 *
 * sdrun.c - the launcher: becomes the command, under a filter.
 *
 * Order of things:
 *   options, command, kernel     anything wrong is one line and an exit status; nothing has been started
 *   keeper                       forked before the filter, so it is not subject to it
 *   verdict                      only when values or policy files must be checked
 *   filter                       from here on this process is part of the watched tree
 *   listener -> keeper           by sendmsg, which is filtered only where datagrams may be denied
 *   exec                         same pid, parent, group, terminal, descriptors, dispositions and mask
 *
 * With --attach there is no command: the supervisor does the work in the program that is running, and its verdict is our exit status.
 */
#include "sdrun.h"

#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <sched.h>
#include <signal.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/pidfd.h>
#include <sys/prctl.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <unistd.h>

#define START_MS 10000 /* Python on a loaded machine */
#define MORE_MS 5000   /* the keeper gives up on it first */

/* Also how long a supervisor may hang. $SDRUN_START_S seconds where ten are not enough, as on an emulated machine. */
int start_limit_ms(void)
{
    const char *text = getenv("SDRUN_START_S");
    long seconds = text ? strtol(text, NULL, 10) : 0;

    return seconds > 0 && seconds <= 600 ? (int)seconds * 1000 : START_MS;
}

void complain(const char *format, ...)
{
    char text[TEXT_MAX + 16];
    va_list args;
    int n = snprintf(text, sizeof(text), "sdrun: ");
    va_start(args, format);
    n += vsnprintf(text + n, sizeof(text) - (size_t)n - 1, format, args);
    va_end(args);
    if (n > (int)sizeof(text) - 2)
        n = (int)sizeof(text) - 2;
    text[n++] = '\n';
    if (write(STDERR_FILENO, text, (size_t)n) < 0)
        return; /* nobody listens: the exit status still tells */
}

/* Directory of this executable, by which everything else is found. */
static int own_directory(char dir[PATH_BYTES])
{
    ssize_t n = readlink("/proc/self/exe", dir, PATH_BYTES - 1);
    if (n <= 0) {
        complain("cannot read /proc/self/exe: %s; is /proc mounted?", strerror(errno));
        return EXIT_UNABLE;
    }
    dir[n] = 0;
    *strrchr(dir, '/') = 0;
    return 0;
}

#define UNCHECKED "the supervisor did not start, so options and policy files cannot be checked; try `make build`"

/* Waits for the supervisor's word. Returns 0 to start, else the exit status after one line. */
static int wait_for_verdict(int channel, uint32_t *verdict, const char *otherwise)
{
    struct message m;
    int fd, got = 0;
    struct pollfd p = {.fd = channel, .events = POLLIN};
    int ready;
    do {
        ready = poll(&p, 1, start_limit_ms() + MORE_MS);
    } while (ready < 0 && errno == EINTR);
    if (ready > 0)
        got = channel_receive(channel, &m, &fd);
    if (got <= 0 || m.kind != MSG_VERDICT) {
        complain("%s", otherwise);
        return EXIT_UNABLE;
    }
    *verdict = m.flags;
    if (m.status || *m.text) /* the second: attached, but not to all of it */
        complain("%.*s", TEXT_MAX - 1, m.text);
    return (int)m.status;
}

/* Where datagrams may be denied, our own sendmsg would wait for the listener that it carries. A child that shares our
 * descriptors, but is older than the filter, sends for us: it waits for the number on *order. Returns its pid or -errno. */
static pid_t start_courier(int channel, int *order)
{
    int p[2], listener;
    struct message m = {.kind = MSG_LISTENER};
    if (pipe2(p, O_CLOEXEC) < 0)
        return -errno;
    pid_t pid = (pid_t)syscall(SYS_clone, CLONE_FILES, NULL, NULL, NULL, NULL);
    if (pid == 0) {
        prctl(PR_SET_PDEATHSIG, SIGKILL, 0, 0, 0); /* it holds the pipe's other end, too: there would be no end of file */
        if (read(p[0], &listener, sizeof(listener)) != sizeof(listener))
            _exit(EIO);
        _exit(-channel_send(channel, &m, listener));
    }
    *order = p[1];
    return pid < 0 ? -errno : pid;
}

static int send_by_courier(pid_t courier, int order, int listener)
{
    int status;
    if (courier < 0 || write(order, &listener, sizeof(listener)) != sizeof(listener))
        return courier < 0 ? courier : -errno;
    while (waitpid(courier, &status, __WALL) < 0)
        if (errno != EINTR)
            return -errno;
    return WIFEXITED(status) ? -WEXITSTATUS(status) : -EIO;
}

/* Returns 0, or the exit status. */
static int watch_myself(struct options *o, int channel, bool sends_are_held)
{
    struct message m = {.kind = MSG_LISTENER};
    int order = -1;
    pid_t courier = sends_are_held ? start_courier(channel, &order) : 0;
    int listener = filter_install();
    if (listener == -EBUSY) {
        if (told_at_the_end(o))
            complain("already under an outer sdrun: it supervises and reports, these options have no effect here");
        return 0;
    }
    if (listener < 0) {
        complain("cannot install the filter: %s", strerror(-listener));
        return EXIT_UNABLE;
    }
    int error = courier ? send_by_courier(courier, order, listener) : channel_send(channel, &m, listener);
    close(listener);
    if (!error)
        return 0;
    /* The filter is in force and nobody will answer: the command would see ENOSYS everywhere. */
    complain("cannot reach the keeper: %s", strerror(-error));
    return EXIT_UNABLE;
}

/* sdrun --attach: everything is done by the supervisor, while we wait for how it ends. Returns the exit status. */
static int attach(struct keeper *k, int channel[2])
{
    static char path[PATH_BYTES] = "?";
    char link[32];
    uint32_t verdict;
    int error;

    snprintf(link, sizeof(link), "/proc/%d/exe", k->root_pid);
    if (readlink(link, path, sizeof(path) - 1) < 0)
        strcpy(path, "?");
    k->command_path = path;
    k->root_pidfd = fd_above_stdio(pidfd_open(k->root_pid, 0));
    if (k->root_pidfd < 0) {
        bool is_thread = errno == EINVAL || errno == ENOENT; /* which, depends on the kernel */
        complain("cannot attach to %d: %s", k->root_pid, is_thread ? "that is a thread, not a process" : strerror(errno));
        return EXIT_UNABLE;
    }
    if ((error = keeper_start(k))) {
        complain("cannot start the keeper: %s", strerror(-error));
        return EXIT_UNABLE;
    }
    close(channel[1]);
    return wait_for_verdict(channel[0], &verdict, "the supervisor ended or hung while it attached; the program goes on, on TCP");
}

int main(int argc, char **argv)
{
    static struct options o;
    static char bin_dir[PATH_BYTES], path[PATH_BYTES];
    int channel[2], status, error;
    uint32_t verdict = 0;

    (void)argc;
    if ((status = options_parse(&o, argv)) >= 0)
        return status;
    if ((*o.command && (status = command_find(o.command[0], path))) || (status = own_directory(bin_dir)))
        return status;
    if (o.only)
        return options_only(&o, bin_dir, path);
    if (o.detach)
        return options_detach(&o, bin_dir);
    if ((status = filter_check_kernel()))
        return status;
    error = channel_pair(channel);
    struct keeper k = {
        .options = &o, .bin_dir = bin_dir, .command_path = path, .launcher = channel[1],
        .root_pid = o.attach ? atoi(o.attach) : getpid(),
    };
    if (!error && o.attach)
        return attach(&k, channel);
    k.root_pidfd = fd_above_stdio(pidfd_open(getpid(), 0));
    k.named = yama_asks_for_name();
    if (!error)
        error = keeper_start(&k);
    if (error) {
        complain("cannot start the keeper: %s", strerror(-error));
        return EXIT_UNABLE;
    }
    close(channel[1]);
    close(k.root_pidfd);
    if ((o.must_check && (status = wait_for_verdict(channel[0], &verdict, UNCHECKED))) ||
        (status = filter_load(&o, verdict, bin_dir)) || (status = watch_myself(&o, channel[0], verdict & VERDICT_DENY_UDP)))
        return status;
    if (k.named)
        yama_name(k.pid);
    command_exec(path, o.command);
    complain("%s: cannot execute: %s", o.command[0], strerror(errno));
    return errno == ENOENT || errno == ENOTDIR ? EXIT_NOT_FOUND : EXIT_NOT_EXECUTABLE;
}
