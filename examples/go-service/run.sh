#!/bin/bash
# SPDX-License-Identifier: Apache-2.0
# A Go service and its clients, static binaries without libc: run.sh [sdrun --]
. "$(dirname "$(realpath "$0")")/../common.sh"
port=${WEB_PORT:-7021} seconds=${SECONDS_EACH:-3}

# Not into the folder that goes away: the next run finds what is compiled.
export GOCACHE=${GOCACHE:-$HOME/.cache/go-build} GO111MODULE=off GOTOOLCHAIN=local CGO_ENABLED=0
go build -o "$work/service" "$here/main.go"
start service "$work/service" "127.0.0.1:$port"
until_answers 127.0.0.1 "$port"
(under client "$work/service" "127.0.0.1:$port" "$seconds" 2)
