/* SPDX-License-Identifier: Apache-2.0
 *
 * fd.h - inside fd/: the entries of sd_fdent[].
 */
#ifndef SD_FD_H
#define SD_FD_H

#include "sock/sock.h"

#define ENT_EPOLL (1u << 31)

static inline bool is_closing(u32 fd)
{
    return fd < ARRAY_LEN(sd_fdent) && *(volatile u32 *)&sd_fdent[fd] & SD_ENT_CLOSING;
}

void sd_fd_await(u32 fd); /* closing.c */
struct sock *sd_sock_named(u32 fd); /* fd.c: even if it is being closed */

#endif
