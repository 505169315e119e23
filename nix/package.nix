{
  lib,
  stdenv,
  buildPackages,
  elfutils,
  pkg-config,
  rustPlatform,
  zlib,
}:
let
  manifest = (lib.importTOML ../Cargo.toml).package;
in
rustPlatform.buildRustPackage {
  pname = manifest.name;
  inherit (manifest) version;

  src = lib.fileset.toSource {
    root = ../.;
    fileset =
      lib.fileset.difference
        (lib.fileset.unions [
          ../Cargo.lock
          ../Cargo.toml
          ../Makefile
          ../bpf
          ../fuzz/parsers.rs
          ../fuzz/seeds
          ../packaging
          ../scripts
          ../src
          ../tests
        ])
        (
          lib.fileset.unions [
            ../tests/nix
            ../tests/oci
            ../tests/vm
          ]
        );
  };

  # Checksums come from Cargo.lock, so there is no vendor hash to refresh.
  cargoLock.lockFile = ../Cargo.lock;

  strictDeps = true;
  nativeBuildInputs = [ pkg-config ];
  # What libbpf, which libbpf-sys builds, wants of the host.
  buildInputs = [
    elfutils
    zlib
  ];

  # The unwrapped compiler: the wrapper adds hardening flags for the host, which the BPF target
  # refuses. It needs no header of libc or of a kernel, since bpf/kernel.h declares what is read.
  env.CLANG = lib.getExe' buildPackages.llvmPackages.clang-unwrapped "clang";

  # The kernel tests want root and a kernel of their own (tests/vm); these want neither.
  cargoTestFlags = [ "--lib" ];

  # The units, the settings, and what the binaries print of themselves, as on other distributions.
  postInstall = ''
    make install-data PREFIX="$out" SYSCONFDIR="$out/etc"
  ''
  + lib.optionalString (stdenv.buildPlatform.canExecute stdenv.hostPlatform) ''
    make install-generated PREFIX="$out" BUILT="$out/bin"
  '';

  meta = {
    inherit (manifest) description;
    license = lib.licenses.mit;
    platforms = lib.platforms.linux;
    mainProgram = "netmon-mcp";
  };
}
