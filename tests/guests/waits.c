/* SPDX-License-Identifier: Apache-2.0
 *
 * waits PORT - an echo server whose threads wait in every way there is: its main thread in accept, and each connection's, in turn, in recv, epoll_wait
 * (level and edge triggered), poll without and with a time-out, select, ppoll; the last reads into a queue from which another thread, asleep in
 * a futex, sends. Two more threads sleep in nanosleep and in read of a pipe all the time.
 */
#include "guest.h"

#include <pthread.h>
#include <sys/epoll.h>
#include <sys/select.h>

#define KINDS 8
static unsigned char at_end[1];

static void echo_once(int fd, int kind)
{
    unsigned char buf[5000];
    ssize_t n;
    do {
        n = recv(fd, buf, sizeof buf, kind == 0 ? 0 : MSG_DONTWAIT);
        if (n < 0 && (errno == EAGAIN || errno == EINTR))
            return;
        if (n <= 0)
            pthread_exit(at_end);
        write_all(fd, buf, (size_t)n);
    } while (kind == 2); /* edge triggered: until there is no more */
}

static void wait_epoll(int *ep, int fd, uint32_t extra)
{
    struct epoll_event e = {.events = EPOLLIN | extra, .data.u64 = 0x123456789abcdefull};
    if (*ep < 0) {
        *ep = epoll_create1(EPOLL_CLOEXEC);
        CHECK(epoll_ctl(*ep, EPOLL_CTL_ADD, fd, &e) == 0);
    }
    int n = epoll_wait(*ep, &e, 1, -1);
    CHECK(n == 1 || (n < 0 && errno == EINTR));
    CHECK(n < 0 || e.data.u64 == 0x123456789abcdefull);
}

static void wait_for(int fd, int kind, int *ep)
{
    struct pollfd p = {fd, POLLIN, 0};
    struct timespec long_time = {3600, 0};
    fd_set set;
    switch (kind) {
    case 1:
    case 2:
        wait_epoll(ep, fd, kind == 2 ? EPOLLET : 0);
        return;
    case 3:
    case 4:
        CHECK(poll(&p, 1, kind == 3 ? -1 : 3600000) == 1);
        return;
    case 5:
        FD_ZERO(&set);
        FD_SET(fd, &set);
        CHECK(select(fd + 1, &set, NULL, NULL, NULL) == 1);
        return;
    case 6:
        CHECK(ppoll(&p, 1, &long_time, NULL) == 1);
        return;
    }
}

struct relay {
    pthread_mutex_t lock;
    pthread_cond_t changed;
    int fd;
    size_t n;
    unsigned char buf[5000];
};

static void *sender(void *arg)
{
    struct relay *r = arg;
    for (;;) {
        pthread_mutex_lock(&r->lock);
        while (!r->n)
            pthread_cond_wait(&r->changed, &r->lock);
        write_all(r->fd, r->buf, r->n);
        r->n = 0;
        pthread_cond_signal(&r->changed);
        pthread_mutex_unlock(&r->lock);
    }
    return NULL;
}

static void relay(int fd)
{
    struct relay *r = calloc(1, sizeof *r);
    pthread_t t;
    unsigned char buf[sizeof r->buf];
    ssize_t n;
    CHECK(r && pthread_mutex_init(&r->lock, NULL) == 0 && pthread_cond_init(&r->changed, NULL) == 0);
    r->fd = fd;
    CHECK(pthread_create(&t, NULL, sender, r) == 0);
    while ((n = recv(fd, buf, sizeof buf, 0)) > 0) {
        pthread_mutex_lock(&r->lock);
        while (r->n)
            pthread_cond_wait(&r->changed, &r->lock);
        memcpy(r->buf, buf, (size_t)n);
        r->n = (size_t)n;
        pthread_cond_signal(&r->changed);
        pthread_mutex_unlock(&r->lock);
    }
}

static void *serve(void *arg)
{
    int fd = (int)(intptr_t)arg & 0xffff, kind = (int)(intptr_t)arg >> 16, ep = -1;
    if (kind == 7)
        relay(fd);
    while (kind != 7) {
        wait_for(fd, kind, &ep);
        echo_once(fd, kind);
    }
    return NULL;
}

static void *sleeper(void *arg)
{
    int p[2];
    char c;
    (void)arg;
    CHECK(pipe(p) == 0);
    CHECK(read(p[0], &c, 1) == 1);
    return NULL;
}

static void *napper(void *arg)
{
    (void)arg;
    for (;;)
        sleep_ms(3600000);
    return NULL;
}

int main(int argc, char **argv)
{
    struct sockaddr_in addr = {.sin_family = AF_INET, .sin_addr.s_addr = htonl(INADDR_LOOPBACK)};
    int fd = socket(AF_INET, SOCK_STREAM, 0), one = 1;
    pthread_t t;
    CHECK(argc == 2);
    addr.sin_port = htons((uint16_t)atoi(argv[1]));
    CHECK(setsockopt(fd, SOL_SOCKET, SO_REUSEADDR, &one, sizeof one) == 0);
    CHECK(bind(fd, (struct sockaddr *)&addr, sizeof addr) == 0 && listen(fd, 16) == 0);
    CHECK(pthread_create(&t, NULL, sleeper, NULL) == 0 && pthread_create(&t, NULL, napper, NULL) == 0);
    for (int i = 0;; i++) {
        int c = accept(fd, NULL, NULL);
        CHECK(c >= 0 && c < 0x10000);
        CHECK(pthread_create(&t, NULL, serve, (void *)(intptr_t)(c | (i % KINDS) << 16)) == 0);
        pthread_detach(t);
    }
}
