/* SPDX-License-Identifier: Apache-2.0
 *
 * Print everything that a program inherits through execve, one line each: what sdrun must not change. */
#include "guest.h"

#include <dirent.h>
#include <sys/prctl.h>
#include <sys/resource.h>

extern char **environ;

static void print_status_lines(void)
{
    static const char *const wanted[] = {"SigBlk", "SigIgn", "SigCgt", "SigPnd", "ShdPnd", "Umask", "Uid", "Gid", "Groups", "CapEff"};
    FILE *f = fopen("/proc/self/status", "r");
    char line[4096];
    CHECK(f);
    while (fgets(line, sizeof(line), f))
        for (size_t i = 0; i < sizeof(wanted) / sizeof(wanted[0]); i++)
            if (!strncmp(line, wanted[i], strlen(wanted[i])))
                fputs(line, stdout);
    fclose(f);
}

static void print_descriptors(void)
{
    DIR *d = opendir("/proc/self/fd");
    CHECK(d);
    for (int fd = 0; fd < 1024; fd++)
        if (fd != dirfd(d) && fcntl(fd, F_GETFD) >= 0)
            printf("fd %d flags %#x status %#x\n", fd, fcntl(fd, F_GETFD), fcntl(fd, F_GETFL));
    closedir(d);
}

int main(int argc, char **argv)
{
    char dir[4096];
    for (int i = 0; i < argc; i++)
        printf("argv %s\n", argv[i]);
    for (char **e = environ; *e; e++)
        printf("env %s\n", *e);
    printf("cwd %s\n", getcwd(dir, sizeof(dir)));
    print_status_lines();
    print_descriptors();
    for (int r = 0; r < RLIM_NLIMITS; r++) {
        struct rlimit l;
        CHECK(getrlimit(r, &l) == 0);
        printf("limit %d %llu %llu\n", r, (unsigned long long)l.rlim_cur, (unsigned long long)l.rlim_max);
    }
    printf("parent %d children %d\n", getppid() == atoi(argv[1]), waitpid(-1, NULL, WNOHANG) == -1 && errno == ECHILD);
    printf("leader %d session %d\n", getpgrp() == getpid(), getsid(0) == getpid());
    printf("dumpable %d\n", prctl(PR_GET_DUMPABLE));
    return 0;
}
