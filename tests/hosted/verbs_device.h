/* SPDX-License-Identifier: Apache-2.0
 *
 * verbs_device.h - the one device, its context and its domain, of a libibverbs of the tests (fakeverbs.c, softverbs.c). Who includes it has
 * DEVICE_NAME, REQUESTS and COMPLETIONS, and the four calls of the context, defined before.
 */
#ifndef SD_VERBS_DEVICE_H
#define SD_VERBS_DEVICE_H

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

struct ibv_context *ibv_open_device(struct ibv_device *device)
{
    struct ibv_context *c = calloc(1, sizeof *c);

    c->device = device;
    c->ops.post_send = post_send;
    c->ops.post_recv = post_recv;
    c->ops.poll_cq = poll_cq;
    c->ops.req_notify_cq = req_notify_cq;
    return c;
}

int ibv_close_device(struct ibv_context *context)
{
    free(context);
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
