/* SPDX-License-Identifier: Apache-2.0
 *
 * sockmap.h - what the program in the kernel and its loader share.
 */
#ifndef SOCKMAP_H
#define SOCKMAP_H

/* One direction of a connection as this socket sees it; all in network order. */
struct flow {
    unsigned int local_ip, remote_ip, local_port, remote_port;
};

#define SOCKMAP_SIZE 65536

#endif
