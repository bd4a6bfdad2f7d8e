/* SPDX-License-Identifier: Apache-2.0
 *
 * membarrier.c - the fence of the waiter for hosted builds; a file of its own because it needs the C library's headers.
 */
#include <errno.h>
#include <linux/membarrier.h>
#include <sys/syscall.h>
#include <unistd.h>
#include "sd_py.h"

int sd_py_membarrier(void)
{
    /* Only registered processes are reached: posters have to have called this once, too. Registering again costs one system call. */
    if (syscall(SYS_membarrier, MEMBARRIER_CMD_REGISTER_GLOBAL_EXPEDITED, 0, 0) < 0 ||
        syscall(SYS_membarrier, MEMBARRIER_CMD_GLOBAL_EXPEDITED, 0, 0) < 0)
        return -errno;
    return 0;
}
