/* SPDX-License-Identifier: Apache-2.0 */
#include "sdrun.h"

#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

/* 0, or why the kernel would not execute this file: ENOENT, ENOTDIR, EACCES, ... */
static int executable(const char *path)
{
    struct stat st;
    if (stat(path, &st) < 0)
        return errno;
    if (!S_ISREG(st.st_mode))
        return EACCES;
    return access(path, X_OK) < 0 ? errno : 0;
}

static int not_usable(const char *name, int error)
{
    if (error == ENOENT || error == ENOTDIR) {
        complain("%s: command not found", name);
        return EXIT_NOT_FOUND;
    }
    complain("%s: cannot execute: %s", name, strerror(error));
    return EXIT_NOT_EXECUTABLE;
}

static int search_path(const char *name, char path[PATH_BYTES])
{
    const char *list = getenv("PATH");
    int error = ENOENT;
    if (!list)
        list = "/bin:/usr/bin"; /* what execvp takes then, confstr(_CS_PATH) */
    for (const char *p = list;; p++) {
        size_t n = strcspn(p, ":");
        int len = snprintf(path, PATH_BYTES, "%.*s%s%s", (int)n, p, n ? "/" : "", name);
        if (len < PATH_BYTES) {
            int e = executable(path);
            if (!e)
                return 0;
            /* As execvp: something that is there but may not be executed is the better message, and the search goes on. */
            if (e == EACCES)
                error = EACCES;
        }
        p += n;
        if (!*p)
            return error;
    }
}

int command_find(const char *name, char path[PATH_BYTES])
{
    int error;
    if (strchr(name, '/')) {
        if (snprintf(path, PATH_BYTES, "%s", name) >= PATH_BYTES)
            return not_usable(name, ENAMETOOLONG);
        error = executable(path);
    } else {
        error = *name ? search_path(name, path) : ENOENT;
    }
    return error ? not_usable(name, error) : 0;
}

void command_exec(const char *path, char **argv)
{
    execv(path, argv);
    if (errno != ENOEXEC)
        return;
    size_t n = 0;
    while (argv[n])
        n++;
    char **shell = calloc(n + 2, sizeof(*shell));
    if (!shell)
        return;
    shell[0] = "sh";
    shell[1] = (char *)path;
    memcpy(shell + 2, argv + 1, n * sizeof(*shell)); /* with the final NULL */
    execv("/bin/sh", shell);
    free(shell);
}
