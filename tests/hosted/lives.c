/* SPDX-License-Identifier: Apache-2.0
 *
 * lives.c - what sock/lives.h says of a connection. Arguments: its age, then what was before it: the lives of others, `away` for one whose peer had not come, `came` for one whose had.
 * Prints how much it may still do, and enum sd_reason.
 */
#include "sock/lives.h"
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

int main(int argc, char **argv)
{
    struct sd_lives l = {0};
    u64 age;

    if (argc < 2)
        return 2;
    age = strtoull(argv[1], NULL, 10);
    for (int i = 2; i < argc; i++) {
        if (!strcmp(argv[i], "away") || !strcmp(argv[i], "came"))
            sd_habit(&l.away, *argv[i] == 'a');
        else
            sd_life_ended(&l, strtoull(argv[i], NULL, 10));
    }
    printf("%llu %u\n", (unsigned long long)sd_life_ahead(&l, age), sd_life_says(&l, age));
    return 0;
}
