/* SPDX-License-Identifier: Apache-2.0
 *
 * yama.c - where Yama lets nobody trace what is not below it (kernel.yama.ptrace_scope 1), a program has to name who may.
 *
 * The supervisor is no ancestor of the program, whose pid is the launcher's. So the launcher names the keeper before it becomes the program, which is good for
 * all that the keeper starts. Yama remembers it for that process, through exec, but a child has to name the keeper itself: the library does that for
 * every new process. So each program gets the library at its birth, whether it will use a socket or not.
 *
 * Scope 2 and 3 leave it to capabilities, or to nobody.
 */
#include "sdrun.h"

#include <fcntl.h>
#include <linux/capability.h>
#include <sys/prctl.h>
#include <sys/syscall.h>
#include <unistd.h>

static bool may_trace_anyway(void)
{
    struct __user_cap_header_struct head = {.version = _LINUX_CAPABILITY_VERSION_3};
    struct __user_cap_data_struct data[_LINUX_CAPABILITY_U32S_3];

    return syscall(SYS_capget, &head, data) == 0 && (data[CAP_TO_INDEX(CAP_SYS_PTRACE)].effective & CAP_TO_MASK(CAP_SYS_PTRACE));
}

bool yama_asks_for_name(void)
{
    char scope = '0';
    int fd = open("/proc/sys/kernel/yama/ptrace_scope", O_RDONLY | O_CLOEXEC);

    if (fd < 0)
        return false;
    if (read(fd, &scope, 1) != 1)
        scope = '0';
    close(fd);
    return scope == '1' && !may_trace_anyway();
}

void yama_name(pid_t keeper)
{
    prctl(PR_SET_PTRACER, keeper, 0, 0, 0); /* where that fails, the report says ptrace-refused */
}
