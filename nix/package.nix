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
  # Derivations that test this package: the flake's VM tests. The name `tests` would collide with a set of nixpkgs.
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
    # The BPF objects inside netmond.
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
          ../docs/skills
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

  # Checksums come from Cargo.lock, so there is no vendor hash to update.
  cargoLock.lockFile = ../Cargo.lock;

  __structuredAttrs = true;
  strictDeps = true;
  nativeBuildInputs = [ pkg-config ];
  # Needed by libbpf, which libbpf-sys builds.
  buildInputs = [
    elfutils
    zlib
  ];

  # The unwrapped compiler: the wrapper adds hardening flags for the host, which the BPF target rejects. The programs
  # need no kernel headers: bpf/kernel.h declares the types, and libbpf's headers come with libbpf-sys.
  env = {
    CLANG = lib.getExe' buildPackages.llvmPackages.clang-unwrapped "clang";
  }
  // lib.optionalAttrs (sourceRevision != null) { NETMON_REVISION = sourceRevision; };

  postBuild = ''
    find target -name '*.bpf.o' -path '*/build/netmon-mcp-*' -exec install -D -m 644 -t "$bpf/share/bpf" {} +
  '';

  # Without the release profile: its link-time optimization would run a third time for the test program.
  checkType = "debug";
  # The kernel tests need root and their own kernel (checks.vm-suite-*); these tests need neither.
  cargoTestFlags = [ "--lib" ];
  # The OAuth tests create HTTPS clients, which require a trust store.
  nativeCheckInputs = [ cacert ];
  postCheck = ''
    bash scripts/reproducible-bpf target
  '';

  # The units, the settings, and the generated man pages and completions, as on other distributions.
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
      # The BPF programs: MIT or GPL 2.0, since the kernel's helpers require a GPL-compatible license.
      gpl2Only
    ];
    maintainers = [ ];
    # In this source, until the project has a public address.
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
