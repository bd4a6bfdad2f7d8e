/* SPDX-License-Identifier: Apache-2.0
 *
 * cell.h - the parts of a cell of the matrix (tests/matrix/__init__.py says what a cell is).
 *
 *   peer    the other end: listens, brings the connection into its state, answers, wants an end of file
 *   holder  connects, waits until the connection is in that state, does what the row is about
 *   actor   whoever has the connection after that: reads what was sent before, talks, ends
 *
 * Plain Linux, for glibc and musl (which comes without the kernel's headers); nothing here knows sdrun.
 */
#ifndef CELL_H
#define CELL_H

#include "../guests/guest.h"

enum state { ON_TCP, OFFERED, SWITCHING, UNREAD, FULL, HALF_CLOSED, STATES };

struct row {
    const char *name;
    int (*run)(int fd); /* in the holder: exit status of the cell, 0 if the actor was content; SKIP: not possible here */
    bool accepts; /* the peer connects, and fd is a listening socket */
    bool dies;    /* the actor may be killed: whatever the peer gets is right, then comes an end or a reset */
};
extern const struct row rows[];

#define SKIP 77

extern const char *state_names[STATES];
extern enum state state;
extern const char *self; /* path of this program */

int actor(int fd);            /* 0, or 1 with a complaint on stderr */
int actor_image(int fd);      /* execs this program as the actor; returns only if that fails */
char **actor_argv(int fd);
int status_of(pid_t child);   /* waits: its exit status, 128 + signal */
void set_state(int fd);       /* holder: until the connection is there */

#endif
