# `make demo` shows it, `make test` proves it. Both install what they need on Debian 12 (as root, or with sudo).
SHELL := /bin/bash
.DELETE_ON_ERROR:

VENV := .venv
BIN := $(VENV)/bin
READY := $(VENV)/.ready
SUDO := $(shell [ "$$(id -u)" = 0 ] || echo sudo)

RUN_PACKAGES := libvirt-daemon-system libvirt-daemon-driver-qemu libvirt-clients qemu-system-x86 qemu-utils \
	python3-libvirt python3-libnbd python3-venv
LAB_PACKAGES := busybox-static cpio gcc libc6-dev iproute2 util-linux xfsprogs e2fsprogs kmod
TEST_PACKAGES := libnbd-bin nbdkit gnutls-bin openssl qemu-block-extra tgt nfs-ganesha nfs-ganesha-vfs rpcbind \
	btrfs-progs exfatprogs exfat-fuse swtpm swtpm-tools ovmf git \
	qemu-guest-agent procps socat stunnel4 fio rsync postgresql libvirt-dev pkg-config

.PHONY: help demo test long check format lint types unit block libvirt pythons bench chart clean

help:  ## this list; it changes nothing
	@awk -F ':.*## ' '/^[a-z]+:.*## / { printf "make %-8s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

demo: PACKAGES := $(RUN_PACKAGES) $(LAB_PACKAGES)
demo: packages $(READY)  ## a running VM's storage moves, in a lab of its own
	$(SUDO) $(BIN)/python -m vmferry.lab.demo

test: PACKAGES := $(RUN_PACKAGES) $(LAB_PACKAGES) $(TEST_PACKAGES)
test: packages $(READY)  ## everything, guests side by side; each family has a budget in seconds
	timeout 300 $(MAKE) --no-print-directory format-check lint types
	timeout 1500 $(BIN)/pytest -q -n 4 --dist worksteal tests/unit tests/block
	timeout 900 $(BIN)/python -m tests.support.pythons
	timeout 3300 $(BIN)/pytest -q -n 3 --dist loadgroup -m "not long" tests/libvirt
	@echo "make long runs the rest: VMs as they are and faults between two hosts, agents, processors, giving way, the other"
	@echo "halves of what runs here in part (kinds of storage, steps to cancel at), 30 kills of each technology, 200 jobs in"
	@echo "chaos, 200 tortured by others"

long: PACKAGES := $(RUN_PACKAGES) $(LAB_PACKAGES) $(TEST_PACKAGES)
long: packages $(READY)  ## what needs an hour or two: real guests between hosts, and under faults
	$(BIN)/pytest -q -n 2 --dist worksteal -m long tests/libvirt --ignore tests/libvirt/test_torture.py
	VMFERRY_TORTURE_RUNS=200 $(BIN)/pytest -q -n 3 --dist worksteal tests/libvirt/test_torture.py
	VMFERRY_KILLS=30 $(BIN)/pytest -q -n 2 --dist worksteal tests/libvirt/test_kills.py tests/block/test_transfer_command.py
	VMFERRY_CHAOS_JOBS=200 VMFERRY_INTERRUPTIONS=100 $(BIN)/pytest -q -n 2 tests/unit/test_chaos.py \
		tests/block/test_transfer_interrupted.py

check: $(READY)  ## a minute or so, each fourth of the long lists: before each commit
	$(MAKE) --no-print-directory format-check lint types
	VMFERRY_SAMPLE=4 $(BIN)/pytest -q -n 2 -m "not slow" tests/unit tests/block

format: $(READY)  ## write the sources as ruff wants them
	$(BIN)/ruff format src tests
	$(BIN)/ruff check --fix src tests

.PHONY: format-check packages
format-check: $(READY)
	$(BIN)/ruff format --check src tests

lint: $(READY)  ## ruff
	$(BIN)/ruff check src tests

types: $(READY)  ## mypy, strict
	$(BIN)/mypy

unit: $(READY)  ## pure functions, simulated hosts, the command
	$(BIN)/pytest -q -n 2 -m "not slow" tests/unit

block: $(READY)  ## real files, devices, servers and networks, no guest
	$(BIN)/pytest -q -n 2 -m "not slow" tests/block

libvirt: $(READY)  ## real guests, the long tests included
	$(BIN)/pytest -q -n 3 --dist worksteal tests/libvirt

pythons: PACKAGES := libvirt-dev pkg-config gcc libc6-dev
pythons: packages $(READY)  ## the wheel and the unit family on each other Python that is here, 3.11 to 3.14
	$(BIN)/python -m tests.support.pythons

bench: PACKAGES := $(RUN_PACKAGES) $(LAB_PACKAGES) $(TEST_PACKAGES)
bench: packages $(READY)  ## against virsh, cp, rsync, qemu-img, nbdcopy and the device's limit, in one run
	$(BIN)/python -m tests.bench

packages:
	@missing=$$(for p in $(PACKAGES); do dpkg -s $$p >/dev/null 2>&1 || echo $$p; done); \
	if [ -n "$$missing" ]; then \
		$(SUDO) apt-get update -qq && \
		DEBIAN_FRONTEND=noninteractive $(SUDO) apt-get install -y -qq --no-install-recommends $$missing; \
	fi

# libvirt and nbd come with Debian's own Python, hence its interpreter and its packages.
$(READY): pyproject.toml
	@$(MAKE) --no-print-directory packages PACKAGES="$(RUN_PACKAGES)"
	/usr/bin/python3 -m venv --system-site-packages $(VENV)
	$(BIN)/pip install -q -e '.[dev]'
	touch $@

chart: $(READY)  ## the folders' chart in docs/architecture.md, from the list that a test holds
	$(BIN)/python -m tests.support.chart

clean:  ## remove what make made in this folder
	rm -rf $(VENV) .venv-pythons build dist .mypy_cache .ruff_cache .pytest_cache
