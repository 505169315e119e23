# Every program that `make` runs, on any distribution. IN_NIX_SHELL keeps `make` from installing anything.
{
  lib,
  mkShell,
  bpftools,
  clang-tools,
  clippy,
  curl,
  fish,
  iproute2,
  llvmPackages,
  netmon-mcp,
  nftables,
  nodejs,
  openssh,
  openssl,
  procps,
  python3,
  rustfmt,
  util-linux,
  zsh,
}:
mkShell {
  # The build inputs of the package, and its test and inspection tools.
  inputsFrom = [ netmon-mcp ];
  packages = [
    bpftools
    clang-tools
    clippy
    curl
    fish
    iproute2
    nftables
    nodejs
    openssh
    openssl
    procps
    python3
    rustfmt
    util-linux
    zsh
  ];
  env = {
    CLANG = lib.getExe' llvmPackages.clang-unwrapped "clang";
    CLANG_FORMAT = "clang-format";
  };
}
