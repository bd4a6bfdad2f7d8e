/* SPDX-License-Identifier: Apache-2.0
 *
 * rows.c - ways to make or change a process, each with a connection in the hand.
 */
#include "cell.h"
#include <grp.h>
#include <pthread.h>
#include <sched.h>
#include <spawn.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/resource.h>
#include <sys/stat.h>
#include <sys/syscall.h>

extern char **environ;

#define STACK (256 * 1024)
#define CLONE_CLEAR_SIGHAND_ 0x100000000ull
#define CLONE_INTO_CGROUP_ 0x200000000ull

struct clone_args_ {
    uint64_t flags, pidfd, child_tid, parent_tid, exit_signal, stack, stack_size, tls, set_tid, set_tid_size, cgroup;
};

static int nothing(int fd) { return actor(fd); }

static int after_fork(int fd)
{
    pid_t child = fork();
    if (child == 0)
        _exit(actor(fd));
    close(fd);
    return status_of(child);
}

static int parent_after_fork(int fd)
{
    pid_t child = fork();
    if (child == 0)
        _exit(0);
    int there = status_of(child);
    return there ? there : actor(fd);
}

static int after_vfork(int fd)
{
    char **argv = actor_argv(fd);
    pid_t child = vfork();
    if (child == 0) {
        execv(self, argv);
        _exit(126);
    }
    close(fd);
    return status_of(child);
}

static int spawned(int fd)
{
    posix_spawn_file_actions_t actions;
    pid_t child;
    posix_spawn_file_actions_init(&actions);
    posix_spawn_file_actions_adddup2(&actions, fd, 9);
    posix_spawn_file_actions_addclose(&actions, fd);
    if (posix_spawn(&child, self, &actions, NULL, actor_argv(9), environ))
        return 125;
    close(fd);
    return status_of(child);
}

static int in_clone(void *arg) { return actor(*(int *)arg); }

static int cloned(int fd, int flags)
{
    char *stack = mmap(NULL, STACK, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    pid_t child = clone(in_clone, stack + STACK, flags | SIGCHLD, &fd);
    return child < 0 ? 125 : status_of(child);
}

static int clone_vm(int fd) { return cloned(fd, CLONE_VM | CLONE_FILES | CLONE_FS); }
static int clone_own_stack(int fd) { return cloned(fd, 0); }

static int clone3(int fd, uint64_t flags, uint64_t cgroup)
{
    struct clone_args_ args = {.flags = flags, .exit_signal = SIGCHLD, .cgroup = cgroup};
    long child = syscall(435, &args, sizeof args);
    if (child == 0)
        _exit(actor(fd));
    if (child < 0)
        return errno == EPERM || errno == EBADF || errno == EBUSY || errno == ENOSYS || errno == EOPNOTSUPP ? SKIP : 125;
    close(fd);
    return status_of((pid_t)child);
}

static void on_usr1(int number) { (void)number; }

static int clone3_clear(int fd)
{
    signal(SIGUSR1, on_usr1);
    return clone3(fd, CLONE_CLEAR_SIGHAND_, 0);
}

/* Where the unified hierarchy is mounted, and which group of it we are in. */
static bool own_cgroup(char *path, size_t room)
{
    char line[4096], at[1024], mount[1024] = "";
    FILE *f = fopen("/proc/self/mountinfo", "r");
    while (f && fgets(line, sizeof line, f))
        if (strstr(line, " - cgroup2 ") && sscanf(line, "%*s %*s %*s %*s %1000s", at) == 1)
            strcpy(mount, at);
    if (f)
        fclose(f);
    if (!*mount || !(f = fopen("/proc/self/cgroup", "r")))
        return false;
    *at = 0;
    while (fgets(line, sizeof line, f))
        if (strncmp(line, "0::", 3) == 0)
            sscanf(line, "0::%1000s", at);
    fclose(f);
    return *at && snprintf(path, room, "%s%s", mount, at) < (int)room;
}

static int clone3_cgroup(int fd)
{
    char path[2200], name[2300];
    if (!own_cgroup(path, sizeof path))
        return SKIP;
    snprintf(name, sizeof name, "%s/cell-%d", path, (int)getpid());
    if (mkdir(name, 0755) < 0)
        return SKIP;
    int group = open(name, O_RDONLY | O_DIRECTORY);
    int status = group < 0 ? SKIP : clone3(fd, CLONE_INTO_CGROUP_, (uint64_t)group);
    rmdir(name);
    return status;
}

static int failed_clone(int fd)
{
    errno = 0;
    if (syscall(SYS_clone, CLONE_THREAD | SIGCHLD, 0, 0, 0, 0) != -1 || errno != EINVAL)
        return 125;
    struct clone_args_ args = {.flags = CLONE_FS | CLONE_NEWNS, .exit_signal = SIGCHLD};
    if (syscall(435, &args, sizeof args) != -1)
        return 125;
    return actor(fd);
}

/* --------------------------------------------------------------- threads */

static void *thread_acts(void *arg) { return (void *)(long)actor(*(int *)arg); }

static int in_thread(int fd)
{
    pthread_t t;
    void *result;
    if (pthread_create(&t, NULL, thread_acts, &fd) || pthread_join(t, &result))
        return 125;
    return (int)(long)result;
}

static void *thread_exits(void *arg)
{
    sleep_ms(5);
    exit(actor(*(int *)arg));
}

static int main_thread_ends(int fd)
{
    static int kept;
    pthread_t t;
    kept = fd;
    if (pthread_create(&t, NULL, thread_exits, &kept))
        return 125;
    pthread_exit(NULL);
}

static void *waits_for_ever(void *arg)
{
    char c;
    int *pair = arg;
    while (read(pair[0], &c, 1) >= 0)
        ;
    return NULL;
}

/* A thread that sleeps in a receive of another connection is cancelled; then the cell's own goes on. */
static int cancelled(int fd)
{
    struct sockaddr_in addr;
    int listener = listen_loopback(&addr, 1), other[2];
    pthread_t t;
    void *result;
    other[1] = connect_loopback(&addr);
    other[0] = accept(listener, NULL, NULL);
    if (pthread_create(&t, NULL, waits_for_ever, other))
        return 125;
    sleep_ms(10);
    if (pthread_cancel(t) || pthread_join(t, &result) || result != PTHREAD_CANCELED)
        return 124;
    close(listener);
    close(other[0]);
    close(other[1]);
    return actor(fd);
}

static void *thread_execs(void *arg) { return (void *)(long)actor_image(*(int *)arg); }

static int exec_in_thread(int fd)
{
    pthread_t t;
    if (pthread_create(&t, NULL, thread_execs, &fd))
        return 125;
    pthread_join(t, NULL);
    return 126;
}

static int fork_of_threads(int fd)
{
    pthread_t t;
    int unused = -1;
    if (pthread_create(&t, NULL, waits_for_ever, &unused))
        return 125;
    return after_fork(fd);
}

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
