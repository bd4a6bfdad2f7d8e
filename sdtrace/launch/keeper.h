/* SPDX-License-Identifier: Apache-2.0 */
#ifndef SDRUN_KEEPER_H
#define SDRUN_KEEPER_H

#include "sdrun.h"

/* Puts a thread right in which a supervisor that died was running calls (rescue.c). */
void keeper_rescue(struct keepsake *k);

#endif
