#!/bin/bash
# SPDX-License-Identifier: Apache-2.0
# PostgreSQL and pgbench's read-only load, one client: run.sh [sdrun --]. As root, all of it becomes the user postgres.
if [ "$(id -u)" = 0 ]; then
    export HOME=/tmp
    [ -z "${EXAMPLE_REPORTS:-}" ] || chown postgres "$EXAMPLE_REPORTS"
    [ -z "${XDG_RUNTIME_DIR:-}" ] || chown -R postgres "$XDG_RUNTIME_DIR"
    exec setpriv --reuid=postgres --regid=postgres --clear-groups -- "$0" "$@"
fi
. "$(dirname "$(realpath "$0")")/../common.sh"
cd "$work"
port=${PG_PORT:-7031} seconds=${SECONDS_EACH:-3}
bin=$(ls -d /usr/lib/postgresql/*/bin | sort -V | tail -1)

"$bin/initdb" -D "$work/data" -A trust -U me -N >"$work/initdb.log"
start postgres "$bin/postgres" -D "$work/data" -p "$port" -k "$work" -c fsync=off -c listen_addresses=127.0.0.1
until_answers 127.0.0.1 "$port"
until "$bin/pg_isready" -q -h 127.0.0.1 -p "$port"; do sleep 0.1; done
"$bin/pgbench" -h "$work" -p "$port" -U me -i -q -s 2 postgres 2>"$work/fill.log"
(under pgbench "$bin/pgbench" -h 127.0.0.1 -p "$port" -U me -n -S -c 1 -T "$seconds" postgres) >"$work/pgbench.out"
grep -q 'number of failed transactions: 0 ' "$work/pgbench.out"
awk '/^tps/ {print "result:", $3}' "$work/pgbench.out"
