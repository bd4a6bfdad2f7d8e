/* SPDX-License-Identifier: Apache-2.0
 *
 * many.c - many connections between one client and one server, of which some are active.
 *
 *   many CONNECTIONS ACTIVE [-s SIZE] [-a CPU] [-b CPU] [-w WARM_MS] [-t MS] [-u]
 *
 * Both ends use epoll. Every connection makes a few round trips at first; then each of the ACTIVE ones has one request of SIZE bytes under
 * way all the time, the others are silent. With ACTIVE 0 nobody does anything, and what CPU time is used is used for nothing.
 * -u: unix socket instead of TCP. "pss" is the memory of both processes, shared pages divided among those who have them.
 */
#include "bench.h"
#include <arpa/inet.h>
#include <fcntl.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <stddef.h>
#include <sys/epoll.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <sys/un.h>

struct options {
    int connections, active, cpu[2];
    size_t size;
    unsigned warm_ms, ms;
    bool local;
};

#define FIRST_TRIPS 20
#define EVENTS 256
#define CLIENT 0
#define SERVER 1

static void more_descriptors(void)
{
    struct rlimit r;
    getrlimit(RLIMIT_NOFILE, &r);
    r.rlim_cur = r.rlim_max;
    setrlimit(RLIMIT_NOFILE, &r);
}

/* A name in the abstract namespace, or a port on loopback. */
static socklen_t address(const struct options *o, struct shared *s, struct sockaddr_storage *out)
{
    memset(out, 0, sizeof *out);
    if (o->local) {
        struct sockaddr_un *un = (struct sockaddr_un *)out;
        un->sun_family = AF_UNIX;
        int n = snprintf(un->sun_path + 1, sizeof un->sun_path - 1, "sdbench-%d", getppid());
        return (socklen_t)(offsetof(struct sockaddr_un, sun_path) + 1 + (size_t)n);
    }
    struct sockaddr_in *in = (struct sockaddr_in *)out;
    in->sin_family = AF_INET;
    in->sin_addr.s_addr = htonl(INADDR_LOOPBACK);
    in->sin_port = (in_port_t)atomic_load(&s->port);
    return sizeof *in;
}

static void no_delay(int fd)
{
    int on = 1;
    setsockopt(fd, IPPROTO_TCP, TCP_NODELAY, &on, sizeof on);
}

static void watch(int ep, int fd)
{
    struct epoll_event e = {.events = EPOLLIN, .data.fd = fd};
    if (epoll_ctl(ep, EPOLL_CTL_ADD, fd, &e) < 0)
        die("epoll_ctl");
}

static void server(struct shared *s, const struct options *o)
{
    struct sockaddr_storage at;
    socklen_t len = address(o, s, &at), got = sizeof at;
    struct epoll_event e[EVENTS];
    char buffer[65536];
    int listener = socket(at.ss_family, SOCK_STREAM, 0), ep = epoll_create1(0), n;

    if (bind(listener, (struct sockaddr *)&at, len) < 0 || listen(listener, 4096) < 0)
        die("listen");
    if (!o->local) {
        getsockname(listener, (struct sockaddr *)&at, &got);
        atomic_store(&s->port, ((struct sockaddr_in *)&at)->sin_port);
    } else {
        atomic_store(&s->port, 1);
    }
    fcntl(listener, F_SETFL, O_NONBLOCK);
    watch(ep, listener);
    atomic_store(&s->worker[SERVER].ready, 1);
    while ((n = epoll_wait(ep, e, EVENTS, -1)) > 0 || errno == EINTR) {
        for (int i = 0; i < n; i++) {
            int fd = e[i].data.fd;
            if (fd == listener) {
                while ((fd = accept4(listener, NULL, NULL, SOCK_NONBLOCK)) >= 0) {
                    if (!o->local)
                        no_delay(fd);
                    watch(ep, fd);
                }
                continue;
            }
            ssize_t r = recv(fd, buffer, sizeof buffer, 0);
            if (r > 0 && send(fd, buffer, (size_t)r, MSG_NOSIGNAL) != r)
                die("send");
            if (r == 0 || (r < 0 && errno != EAGAIN))
                close(fd);
        }
    }
}

/* One request at a time on each of the first `n` connections; `trips` of them each, or until the end if 0. */
static void talk(struct shared *s, const struct options *o, const int *fd, int n, int trips)
{
    static char buffer[65536];
    struct epoll_event e[EVENTS];
    uint64_t *sent = calloc((size_t)o->connections * 3 + 4096, sizeof *sent);
    size_t *have = calloc((size_t)o->connections * 3 + 4096, sizeof *have);
    struct worker *w = &s->worker[CLIENT];
    int ep = epoll_create1(0);
    int64_t left = (int64_t)n * trips;

    for (int i = 0; i < n; i++) {
        watch(ep, fd[i]);
        sent[fd[i]] = now_ns();
        if (send(fd[i], buffer, o->size, MSG_NOSIGNAL) != (ssize_t)o->size)
            die("send");
    }
    while (trips ? left > 0 : atomic_load(&s->phase) != PHASE_STOP) {
        int ready = epoll_wait(ep, e, EVENTS, 1000);
        for (int i = 0; i < ready; i++) {
            int at = e[i].data.fd;
            ssize_t r = recv(at, buffer, sizeof buffer, MSG_DONTWAIT);
            if (r == 0 || (r < 0 && errno != EAGAIN))
                die("recv");
            have[at] += r > 0 ? (size_t)r : 0;
            if (have[at] < o->size)
                continue;
            have[at] = 0;
            uint64_t now = now_ns();
            if (atomic_load(&s->phase) == PHASE_MEASURE)
                hist_add(&s->hist[CLIENT], now - sent[at]);
            sent[at] = now;
            atomic_store(&w->count, atomic_load(&w->count) + 1);
            if (trips && --left < n)
                continue; /* this connection's last */
            if (send(at, buffer, o->size, MSG_NOSIGNAL) != (ssize_t)o->size)
                die("send");
        }
    }
    close(ep);
    free(sent);
    free(have);
}

static void client(struct shared *s, const struct options *o)
{
    int *fd = calloc((size_t)o->connections, sizeof *fd);
    struct sockaddr_storage at;

    while (!atomic_load(&s->port))
        sleep_ms(1);
    socklen_t len = address(o, s, &at);
    for (int i = 0; i < o->connections; i++) {
        fd[i] = socket(at.ss_family, SOCK_STREAM, 0);
        if (fd[i] < 0 || connect(fd[i], (struct sockaddr *)&at, len) < 0)
            die("connection %d", i);
        if (!o->local)
            no_delay(fd[i]);
    }
    for (int i = 0; i < o->connections; i += EVENTS)
        talk(s, o, fd + i, o->connections - i < EVENTS ? o->connections - i : EVENTS, FIRST_TRIPS);
    for (int i = o->connections - 1; i > 0; i--) { /* active ones are spread over all */
        int k = rand() % (i + 1), t = fd[i];
        fd[i] = fd[k];
        fd[k] = t;
    }
    atomic_store(&s->worker[CLIENT].ready, 1);
    while (atomic_load(&s->phase) == PHASE_START)
        sleep_ms(1);
    if (o->active)
        talk(s, o, fd, o->active, 0);
    else
        pause();
    exit(0);
}

static long pss_kib(pid_t pid)
{
    char line[256], path[64];
    long kib = 0;

    snprintf(path, sizeof path, "/proc/%d/smaps_rollup", pid);
    FILE *f = fopen(path, "r");
    while (f && fgets(line, sizeof line, f))
        if (sscanf(line, "Pss: %ld", &kib) == 1)
            break;
    if (f)
        fclose(f);
    return kib;
}

int main(int argc, char **argv)
{
    struct options o = {.size = 64, .cpu = {-1, -1}, .warm_ms = 200, .ms = 500};
    struct shared *s = share(sizeof *s);
    int c;

    while ((c = getopt(argc, argv, "s:a:b:w:t:u")) != -1) {
        switch (c) {
        case 's': o.size = (size_t)atol(optarg); break;
        case 'a': o.cpu[CLIENT] = atoi(optarg); break;
        case 'b': o.cpu[SERVER] = atoi(optarg); break;
        case 'w': o.warm_ms = (unsigned)atoi(optarg); break;
        case 't': o.ms = (unsigned)atoi(optarg); break;
        case 'u': o.local = true; break;
        default: return 2;
        }
    }
    errno = 0;
    if (argc - optind != 2 || o.size > 65536)
        die("usage: many [options] CONNECTIONS ACTIVE");
    o.connections = atoi(argv[optind]);
    o.active = atoi(argv[optind + 1]);
    if (o.connections < 1 || o.active > o.connections)
        die("many: wrong number of connections");
    more_descriptors();
    for (int i = 0; i < 2; i++) {
        if (fork_worker(s, i)) {
            pin(o.cpu[i]);
            i == SERVER ? server(s, &o) : client(s, &o);
            exit(0);
        }
    }
    wait_ready(s, 2, 60000 + 60 * o.connections);
    struct measured m = measure(s, 2, CLIENT, 1, o.warm_ms, o.ms);
    printf("{\"seconds\": %.6f, \"cpu\": %.6f, \"count\": %lu, \"pss_kib\": %ld, \"p50_ns\": %.0f, \"p99_ns\": %.0f, \"p999_ns\": %.0f}\n",
           m.seconds, m.cpu, m.count, pss_kib(s->worker[0].pid) + pss_kib(s->worker[1].pid), hist_quantile(s->hist, 1, 0.5),
           hist_quantile(s->hist, 1, 0.99), hist_quantile(s->hist, 1, 0.999));
    fflush(stdout);
    stop_workers(s, o.active ? 1 : 0); /* the client first: a server that goes early would be an error to it */
    for (int i = o.active ? SERVER : CLIENT; i < 2; i++)
        kill(s->worker[i].pid, SIGTERM);
    return 0;
}
