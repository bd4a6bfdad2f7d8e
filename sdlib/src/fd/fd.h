/* SPDX-License-Identifier: Apache-2.0
 *
 * fd.h - inside fd/: the entries of sd_fdent[].
 */
#ifndef SD_FD_H
#define SD_FD_H

#include "sock/sock.h"

#define ENT_EPOLL (1u << 31)

struct sock *sd_sock_named(u32 fd); /* fd.c: even if it is being closed */

#endif
