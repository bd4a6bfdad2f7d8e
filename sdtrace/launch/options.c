/* SPDX-License-Identifier: Apache-2.0
 *
 * options.c - the command line.
 *
 * Only what decides how to start is looked at here. Values of --set and policy files are the supervisor's business, so when
 * there are any, `must_check` makes the launcher wait for its verdict; otherwise the command starts without waiting for Python.
 */
#include "sdrun.h"

#include <dirent.h>
#include <errno.h>
#include <libgen.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

static const char HELP[] =
    "usage: sdrun [options] [--] CMD [ARG...], sdrun [options] --attach PID, sdrun --detach PID\n"
    "\n"
    "Run CMD; its TCP connections to other programs under sdrun on this host go through shared memory.\n"
    "\n"
    "  --report FILE    write a JSON report when the last process ends\n"
    "  --explain        print the same for people on standard error\n"
    "  --trace[=FILE]   a line for every redirected call, with what carried it and how long it took, to FILE or\n"
    "                   standard error; sdtrace FILE filters and sums up. FILE.sdtrace has records instead of lines\n"
    "  --pcap FILE      write the bytes of connections as packets, for Wireshark\n"
    "  --no-accel       inject and redirect, but leave every byte on TCP (to compare)\n"
    "  --set KEY=VALUE  override one policy value; may be repeated\n"
    "  --policy FILE    use this policy file\n"
    "  -r RULE          one rule, before those of all files: DIR PROTO ADDRESS:PORTS ACTION, such as\n"
    "                   \"out tcp *:25 deny errno=EACCES\"; may be repeated\n"
    "  --check          check options and policy files, start nothing; CMD may be left out\n"
    "  --print          print what holds for CMD and who said so, start nothing\n"
    "  --learn FILE     run CMD and write the smallest policy that allows what it did\n"
    "  --attach PID     take over a running program, its open connections and its child processes, without a restart\n"
    "  --detach PID     give a program back that is under sdrun, and its child processes: their connections go back to TCP\n"
    "  --no-children    with --attach and --detach: not its child processes\n"
    "  --version        print the version\n"
    "  --help           print this\n"
    "\n"
    "The exit status is CMD's; 127: CMD not found, 126: not executable, 125: sdrun cannot work here, 2: wrong usage.\n";

struct choice {
    const char *name;
    bool has_value;
    char letter;
    bool optional; /* the value; only behind = */
};

static const struct choice CHOICES[] = {
    {"--report", true, 'r', false}, {"--explain", false, 'e', false}, {"--no-accel", false, 'n', false},
    {"--set", true, 's', false}, {"--policy", true, 'p', false}, {"--version", false, 'v', false},
    {"--help", false, 'h', false}, {"-h", false, 'h', false}, {"-r", true, 'R', false},
    {"--rule", true, 'R', false}, {"--check", false, 'c', false}, {"--print", false, 'P', false},
    {"--learn", true, 'l', false}, {"--pcap", true, 'C', false}, {"--trace", false, 't', true},
    {"--attach", true, 'a', false}, {"--no-children", false, 'N', false}, {"--detach", true, 'd', false},
};

static int usage(const char *what, const char *which)
{
    complain("%s%s%s; see sdrun --help", what, *which ? ": " : "", which);
    return EXIT_USAGE;
}

/* The keeper works in /, so files of the command line are made absolute. Returns NULL after a line on stderr. */
static const char *absolute(const char *name)
{
    char dir[PATH_BYTES], *path;
    if (*name == '/')
        return name;
    if (!getcwd(dir, sizeof(dir)) || asprintf(&path, "%s/%s", dir, name) < 0) {
        complain("%s: cannot find the current directory: %s", name, strerror(errno));
        return NULL;
    }
    return path;
}

/* A report that cannot be written is noticed before hours of running: the file is replaced by rename, so it is the
 * directory that must be writable. */
static int check_output(const char *option, const char *name)
{
    struct stat st;
    char copy[PATH_BYTES];
    if (snprintf(copy, sizeof(copy), "%s", name) >= (int)sizeof(copy))
        return usage(option, "name too long");
    const char *dir = dirname(copy);
    if (access(dir, W_OK | X_OK) < 0 || (stat(name, &st) == 0 && S_ISDIR(st.st_mode))) {
        complain("%s: cannot write %s: %s", option, name, errno == ENOENT ? strerror(ENOENT) : "not a writable place");
        return EXIT_USAGE;
    }
    return -1;
}

/* Written in place, as it comes. */
static int check_stream(const char *option, const char *name)
{
    int status = check_output(option, name);
    if (status < 0 && access(name, F_OK) == 0 && access(name, W_OK) < 0) {
        complain("%s: cannot write %s: %s", option, name, strerror(errno));
        return EXIT_USAGE;
    }
    return status;
}

static int append(const char **list, int *n, const char *value, const char *option)
{
    if (*n == SETS_MAX)
        return usage("too many options", option);
    list[(*n)++] = value;
    return -1;
}

static int apply(struct options *o, char letter, const char *value)
{
    switch (letter) {
    case 'r':
        o->report = absolute(value);
        return o->report ? check_output("--report", o->report) : EXIT_USAGE;
    case 'l':
        o->learn = absolute(value);
        o->must_check = true;
        return o->learn ? check_output("--learn", o->learn) : EXIT_USAGE;
    case 't':
        o->trace = value ? absolute(value) : "";
        return o->trace ? value ? check_stream("--trace", o->trace) : -1 : EXIT_USAGE;
    case 'C':
        o->pcap = absolute(value);
        return o->pcap ? check_stream("--pcap", o->pcap) : EXIT_USAGE;
    case 'R':
        o->must_check = true;
        return append(o->rules, &o->nrules, value, "-r");
    case 'c':
    case 'P':
        o->only = letter == 'c' ? "--check" : "--print";
        return -1;
    case 'p':
        o->policy = absolute(value);
        o->must_check = true;
        return o->policy ? -1 : EXIT_USAGE;
    case 's':
        o->must_check = true;
        return append(o->sets, &o->nsets, value, "--set");
    case 'a':
        o->attach = value;
        return -1;
    case 'd':
        o->detach = value;
        return -1;
    case 'N':
        o->no_children = true;
        return -1;
    case 'e':
        o->explain = true;
        return -1;
    case 'n':
        o->no_accel = true;
        return -1;
    case 'v':
        puts("sdrun " SDRUN_VERSION);
        return 0;
    default:
        fputs(HELP, stdout);
        return 0;
    }
}

static bool holds_policies(const char *dir)
{
    DIR *d = opendir(dir);
    bool found = false;
    if (!d) { /* one that may not be read is for the supervisor to refuse, but not one that lies in another user's home */
        struct stat st;
        return errno != ENOENT && errno != ENOTDIR && (stat(dir, &st) == 0 || errno != EACCES);
    }
    for (struct dirent *e; !found && (e = readdir(d));) {
        const char *dot = strrchr(e->d_name, '.');
        found = dot && dot != e->d_name && (!strcmp(dot, ".yaml") || !strcmp(dot, ".yml"));
    }
    closedir(d);
    return found;
}

/* The places where policies/ looks; a file there may be wrong, and must then be refused before anything starts. */
static bool policy_files_exist(void)
{
    char dir[PATH_BYTES];
    const char *config = getenv("XDG_CONFIG_HOME"), *home = getenv("HOME");
    static const char *const variables[] = {"SDRUN_POLICY", "SDRUN_SET", "SDRUN_RULES"};
    int n = 0;
    for (size_t i = 0; i < sizeof(variables) / sizeof(variables[0]); i++)
        if (getenv(variables[i]))
            return true;
    if (config && *config == '/')
        n = snprintf(dir, sizeof(dir), "%s/socksdirect", config);
    else if (home)
        n = snprintf(dir, sizeof(dir), "%s/.config/socksdirect", home);
    if (n > 0 && n < (int)sizeof(dir) && holds_policies(dir))
        return true;
    return holds_policies("/etc/socksdirect/policy.d");
}

static const struct choice *find_choice(const char *arg, size_t len)
{
    for (size_t i = 0; i < sizeof(CHOICES) / sizeof(CHOICES[0]); i++)
        if (strlen(CHOICES[i].name) == len && !strncmp(CHOICES[i].name, arg, len))
            return &CHOICES[i];
    return NULL;
}

/* One option at *argv; moves *argv past it. Returns as options_parse. */
static int parse_one(struct options *o, char ***argv)
{
    const char *arg = *(*argv)++;
    size_t len = strcspn(arg, "=");
    const char *value = arg[len] ? arg + len + 1 : NULL;
    const struct choice *c = find_choice(arg, len);
    if (!c)
        return usage("unknown option", arg);
    if (c->optional && value)
        return *value ? apply(o, c->letter, value) : usage("empty value", arg);
    if (!c->has_value)
        return value ? usage("option takes no value", arg) : apply(o, c->letter, NULL);
    if (!value && !(value = **argv))
        return usage("option needs a value", arg);
    if (!(arg[len]))
        (*argv)++;
    return *value ? apply(o, c->letter, value) : usage("empty value", arg);
}

/* A program that is running: what only makes sense for one that is started is a mistake. */
static int check_running(struct options *o)
{
    const char *option = o->attach ? "--attach" : "--detach", *pid = o->attach ? o->attach : o->detach;
    if (!pid)
        return usage("--no-children needs --attach or --detach", "");
    if (*o->command || o->only || o->learn || (o->attach && o->detach))
        return usage(option, *o->command ? "takes no command" : o->only ? o->only : o->learn ? "not with --learn" : "not with --detach");
    if (o->detach && (told_at_the_end(o) || o->must_check || o->no_accel))
        return usage(option, "takes no other option but --no-children");
    if (strspn(pid, "0123456789") != strlen(pid) || strlen(pid) > 9 || atoi(pid) < 1)
        return usage("not the number of a process", pid);
    o->must_check = true;
    return -1;
}

int options_parse(struct options *o, char **argv)
{
    for (argv++; *argv && **argv == '-' && (*argv)[1];) {
        if (!strcmp(*argv, "--")) {
            argv++;
            break;
        }
        int status = parse_one(o, &argv);
        if (status >= 0)
            return status;
    }
    o->command = argv;
    if (o->attach || o->detach || o->no_children)
        return check_running(o);
    if (!*argv && !o->only)
        return usage("no command given", "");
    if (!o->must_check)
        o->must_check = policy_files_exist();
    return -1;
}
