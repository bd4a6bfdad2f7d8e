/* SPDX-License-Identifier: Apache-2.0
 *
 * sdrun.h - what the parts of the launcher share.
 *
 *   sdrun.c     main(): the order of things
 *   options.c   command line, and whether somebody must check it before anything starts
 *   command.c   where in PATH the command is, as execvp finds it
 *   filter.c    the kernel's abilities, loading and installing the seccomp filter
 *   channel.c   datagrams with a descriptor
 *   keeper.c    the process that holds the listener until the last task is gone
 *   notifs.c    what it receives, until a supervisor serves, and where there is none
 *   vault.c     what it keeps for the successor of a supervisor that dies
 *   yama.c      who may trace the program, where the kernel wants to be told
 *
 * Until execve this process is what the user started, so nothing may change that a program inherits: no
 * signal disposition, no mask, no descriptor without close-on-exec, no child that announces its end by SIGCHLD.
 */
#ifndef SDRUN_H
#define SDRUN_H

#include <linux/seccomp.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <sys/types.h>
#include <sys/user.h>

#define SDRUN_VERSION "0.1.0"

/* Exit statuses of our own; the same as env, nohup and timeout use. */
enum { EXIT_USAGE = 2, EXIT_UNABLE = 125, EXIT_NOT_EXECUTABLE = 126, EXIT_NOT_FOUND = 127 };

#define SETS_MAX 64
#define TEXT_MAX 2048
#define PATH_BYTES 4096

struct options {
    const char *report;
    const char *policy;
    const char *learn;
    const char *trace; /* a file; "": standard error; NULL */
    const char *pcap;
    const char *only; /* --check or --print: nothing is started */
    const char *attach; /* a pid: no command is started */
    const char *detach; /* the same */
    const char *sets[SETS_MAX];
    int nsets;
    const char *rules[SETS_MAX];
    int nrules;
    bool explain;
    bool no_accel;
    bool no_children; /* with attach */
    bool must_check; /* the supervisor's verdict is needed before the command starts */
    char **command;  /* argv of the command */
};

/* Is something told when the tree has ended? Then the supervisor has to live to that end, and the program's parent shall find it told. */
static inline bool told_at_the_end(const struct options *o)
{
    return o->report || o->explain || o->trace || o->pcap;
}

static inline bool needs_stderr(const struct options *o)
{
    return o->explain || (o->trace && !*o->trace);
}

/* The word that a stranger may read first: launcher, keeper and supervisor exchange these over SOCK_SEQPACKET pairs.
 * sdtrace/control.py has the same layout. */
enum message_kind {
    MSG_LISTENER = 1, /* launcher -> keeper -> supervisor, or, of a program that was running, supervisor -> keeper; carries the descriptor */
    MSG_VERDICT = 2,  /* supervisor -> keeper -> launcher */
    MSG_READY = 3,    /* supervisor -> keeper: from now on I receive the notifications */
    MSG_NOTIF = 4,    /* keeper -> supervisor: received before you were ready */
    MSG_GO = 5,       /* keeper -> supervisor: that was the last of them */
    MSG_KEEP = 6,     /* supervisor -> keeper -> its successor: a record for the successor, by number (status); see vault.c */
    MSG_DROP = 7,     /* supervisor -> keeper: that record is of no more use */
    MSG_CLEAR = 8,    /* supervisor -> keeper: none is */
    MSG_ALONE = 9,    /* supervisor -> keeper: I leave, the programs have been given back; nobody is to come after me */
};

/* Of MSG_VERDICT: which filter. DENY_*: some program of the tree may be denied something; see sdtrace/syscalls.py. */
enum { VERDICT_URING_ALLOWED = 1, VERDICT_DENY_TCP = 2, VERDICT_DENY_UDP = 4 };
enum { NOTIF_ANSWERED = 1 };

struct message {
    uint32_t kind;
    uint32_t status; /* MSG_VERDICT: 0 = start, else exit with this and the text */
    uint32_t flags;
    uint32_t pad;
    union {
        char text[TEXT_MAX];
        struct seccomp_notif notif;
    };
};

#define KEEPSAKE_BYTES 16384
#define KEEPSAKE_OUTSTANDING 1280
#define KEEPSAKE_TAKEN 48

/* Memory that outlives the supervisor. The kernel itself writes `notif` (it is the buffer of the supervisor's RECV), so
 * there is no moment in which a received notification is known to a dead process only.
 * sdtrace/keepsake.py has the same layout. */
struct keepsake {
    struct seccomp_notif notif; /* id 0: none */
    uint8_t pad0[128 - sizeof(struct seccomp_notif)];
    /* The thread in which the supervisor runs system calls, valid while rescue_tid is not 0: its state as found. */
    volatile uint32_t rescue_tid;
    uint32_t in_start;        /* it runs the library's start, which ends in the landing */
    uint64_t landing;         /* address behind the call instruction in use */
    uint64_t landing_word[2]; /* the program's own bytes there */
    uint64_t rescue_mask;
    struct user_regs_struct rescue_regs;
    volatile uint32_t attaching; /* a process that may have a listener that is meant for us; 0: none */
    uint8_t pad1[1024 - 128 - 40 - sizeof(struct user_regs_struct) - 4 - 24];
    /* How many notifications have been put into `taken`, a ring, and how many of them the supervisor has begun with, in order. */
    volatile uint64_t received, begun;
    volatile uint64_t beat;   /* rounds of the supervisor's loop: one that stands still while somebody waits hangs */
    /* Notifications that threads of the supervisor work on; 0: none. */
    volatile uint64_t outstanding[KEEPSAKE_OUTSTANDING];
    struct seccomp_notif taken[KEEPSAKE_TAKEN]; /* received for it, and not begun with; all zeroes: none */
};
_Static_assert(offsetof(struct keepsake, received) == 1000 && offsetof(struct keepsake, outstanding) == 1024 && offsetof(struct keepsake, taken) == 11264 &&
               sizeof(struct keepsake) <= KEEPSAKE_BYTES - 1024, "keepsake.py");

void complain(const char *format, ...) __attribute__((format(printf, 1, 2)));
int start_limit_ms(void); /* how long the supervisor may take to start */

/* Returns -1 to go on, else the exit status (--help, --version, an error that has been printed). */
int options_parse(struct options *o, char **argv);

/* --check and --print: becomes `python -m policies`. Returns only on error, with the exit status. */
int options_only(const struct options *o, const char *bin_dir, const char *command_path);

/* --detach: becomes `python -m sdtrace.detaching`. Returns only on error, with the exit status. */
int options_detach(const struct options *o, const char *bin_dir);

/* Fills `path`; returns 0, or the exit status after one line on stderr. */
int command_find(const char *name, char path[PATH_BYTES]);
/* As execvp does once the file is found: a text without #! goes to /bin/sh. Returns only on error, with errno. */
void command_exec(const char *path, char **argv);

/* Returns 0 or EXIT_UNABLE after one line on stderr. */
int filter_check_kernel(void);
/* Directory of the compiled filters, relative to this executable. */
int filter_load(struct options *o, uint32_t verdict, const char *bin_dir);
/* Returns the listener, or -errno; -EBUSY: an outer sdrun has one already. */
int filter_install(void);

/* The same descriptor with a number above 2, close-on-exec; negative ones are passed on. */
int fd_above_stdio(int fd);
int channel_pair(int pair[2]);
/* fd -1: none. Returns 0 or -errno. */
int channel_send(int channel, const struct message *m, int fd);
/* Returns 1, 0 at the end of the channel, or -errno. *fd is -1 when none came. */
int channel_receive(int channel, struct message *m, int *fd);

struct keeper {
    const struct options *options;
    const char *bin_dir;
    const char *command_path;
    int launcher;   /* channel to the launcher */
    int root_pidfd; /* the process that becomes the command */
    pid_t root_pid;
    bool named;     /* the program names the keeper as its tracer (yama.c) */
    pid_t pid;      /* the keeper's own, once it is started */
};

/* Has a program to say who may trace it? */
bool yama_asks_for_name(void);
void yama_name(pid_t keeper);

/* Starts the keeper as a process that is nobody's child here. Returns 0 or -errno. */
int keeper_start(struct keeper *k);

#endif
