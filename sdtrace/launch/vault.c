/* SPDX-License-Identifier: Apache-2.0
 *
 * vault.c - what the supervisor has given into keeping, for the one that is started when it dies (sdtrace/vault.py).
 *
 * Records with a descriptor each, by a number that the supervisor chooses; what they say is between the two supervisors. Only one thing is of
 * interest here: which process is about to execute a program that gets its connections back from such a record.
 */
#include "keeper.h"

#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#define NUMBER_MAX (1u << 20)

static struct record {
    char *text; /* NULL: a free place */
    int fd;
    pid_t pid; /* whose birth is waited for; 0: none */
} *records;
static uint32_t places;

void vault_drop(uint32_t number)
{
    if (number >= places || !records[number].text)
        return;
    if (records[number].fd >= 0)
        close(records[number].fd);
    free(records[number].text);
    records[number] = (struct record){0};
}

void vault_clear(void)
{
    for (uint32_t i = 0; i < places; i++)
        vault_drop(i);
}

static bool make_room(uint32_t number)
{
    uint32_t wanted = number < 64 ? 64 : 2 * number;
    if (number < places)
        return true;
    struct record *more = number < NUMBER_MAX ? realloc(records, wanted * sizeof(*more)) : NULL;
    if (!more)
        return false;
    memset(more + places, 0, (wanted - places) * sizeof(*more));
    records = more;
    places = wanted;
    return true;
}

void vault_keep(const struct message *m, int fd)
{
    char *text = strndup(m->text, TEXT_MAX - 1);
    vault_drop(m->status);
    if (!text || !make_room(m->status)) { /* one connection less that a successor would know */
        free(text);
        if (fd >= 0)
            close(fd);
        return;
    }
    records[m->status] = (struct record){.text = text, .fd = fd, .pid = (pid_t)m->flags};
}

bool vault_expects(pid_t pid)
{
    for (uint32_t i = 0; i < places; i++)
        if (records[i].text && records[i].pid == pid)
            return true;
    return false;
}

int vault_hand_over(int channel)
{
    struct message m = {.kind = MSG_KEEP};
    int error = 0;
    for (uint32_t i = 0; i < places && !error; i++) {
        if (!records[i].text)
            continue;
        m.status = i;
        m.flags = (uint32_t)records[i].pid;
        memset(m.text, 0, sizeof(m.text));
        memcpy(m.text, records[i].text, strlen(records[i].text));
        error = channel_send(channel, &m, records[i].fd);
    }
    return error;
}
