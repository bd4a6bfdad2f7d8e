/* SPDX-License-Identifier: Apache-2.0 */
#ifndef SDRUN_KEEPER_H
#define SDRUN_KEEPER_H

#include "sdrun.h"

/* Puts a thread right in which a supervisor that died was running calls (rescue.c), and takes listeners out of a program to which it was attaching,
 * at most `max`. Returns how many. */
int keeper_rescue(struct keepsake *k, int *listeners, int max);

/* spawn.c */
/* fork() without SIGCHLD: one that is blocked now would stay pending in the command. */
pid_t fork_silently(void);
/* Own session, default dispositions, nothing held open: no terminal, pipe or directory may wait for us. */
void keeper_detach(const struct keeper *k);
/* Returns a descriptor of the memory that it maps at *k, or -1. */
int make_keepsake(struct keepsake **k);
/* In the child: becomes Python. Does not return. */
void run_supervisor(const struct keeper *k, int control, int keepsake);

#endif
