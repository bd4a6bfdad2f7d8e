#!/bin/bash
# SPDX-License-Identifier: Apache-2.0
# nginx in front of gunicorn in front of redis, and wrk in front of all: run.sh [sdrun --]
. "$(dirname "$(realpath "$0")")/../common.sh"
redis=${REDIS_PORT:-7011} app=${APP_PORT:-7012} web=${WEB_PORT:-7013} seconds=${SECONDS_EACH:-3}

start redis redis-server --port "$redis" --save "" --appendonly no --dir "$work"
until_answers 127.0.0.1 "$redis"
REDIS_PORT=$redis start gunicorn gunicorn --chdir "$here" --bind "127.0.0.1:$app" --workers 2 --worker-class gthread --threads 4 \
    --keep-alive 60 --log-level warning --worker-tmp-dir /dev/shm app
until_answers 127.0.0.1 "$app"
sed "s|@WORK@|$work|g; s|@APP@|$app|; s|@WEB@|$web|" "$here/nginx.conf.in" >"$work/nginx.conf"
start nginx nginx -p "$work" -e "$work/error.log" -c "$work/nginx.conf"
until_answers 127.0.0.1 "$web"
curl -sf "http://127.0.0.1:$web/" | grep -q '^visit '
(under wrk wrk -t 1 -c 4 -d "${seconds}s" --latency "http://127.0.0.1:$web/") | tee "$work/wrk.out"
if grep -q 'Non-2xx\|Socket errors' "$work/wrk.out"; then cat "$work"/*.log >&2; exit 1; fi
awk '/Requests\/sec/ {print "result:", $2}' "$work/wrk.out"
