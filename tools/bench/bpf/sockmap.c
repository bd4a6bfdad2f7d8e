/* SPDX-License-Identifier: Apache-2.0
 *
 * sockmap.c - run a command whose TCP connections among its processes are redirected by eBPF (sockmap.bpf.c).
 *
 *   sockmap OBJECT CGROUP2 -- CMD
 *
 * CGROUP2 is a directory in a mounted cgroup2 file system, made for this run and removed by it. Programs and maps go away with the last
 * descriptor, at the end of this process, which waits for CMD. Exit status 125: not possible here.
 */
#include "../bench.h"
#include "../sockmap.h"
#include <bpf/bpf.h>
#include <bpf/libbpf.h>
#include <fcntl.h>
#include <sys/stat.h>

#define NOT_HERE 125

static void not_here(const char *step)
{
    fprintf(stderr, "sockmap: %s: %s\n", step, strerror(errno));
    exit(NOT_HERE);
}

static int quiet(enum libbpf_print_level level, const char *format, va_list args)
{
    return level == LIBBPF_WARN && getenv("SOCKMAP_DEBUG") ? vfprintf(stderr, format, args) : 0;
}

static void enter(const char *cgroup)
{
    char path[4096];
    snprintf(path, sizeof path, "%s/cgroup.procs", cgroup);
    int fd = open(path, O_WRONLY);
    if (fd < 0 || write(fd, "0", 1) != 1)
        not_here(path);
    close(fd);
}

static void attach(const char *object, int cgroup)
{
    struct bpf_object *o = bpf_object__open_file(object, NULL);
    if (!o || bpf_object__load(o) < 0)
        not_here("bpf()");
    int map = bpf_object__find_map_fd_by_name(o, "sockets");
    int add = bpf_program__fd(bpf_object__find_program_by_name(o, "add"));
    int redirect = bpf_program__fd(bpf_object__find_program_by_name(o, "redirect"));
    if (bpf_prog_attach(redirect, map, BPF_SK_MSG_VERDICT, 0) < 0)
        not_here("attach sk_msg");
    if (bpf_prog_attach(add, cgroup, BPF_CGROUP_SOCK_OPS, 0) < 0)
        not_here("attach sockops");
}

int main(int argc, char **argv)
{
    int status = 0;

    if (argc < 5 || strcmp(argv[3], "--")) {
        fprintf(stderr, "usage: sockmap OBJECT CGROUP2 -- CMD\n");
        return 2;
    }
    libbpf_set_print(quiet);
    if (mkdir(argv[2], 0755) < 0 && errno != EEXIST)
        not_here(argv[2]);
    int cgroup = open(argv[2], O_RDONLY | O_DIRECTORY | O_CLOEXEC);
    if (cgroup < 0)
        not_here(argv[2]);
    attach(argv[1], cgroup);
    pid_t pid = fork();
    if (pid == 0) {
        prctl(PR_SET_PDEATHSIG, SIGKILL);
        enter(argv[2]);
        execvp(argv[4], argv + 4);
        not_here(argv[4]);
    }
    if (pid < 0 || waitpid(pid, &status, 0) != pid)
        not_here("fork");
    for (int i = 0; i < 100 && rmdir(argv[2]) < 0 && errno == EBUSY; i++)
        sleep_ms(10);
    return WIFEXITED(status) ? WEXITSTATUS(status) : 128 + WTERMSIG(status);
}
