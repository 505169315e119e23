{
  lib,
  stdenv,
  buildPackages,
  cacert,
  elfutils,
  pkg-config,
  rustPlatform,
  versionCheckHook,
  zlib,
  # Derivations that test this package: the VM tests of the flake. Not `tests`, which is a set of all of nixpkgs'.
  packageTests ? { },
  # The commit of this source, for `--version`.
  sourceRevision ? null,
}:
let
  manifest = (lib.importTOML ../Cargo.toml).package;
in
rustPlatform.buildRustPackage (finalAttrs: {
  pname = "netmon-mcp";
  inherit (manifest) version;

  outputs = [
    "out"
    # The BPF objects that netmond has built in.
    "bpf"
  ];

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
            ../packaging/oci
            ../tests/nix
            ../tests/oci
            ../tests/vm
          ]
        );
  };

  # Checksums come from Cargo.lock, so there is no vendor hash to refresh.
  cargoLock.lockFile = ../Cargo.lock;

  __structuredAttrs = true;
  strictDeps = true;
  nativeBuildInputs = [ pkg-config ];
  # libbpf, which libbpf-sys builds, needs these.
  buildInputs = [
    elfutils
    zlib
  ];

  # The unwrapped compiler: the wrapper adds hardening flags for the host, which the BPF target refuses. The programs
  # need no kernel header: bpf/kernel.h declares what they read, and libbpf's headers come with libbpf-sys.
  env = {
    CLANG = lib.getExe' buildPackages.llvmPackages.clang-unwrapped "clang";
  }
  // lib.optionalAttrs (sourceRevision != null) { NETMON_REVISION = sourceRevision; };

  postBuild = ''
    find target -name '*.bpf.o' -path '*/build/netmon-mcp-*' -exec install -D -m 644 -t "$bpf/share/bpf" {} +
  '';

  # Without the release profile, whose link-time optimization would run a third time for the test program.
  checkType = "debug";
  # The kernel tests need root and a kernel of their own (checks.vm-suite-*); these need neither.
  cargoTestFlags = [ "--lib" ];
  # The tests of OAuth make HTTPS clients, which do not start without a trust store.
  nativeCheckInputs = [ cacert ];
  postCheck = ''
    bash scripts/reproducible-bpf target
  '';

  # The units, the settings, and what the binaries print of themselves, as on other distributions.
  postInstall = ''
    make install-data PREFIX="$out" SYSCONFDIR="$out/etc"
  ''
  + lib.optionalString (stdenv.buildPlatform.canExecute stdenv.hostPlatform) ''
    make install-generated PREFIX="$out" BUILT="$out/bin"
  '';

  doInstallCheck = true;
  nativeInstallCheckInputs = [ versionCheckHook ];

  passthru.tests = packageTests;

  meta = {
    description = "MCP server that measures a Linux host's network in the kernel, with eBPF";
    license = with lib.licenses; [
      mit
      # The BPF programs: MIT or GPL 2.0, as the kernel's helpers require.
      gpl2Only
    ];
    maintainers = [ ];
    # In this source, until the project has an address.
    changelog = "file://${toString ../CHANGELOG.md}";
    mainProgram = "netmon-mcp";
    platforms = [
      "x86_64-linux"
      "aarch64-linux"
    ];
  }
  // lib.optionalAttrs (manifest ? repository) {
    homepage = manifest.repository;
    changelog = "${manifest.repository}/blob/v${finalAttrs.version}/CHANGELOG.md";
  };
})
