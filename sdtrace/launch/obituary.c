/* SPDX-License-Identifier: Apache-2.0 */
#include "keeper.h"

#include <fcntl.h>
#include <stdio.h>
#include <string.h>
#include <unistd.h>

/* Whoever waits for a report shall learn that none will come, and not take it for one. */
void keeper_obituary(const struct options *o)
{
    static const char text[] = "{\"version\": 1, \"exit_status\": null, \"error\": "
                               "\"the supervisor ended before the program; nothing is known\"}\n";
    char temporary[PATH_BYTES + 32];
    if (o->explain)
        complain("the supervisor ended before the program: new connections stayed on TCP since, and there is no report");
    if (!o->report)
        return;
    snprintf(temporary, sizeof(temporary), "%s.%d", o->report, (int)getpid());
    int fd = open(temporary, O_WRONLY | O_CREAT | O_EXCL | O_CLOEXEC, 0644);
    if (fd < 0)
        return; /* it was writable when we started; nobody is left to tell */
    bool whole = write(fd, text, sizeof(text) - 1) == (ssize_t)sizeof(text) - 1;
    close(fd);
    if (!whole || rename(temporary, o->report) < 0)
        unlink(temporary);
}
