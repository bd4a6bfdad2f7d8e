/* SPDX-License-Identifier: Apache-2.0
 *
 * rates.c - how often something can be done in a second, beside sending and receiving.
 *
 *   rates WHAT [-a CPU] [-b CPU] [-w WARM_MS] [-t MS] [-f] [-k]
 *
 * WHAT setup: connect, accept, close; short: the same with one request of 64 bytes and its answer; fork: a child that exits at once, of a
 * process with an open connection; getppid, read, poll, sigprocmask: a call that has nothing to do with sockets of ours, in a process that
 * has an open connection. once: nothing is counted; makes a socket and ends.
 *
 * -f: with a seccomp filter that allows every call; -k: also with a dispatch range that holds every site. That is what the kernel takes for the two ways by
 * which calls can be intercepted, so no launcher that uses them can be below it. Both ends have it.
 */
#include "bench.h"
#include <arpa/inet.h>
#include <fcntl.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <poll.h>
#include <sys/socket.h>

#define SIDE_A 0
#define SIDE_B 1
#define SHORT 64
/* Closed connections keep their pair of ports for a while: use another address of loopback after so many. */
#define PORTS_USED 10000

static const char *what;
static unsigned watched; /* WATCH_* */

static int listening(struct shared *s)
{
    struct sockaddr_in at = {.sin_family = AF_INET};
    socklen_t len = sizeof at;
    int fd = socket(AF_INET, SOCK_STREAM, 0);

    if (bind(fd, (struct sockaddr *)&at, sizeof at) < 0 || listen(fd, 1024) < 0 || getsockname(fd, (struct sockaddr *)&at, &len) < 0)
        die("listen");
    atomic_store(&s->port, at.sin_port);
    return fd;
}

static int connected(struct shared *s, uint64_t number)
{
    uint64_t host = number / PORTS_USED;
    struct sockaddr_in at = {.sin_family = AF_INET, .sin_port = (in_port_t)atomic_load(&s->port)};
    int fd = socket(AF_INET, SOCK_STREAM, 0);

    at.sin_addr.s_addr = htonl(0x7f000001u + (uint32_t)(host % 0xfffff0));
    if (connect(fd, (struct sockaddr *)&at, sizeof at) < 0)
        die("connect");
    return fd;
}

static void serve(struct shared *s)
{
    char buffer[SHORT];
    int listener = listening(s), fd;
    bool talk = !strcmp(what, "short");

    if (watched)
        be_watched(watched);
    atomic_store(&s->worker[SIDE_B].ready, 1);
    while ((fd = accept(listener, NULL, NULL)) >= 0) {
        if (talk && recv(fd, buffer, sizeof buffer, MSG_WAITALL) == SHORT && send(fd, buffer, SHORT, MSG_NOSIGNAL) != SHORT)
            die("send");
        close(fd);
    }
    die("accept");
}

static void dial(struct shared *s, uint64_t number)
{
    char buffer[SHORT] = {0};
    int fd = connected(s, number);

    if (!strcmp(what, "short") && (send(fd, buffer, SHORT, 0) != SHORT || recv(fd, buffer, SHORT, MSG_WAITALL) != SHORT))
        die("short connection");
    if (recv(fd, buffer, 1, 0) != 0) /* in step with the server, whose queue would run over */
        die("end of a connection");
    close(fd);
}

static void once(struct shared *s, uint64_t number, int null)
{
    char byte;
    sigset_t old;

    if (!strcmp(what, "fork")) {
        pid_t pid = fork();
        if (pid == 0)
            _exit(0);
        if (pid < 0 || waitpid(pid, NULL, 0) != pid)
            die("fork");
    } else if (!strcmp(what, "getppid")) {
        getppid();
    } else if (!strcmp(what, "read")) {
        if (read(null, &byte, 1) != 0)
            die("read");
    } else if (!strcmp(what, "poll")) {
        struct pollfd p = {.fd = null, .events = POLLIN};
        poll(&p, 1, 0);
    } else if (!strcmp(what, "sigprocmask")) {
        sigprocmask(SIG_SETMASK, NULL, &old);
    } else {
        dial(s, number);
    }
}

static void work(struct shared *s, int cpu)
{
    struct worker *w = &s->worker[SIDE_A];
    int null = open("/dev/null", O_RDONLY), held = -1;
    bool dials = !strcmp(what, "setup") || !strcmp(what, "short");
    unsigned every = dials || !strcmp(what, "fork") ? 1 : 100;

    pin(cpu);
    while (!atomic_load(&s->port))
        sleep_ms(1);
    if (!dials)
        held = connected(s, 0);
    if (watched)
        be_watched(watched);
    atomic_store(&w->ready, 1);
    for (uint64_t n = 0; atomic_load(&s->phase) != PHASE_STOP; n += every) {
        for (unsigned i = 0; i < every; i++)
            once(s, n, null);
        atomic_store(&w->count, n + every);
    }
    close(held);
    exit(0);
}

int main(int argc, char **argv)
{
    static const char *const known[] = {"setup", "short", "fork", "getppid", "read", "poll", "sigprocmask"};
    struct shared *s = share(sizeof *s);
    int cpu[2] = {-1, -1}, c;
    unsigned warm = 100, ms = 500, i = 0;

    while ((c = getopt(argc, argv, "a:b:w:t:fk")) != -1) {
        switch (c) {
        case 'a': cpu[0] = atoi(optarg); break;
        case 'b': cpu[1] = atoi(optarg); break;
        case 'w': warm = (unsigned)atoi(optarg); break;
        case 't': ms = (unsigned)atoi(optarg); break;
        case 'f': watched = WATCH_FILTER; break;
        case 'k': watched = WATCH_FILTER | WATCH_DISPATCH; break;
        default: return 2;
        }
    }
    what = argc > optind ? argv[optind] : "";
    if (!strcmp(what, "once"))
        return close(socket(AF_INET, SOCK_STREAM, 0)) < 0;
    errno = 0;
    while (i < sizeof known / sizeof *known && strcmp(known[i], what))
        i++;
    if (i == sizeof known / sizeof *known)
        die("usage: rates [options] setup|short|fork|getppid|read|poll|sigprocmask|once");
    if (fork_worker(s, SIDE_B)) {
        pin(cpu[SIDE_B]);
        serve(s);
    }
    if (fork_worker(s, SIDE_A))
        work(s, cpu[SIDE_A]);
    wait_ready(s, 2, 10000);
    struct measured m = measure(s, 2, SIDE_A, 1, warm, ms);
    printf("{\"seconds\": %.6f, \"cpu\": %.6f, \"count\": %lu}\n", m.seconds, m.cpu, m.count);
    fflush(stdout);
    stop_workers(s, 1); /* A first: a server that goes early would be an error to it */
    kill(s->worker[SIDE_B].pid, SIGTERM);
    return 0;
}
