# The front door where there is no Nix. See README.md.
export PATH := $(HOME)/.cargo/bin:$(PATH)
.PHONY: run test bench lint install
PREREQUISITES := clang-19 clang-format-19 gcc libelf-dev make nftables pkg-config iproute2 zlib1g-dev

# Installs what is missing; says what to do where it may not.
prerequisites: ; @scripts/prerequisites $(PREREQUISITES)

run: prerequisites
	cargo build --release --locked
	scripts/run

test: prerequisites
	cargo test --locked

lint: prerequisites
	cargo fmt --check
	clang-format-19 --dry-run --Werror bpf/*.c bpf/*.h
	cargo clippy --locked --all-targets -- -D warnings
