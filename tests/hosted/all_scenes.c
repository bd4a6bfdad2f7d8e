/* SPDX-License-Identifier: Apache-2.0
 *
 * all_scenes.c - those of programs alone; the monitor's loop has its own (loop_scenes.c), in a program of its own.
 */
#include "scene.h"

const struct scenario *const scenes[] = {scenes_bells, scenes_moves, scenes_shared, scenes_again, scenes_epoll, NULL};
