/* SPDX-License-Identifier: Apache-2.0
 *
 * sock.h - inside sock/ and fd/: a connection of ours and what its calls have in common.
 *
 * A connection's life, as this end sees it (block state / rx_mode / tx_mode):
 *   TCP       every call goes to the kernel; operations are counted
 *   OFFERED   the monitor knows of it; still everything on the kernel
 *   PAIRED    the monitor has made a segment; the next call maps it
 *   ATTACHED  both rings are mapped here. rx_mode and tx_mode move on their own:
 *               tx TCP -> RING  at one of our sends, once the other end has attached too
 *               rx TCP -> RING  when the peer's sw_ring says so and all TCP bytes before it are read
 *               RING -> BACK    sw_back; final
 *   PINNED    never to be offered; `reason` says why
 */
#ifndef SD_SOCK_H
#define SD_SOCK_H

#include "sd.h"

#define LATCH_FIN (1u << 31)

/* fd/ */
struct sock *sd_sock_new(u32 role);        /* with a fresh block, or NULL (kernel socket then) */
void sd_fd_install(int fd, struct sock *s);/* one more descriptor */
void sd_fd_remove(u64 fd);                 /* the descriptor goes; the last one frees the socket */
void sd_sock_put(struct sock *s);          /* end of sd_sock_enter */
struct sock *sd_sock_enter(u64 fd);        /* like sd_sock_of, and the socket cannot be unmapped until sd_sock_put */
struct sd_block *sd_block_new(u32 *id);
void sd_block_drop(struct sock *s);
struct sd_area *sd_area_get(u32 index);
struct sock *sd_sock_carried(u32 id, struct sd_block *b);
u32 sd_fd_top(void);                       /* one above the highest descriptor ever ours */
void sd_reason(struct sock *s, u32 reason);/* pins a block that is not attached */

/* sock/life.c */
void sd_tick(struct sock *s, int fd);      /* one operation: offer, attach when it is time */
bool sd_try_switch_tx(struct sock *s, int fd);
bool sd_rx_poll_switch(struct sock *s, int fd); /* true: rx is on the ring now */
void sd_tx_back(struct sock *s, int fd, u32 reason);
bool sd_rx_back(struct sock *s, int fd);   /* ring drained up to sw_back: eats the last bell. False: that has not arrived yet */
void sd_ring_bell(struct sock *s, int fd);
void sd_look_at_kernel(struct sock *s, int fd); /* eats bells, latches FIN and errors; never blocks */
i64 sd_rx_pos(const struct sock *s, int fd); /* bytes read from the TCP stream so far, -1: unknown */
bool sd_map_segment(struct sock *s, int fd);
void sd_tx_limit(struct sock *s, int fd);  /* SO_SNDBUF may have changed */
long sd_park(struct sock *s, int fd);
void sd_drop(struct sock *s, int fd);      /* the peer broke the ring: reset */

#define LOCK_NONE 0
u32 sd_lock(struct sock *s, _Atomic u32 *word);
void sd_unlock(_Atomic u32 *word, u32 held);

/* sock/rx.c, tx.c */
long sd_rx(struct sock *s, int fd, struct iovec *iov, u64 n, u32 flags);
/* recvmsg; *told: the kernel has filled the header, and its flags are final. */
long sd_rx_msg(struct sock *s, int fd, struct msghdr *m, u32 flags, bool *told);
long sd_tx(struct sock *s, int fd, struct iovec *iov, u64 n, u32 flags);
u64 sd_iov_bytes(const struct iovec *iov, u64 n);

/* sock/fast.c */
void sd_fast_on(struct sock *s, int fd);   /* if it may be: small messages take the short way */

#define MAX_IOV 1024

#endif
