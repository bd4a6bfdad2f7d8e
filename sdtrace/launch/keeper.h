/* SPDX-License-Identifier: Apache-2.0 */
#ifndef SDRUN_KEEPER_H
#define SDRUN_KEEPER_H

#include "sdrun.h"

/* Puts a thread right in which a supervisor that died was running calls (rescue.c), and takes listeners out of a program to which it was attaching,
 * at most `max`. Returns how many. */
int keeper_rescue(struct keepsake *k, int *listeners, int max);

/* Says what could not be reported, because no supervisor lived to the end (obituary.c). */
void keeper_obituary(const struct options *o);

/* vault.c: records for the successor of a supervisor that dies. */
void vault_keep(const struct message *m, int fd); /* takes fd over */
void vault_drop(uint32_t number);
void vault_clear(void);
/* Is this process about to execute a program that gets connections back? */
bool vault_expects(pid_t pid);
/* Sends them all; returns 0 or -errno. */
int vault_hand_over(int channel);

/* spawn.c */
/* fork() without SIGCHLD: one that is blocked now would stay pending in the command. */
pid_t fork_silently(void);
/* Own session, default dispositions, nothing held open: no terminal, pipe or directory may wait for us. */
void keeper_detach(const struct keeper *k);
/* Returns a descriptor of the memory that it maps at *k, or -1. */
int make_keepsake(struct keepsake **k);
/* In the child: becomes Python. Does not return. `verdict`: the one that holds in this tree, for a successor; -1: the first supervisor. */
void run_supervisor(const struct keeper *k, int control, int keepsake, int verdict);

#endif
