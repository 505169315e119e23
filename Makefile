# The entry point without Nix, and in its development shell. See README.md.
ifndef IN_NIX_SHELL
export PATH := $(HOME)/.cargo/bin:$(PATH)
endif
CLANG_FORMAT ?= clang-format-19
.PHONY: build run test bench lint

# Debian packages by purpose. A target installs only the missing packages of its purpose.
BUILD := clang-19 gcc libelf-dev make pkg-config zlib1g-dev
LINT = $(BUILD) clang-format-19 python3 $(VENV)
# The tests create networks and firewalls, use ssh and TLS, and run MCP clients from npm and pip.
TEST = $(BUILD) curl fish iproute2 nftables openssh-client openssh-server openssl procps zsh $(CLIENTS)
# npm and Python's venv may come from any source.
CLIENTS = $(shell command -v npm >/dev/null || echo npm) $(VENV)
VENV = $(shell python3 -c 'import ensurepip, venv' 2>/dev/null || echo python3-venv)
BENCH = $(TEST) bpftrace tcpdump
NIX := nix-bin python3 systemd
# The replacements for nixpkgs' packages in builds of the flake, including the development shell.
SANDBOX = $(NIX) $(TEST) $(LINT) binutils bpftool ca-certificates patch util-linux xz-utils
GUESTS = $(TEST) binutils busybox-static kmod python3 qemu-system-x86 util-linux
# For guests with systemd.
SYSTEM := e2fsprogs mmdebstrap

build:
	@scripts/prerequisites $(BUILD)
	cargo build --release --locked

run: build
	scripts/run

# The unit tests run first alone, as in a Nix build.
test:
	@scripts/prerequisites $(TEST)
	cargo --config "target.'cfg(all())'.runner = 'tests/nix/sandboxed'" test --locked --lib --quiet
	cargo test --locked

# The page and the view of a chat, in Chromium.
.PHONY: page-test
page-test:
	@scripts/prerequisites $(TEST) chromium
	cargo test --locked --test page

# The faults that diagnose must name, and what it found: a table, and target/scenarios.csv with the F1 score of each.
.PHONY: scenarios
scenarios:
	@scripts/prerequisites $(TEST)
	cargo test --locked --test scenarios -- --nocapture

bench:
	@scripts/prerequisites $(BENCH)
	cargo bench --locked

lint:
	@scripts/prerequisites $(LINT)
	cargo fmt --check
	$(CLANG_FORMAT) --dry-run --Werror bpf/*.c bpf/*.h
	cargo clippy --locked --all-targets --test stock --test page -- -D warnings
	scripts/reproducible-bpf target/debug
	scripts/check-dependencies
	tests/vm/check-scripts

# Every parser of bytes from outside, for a minute each.
.PHONY: fuzz soak
FUZZ_SECONDS = 60
fuzz:
	@scripts/prerequisites $(BUILD)
	scripts/fuzz $(FUZZ_SECONDS)

# Fifty windows at once under load, for half an hour; the daemon must end with the resources that it started with.
SOAK_SECONDS = 1800
soak:
	@scripts/prerequisites $(TEST)
	NETMON_SOAK_SECONDS=$(SOAK_SECONDS) cargo test --release --locked --test suite soak -- --nocapture

# A hostile client for five minutes, under the units' memory limits, while another client must be unaffected.
ADVERSARY_SECONDS = 300
.PHONY: adversary
adversary:
	@scripts/prerequisites $(TEST)
	NETMON_SOAK_SECONDS=$(ADVERSARY_SECONDS) cargo test --release --locked --test adversary -- --nocapture

# Nix, over a stand-in for nixpkgs (tests/nix/stub), without nixpkgs and without a cache. nix-eval builds nothing.
# nix-build builds in a real sandbox: NIX_BUILD selects outputs of the flake, or `all`, which includes VM tests.
.PHONY: nix-eval nix-build nix-check
NIX_BUILD = fast
nix-eval:
	@scripts/prerequisites $(NIX)
	tests/nix/check

nix-build:
	@scripts/prerequisites $(SANDBOX)
	tests/nix/build $(NIX_BUILD)

nix-check: nix-eval
	@scripts/prerequisites $(GUESTS) $(SYSTEM)
	tests/nix/tools
	git ls-files -z '*.nix' | xargs -0 target/nix-tools/bin/nixfmt --check
	git ls-files -z '*.nix' | xargs -0 target/nix-tools/bin/deadnix --fail
	$(MAKE) nix-build NIX_BUILD=all

# Stock Debian kernels, booted under QEMU without KVM; KERNEL="5.10 6.18 7", or all. See tests/vm/driver. vm-service
# tests the installed service on two hosts with systemd; vm-table writes the last results to docs/kernels.md.
.PHONY: vm-prerequisites vm-test vm-service vm-table
vm-prerequisites:
	@scripts/prerequisites $(GUESTS)
vm-test: vm-prerequisites
	python3 tests/vm/driver $(KERNEL)
vm-service: vm-prerequisites
	@scripts/prerequisites $(SYSTEM)
	python3 tests/vm/driver --service $(KERNEL)
vm-table:
	python3 tests/vm/driver --table

# The image without Nix, and its two containers with the settings of compose.yaml.
.PHONY: oci-image oci-check
oci-image: build
	@scripts/prerequisites ca-certificates podman crun
	rm -rf target/oci
	packaging/oci/layout target/oci $(BUILT) /etc/ssl/certs/ca-certificates.crt
	packaging/oci/libraries target/oci
	podman build --quiet --tag netmon-mcp .

oci-check: oci-image
	@scripts/prerequisites python3-yaml
	python3 tests/oci/check.py

# The book of docs/, in target/book; and the picture of a real answer in README.md, which needs root.
.PHONY: docs picture
docs:
	@scripts/prerequisites gcc
	[ -x target/tools/bin/mdbook ] || cargo install --quiet --locked mdbook --root target/tools
	target/tools/bin/mdbook build docs

picture: build
	@scripts/prerequisites iproute2 $(VENV)
	scripts/picture

# Regenerates the files that tests compare; review the difference with git.
.PHONY: reviewed nix/options.md tests/nix/bpf-objects.txt
reviewed: nix/options.md tests/nix/bpf-objects.txt
	@scripts/prerequisites $(TEST)
	NETMON_REVIEW=1 cargo test --locked --test suite -- --exact protocol::every_tool_has_schemas_title_and_annotations \
		tidy::guest_test_list_is_up_to_date top::every_page_matches_its_reviewed_file top::screens_match_the_reviewed_files

nix/options.md:
	tests/nix/options >$@

tests/nix/bpf-objects.txt:
	@scripts/prerequisites bpftool binutils python3
	cargo build --locked --lib
	scripts/list-bpf "$$(dirname "$$(ls -t target/debug/build/netmon-mcp-*/out/top_traffic.rs | head -1)")" >$@

include packaging/install.mk
