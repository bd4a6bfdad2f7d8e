/* SPDX-License-Identifier: Apache-2.0
 *
 * scene.h - what scenarios (scenes_*.c) are written with: small programs that call sdlib/src/sock as the handlers of the system calls do.
 *
 * Every scenario ends with the same question: has each program got exactly the bytes that were sent to it? That nobody sleeps for ever, and that there
 * is at most one doorbell, is asked at every step.
 */
#ifndef HOSTED_SCENE_H
#define HOSTED_SCENE_H

#include "explore.h"

/* Where scenarios begin. */
void on_tcp(void);
void on_rings(void);             /* both directions have switched, nobody is armed */
void tcp_bytes_on_the_way(void); /* "xy", to side 1 */
void shared_by_threads(u32 side, u32 dir);

/* Calls of a program; bytes that it gets are kept in `prog`. */
long send_once(u32 side, struct iovec *v, u32 flags);
void put(u32 side, const char *bytes, u32 flags);   /* all of them, or -EAGAIN */
long take(u32 side, u32 most, u32 flags);           /* one receive */
void get(u32 side, u32 want);                       /* until so many are there, or the end */
bool got(u32 side, u32 want);
void back(u32 side);                                /* to TCP, what it sends */
/* As much of a sender as sleepers meet [R1] [W1] [B1]: the bytes, and a doorbell for who is armed. */
void publish(const char *bytes);
void wait_for(u32 side, u32 events);                /* as poll(2) does it */

/* Exactly these bytes have come, and who does not sleep is not armed. */
void expect(u32 side, const char *bytes);

extern const struct scenario scenes_bells[], scenes_moves[], scenes_shared[], scenes_again[], scenes_epoll[];

#endif
