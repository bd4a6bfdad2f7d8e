/* SPDX-License-Identifier: Apache-2.0
 *
 * verbs_device.h - the one device, its context and its domain, of a libibverbs of the tests (fakeverbs.c, softverbs.c). Who includes it has
 * DEVICE_NAME, REQUESTS and COMPLETIONS, the four calls of the context, and pair_at(), defined before.
 *
 * What it says by itself is what a test sends to the socket in the place of its descriptor: two words, an event and its queue pair or port. That socket is
 * $SOFTVERBS/said.PID, or, without the variable, has whatever name the kernel gives it.
 */
#ifndef SD_VERBS_DEVICE_H
#define SD_VERBS_DEVICE_H

#include <stdio.h>
#include <sys/socket.h>
#include <sys/un.h>

#undef ibv_query_port

static struct ibv_device only = {.name = DEVICE_NAME};

struct ibv_device **ibv_get_device_list(int *count)
{
    struct ibv_device **list = calloc(2, sizeof *list);

    list[0] = &only;
    *count = 1;
    return list;
}

void ibv_free_device_list(struct ibv_device **list) { free(list); }
const char *ibv_get_device_name(struct ibv_device *device) { return device->name; }

static int open_async(void)
{
    struct sockaddr_un own = {.sun_family = AF_UNIX};
    int fd = socket(AF_UNIX, SOCK_DGRAM | SOCK_CLOEXEC, 0);
    const char *folder = getenv("SOFTVERBS");

    if (folder) {
        snprintf(own.sun_path, sizeof own.sun_path, "%s/said.%d", folder, (int)getpid());
        unlink(own.sun_path);
    }
    if (bind(fd, (struct sockaddr *)&own, folder ? sizeof own : sizeof own.sun_family))
        abort();
    return fd;
}

struct ibv_context *ibv_open_device(struct ibv_device *device)
{
    struct ibv_context *c = calloc(1, sizeof *c);

    c->device = device;
    c->async_fd = open_async();
    c->ops.post_send = post_send;
    c->ops.post_recv = post_recv;
    c->ops.poll_cq = poll_cq;
    c->ops.req_notify_cq = req_notify_cq;
    return c;
}

int ibv_close_device(struct ibv_context *context)
{
    close(context->async_fd);
    free(context);
    return 0;
}

int ibv_get_async_event(struct ibv_context *context, struct ibv_async_event *event)
{
    uint32_t said[2];
    struct qp *pair;

    if (recv(context->async_fd, said, sizeof said, 0) != sizeof said)
        return -1;
    *event = (struct ibv_async_event){.event_type = (enum ibv_event_type)said[0], .element.port_num = (int)said[1]};
    if ((pair = pair_at(said[1])) && said[0] < IBV_EVENT_DEVICE_FATAL)
        event->element.qp = &pair->qp;
    return 0;
}

void ibv_ack_async_event(struct ibv_async_event *event) { (void)event; }

int ibv_query_port(struct ibv_context *context, uint8_t port, struct _compat_ibv_port_attr *attr)
{
    (void)context;
    (void)port;
    ((struct ibv_port_attr *)(void *)attr)->active_mtu = IBV_MTU_2048;
    return 0;
}

int ibv_query_device(struct ibv_context *context, struct ibv_device_attr *attr)
{
    (void)context;
    *attr = (struct ibv_device_attr){.max_qp_wr = REQUESTS, .max_cqe = COMPLETIONS};
    return 0;
}

struct ibv_pd *ibv_alloc_pd(struct ibv_context *context)
{
    struct ibv_pd *pd = calloc(1, sizeof *pd);

    pd->context = context;
    return pd;
}

int ibv_dealloc_pd(struct ibv_pd *pd)
{
    free(pd);
    return 0;
}

#endif
