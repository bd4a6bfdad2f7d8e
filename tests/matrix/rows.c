/* SPDX-License-Identifier: Apache-2.0
 *
 * rows.c - all rows: ways to make or change a process, each with a connection in the hand. Those that make one are in children.c.
 */
#include "rows.h"
#include <grp.h>
#include <sched.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/stat.h>
#include <sys/syscall.h>

extern char **environ;

static int nothing(int fd) { return actor(fd); }

/* ------------------------------------------------------------------ images */

static int executed(int fd) { return actor_image(fd); }

static int exec_memfd(int fd)
{
    char buf[65536];
    int in = open(self, O_RDONLY), out = memfd_create("image", MFD_CLOEXEC);
    ssize_t n;
    while ((n = read(in, buf, sizeof buf)) > 0)
        CHECK(write(out, buf, (size_t)n) == n);
    close(in);
    syscall(SYS_execveat, out, "", actor_argv(fd), environ, 0x1000 /* AT_EMPTY_PATH */);
    return 126;
}

static int exec_script(int fd)
{
    char path[] = "/tmp/cell-XXXXXX", text[5000], **argv = actor_argv(fd);
    int file = mkstemp(path);
    int n = snprintf(text, sizeof text, "#!/bin/sh\nrm -f %s\nexec %s actor %s %s\n", path, self, argv[2], argv[3]);
    CHECK(write(file, text, (size_t)n) == n && fchmod(file, 0700) == 0);
    close(file);
    execl(path, path, (char *)NULL);
    return 126;
}

static int exec_fails(int fd)
{
    execl("/nonexistent/program", "program", (char *)NULL);
    return errno == ENOENT ? actor(fd) : 126;
}

static int inetd(int fd)
{
    pid_t child = fork();
    if (child == 0) {
        CHECK(dup2(fd, 0) == 0 && dup2(fd, 1) == 1);
        close(fd);
        _exit(actor_image(0));
    }
    close(fd);
    return status_of(child);
}

/* As nginx does on USR2: the new program inherits the sockets and finds them by its environment. */
static int upgraded(int fd)
{
    char text[16];
    pid_t child = fork();
    if (child == 0) {
        snprintf(text, sizeof text, "%d", fd);
        setenv("CELL_SOCKET", text, 1);
        _exit(actor_image(fd));
    }
    int there = status_of(child);
    char c;
    return there ? there : read(fd, &c, 1) == 0 ? 0 : 1; /* the old one sees the same end */
}

/* ------------------------------------------------------------- surroundings */

static int daemonised(int fd)
{
    int pipes[2];
    char result = 125;
    CHECK(pipe(pipes) == 0);
    pid_t child = fork();
    if (child == 0) {
        setsid();
        if (fork())
            _exit(0);
        CHECK(chdir("/") == 0);
        result = (char)actor(fd);
        CHECK(write(pipes[1], &result, 1) == 1);
        _exit(0);
    }
    close(fd);
    close(pipes[1]);
    if (status_of(child) || read(pipes[0], &result, 1) != 1)
        return 125;
    return result;
}

static int in_session(int fd)
{
    pid_t child = fork();
    if (child == 0)
        _exit(setsid() < 0 ? 125 : actor(fd));
    close(fd);
    return status_of(child);
}

static int without_root(int fd)
{
    if (geteuid() != 0)
        return SKIP;
    CHECK(setgroups(0, NULL) == 0 && setresgid(65534, 65534, 65534) == 0 && setresuid(65534, 65534, 65534) == 0);
    return actor(fd);
}

static int chrooted(int fd)
{
    char path[] = "/tmp/cell-XXXXXX";
    if (geteuid() != 0)
        return SKIP;
    CHECK(mkdtemp(path) && chroot(path) == 0 && chdir("/") == 0);
    return actor(fd);
}

static int unshared(int fd)
{
    if (unshare(CLONE_FILES | CLONE_FS | CLONE_NEWUTS | CLONE_NEWNS | CLONE_NEWNET) < 0)
        return SKIP;
    return actor(fd);
}

static int pid_namespace(int fd)
{
    if (unshare(CLONE_NEWPID) < 0)
        return SKIP;
    return after_fork(fd);
}

static int no_dump(int fd) { return prctl(PR_SET_DUMPABLE, 0) ? 125 : after_fork(fd); }
static int no_new_privs(int fd) { return prctl(38, 1, 0, 0, 0) ? 125 : actor(fd); }

/* ---------------------------------------------------------- several at once */

static int both_use_it(int fd)
{
    struct prng unused = {5};
    pid_t child = fork();
    if (child == 0) { /* looks, but takes nothing */
        for (int i = 0; i < 200; i++) {
            int n;
            struct pollfd p = {fd, POLLIN, 0};
            CHECK(poll(&p, 1, (int)(prng_next(&unused) % 2)) >= 0 && ioctl(fd, FIONREAD, &n) == 0);
        }
        _exit(0);
    }
    int own = actor(fd);
    int there = status_of(child);
    return own ? own : there;
}

/* A child that looks at the connection all the time. */
static pid_t peeping_child(int fd)
{
    char c;
    pid_t child = fork();
    if (child == 0) {
        for (;;)
            if (recv(fd, &c, 1, MSG_PEEK | MSG_DONTWAIT) == 0)
                pause();
    }
    sleep_ms(3);
    return child;
}

static int killed_sharer(int fd)
{
    pid_t child = peeping_child(fd);
    kill(child, SIGKILL);
    status_of(child);
    return actor(fd);
}

static int stopped_sharer(int fd)
{
    pid_t child = peeping_child(fd);
    kill(child, SIGSTOP);
    int own = actor(fd);
    kill(child, SIGKILL);
    status_of(child);
    return own;
}

/* ------------------------------------------------------------------- SIGKILL */

/* The child is killed after up to `us`, somewhere in the conversation or after it: the peer has to see right bytes and an end. */
static int killed_child(int fd, int (*run)(int), unsigned us)
{
    struct timespec now, wait = {0, 0};
    pid_t child = fork();
    if (child == 0)
        _exit(run(fd));
    close(fd);
    clock_gettime(CLOCK_MONOTONIC, &now);
    struct prng r = {(uint64_t)now.tv_nsec * 2 + 1};
    wait.tv_nsec = (long)(prng_next(&r) % us) * 1000;
    nanosleep(&wait, NULL);
    kill(child, SIGKILL);
    int status = status_of(child);
    return status == 128 + SIGKILL ? 0 : status;
}

static int killed_anywhere(int fd) { return killed_child(fd, actor, 2000); }
static int killed_around_exec(int fd) { return killed_child(fd, actor_image, 20000); }

/* ---------------------------------------------------------------- servers */

static int accept_and_act(int listener)
{
    int fd = accept(listener, NULL, NULL);
    if (fd < 0)
        return 125;
    set_state(fd);
    return actor(fd);
}

static int preforked(int listener)
{
    pid_t worker[3];
    int status;
    for (int i = 0; i < 3; i++)
        if ((worker[i] = fork()) == 0)
            _exit(accept_and_act(listener));
    pid_t done = wait(&status); /* the one that got it */
    for (int i = 0; i < 3; i++)
        if (worker[i] != done) {
            kill(worker[i], SIGKILL);
            status_of(worker[i]);
        }
    return WIFEXITED(status) ? WEXITSTATUS(status) : 125;
}

static int fork_per_connection(int listener)
{
    int fd = accept(listener, NULL, NULL);
    set_state(fd);
    return after_fork(fd);
}

static int thread_per_connection(int listener)
{
    int fd = accept(listener, NULL, NULL);
    set_state(fd);
    return in_thread(fd);
}

const struct row rows[] = {
    {"nothing", nothing, false, false},
    {"fork", after_fork, false, false},
    {"fork, parent goes on", parent_after_fork, false, false},
    {"vfork and exec", after_vfork, false, false},
    {"posix_spawn with file actions", spawned, false, false},
    {"clone(CLONE_VM | CLONE_FILES)", clone_vm, false, false},
    {"clone with its own stack", clone_own_stack, false, false},
    {"clone3(CLONE_CLEAR_SIGHAND)", clone3_clear, false, false},
    {"clone3(CLONE_INTO_CGROUP)", clone3_cgroup, false, false},
    {"clone that fails", failed_clone, false, false},
    {"pthread", in_thread, false, false},
    {"pthread_exit of main", main_thread_ends, false, false},
    {"pthread_cancel beside it", cancelled, false, false},
    {"fork of a process with threads", fork_of_threads, false, false},
    {"execve", executed, false, false},
    {"execve that fails", exec_fails, false, false},
    {"execveat of a memfd", exec_memfd, false, false},
    {"exec of a script", exec_script, false, false},
    {"exec in another thread", exec_in_thread, false, false},
    {"inetd", inetd, false, false},
    {"upgrade of the program", upgraded, false, false},
    {"daemon", daemonised, false, false},
    {"setsid", in_session, false, false},
    {"setuid drop", without_root, false, false},
    {"chroot", chrooted, false, false},
    {"unshare", unshared, false, false},
    {"PID namespace", pid_namespace, false, false},
    {"PR_SET_DUMPABLE 0 and fork", no_dump, false, false},
    {"no_new_privs", no_new_privs, false, false},
    {"used by two processes", both_use_it, false, false},
    {"a sharer is killed", killed_sharer, false, false},
    {"a sharer is stopped", stopped_sharer, false, false},
    {"SIGKILL anywhere", killed_anywhere, false, true},
    {"SIGKILL around an exec", killed_around_exec, false, true},
    {"prefork server", preforked, true, false},
    {"fork for each connection", fork_per_connection, true, false},
    {"thread for each connection", thread_per_connection, true, false},
    {NULL, NULL, false, false},
};
