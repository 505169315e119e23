# The front door where there is no Nix. See README.md.
export PATH := $(HOME)/.cargo/bin:$(PATH)
.PHONY: build run test bench lint nix-eval nix-check
PREREQUISITES := clang-19 clang-format-19 gcc libelf-dev make nftables pkg-config iproute2 zlib1g-dev openssh-client openssh-server \
	curl openssl procps
# Other people's MCP clients, for the tests: from wherever npm and Python's venv come.
PREREQUISITES += $(shell command -v npm >/dev/null || echo npm)
PREREQUISITES += $(shell python3 -c 'import ensurepip, venv' 2>/dev/null || echo python3-venv)

# Installs what is missing; says what to do where it may not.
prerequisites: ; @scripts/prerequisites $(PREREQUISITES)

build: prerequisites
	cargo build --release --locked

run: build
	scripts/run

test: prerequisites
	cargo test --locked

bench: prerequisites
	@scripts/prerequisites bpftrace tcpdump
	cargo bench --locked

lint: prerequisites
	@scripts/prerequisites python3
	cargo fmt --check
	clang-format-19 --dry-run --Werror bpf/*.c bpf/*.h
	cargo clippy --locked --all-targets --test stock -- -D warnings
	scripts/reproducible-bpf target/debug
	scripts/check-dependencies

# Every parser of bytes from outside, a minute each.
.PHONY: fuzz soak
FUZZ_SECONDS = 60
fuzz: prerequisites
	scripts/fuzz $(FUZZ_SECONDS)

# Fifty windows at once under load, for half an hour; then the daemon must hold what it held before.
SOAK_SECONDS = 1800
soak: prerequisites
	NETMON_SOAK_SECONDS=$(SOAK_SECONDS) cargo test --release --locked --test suite soak -- --nocapture

# The Nix files, over a stand-in for nixpkgs: nothing is built, and neither nixpkgs nor a network is needed.
nix-eval:
	@scripts/prerequisites nix-bin python3 systemd
	tests/nix/check

nix-check:
	@scripts/prerequisites $(PREREQUISITES) nix-bin python3 systemd
	tests/nix/check whole
	tests/nix/tools
	git ls-files -z '*.nix' | xargs -0 target/nix-tools/bin/nixfmt --check
	git ls-files -z '*.nix' | xargs -0 target/nix-tools/bin/deadnix --fail

# Stock Debian kernels, booted under QEMU without KVM; KERNEL="5.10 6.18 7", or all. See tests/vm/driver.
# vm-service tests the installed service on two hosts with systemd; vm-table puts the last results in the README.
.PHONY: vm-prerequisites vm-test vm-service vm-table
vm-prerequisites: prerequisites
	@scripts/prerequisites binutils busybox-static kmod python3 qemu-system-x86 util-linux
vm-test: vm-prerequisites
	python3 tests/vm/driver $(KERNEL)
vm-service: vm-prerequisites
	@scripts/prerequisites e2fsprogs mmdebstrap
	python3 tests/vm/driver --service $(KERNEL)
vm-table:
	python3 tests/vm/driver --readme

# The image for those without Nix, and its two containers run with what compose.yaml gives them.
.PHONY: oci-image oci-check
oci-image: build
	@scripts/prerequisites podman crun
	packaging/oci/layout target/oci $(BUILT)
	podman build --quiet --tag netmon-mcp .

oci-check: oci-image
	@scripts/prerequisites python3-yaml
	python3 tests/oci/check.py

.PHONY: nix/options.md
nix/options.md:
	tests/nix/options >$@

include packaging/install.mk
