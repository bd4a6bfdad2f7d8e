/* SPDX-License-Identifier: Apache-2.0
 * readv, writev, sendmsg, recvmsg, sendmmsg, recvmmsg: pieces in order, empty pieces, msg_name and msg_flags. */
#include "guest.h"

static void accepted(int fd)
{
    char a[3], b[5], c[100];
    struct iovec parts[] = {{a, 3}, {NULL, 0}, {b, 5}, {c, 2}};
    CHECK(send(fd, "1", 1, 0) == 1);
    read_all(fd, c, 0);
    sleep_ms(20);
    CHECK(readv(fd, parts, 4) == 10);
    CHECK(!memcmp(a, "012", 3) && !memcmp(b, "34567", 5) && !memcmp(c, "89", 2));
    parts[3].iov_len = 100;
    struct sockaddr_in name = {0};
    char control[64];
    struct msghdr m = {.msg_name = &name, .msg_namelen = sizeof name, .msg_iov = parts, .msg_iovlen = 4,
                       .msg_control = control, .msg_controllen = sizeof control, .msg_flags = MSG_OOB};
    CHECK(send(fd, "2", 1, 0) == 1);
    sleep_ms(20);
    CHECK(recvmsg(fd, &m, 0) == 11);
    CHECK(m.msg_namelen == 0 && m.msg_controllen == 0 && m.msg_flags == 0);
    CHECK(!memcmp(a, "abc", 3) && !memcmp(b, "defgh", 5) && !memcmp(c, "ijk", 3));
    struct mmsghdr mm[2] = {{.msg_hdr = {.msg_iov = parts, .msg_iovlen = 1}},
                            {.msg_hdr = {.msg_iov = parts + 2, .msg_iovlen = 1}}};
    CHECK(send(fd, "3", 1, 0) == 1);
    sleep_ms(20);
    CHECK(recvmmsg(fd, mm, 2, 0, NULL) == 2);
    CHECK(mm[0].msg_len == 3 && mm[1].msg_len == 5 && !memcmp(a, "xyz", 3) && !memcmp(b, "uvwXY", 5));
    expect_eof(fd);
}

static void connected(int fd)
{
    struct iovec parts[] = {{"01", 2}, {"", 0}, {"2345", 4}, {"6789", 4}};
    expect(fd, "1");
    CHECK(writev(fd, parts, 4) == 10);
    struct iovec more[] = {{"abcd", 4}, {"efghijk", 7}};
    struct msghdr m = {.msg_iov = more, .msg_iovlen = 2};
    expect(fd, "2");
    CHECK(sendmsg(fd, &m, MSG_NOSIGNAL) == 11);
    struct iovec one = {"xyz", 3}, two = {"uvwXY", 5};
    struct mmsghdr mm[2] = {{.msg_hdr = {.msg_iov = &one, .msg_iovlen = 1}},
                            {.msg_hdr = {.msg_iov = &two, .msg_iovlen = 1}}};
    expect(fd, "3");
    CHECK(sendmmsg(fd, mm, 2, 0) == 2);
    CHECK(mm[0].msg_len == 3 && mm[1].msg_len == 5);
    char byte;
    struct iovec bad[] = {{&byte, 1}};
    CHECK(preadv(fd, bad, 1, 0) == -1 && errno == ESPIPE);
    CHECK(lseek(fd, 0, SEEK_CUR) == -1 && errno == ESPIPE);
    volatile int negative = -1; /* the compiler knows these to be wrong; the kernel says how */
    void *volatile nowhere = (void *)8;
    CHECK(writev(fd, parts, negative) == -1 && errno == EINVAL);
    CHECK(write(fd, nowhere, 16) == -1 && errno == EFAULT);
}

int main(void) { return guest_main(accepted, connected); }
