/* SPDX-License-Identifier: Apache-2.0
 *
 * children.c - ways to make a process or a thread, and how threads end, each with a connection in the hand.
 */
#include "rows.h"
#include <pthread.h>
#include <spawn.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <sys/syscall.h>

extern char **environ;

#define STACK (256 * 1024)
#define CLONE_CLEAR_SIGHAND_ 0x100000000ull
#define CLONE_INTO_CGROUP_ 0x200000000ull

struct clone_args_ {
    uint64_t flags, pidfd, child_tid, parent_tid, exit_signal, stack, stack_size, tls, set_tid, set_tid_size, cgroup;
};

int after_fork(int fd)
{
    pid_t child = fork();
    if (child == 0)
        _exit(actor(fd));
    close(fd);
    return status_of(child);
}

int parent_after_fork(int fd)
{
    pid_t child = fork();
    if (child == 0)
        _exit(0);
    int there = status_of(child);
    return there ? there : actor(fd);
}

int after_vfork(int fd)
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

int spawned(int fd)
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

int clone_vm(int fd) { return cloned(fd, CLONE_VM | CLONE_FILES | CLONE_FS); }
int clone_own_stack(int fd) { return cloned(fd, 0); }

int clone3(int fd, uint64_t flags, uint64_t cgroup)
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

int clone3_clear(int fd)
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

int clone3_cgroup(int fd)
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

int failed_clone(int fd)
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

int in_thread(int fd)
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

int main_thread_ends(int fd)
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
int cancelled(int fd)
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

int exec_in_thread(int fd)
{
    pthread_t t;
    if (pthread_create(&t, NULL, thread_execs, &fd))
        return 125;
    pthread_join(t, NULL);
    return 126;
}

int fork_of_threads(int fd)
{
    pthread_t t;
    int unused = -1;
    if (pthread_create(&t, NULL, waits_for_ever, &unused))
        return 125;
    return after_fork(fd);
}
