/* SPDX-License-Identifier: Apache-2.0
 *
 * bell.c - producers that fence so that waiters need no membarrier (bell.h, [W3]).
 *
 * tx_fence is shared by the threads of one process. It only changes by compare-and-swap, and whoever has put SD_FENCE_ENDS there is alone until he
 * has put 0 there. So prod_fenced is 1 only while tx_fence is not 0.
 */
#include "ring/bell.h"

bool sd_data_wanted_fenced(struct sd_end *e)
{
    u32 left = load_rlx(&e->tx_fence);
    bool wanted;

    if (left > 1 && left != SD_FENCE_ENDS)
        cas_u32(&e->tx_fence, left, left - 1); /* a locked instruction: it is the fence, whether it succeeds or not */
    else
        sd_fence();
    wanted = load_rlx(&e->tx->rx_armed) != 0; /* [W3] */
    if (!wanted) {
        if (left == 1)
            sd_fence_end(e);
        return false;
    }
    left = load_rlx(&e->tx_fence);
    if (left && left != SD_FENCE_ENDS)
        cas_u32(&e->tx_fence, left, SD_FENCE_FOR);
    return true;
}

void sd_fence_end(struct sd_end *e)
{
    u32 left = load_rlx(&e->tx_fence);

    do {
        if (!left || left == SD_FENCE_ENDS)
            return;
    } while (!atomic_compare_exchange_weak(&e->tx_fence, &left, SD_FENCE_ENDS));
    store_rlx(&e->tx->prod_fenced, 0);
    sd_fence(); /* [W3] */
    store_rel(&e->tx_fence, 0);
}
