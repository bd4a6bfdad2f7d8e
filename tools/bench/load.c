/* SPDX-License-Identifier: Apache-2.0
 *
 * load.c - a client for HTTP/1.1 with keep-alive and for memcached's text protocol: one request under way on each connection.
 *
 *   load PROTOCOL ADDRESS CONNECTIONS [-g PATH] [-s VALUE_BYTES] [-a CPU] [-w WARM_MS] [-t MS]
 *
 * PROTOCOL http or memcached; ADDRESS a port on loopback or the path of a unix socket. http: GET of PATH, an answer must have status 200
 * and a Content-Length or be chunked. memcached: one `set` at first, then `get` of a value of VALUE_BYTES. An answer that is not as
 * expected ends the run: a wrong answer must not count as a fast one.
 */
#include "bench.h"
#include <arpa/inet.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <sys/epoll.h>
#include <sys/socket.h>
#include <sys/un.h>

#define MAX_HEAD 8192

struct options {
    bool http;
    const char *address, *path;
    int connections, cpu;
    size_t value;
    unsigned warm_ms, ms;
};

struct connection {
    int fd;
    uint64_t sent;
    size_t have, want; /* bytes of the answer; want 0: its head is not complete */
    bool chunked;
    char head[MAX_HEAD];
    char tail[5]; /* the last bytes of a chunked answer */
};

static char request[1024];
static size_t request_bytes;

static int dial(const struct options *o)
{
    int fd, on = 1;

    if (o->address[0] == '/') {
        struct sockaddr_un un = {.sun_family = AF_UNIX};
        strncpy(un.sun_path, o->address, sizeof un.sun_path - 1);
        fd = socket(AF_UNIX, SOCK_STREAM, 0);
        if (fd < 0 || connect(fd, (struct sockaddr *)&un, sizeof un) < 0)
            die("connect to %s", o->address);
        return fd;
    }
    struct sockaddr_in in = {.sin_family = AF_INET, .sin_addr.s_addr = htonl(INADDR_LOOPBACK),
                             .sin_port = htons((uint16_t)atoi(o->address))};
    fd = socket(AF_INET, SOCK_STREAM, 0);
    if (fd < 0 || connect(fd, (struct sockaddr *)&in, sizeof in) < 0)
        die("connect to port %s", o->address);
    setsockopt(fd, IPPROTO_TCP, TCP_NODELAY, &on, sizeof on);
    return fd;
}

static void wrong(const struct connection *c)
{
    errno = 0;
    die("unexpected answer: %.*s", (int)strcspn(c->head, "\r\n"), c->head);
}

/* Looks for the end of the head; sets want or chunked. */
static void http_head(struct connection *c)
{
    size_t n = c->have < MAX_HEAD - 1 ? c->have : MAX_HEAD - 1;
    c->head[n] = 0;
    char *end = strstr(c->head, "\r\n\r\n");
    if (!end) {
        if (n == MAX_HEAD - 1)
            wrong(c);
        return;
    }
    if (strncmp(c->head, "HTTP/1.1 200", 12))
        wrong(c);
    *end = 0;
    char *length = strcasestr(c->head, "\r\nContent-Length:");
    if (length)
        c->want = (size_t)(end + 4 - c->head) + strtoul(length + 17, NULL, 10);
    else if (strcasestr(c->head, "\r\nTransfer-Encoding: chunked"))
        c->chunked = true;
    else
        wrong(c);
    *end = '\r';
}

static void memcached_head(struct connection *c)
{
    size_t n = c->have < 64 ? c->have : 64, size;
    c->head[n] = 0;
    char *end = strstr(c->head, "\r\n");
    if (!end)
        return;
    if (sscanf(c->head, "VALUE k 0 %zu\r\n", &size) != 1)
        wrong(c);
    c->want = (size_t)(end + 2 - c->head) + size + 7; /* "\r\nEND\r\n" */
}

/* True when the answer is complete. */
static bool took(const struct options *o, struct connection *c, const char *bytes, size_t n)
{
    if (c->have < MAX_HEAD - 1) {
        size_t room = MAX_HEAD - 1 - c->have;
        memcpy(c->head + c->have, bytes, n < room ? n : room);
    }
    c->have += n;
    for (size_t i = n > 5 ? n - 5 : 0; i < n; i++) {
        memmove(c->tail, c->tail + 1, 4);
        c->tail[4] = bytes[i];
    }
    if (!c->want && !c->chunked)
        o->http ? http_head(c) : memcached_head(c);
    if (c->want && c->have > c->want)
        wrong(c);
    return c->chunked ? !memcmp(c->tail, "0\r\n\r\n", 5) : c->want && c->have == c->want;
}

static void ask(struct connection *c)
{
    c->have = c->want = 0;
    c->chunked = false;
    memset(c->tail, 0, sizeof c->tail);
    c->sent = now_ns();
    if (send(c->fd, request, request_bytes, MSG_NOSIGNAL) != (ssize_t)request_bytes)
        die("send");
}

static void store_value(const struct options *o)
{
    char line[64], answer[64], *value = calloc(1, o->value + 2);
    int fd = dial(o), n = snprintf(line, sizeof line, "set k 0 0 %zu\r\n", o->value);

    memset(value, 'v', o->value);
    memcpy(value + o->value, "\r\n", 2);
    if (send(fd, line, (size_t)n, 0) != n || send(fd, value, o->value + 2, 0) != (ssize_t)o->value + 2)
        die("set");
    n = (int)recv(fd, answer, sizeof answer - 1, 0);
    errno = 0;
    if (n < 6 || memcmp(answer, "STORED", 6))
        die("memcached did not store the value");
    close(fd);
    free(value);
}

static void work(struct shared *s, const struct options *o)
{
    static char buffer[1 << 18];
    struct connection *all = calloc((size_t)o->connections, sizeof *all);
    struct worker *w = &s->worker[0];
    struct epoll_event e[64];
    int ep = epoll_create1(0);

    pin(o->cpu);
    if (!o->http)
        store_value(o);
    for (int i = 0; i < o->connections; i++) {
        struct epoll_event in = {.events = EPOLLIN, .data.ptr = &all[i]};
        all[i].fd = dial(o);
        if (epoll_ctl(ep, EPOLL_CTL_ADD, all[i].fd, &in) < 0)
            die("epoll_ctl");
        ask(&all[i]);
    }
    atomic_store(&w->ready, 1);
    while (atomic_load(&s->phase) != PHASE_STOP) {
        int ready = epoll_wait(ep, e, 64, 1000);
        for (int i = 0; i < ready; i++) {
            struct connection *c = e[i].data.ptr;
            ssize_t n = recv(c->fd, buffer, sizeof buffer, MSG_DONTWAIT);
            if (n == 0 || (n < 0 && errno != EAGAIN))
                die("recv: %s", n ? "failed" : "the server has closed the connection");
            if (n < 0 || !took(o, c, buffer, (size_t)n))
                continue;
            if (atomic_load(&s->phase) == PHASE_MEASURE)
                hist_add(&s->hist[0], now_ns() - c->sent);
            atomic_store(&w->count, atomic_load(&w->count) + 1);
            ask(c);
        }
    }
    exit(0);
}

int main(int argc, char **argv)
{
    struct options o = {.path = "/", .cpu = -1, .value = 100, .warm_ms = 300, .ms = 1000};
    struct shared *s = share(sizeof *s);
    int c;

    while ((c = getopt(argc, argv, "g:s:a:w:t:")) != -1) {
        switch (c) {
        case 'g': o.path = optarg; break;
        case 's': o.value = (size_t)atol(optarg); break;
        case 'a': o.cpu = atoi(optarg); break;
        case 'w': o.warm_ms = (unsigned)atoi(optarg); break;
        case 't': o.ms = (unsigned)atoi(optarg); break;
        default: return 2;
        }
    }
    errno = 0;
    if (argc - optind != 3)
        die("usage: load [options] http|memcached PORT|PATH CONNECTIONS");
    o.http = !strcmp(argv[optind], "http");
    o.address = argv[optind + 1];
    o.connections = atoi(argv[optind + 2]);
    if ((!o.http && strcmp(argv[optind], "memcached")) || o.connections < 1)
        die("load: wrong protocol or number of connections");
    request_bytes = (size_t)(o.http ? snprintf(request, sizeof request, "GET %s HTTP/1.1\r\nHost: localhost\r\n\r\n", o.path)
                                    : snprintf(request, sizeof request, "get k\r\n"));
    if (fork_worker(s, 0))
        work(s, &o);
    wait_ready(s, 1, 20000);
    struct measured m = measure(s, 1, 0, 1, o.warm_ms, o.ms);
    stop_workers(s, 1);
    printf("{\"seconds\": %.6f, \"cpu\": %.6f, \"count\": %lu, \"total\": %lu, \"p50_ns\": %.0f, \"p99_ns\": %.0f, \"p999_ns\": %.0f}\n", m.seconds,
           m.cpu, m.count, atomic_load(&s->worker[0].count), hist_quantile(s->hist, 1, 0.5), hist_quantile(s->hist, 1, 0.99), hist_quantile(s->hist, 1, 0.999));
    return 0;
}
