/* SPDX-License-Identifier: Apache-2.0
 *
 * rows.h - rows that lie in children.c, for the table in rows.c.
 */
#ifndef ROWS_H
#define ROWS_H

#include "cell.h"

int after_fork(int fd);
int parent_after_fork(int fd);
int after_vfork(int fd);
int spawned(int fd);
int clone_vm(int fd);
int clone_own_stack(int fd);
int clone3(int fd, uint64_t flags, uint64_t cgroup);
int clone3_clear(int fd);
int clone3_cgroup(int fd);
int failed_clone(int fd);
int in_thread(int fd);
int main_thread_ends(int fd);
int cancelled(int fd);
int exec_in_thread(int fd);
int fork_of_threads(int fd);

#endif
