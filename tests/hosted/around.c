/* SPDX-License-Identifier: Apache-2.0
 *
 * around.c - the rest of the library, as far as sock/ and poll/ need it when nothing is injected.
 */
#include "kernel.h"
#include "sd_py.h"

struct sd_config hosted_config = {.accel = 1, .upgrade = SD_UPGRADE_NEVER};
static struct sd_proc proc;
struct sd_global g = {.pid = 99, .proc = &proc, .cfg = &hosted_config, .tsc_per_us = 1};
u8 sd_fdkind[65536];
u32 sd_fdent[65536];
_Atomic u64 sd_restarting;

struct sd_rouse sd_rouse_begin_shared(const void *at) { return (void)at, (struct sd_rouse){.begun = false}; }
void sd_rouse_end_shared(const struct sd_rouse *r) { (void)r; }

void sd_membarrier(void) { host_membarrier(); }
void sd_membarrier_threads(void) { host_membarrier(); }
int sd_py_membarrier(void) { return host_membarrier(), 0; }
u32 sd_cpu(void) { return 0; }
bool hosted_supervised;
long sd_hypercall_fd(u32 op, u64 a, u64 b) { return (void)op, (void)a, (void)b, -ENOSYS; }
void sd_reason(struct sock *s, u32 reason) { (void)s, (void)reason; }
void sd_given_alone(struct sock *s, int fd) { (void)s, (void)fd; }
bool sd_option_keeps(int fd) { return (void)fd, false; }
void sd_inq_set(struct sock *s, int fd) { (void)s, (void)fd; }

/* As in fd.c: who touches it then, dies. */
static bool in_use(const struct sock *s)
{
    for (struct sd_tcb *t = sd_tcbs(); t; t = t->next)
        if (load_acq(&t->use[0]) == s)
            return true;
    return false;
}

void sd_sock_reap(struct sock *s)
{
    if (load_acq(&s->held))
        return;
    sd_membarrier_threads();
    if (!in_use(s) && !load_acq(&s->held) && cas_u32(&s->dead, 1, 2))
        s->b = NULL;
}

/* [F4] needs a kernel that has a file for each number: tests/e2e/test_closed_under.py. */
int sd_fd_moved(const struct sock *s, int fd) { return (void)s, fd; }

struct sock *sd_sock_enter(u64 fd)
{
    struct sock *s = sd_sock_of(fd);

    if (!s || !g.mt)
        return s;
    store_rel(&sd_self()->use[0], s); /* [F1] */
    if (sd_sock_of(fd) == s)
        return s;
    sd_sock_put(s);
    return NULL;
}

void sd_sock_put(struct sock *s)
{
    if (!g.mt)
        return;
    store_rel(&sd_self()->use[0], NULL);
    if (load_rlx(&s->dead) == 1) /* [F2] */
        sd_sock_reap(s);
}

u32 sd_fd_top(void) { return FD_OF(SIDES); }
u64 sd_strip_sigsys(const void *user_set, u64 size, u64 *out) { return (void)user_set, (void)size, (void)out, 0; }
