/* SPDX-License-Identifier: Apache-2.0
 *
 * cell.c - runs every row in one state, each with a connection, a peer and a holder of its own.
 *
 *   cell rows                 names of the rows
 *   cell run STATE [ROW]      "ROW PEER-PID STATUS" a line
 *   cell actor FD STATE       what the rows execute
 *   cell peer listen STATE    a peer for the rows of other languages; prints its port
 */
#include "cell.h"

#define BEFORE_UNREAD 10000u
#define BEFORE_FULL (1u << 20)
#define TURNS 40
#define MESSAGE 64

const char *state_names[STATES] = {"tcp", "offered", "switching", "unread", "full", "half-closed"};
enum state state;
const char *self;
static bool may_end; /* the other side may be gone at any time: then we are content */

static size_t sent_before(void)
{
    return state == UNREAD || state == HALF_CLOSED ? BEFORE_UNREAD : state == FULL ? BEFORE_FULL : 0;
}

static bool is_gone(ssize_t n) { return n == 0 || errno == ECONNRESET || errno == EPIPE; }

/* How many of len came before the end: all, unless the other side may be gone. -1 with a complaint. */
static ssize_t take(int fd, unsigned char *buf, size_t len)
{
    size_t done = 0;
    while (done < len) {
        ssize_t n = read(fd, buf + done, len - done);
        if (n < 0 && errno == EINTR)
            continue;
        if (n <= 0 && may_end && is_gone(n))
            break;
        if (n <= 0) {
            fprintf(stderr, "read: %zd (%s) after %zu of %zu\n", n, n < 0 ? strerror(errno) : "end", done, len);
            return -1;
        }
        done += (size_t)n;
    }
    return (ssize_t)done;
}

static bool get(int fd, unsigned char *buf, size_t len) { return take(fd, buf, len) == (ssize_t)len; }

static bool put(int fd, const unsigned char *buf, size_t len)
{
    for (size_t done = 0; done < len;) {
        ssize_t n = write(fd, buf + done, len - done);
        if (n < 0 && errno == EINTR)
            continue;
        if (n < 0 && may_end && is_gone(n))
            return false;
        if (n <= 0) {
            fprintf(stderr, "write: %zd (%s)\n", n, strerror(errno));
            return false;
        }
        done += (size_t)n;
    }
    return true;
}

static bool get_same(int fd, struct prng *r, size_t len)
{
    unsigned char got[4096], want[4096];
    for (size_t left = len; left;) {
        size_t n = left < sizeof got ? left : sizeof got;
        ssize_t came = take(fd, got, n);
        if (came < 0)
            return false;
        prng_fill(r, want, n);
        if (memcmp(got, want, (size_t)came)) {
            fprintf(stderr, "other bytes than were sent, %zu before the end\n", left);
            may_end = false;
            return false;
        }
        if (came < (ssize_t)n)
            return false;
        left -= n;
    }
    return true;
}

static bool put_random(int fd, struct prng *r, size_t len)
{
    unsigned char buf[4096];
    for (size_t left = len; left;) {
        size_t n = left < sizeof buf ? left : sizeof buf;
        prng_fill(r, buf, n);
        if (!put(fd, buf, n))
            return false;
        left -= n;
    }
    return true;
}

/* ------------------------------------------------------------------ actor */

int actor(int fd)
{
    struct prng in = {1}, out = {2};
    unsigned char c;

    if (!get_same(fd, &in, sent_before()))
        return 1;
    for (int i = 0; i < TURNS; i++) {
        if (!put_random(fd, &out, MESSAGE))
            return 1;
        if (state != HALF_CLOSED && !get_same(fd, &in, MESSAGE))
            return 1;
    }
    if (shutdown(fd, SHUT_WR) < 0) {
        perror("shutdown");
        return 1;
    }
    ssize_t n = read(fd, &c, 1);
    if (n != 0)
        fprintf(stderr, "instead of the end: %zd (%s)\n", n, n < 0 ? strerror(errno) : "a byte");
    return n != 0;
}

char **actor_argv(int fd)
{
    static char number[16], *argv[5];
    snprintf(number, sizeof number, "%d", fd);
    argv[0] = (char *)self;
    argv[1] = (char *)"actor";
    argv[2] = number;
    argv[3] = (char *)state_names[state];
    argv[4] = NULL;
    return argv;
}

int actor_image(int fd)
{
    execv(self, actor_argv(fd));
    perror("exec");
    return 126;
}

int status_of(pid_t child)
{
    int status;
    while (waitpid(child, &status, 0) < 0)
        if (errno != EINTR)
            return 125;
    return WIFEXITED(status) ? WEXITSTATUS(status) : 128 + WTERMSIG(status);
}

/* ------------------------------------------------------------------- peer */

/* For who brings the two ends together, before the row begins. */
static long pause_ms(void)
{
    const char *said = getenv("CELL_PAUSE_MS");

    return said ? atol(said) : 15;
}

static int peer_talk(int fd, bool dies)
{
    struct prng out = {1}, in = {2};
    unsigned char c = 0;

    for (int i = 0; i < 60 && state != OFFERED; i++) { /* who connects moves over as well, or only hears us do so */
        if (i == 10)
            sleep_ms(pause_ms());
        CHECK(put(fd, &c, 1));
        if (state != SWITCHING)
            CHECK(get(fd, &c, 1));
    }
    may_end = dies;
    if (!put_random(fd, &out, sent_before()))
        return !may_end;
    if (state == HALF_CLOSED)
        CHECK(shutdown(fd, SHUT_WR) == 0 || (may_end && errno == ENOTCONN));
    for (int i = 0; i < TURNS; i++)
        if (!get_same(fd, &in, MESSAGE) || (state != HALF_CLOSED && !put_random(fd, &out, MESSAGE)))
            return !may_end;
    ssize_t n = read(fd, &c, 1);
    bool right = n == 0 || (may_end && is_gone(n));
    close(fd);
    return !right;
}

static int peer(int listener, bool dies)
{
    if (state == OFFERED)
        sleep_ms(40); /* the holder is connected and has offered; we cannot have */
    int fd = accept(listener, NULL, NULL);
    CHECK(fd >= 0);
    close(listener);
    return peer_talk(fd, dies);
}

void set_state(int fd)
{
    unsigned char c;
    int n = 0;

    for (int i = 0; i < 60 && state != OFFERED; i++) {
        CHECK(get(fd, &c, 1));
        if (state != SWITCHING)
            CHECK(put(fd, &c, 1));
    }
    while ((state == UNREAD || state == HALF_CLOSED) && n < (int)BEFORE_UNREAD) {
        CHECK(ioctl(fd, FIONREAD, &n) == 0);
        sleep_ms(1);
    }
    if (state == FULL)
        sleep_ms(20);
}

/* ------------------------------------------------------------------- main */

static void run_row(const struct row *r)
{
    struct sockaddr_in addr;
    int listener = listen_loopback(&addr, 8);
    pid_t other, holder;

    fflush(stdout);
    if ((other = fork()) == 0) {
        alarm(15);
        if (!r->accepts)
            _exit(peer(listener, r->dies));
        close(listener);
        _exit(peer_talk(connect_loopback(&addr), false));
    }
    if ((holder = fork()) == 0) {
        alarm(15);
        if (r->accepts)
            exit(r->run(listener));
        close(listener);
        int fd = socket(AF_INET, SOCK_STREAM, 0);
        CHECK(fd >= 0 && connect(fd, (struct sockaddr *)&addr, sizeof addr) == 0);
        set_state(fd);
        exit(r->run(fd));
    }
    close(listener);
    int status = status_of(holder);
    if (status == SKIP)
        kill(other, SIGKILL);
    int there = status_of(other);
    printf("%s %d %d %d\n", r->name, (int)other, status, status == SKIP ? 0 : there);
}

static enum state state_called(const char *name)
{
    for (int i = 0; i < STATES; i++)
        if (strcmp(name, state_names[i]) == 0)
            return (enum state)i;
    CHECK(!"state");
    return ON_TCP;
}

int main(int argc, char **argv)
{
    static char path[4096];
    ssize_t n = readlink("/proc/self/exe", path, sizeof path - 1);

    CHECK(n > 0 && argc > 1);
    self = path;
    signal(SIGPIPE, SIG_IGN);
    if (strcmp(argv[1], "actor") == 0) {
        state = state_called(argv[3]);
        return actor(atoi(argv[2]));
    }
    if (strcmp(argv[1], "peer") == 0) {
        struct sockaddr_in addr;
        int listener = listen_loopback(&addr, 8);
        state = state_called(argv[3]);
        printf("%d\n", ntohs(addr.sin_port));
        fflush(stdout);
        alarm(15);
        return peer(listener, false);
    }
    for (const struct row *r = rows; r->name && strcmp(argv[1], "rows") == 0; r++)
        puts(r->name);
    if (strcmp(argv[1], "run"))
        return 0;
    state = state_called(argv[2]);
    for (const struct row *r = rows; r->name; r++)
        if (argc < 4 || strcmp(argv[3], r->name) == 0)
            run_row(r);
    return 0;
}
