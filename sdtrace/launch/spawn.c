/* SPDX-License-Identifier: Apache-2.0
 *
 * spawn.c - the keeper's and the supervisor's surroundings: nothing of the program's may be held, inherited or obeyed.
 */
#include "keeper.h"

#include <fcntl.h>
#include <sched.h>
#include <signal.h>
#include <stdarg.h>
#include <stdio.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/resource.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <unistd.h>

pid_t fork_silently(void)
{
    return (pid_t)syscall(SYS_clone, 0, NULL, NULL, NULL, NULL);
}

static void close_all_but(int *keep, int n)
{
    unsigned next = 3;
    for (;;) {
        int lowest = -1;
        for (int i = 0; i < n; i++)
            if (keep[i] >= (int)next && (lowest < 0 || keep[i] < lowest))
                lowest = keep[i];
        if (lowest < 0)
            break;
        if ((unsigned)lowest > next)
            close_range(next, (unsigned)lowest - 1, 0);
        next = (unsigned)lowest + 1;
    }
    close_range(next, ~0U, 0);
}

/* struct sched_attr of linux/sched/types.h, which newer C libraries define in sched.h, too. */
struct scheduling {
    uint32_t size, policy;
    uint64_t flags;
    int32_t nice;
    uint32_t priority;
    uint64_t runtime, deadline, period;
};
#define SHORT_NS 100000

/* What waits for us is to be taken at once, also where all CPUs are busy: until then signals end its wait. Who asks for a short slice gets no more time,
 * but sooner (since Linux 6.12; before, it changes nothing). The supervisor inherits it. */
static void be_prompt(void)
{
    struct scheduling s = {.size = sizeof(s)};
    if (syscall(SYS_sched_getattr, 0, &s, sizeof(s), 0) < 0 || (s.policy != SCHED_OTHER && s.policy != SCHED_BATCH))
        return;
    s.runtime = SHORT_NS;
    syscall(SYS_sched_setattr, 0, &s, 0);
}

void keeper_detach(const struct keeper *k)
{
    setsid();
    be_prompt();
    for (int s = 1; s < NSIG; s++)
        signal(s, SIG_DFL);
    sigset_t none;
    sigemptyset(&none);
    sigprocmask(SIG_SETMASK, &none, NULL);
    signal(SIGXFSZ, SIG_IGN); /* memory of our own counts as a file */
    /* Where the program's own limits are tight, ours need not be. */
    static const int limits[] = {RLIMIT_NOFILE, RLIMIT_FSIZE, RLIMIT_AS, RLIMIT_DATA, RLIMIT_CPU, RLIMIT_STACK};
    for (size_t i = 0; i < sizeof(limits) / sizeof(limits[0]); i++) {
        struct rlimit r;
        if (getrlimit(limits[i], &r) == 0) {
            r.rlim_cur = r.rlim_max;
            setrlimit(limits[i], &r);
        }
    }
    if (chdir("/") < 0)
        _exit(EXIT_UNABLE);
    umask(077);
    int null = open("/dev/null", O_RDWR | O_CLOEXEC);
    for (int fd = 0; fd < 3; fd++)
        if (fd < 2 || !needs_stderr(k->options))
            dup2(null, fd);
    close_all_but((int[]){k->launcher, k->root_pidfd}, 2);
}

int make_keepsake(struct keepsake **k)
{
    int fd = memfd_create("sdrun-keepsake", MFD_CLOEXEC);
    if (fd >= 0 && ftruncate(fd, KEEPSAKE_BYTES) == 0) {
        *k = mmap(NULL, KEEPSAKE_BYTES, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
        if (*k != MAP_FAILED)
            return fd;
    }
    static struct keepsake nobodys;
    *k = &nobodys;
    return -1;
}

static char *text(const char *format, ...)
{
    char *s;
    va_list args;
    va_start(args, format);
    if (vasprintf(&s, format, args) < 0)
        _exit(EXIT_UNABLE);
    va_end(args);
    return s;
}

/* The program's loader and Python settings are not for us. */
static void clean_environment(void)
{
    extern char **environ;
    char **to = environ;
    for (char **from = environ; *from; from++)
        if (strncmp(*from, "LD_", 3) && strncmp(*from, "PYTHON", 6) && strncmp(*from, "MALLOC_", 7))
            *to++ = *from;
    *to = NULL;
}

/* What decides about policy; returns the new number of arguments. */
static int policy_options(const struct options *o, char **args, int n)
{
    if (o->policy)
        args[n++] = text("--policy=%s", o->policy);
    for (int i = 0; i < o->nsets; i++)
        args[n++] = text("--set=%s", o->sets[i]);
    for (int i = 0; i < o->nrules; i++)
        args[n++] = text("--rule=%s", o->rules[i]);
    return n;
}

int options_only(const struct options *o, const char *bin_dir, const char *command_path)
{
    char *args[2 * SETS_MAX + 20] = {text("%s/python3", bin_dir), text("-I"), text("-m"), text("policies"), text("%s", o->only)};
    int n = policy_options(o, args, 5);
    if (*command_path)
        args[n++] = text("--command=%s", command_path);
    clean_environment();
    execv(args[0], args);
    complain("cannot run %s; `make build` makes it", args[0]);
    return EXIT_UNABLE;
}

int options_detach(const struct options *o, const char *bin_dir)
{
    char *args[] = {text("%s/python3", bin_dir), text("-I"), text("-m"), text("sdtrace.detaching"), text("%s", o->detach),
                    o->no_children ? "alone" : NULL, NULL};
    clean_environment();
    execv(args[0], args);
    complain("cannot run %s; `make build` makes it", args[0]);
    return EXIT_UNABLE;
}

/* Without `site`, which reads configuration and runs what distributions and packages hook into every Python: a fifth of the
 * start, for which the program waits at its first socket. So this finds the packages of the environment that the launcher
 * lies in by itself, and those of Debian if that includes them, as a Debian package's does; where they are elsewhere, `site` does. No collections of
 * garbage before there is any: sdtrace/supervisor.py turns them on. */
static const char starter[] =
    "import gc, os, sys\n"
    "gc.disable()\n"
    "home = sys.prefix = sys.exec_prefix = sys.argv.pop(1)\n"
    "packages = '%s/lib/python%d.%d/site-packages' % (home, *sys.version_info[:2])\n"
    "sys.path.append(packages)\n"
    "try:\n"
    "    for name in os.listdir(packages):\n"
    "        if name.endswith('.pth'):\n"
    "            with open(packages + '/' + name) as file:\n"
    "                sys.path += [line.strip() for line in file if line.startswith('/')]\n"
    "    with open(home + '/pyvenv.cfg') as file:\n"
    "        if 'include-system-site-packages = true' in file.read():\n"
    "            sys.path.append('/usr/lib/python3/dist-packages')\n"
    "    from sdtrace.supervisor import main\n"
    "except (ImportError, OSError):\n"
    "    sys.prefix, sys.exec_prefix = sys.base_prefix, sys.base_exec_prefix\n" /* from which site derives all others */
    "    import site\n"
    "    site.main()\n"
    "    from sdtrace.supervisor import main\n"
    "sys.exit(main(sys.argv[2:]))\n";

void run_supervisor(const struct keeper *k, int control, int keepsake, int verdict)
{
    const struct options *o = k->options;
    char *args[2 * SETS_MAX + 25], *python = text("%s/python3", k->bin_dir);
    int n = 0;
    setsid(); /* in a group of its own for the scheduler: what it has used up is not to be held against the keeper */
    args[n++] = python;
    args[n++] = "-I"; /* the program's directory and user packages are not for us either */
    args[n++] = "-S";
    args[n++] = "-c";
    args[n++] = (char *)starter;
    args[n++] = text("%.*s", (int)(strrchr(k->bin_dir, '/') - k->bin_dir), k->bin_dir);
    args[n++] = "sdtrace.supervisor"; /* for people who look for it among the processes */
    args[n++] = text("--control=%d", control);
    args[n++] = text("--keepsake=%d", keepsake);
    args[n++] = text("--root-pidfd=%d", k->root_pidfd);
    args[n++] = text("--root-pid=%d", k->root_pid);
    args[n++] = text("--command=%s", k->command_path);
    if (o->report)
        args[n++] = text("--report=%s", o->report);
    if (o->explain)
        args[n++] = "--explain";
    if (o->no_accel)
        args[n++] = "--no-accel";
    if (k->named)
        args[n++] = "--named";
    args[n++] = "--receives";
    if (verdict >= 0) /* what the first has written of these is all there is */
        args[n++] = text("--successor=%d", verdict);
    if (o->trace && verdict < 0)
        args[n++] = text("--trace=%s", o->trace);
    if (o->pcap && verdict < 0)
        args[n++] = text("--pcap=%s", o->pcap);
    if (o->attach && verdict < 0)
        args[n++] = o->no_children ? "--attach=alone" : "--attach=family";
    else if (o->must_check && verdict < 0)
        args[n++] = "--verdict";
    if (o->learn && verdict < 0)
        args[n++] = text("--learn=%s", o->learn);
    n = policy_options(o, args, n);
    args[n] = NULL;
    fcntl(control, F_SETFD, 0);
    fcntl(keepsake, F_SETFD, 0);
    fcntl(k->root_pidfd, F_SETFD, 0);
    clean_environment();
    execv(python, args);
    _exit(EXIT_NOT_FOUND);
}
