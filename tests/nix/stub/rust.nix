# `buildRustPackage`: crates are fixed-output derivations by the checksums of Cargo.lock. Their compiled form is a
# separate derivation, so a change of our code does not recompile them.
{
  lib,
  mkDerivation,
  runCommand,
  system,
  rust,
}:
let
  # From /crates, where the sandbox mounts the result of `cargo fetch`.
  fetch =
    crate:
    let
      file = "${crate.name}-${crate.version}.crate";
    in
    derivation {
      name = file;
      inherit system;
      builder = "/bin/bash";
      args = [
        "-c"
        "/bin/cp /crates/${file} $out || exit 1; exit 0"
      ];
      outputHashMode = "flat";
      outputHashAlgo = "sha256";
      outputHash = crate.checksum;
    };
  vendor =
    lock:
    let
      locked = lib.filter (crate: crate ? checksum) (lib.importTOML lock).package;
    in
    runCommand "cargo-vendor"
      {
        crates = map fetch locked;
        folders = map (crate: "${crate.name}-${crate.version}") locked;
        checksums = map (crate: crate.checksum) locked;
      }
      ''
        mkdir -p $out
        for i in "''${!crates[@]}"; do
          tar -xf "''${crates[$i]}" -C $out
          echo "{\"files\":{},\"package\":\"''${checksums[$i]}\"}" >"$out/''${folders[$i]}/.cargo-checksum.json"
        done
      '';
  toolchain = attributes: {
    nativeBuildInputs = [ rust ] ++ attributes.nativeBuildInputs or [ ];
    phaseHook = ./cargo.sh;
    # A development build instead of a release: it proves that the package builds, in a fifth of the time.
    cargoProfile = "dev";
    cargoBuildFlags = attributes.cargoBuildFlags or [ ];
    cargoTestFlags = attributes.cargoTestFlags or [ ];
    checkFlags = attributes.checkFlags or [ ];
  };
  # All compiled dependencies: the package itself is empty here.
  compiled =
    attributes: lock: cargoDeps:
    let
      toml = dirOf lock + "/Cargo.toml";
      manifest = lib.importTOML toml;
      programs = map (target: target.path) (
        manifest.bin or [ ] ++ manifest.test or [ ] ++ manifest.bench or [ ]
      );
    in
    mkDerivation (
      {
        name = "${attributes.pname}-dependencies";
        inherit cargoDeps;
        inherit (attributes) buildInputs;
        # The revision changes with every commit, the crates do not.
        env = removeAttrs attributes.env [ "NETMON_REVISION" ];
        src = runCommand "empty" { files = programs ++ [ manifest.package.build ]; } ''
          mkdir -p $out/src
          touch $out/src/lib.rs
          cp ${builtins.path { path = lock; }} $out/Cargo.lock
          cp ${builtins.path { path = toml; }} $out/Cargo.toml
          for file in "''${files[@]}"; do
            mkdir -p "$(dirname "$out/$file")"
            echo 'fn main() {}' >"$out/$file"
          done
        '';
        buildPhase = ''
          cargo build $cargoOptions
          cargo test $cargoOptions --lib --no-run
          cargo clean --offline --locked --profile $cargoProfile --package ${attributes.pname}
        '';
        # With the timestamps that cargo compares.
        installPhase = "tar -cf $out target";
        fixupPhase = "true";
      }
      // toolchain { inherit (attributes) nativeBuildInputs; }
    );
in
{
  buildRustPackage =
    argument:
    mkDerivation (
      self:
      let
        attributes = if builtins.isFunction argument then argument self else argument;
        lock = attributes.cargoLock.lockFile;
        cargoDeps = vendor lock;
      in
      {
        doCheck = true;
        cargoDependencies = compiled attributes lock cargoDeps;
        inherit cargoDeps;
      }
      // removeAttrs attributes [ "cargoLock" ]
      // toolchain attributes
    );
}
