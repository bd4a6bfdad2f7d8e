/* SPDX-License-Identifier: Apache-2.0
 *
 * agent.c - a program that makes the system calls it is told to, one at a time, and says what came of each.
 *
 * agent PATH KEY connects to the unix socket PATH, says who it is (struct hello) and serves orders: a call by number with
 * its six arguments, bytes to be put into the arena before and taken from it afterwards; handlers for signals; forks,
 * threads and execs, each of which connects on its own. Blocking calls block here; whoever gives the orders sees that in
 * /proc. The arena lies at a fixed address, so that structures with pointers in them can be made elsewhere.
 *
 * The control connection is moved to a high descriptor: 0, 1, 2 are /dev/null and 3 is the first free one.
 */
#include "guest.h"
#include <pthread.h>
#include <sched.h>
#include <sys/mman.h>
#include <sys/resource.h>
#include <sys/syscall.h>
#include <sys/un.h>

#define ARENA ((unsigned char *)0x100000000000)
#define ARENA_BYTES (256ul << 20)
#define CONTROL_FD 900

enum order { CALL = 1, SPAWN = 2, HANDLE = 3, TALK = 4 };
enum spawn { FORK = 0, THREAD = 1, EXEC = 2, SHARER = 3 }; /* a process with the same table of descriptors, in memory of its own */

struct hello {
    uint32_t key, pid, tid, control;
};

/* What handlers have seen, at the start of the arena. */
struct seen {
    uint32_t count, code, fd, band;
};

struct head {
    uint32_t order, bytes;
};

struct call {
    int64_t nr;
    uint64_t arg[6];
    uint32_t in, out;
};

struct piece {
    uint32_t at, len;
};

static const char *path, *self;

static bool all(int fd, void *buf, size_t len, bool out)
{
    for (size_t done = 0; done < len;) {
        char *at = (char *)buf + done;
        ssize_t n = out ? write(fd, at, len - done) : read(fd, at, len - done);
        if (n < 0 && errno == EINTR)
            continue;
        if (n <= 0)
            return false;
        done += (size_t)n;
    }
    return true;
}

static void seen(int sig, siginfo_t *si, void *uc)
{
    struct seen *s = (struct seen *)ARENA + sig;
    (void)uc;
    s->count++;
    s->code = (uint32_t)si->si_code;
    s->fd = sig == SIGIO || sig >= SIGRTMIN ? (uint32_t)si->si_fd : 0;
    s->band = sig == SIGIO || sig >= SIGRTMIN ? (uint32_t)si->si_band : 0;
}

/* kind 0: default, 1: ignore, 2: count */
static long handle(int sig, int flags, int kind)
{
    struct sigaction sa = {.sa_flags = flags};
    if (kind == 2) {
        sa.sa_sigaction = seen;
        sa.sa_flags |= SA_SIGINFO;
    } else {
        sa.sa_handler = kind ? SIG_IGN : SIG_DFL;
    }
    return sigaction(sig, &sa, NULL) ? -errno : 0;
}

static void serve(int fd);

static int report(uint32_t key)
{
    struct sockaddr_un to = {.sun_family = AF_UNIX};
    strncpy(to.sun_path, path, sizeof to.sun_path - 1);
    int low = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0);
    CHECK(low >= 0 && connect(low, (struct sockaddr *)&to, sizeof to) == 0);
    int fd = fcntl(low, F_DUPFD_CLOEXEC, CONTROL_FD);
    CHECK(fd >= CONTROL_FD);
    close(low);
    struct hello h = {key, (uint32_t)getpid(), (uint32_t)syscall(SYS_gettid), (uint32_t)fd};
    CHECK(all(fd, &h, sizeof h, true));
    return fd;
}

static void *thread(void *key)
{
    serve(report((uint32_t)(uintptr_t)key));
    return NULL;
}

static long spawn(int fd, enum spawn how, uint32_t key)
{
    char text[16];
    pthread_t t;
    pid_t pid;

    if (how == THREAD)
        return pthread_create(&t, NULL, thread, (void *)(uintptr_t)key) ? -EAGAIN : 0;
    if (how == EXEC) {
        snprintf(text, sizeof text, "%u", key);
        execl(self, "agent", path, text, NULL);
        return -errno;
    }
    pid = how == SHARER ? (pid_t)syscall(SYS_clone, CLONE_FILES | SIGCHLD, 0, 0, 0, 0) : fork();
    if (pid == 0) {
        if (how == FORK)
            close(fd);
        signal(SIGCHLD, SIG_DFL);
        handle(SIGPIPE, 0, 2);
        serve(report(key));
        _exit(0);
    }
    return pid < 0 ? -errno : pid;
}

static bool call(int fd, const unsigned char *body, uint32_t bytes)
{
    const struct call *c = (const struct call *)body;
    const unsigned char *p = body + sizeof *c;
    struct piece piece;
    int64_t r;

    for (uint32_t i = 0; i < c->in; i++) {
        memcpy(&piece, p, sizeof piece);
        memcpy(ARENA + piece.at, p + sizeof piece, piece.len);
        p += sizeof piece + piece.len;
    }
    CHECK(p + c->out * sizeof piece == body + bytes);
    r = syscall(c->nr, c->arg[0], c->arg[1], c->arg[2], c->arg[3], c->arg[4], c->arg[5]);
    if (r == -1)
        r = -errno;
    if (!all(fd, &r, sizeof r, true))
        return false;
    for (uint32_t i = 0; i < c->out; i++, p += sizeof piece) {
        memcpy(&piece, p, sizeof piece);
        if (!all(fd, ARENA + piece.at, piece.len, true))
            return false;
    }
    return true;
}

/* A hundred small messages in each direction: both sides have waited and the connection has had time to move. */
static long talk(int fd, bool first, int rounds)
{
    for (int i = 0; i < rounds; i++) {
        char c = 't';
        if (first && (i % 8 == 7))
            sleep_ms(1);
        if (first && write(fd, &c, 1) != 1)
            return -errno;
        if (read(fd, &c, 1) != 1)
            return -errno;
        if (!first && write(fd, &c, 1) != 1)
            return -errno;
    }
    return 0;
}

static void serve(int fd)
{
    struct head h;
    unsigned char *body = NULL;

    while (all(fd, &h, sizeof h, false)) {
        uint32_t arg[3];
        int64_t r;
        body = realloc(body, h.bytes + 1);
        CHECK(body);
        if (!all(fd, body, h.bytes, false))
            break;
        if (h.order == CALL) {
            if (!call(fd, body, h.bytes))
                break;
            continue;
        }
        CHECK(h.bytes == sizeof arg);
        memcpy(arg, body, sizeof arg);
        r = h.order == SPAWN ? spawn(fd, arg[0], arg[1]) : h.order == HANDLE ? handle((int)arg[0], (int)arg[1], (int)arg[2])
          : talk((int)arg[0], arg[1], (int)arg[2]);
        if (!all(fd, &r, sizeof r, true))
            break;
    }
    free(body);
    close(fd);
}

int main(int argc, char **argv)
{
    struct rlimit files;
    CHECK(argc == 3);
    self = argv[0][0] == '/' ? argv[0] : "/proc/self/exe";
    path = argv[1];
    CHECK(mmap(ARENA, ARENA_BYTES, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE | MAP_FIXED_NOREPLACE, -1,
               0) == ARENA);
    CHECK(getrlimit(RLIMIT_NOFILE, &files) == 0);
    CHECK(files.rlim_cur > CONTROL_FD + 8);
    uint32_t key = (uint32_t)strtoul(argv[2], NULL, 10);
    if (key < 100) { /* not after an exec: that one keeps its descriptors */
        signal(SIGCHLD, SIG_IGN);
        for (int fd = 0; fd < 3; fd++) {
            int null = open("/dev/null", O_RDWR);
            CHECK(null >= 0 && dup2(null, fd) == fd);
            if (null > 2)
                close(null);
        }
    }
    serve(report(key));
    return 0;
}
