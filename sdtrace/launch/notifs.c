/* SPDX-License-Identifier: Apache-2.0
 *
 * notifs.c - notifications in the keeper's hands: received, queued for a supervisor that starts, handed over to it, and answered where there is none.
 *
 * What is received when, and who answers it then: keeper.c.
 */
#include "keeper.h"

#include "sd_abi.h"

#include <errno.h>
#include <linux/audit.h>
#include <stdio.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/socket.h>
#include <sys/syscall.h>
#include <unistd.h>

static bool strict(void) { return g.verdict & (VERDICT_DENY_TCP | VERDICT_DENY_UDP); }

static bool harmless(int nr)
{
    return nr == SYS_arch_prctl || nr == SYS_exit_group || nr == SYS_execve || nr == SYS_execveat || nr == SYS_prctl ||
           nr == SYS_socket || nr == SYS_pidfd_getfd;
}

/* The numbers are random, so only one listener knows this one. ENOENT means that the task is gone or its call was interrupted: nothing is left to answer. */
static void reply(struct seccomp_notif_resp *r)
{
    for (int i = 0; i < g.nlisteners && ioctl(g.listeners[i], SECCOMP_IOCTL_NOTIF_SEND, r) < 0; i++)
        if (errno != ENOENT && errno != EINPROGRESS)
            fprintf(stderr, "sdrun: keeper: cannot answer a system call: %s\n", strerror(errno));
}

/* Fail open, if nothing is denied. */
static void let_through(const struct seccomp_notif *n)
{
    struct seccomp_notif_resp r = {.id = n->id};
    if (n->data.nr == SD_HC_NR)
        r.error = -ENOSYS;
    else if (strict() && g.state == ALONE && !(n->data.arch == AUDIT_ARCH_X86_64 && harmless(n->data.nr)))
        r.error = -EACCES;
    else
        r.flags = SECCOMP_USER_NOTIF_FLAG_CONTINUE;
    reply(&r);
}

/* More than it has room for wait where they are. */
bool has_room(void) { return g.keepsake->received - g.keepsake->begun < KEEPSAKE_TAKEN; }

/* The kernel writes where the supervisor finds it, should we die in between. */
void receive_for_supervisor(int listener)
{
    struct keepsake *k = g.keepsake;
    if (!has_room() || ioctl(listener, SECCOMP_IOCTL_NOTIF_RECV, &k->taken[k->received % KEEPSAKE_TAKEN]) < 0)
        return;
    k->received++;
    send(g.control, "", 1, MSG_DONTWAIT | MSG_NOSIGNAL); /* when that is full, it is awake */
}

void receive_notification(int listener)
{
    struct seccomp_notif n = {0};
    if (ioctl(listener, SECCOMP_IOCTL_NOTIF_RECV, &n) < 0)
        return; /* the task went away between poll and here */
    /* Only where it is given nothing then. */
    bool birth = n.data.nr == SYS_arch_prctl && !vault_expects((pid_t)n.pid) && !g.start->named;
    bool at_once = g.state == ALONE || birth || g.queued == QUEUE_MAX;
    if (at_once)
        let_through(&n);
    if (g.state == STARTING && g.queued < QUEUE_MAX) {
        g.queue[g.queued].notif = n;
        g.queue[g.queued++].flags = at_once ? NOTIF_ANSWERED : 0;
        if (!at_once)
            start_supervisor();
    }
}

/* Is the first supervisor taking over a program that runs? It receives from the beginning: what it holds is stopped. */
bool attaching(void) { return g.start->options->attach && !g.successors; }

/* STARTING -> SERVING, as soon as there is both a listener and a supervisor to hand it to. */
void hand_over(void)
{
    struct message m = {.kind = MSG_LISTENER};
    int error = 0;
    if (g.state != STARTING || !g.ready || !g.nlisteners)
        return;
    g.state = SERVING;
    if (!attaching()) /* else it has them from itself */
        for (int i = 0; i < g.nlisteners && !error; i++)
            error = channel_send(g.control, &m, g.listeners[i]);
    if (!error)
        error = vault_hand_over(g.control);
    m.kind = MSG_NOTIF;
    for (int i = 0; !error && i < g.queued; i++) {
        m.notif = g.queue[i].notif;
        m.flags = g.queue[i].flags;
        error = channel_send(g.control, &m, -1);
    }
    m.kind = MSG_GO;
    if (!error)
        channel_send(g.control, &m, -1); /* an error is its death: seen by its pidfd */
}

static bool still_waits(uint64_t id)
{
    for (int i = 0; i < g.nlisteners; i++)
        if (ioctl(g.listeners[i], SECCOMP_IOCTL_NOTIF_ID_VALID, &id) == 0)
            return true;
    return false;
}

/* Calls that threads of the dead one performed, of strict trees: nobody knows how far they had come. In others they only prepared one, or asked for the library: to
 * take a socket out of another program, whose bytes may be where the caller cannot see them (strangers.py). */
void answer_outstanding(void)
{
    for (int i = 0; i < KEEPSAKE_OUTSTANDING; i++) {
        struct seccomp_notif_resp r = {.id = g.keepsake->outstanding[i], .error = strict() ? -EACCES : -EPERM};
        if (r.id)
            reply(&r);
    }
}

#define RESTART 513 /* ERESTARTNOINTR: the call is made anew. For a thread only that the code of signals looks at first, as it does where a tracer has interrupted it. */

static void interrupt(const struct seccomp_notif *n, int error)
{
    struct seccomp_notif_resp r = {.id = n->id, .error = -error};
    reply(&r);
}

/* It may wait for an answer whatever tracers say once its call has been received: in the call of the landing, of which any answer ends that, and it goes on to the loop; or
 * in its own, before it has got other registers or since it has them back. That is for the successor to answer: a program that is born may be given connections. */
void end_waits(const struct keepsake *k)
{
    for (int i = 0; i < KEEPSAKE_TAKEN; i++)
        if (k->taken[i].id && k->taken[i].pid == k->rescue_tid)
            interrupt(&k->taken[i], k->taken[i].data.nr == SD_HC_NR ? EINTR : RESTART);
}

void rescue(void)
{
    g.nlisteners += keeper_rescue(g.keepsake, g.listeners + g.nlisteners, LISTENERS_MAX - g.nlisteners);
}

/* Nobody else answers any more: also what the supervisor left behind, or never got. */
void go_alone(void)
{
    g.state = ALONE;
    if (g.launcher >= 0 && g.must_check) {
        close(g.launcher); /* the launcher sees the end of the channel and says so */
        g.launcher = -1;
    }
    rescue();
    if (!g.nlisteners)
        return;
    if (g.keepsake->notif.id)
        let_through(&g.keepsake->notif);
    for (int i = 0; i < KEEPSAKE_TAKEN; i++)
        if (g.keepsake->taken[i].id)
            let_through(&g.keepsake->taken[i]);
    for (int i = 0; i < g.queued; i++)
        if (!(g.queue[i].flags & NOTIF_ANSWERED))
            let_through(&g.queue[i].notif);
    answer_outstanding();
}

/* What the dead one had received. */
static void queue_again(const struct seccomp_notif *n)
{
    if (!n->id || !still_waits(n->id))
        return;
    if (g.queued == QUEUE_MAX) {
        let_through(n);
        return;
    }
    g.queue[g.queued].notif = *n;
    g.queue[g.queued++].flags = 0;
}

/* What in the queue waits no more makes room; what the dead supervisor was working on comes in, and what it had not begun with. */
void refill_queue(void)
{
    int n = 0;
    for (int i = 0; i < g.queued; i++)
        if (!(g.queue[i].flags & NOTIF_ANSWERED) && still_waits(g.queue[i].notif.id))
            g.queue[n++] = g.queue[i];
    g.queued = n;
    queue_again(&g.keepsake->notif);
    for (int i = 0; i < KEEPSAKE_TAKEN; i++)
        queue_again(&g.keepsake->taken[i]);
}
