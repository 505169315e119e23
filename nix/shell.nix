{
  lib,
  mkShell,
  bpftools,
  clang-tools,
  clippy,
  iproute2,
  llvmPackages,
  netmon-mcp,
  nftables,
  rustfmt,
}:
mkShell {
  # Everything that builds the package, and what tests and inspects it.
  inputsFrom = [ netmon-mcp ];
  packages = [
    bpftools
    clang-tools
    clippy
    iproute2
    nftables
    rustfmt
  ];
  env.CLANG = lib.getExe' llvmPackages.clang-unwrapped "clang";
}
