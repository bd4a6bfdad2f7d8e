/* SPDX-License-Identifier: Apache-2.0
 * MSG_PEEK leaves the bytes, MSG_WAITALL waits for all, MSG_DONTWAIT does not wait, zero lengths. */
#include "guest.h"

static void accepted(int fd)
{
    char buf[64];
    CHECK(recv(fd, buf, sizeof buf, MSG_DONTWAIT) == -1 && errno == EAGAIN);
    CHECK(send(fd, "g", 1, 0) == 1);
    CHECK(recv(fd, buf, 4, MSG_PEEK | MSG_WAITALL) == 4 && memcmp(buf, "abcd", 4) == 0);
    CHECK(recv(fd, buf, 2, MSG_PEEK) == 2 && memcmp(buf, "ab", 2) == 0);
    CHECK(recv(fd, buf, 3, 0) == 3 && memcmp(buf, "abc", 3) == 0);
    /* "d" is there; the rest comes later in two parts. */
    CHECK(send(fd, "g", 1, 0) == 1);
    CHECK(recv(fd, buf, 9, MSG_WAITALL) == 9 && memcmp(buf, "defghijkl", 9) == 0);
    CHECK(recv(fd, buf, 0, MSG_DONTWAIT) == 0 || errno == EAGAIN);
    CHECK(recvfrom(fd, buf, 3, 0, NULL, NULL) == 3 && memcmp(buf, "end", 3) == 0);
    CHECK(recv(fd, buf, sizeof buf, MSG_WAITALL) == 4 && memcmp(buf, "last", 4) == 0); /* cut short by EOF */
    CHECK(recv(fd, buf, sizeof buf, 0) == 0);
    CHECK(recv(fd, buf, sizeof buf, MSG_PEEK) == 0);
}

static void connected(int fd)
{
    expect(fd, "g");
    CHECK(send(fd, "abcd", 4, MSG_NOSIGNAL) == 4);
    expect(fd, "g");
    sleep_ms(30);
    CHECK(send(fd, "efgh", 4, MSG_MORE) == 4);
    sleep_ms(30);
    CHECK(sendto(fd, "ijkl", 4, 0, NULL, 0) == 4);
    CHECK(send(fd, "end", 3, MSG_DONTWAIT) == 3);
    sleep_ms(30);
    CHECK(send(fd, "last", 4, 0) == 4);
}

int main(void) { return guest_main(accepted, connected); }
