# SPDX-License-Identifier: Apache-2.0
# Everything from a fresh Debian 12: each target does all of its own set-up, and only what is missing.
#
#   make build   .venv/ with every command of the project in .venv/bin/
#   make test    all tests
#   make test-rdma   two hosts with RDMA: kernels with soft RoCE in emulated machines, one for both and one each (minutes); and one with Yama
#   make failures-rdma   there, 200 times: monitors killed and links down at random moments (an hour or two); `make failures` without RDMA
#   make examples   those of examples/, natively and under sdrun, with a plot of each in build/examples/
#   make newcomer   the README's first commands and the packages, on a Debian with nothing on it (debootstrap; minutes)
#   make suites  all of the test suites written by others, natively and under sdrun (make test runs a part, .ci/run the rest too)
#   make ltp     the Linux Test Project's programs for sockets, from a release that is fetched into build/ltp
#   make fuzz    the fuzz tests for minutes instead of seconds: hostile peers, messages, policy files
#   make faults  a supervisor that hangs, disks that are full, two versions on one host (a minute)
#   make model   random calls against the kernel, for longer
#   make table   docs/compatibility.md, from the tests' results
#   make demo    redis and nginx, natively and under sdrun, as one table
#   make lint    types, style, import directions
#   make bench   what sdbench needs: programs to measure, plots, loads; then run .venv/bin/sdbench
#   make soak    half an hour of the matrix with random kills; nothing may be left behind
#   make matrix  fork, exec, threads: every way, libc and state of a connection; writes docs/fork-exec-matrix.md
#   make baseline   count the instructions of the fast paths anew; `make test` compares with them
#   make package    sdist, wheel and Debian package in build/dist/
#   make clean   remove what was built

SHELL := /bin/bash
.SHELLFLAGS := -euo pipefail -c
.DEFAULT_GOAL := build
.DELETE_ON_ERROR:
MAKEFLAGS += --no-builtin-rules

VENV := .venv
BIN := $(VENV)/bin
STAMPS := $(VENV)/stamps
PY := $(BIN)/python

# Why these: the launcher holds a seccomp listener and passes descriptors; a fortified, warning-free build is the least.
# The warnings are errors here and nowhere softer; ENOENT of a header means that a Debian package is missing.
LAUNCH_CFLAGS := -std=gnu11 -O2 -g -Wall -Wextra -Werror -Wmissing-prototypes -Wstrict-prototypes -Wvla \
	-D_GNU_SOURCE -D_FORTIFY_SOURCE=2 -fstack-protector-strong -fpie -Isdlib/include
LAUNCH_LDFLAGS := -pie -Wl,-z,relro,-z,now

# The load programs of sdbench; the library's ring is one of the things they measure.
BENCH_CFLAGS := -std=gnu11 -O2 -g -Wall -Wextra -Werror -pthread -DSD_HOSTED=1 -Isdlib/include -Isdlib/src
BENCH_PROGRAMS := $(patsubst tools/bench/%.c,build/bench/%,$(wildcard tools/bench/*.c))
MULTIARCH = $(shell gcc -print-multiarch)

.PHONY: faults package build test examples newcomer test-rdma failures-rdma failures figures-rdma fuzz suites ltp matrix soak model table demo lint bench baseline many clean ffi image filter filters packaged
build: $(STAMPS)/install ffi image filters packaged $(BIN)/sdrun $(BENCH_PROGRAMS) build/bench/free.so

# Stamps live in the virtual environment: removing it starts over.
$(STAMPS)/packages-%: tools/setup/packages.sh tools/setup/%.txt
	tools/setup/packages.sh tools/setup/$*.txt
	mkdir -p $(STAMPS) && touch $@

$(STAMPS)/venv: | $(STAMPS)/packages-build
	"$$(tools/setup/find-python.sh)" -m venv $(VENV)
	mkdir -p $(STAMPS) && touch $@

$(STAMPS)/requirements: requirements.lock $(STAMPS)/venv
	$(PY) -m pip install -qq --disable-pip-version-check -r requirements.lock
	touch $@

# "compat" is a plain path entry: the other editable modes put an import hook in front of every import of the supervisor.
$(STAMPS)/install: pyproject.toml setup.py $(STAMPS)/requirements
	$(PY) -m pip install -qq --disable-pip-version-check --no-deps --no-build-isolation \
		--config-settings editable_mode=compat -e .
	touch $@

# These look at their own inputs and do only what is needed.
ffi: $(STAMPS)/install
	@$(PY) -m sdlib.build_ffi
image: ffi
	@$(PY) -m sdlib.build_image
filter: image
	@$(PY) -m sdtrace.build_filter --output $(VENV)/share/sdrun
filters: image
	@$(PY) -m sdtrace.build_filter
packaged: $(STAMPS)/install
	@$(PY) -m policies.build_packaged

LAUNCH_SOURCES := $(sort $(wildcard sdtrace/launch/*.c))
$(BIN)/sdrun: $(LAUNCH_SOURCES) $(wildcard sdtrace/launch/*.h sdlib/include/*.h) Makefile $(STAMPS)/install
	gcc $(LAUNCH_CFLAGS) -o $@.new $(LAUNCH_SOURCES) $(LAUNCH_LDFLAGS)
	mv $@.new $@

build/bench/%: tools/bench/%.c $(wildcard tools/bench/*.h) sdlib/src/ring/ring.c Makefile | $(STAMPS)/packages-build
	@mkdir -p $(@D)
	gcc $(BENCH_CFLAGS) -o $@ $< $(if $(findstring pair,$*),sdlib/src/ring/ring.c)

build/bench/free.so: tools/bench/apps/free.c Makefile | $(STAMPS)/packages-build
	@mkdir -p $(@D)
	gcc -std=gnu11 -O2 -g -Wall -Wextra -Werror -fPIC -shared -o $@ $<

# eBPF redirection, one of sdbench's peers.
build/bench/sockmap.bpf.o: tools/bench/bpf/sockmap.bpf.c tools/bench/sockmap.h | $(STAMPS)/packages-bench
	@mkdir -p $(@D)
	clang -O2 -g -target bpf -I/usr/include/$(MULTIARCH) -c -o $@ $<
build/bench/sockmap: tools/bench/bpf/sockmap.c tools/bench/bench.h tools/bench/sockmap.h | $(STAMPS)/packages-bench
	@mkdir -p $(@D)
	gcc $(BENCH_CFLAGS) -o $@ $< -lbpf

build/bench/hello: tools/bench/apps/hello.go | $(STAMPS)/packages-bench
	@mkdir -p $(@D)
	go build -o $@ $<

$(STAMPS)/requirements-bench: requirements-bench.lock $(STAMPS)/venv
	$(PY) -m pip install -qq --disable-pip-version-check -r requirements-bench.lock
	touch $@

bench: build $(STAMPS)/packages-bench $(STAMPS)/requirements-bench build/bench/sockmap.bpf.o build/bench/sockmap build/bench/hello

# Side by side, since most tests wait most of the time (tests/workers.py); PYTEST_ARGS=-n0 has one after the other.
WORKERS := -n 3 --dist loadscope --no-loadscope-reorder

test: build $(STAMPS)/packages-test
# Real programs on two noisy cores: what fails once is tried again, and pytest's last line counts the reruns. Each is a defect to be found.
# Where CI is set, pytest writes whole messages into its summary, among which the names of what failed are lost.
	@env -u CI -u BUILD_NUMBER $(PY) -m pytest $(WORKERS) --reruns 2 --reruns-delay 1 $(PYTEST_ARGS)

# Emulated, so that it needs neither hardware nor /dev/kvm; what is missing is an error. The limits are for what hangs: several times what a slow machine takes.
test-rdma: build $(STAMPS)/packages-test $(STAMPS)/packages-rdma
	@$(PY) -m tests.vm.guest --limit 1800 -- $(PY) -m tests.vm.yama
	@$(PY) -m tests.vm.two --limit 2700
	@$(PY) -m tests.vm.guest --limit 7200 -- bash tests/vm/run.sh $(PYTEST_ARGS)

# By hand: FAILURES of each kind, with a seed that is printed.
FAILURES := 100
SEED := $(shell date +%s)
FAIL := env SDRUN_HOSTS_FAILURES=$(FAILURES) SDRUN_HOSTS_SEED=$(SEED)
failures-rdma: build $(STAMPS)/packages-test $(STAMPS)/packages-rdma
	@$(PY) -m tests.vm.guest --limit 28800 -- $(FAIL) bash tests/vm/run.sh --timeout 14400 --reruns 0 -v -k every_byte $(PYTEST_ARGS)

failures: build $(STAMPS)/packages-test
	@$(FAIL) $(PY) -m pytest -v --timeout 7200 --reruns 0 tests/hosts/test_failure.py $(PYTEST_ARGS)

# The ways between two hosts, compared with each other in the same guest; no figures of any network.
figures-rdma: build $(STAMPS)/packages-test $(STAMPS)/packages-rdma
	@$(PY) -m tests.vm.guest --limit 2400 -- bash tests/vm/run.sh --figures

examples: build $(STAMPS)/packages-examples $(STAMPS)/packages-test $(STAMPS)/requirements-bench
	@SDRUN_EXAMPLES=1 $(PY) -m pytest --reruns 2 --timeout 300 tests/examples $(PYTEST_ARGS)

# What a machine of somebody else's has, and ours had by chance, is noticed here.
newcomer: build $(STAMPS)/packages-newcomer
	@SDRUN_NEWCOMER=1 $(PY) -m pytest --timeout 1800 tests/packaging/test_clean_debian.py $(PYTEST_ARGS)

suites: build $(STAMPS)/packages-test
	@SDRUN_SUITES=$${SDRUN_SUITES:-all} $(PY) -m pytest $(WORKERS) --reruns 2 tests/suites/test_cpython.py tests/suites/test_go.py $(PYTEST_ARGS)

ltp: build $(STAMPS)/packages-test
	tools/setup/ltp.sh build/ltp $$($(PY) -c "from tests.suites.test_ltp import CALLS; print(*CALLS)")
	@SDRUN_LTP=build/ltp $(PY) -m pytest --reruns 2 tests/suites/test_ltp.py $(PYTEST_ARGS)

# What breaks, and takes a while to be noticed.
faults: build $(STAMPS)/packages-test
	@SDRUN_FAULTS=all $(PY) -m pytest tests/e2e/test_faults_long.py tests/e2e/test_versions.py $(PYTEST_ARGS)

fuzz: build $(STAMPS)/packages-test
	@SDRUN_FUZZ=long $(PY) -m pytest --timeout 3600 tests/sdlib/test_fuzz.py tests/monitor/test_fuzz.py tests/policies/test_fuzz.py \
		tests/sdtrace/test_fuzz.py $(PYTEST_ARGS)

matrix: build $(STAMPS)/packages-test
	@$(PY) -m tests.matrix --write

# Half an hour of random programs of the matrix and random kills; SOAK="--minutes 5 --seed 1" for another.
soak: build $(STAMPS)/packages-test
	@$(PY) -m tests.matrix.soak $(SOAK)

# Random calls against the kernel, other ones each time; a failure prints the shortest sequence.
model: build
	MODEL_EXAMPLES=$${MODEL_EXAMPLES:-3000} $(PY) -m pytest tests/differential/test_model.py

# 10,000 mostly idle connections, where a process may have so many descriptors (ulimit -Hn). Minutes.
many: build
	SDRUN_CONNECTIONS=$${SDRUN_CONNECTIONS:-10000} $(PY) -m pytest -s tests/tools/test_many_connections.py

# docs/compatibility.md, from the results of tests/differential.
table: build
	@$(PY) -m tests.differential.table

demo: build $(STAMPS)/packages-demo
	@$(PY) -m tools.demo

lint: build
	$(BIN)/ruff check
	$(BIN)/mypy
	$(BIN)/lint-imports

# The wheel is made from the sdist alone, so that what the sdist lacks is noticed here.
BACKEND := $(abspath $(PY)) -c "import sys; from setuptools import build_meta; getattr(build_meta, sys.argv[1])(sys.argv[2])"
DIST := $(abspath build/dist)
package: build
	rm -rf $(DIST) && mkdir -p $(DIST)/source
	$(BACKEND) build_sdist $(DIST) >/dev/null
	tar -xzf $(DIST)/sdrun-*.tar.gz -C $(DIST)/source --strip-components=1
	cd $(DIST)/source && $(BACKEND) build_wheel $(DIST) >/dev/null
	rm -rf $(DIST)/source
	@$(PY) packaging/build_deb.py $(DIST)/sdrun-*.whl $(DIST)

baseline: build
	@$(PY) -m tools.instructions --write

clean:
	rm -rf $(VENV) build sdlib/_image sdrun.egg-info .mypy_cache .ruff_cache .pytest_cache
	rm -f sdlib/_sdffi.*
