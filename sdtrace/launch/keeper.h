/* SPDX-License-Identifier: Apache-2.0 */
#ifndef SDRUN_KEEPER_H
#define SDRUN_KEEPER_H

#include "sdrun.h"

#define QUEUE_MAX 1024
#define LISTENERS_MAX 64

enum state { STARTING, SERVING, ALONE }; /* keeper.c */

extern struct keeper_state {
    enum state state;
    int launcher;       /* -1 once the command runs */
    int control;        /* channel to the supervisor; -1: gone */
    int supervisor_fd;  /* pidfd; -1: gone */
    pid_t supervisor;   /* 0: not started */
    int supervisor_status; /* 0: it has come to its own end, after the report */
    const struct keeper *start; /* what to start it with */
    int keepsake_fd;
    int listeners[LISTENERS_MAX]; /* one; with --attach one for each process that was there */
    int nlisteners;
    bool ready;         /* MSG_READY has come */
    bool began;         /* there was a listener */
    bool over;          /* the last task has gone */
    bool must_check;
    uint32_t verdict;   /* VERDICT_* in force */
    int successors;     /* supervisors after the first */
    int deaths;         /* up to SUCCESSORS_MAX */
    int64_t deadline_ms; /* of being started, then of being ready */
    uint64_t beat;       /* the supervisor's, when it was last seen to move */
    int64_t moved_ms, look_ms;
    struct keepsake *keepsake;
    struct { struct seccomp_notif notif; uint32_t flags; } queue[QUEUE_MAX];
    int queued;
} g;

void start_supervisor(void); /* keeper.c; does nothing when it has been started already */

/* notifs.c */
bool attaching(void); /* is the first supervisor taking over a program that runs? */
bool has_room(void);
void receive_for_supervisor(int listener);
void receive_notification(int listener);
void hand_over(void);       /* STARTING -> SERVING, as soon as there is both a listener and a supervisor */
void rescue(void);
void end_waits(const struct keepsake *k); /* of the thread that is rescued, which a tracer has interrupted */
void refill_queue(void);
void answer_outstanding(void);
void go_alone(void);        /* nobody else answers any more */

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
