# Placeholder packages: real derivations, so that outputs have the right types, which build nothing.
{ lib, system }:
let
  derive =
    attributes:
    derivation {
      name =
        attributes.name
          or (attributes.pname + lib.optionalString (attributes ? version) "-${attributes.version}");
      inherit system;
      builder = "/bin/sh";
      args = [
        "-c"
        "mkdir $out"
      ];
      # What the real derivation would depend on is evaluated.
      wants = builtins.toJSON (removeAttrs attributes [ "passthru" ]);
    }
    // builtins.intersectAttrs {
      pname = null;
      src = null;
      version = null;
    } attributes
    // {
      meta = attributes.meta or { };
      overrideAttrs = f: derive (attributes // f attributes);
    };
  package =
    name:
    derive {
      inherit name;
      meta.mainProgram = name;
    };
  kernel = version: {
    kernel = package "linux" // {
      inherit version;
    };
  };
  callPackage =
    f: arguments:
    let
      function = if builtins.isFunction f then f else import f;
      wanted = builtins.functionArgs function;
      missing = builtins.filter (name: !wanted.${name} && !(pkgs ? ${name}) && !(arguments ? ${name})) (
        builtins.attrNames wanted
      );
    in
    if missing != [ ] then
      throw "callPackage: no package named ${toString missing}"
    else
      function (builtins.intersectAttrs wanted pkgs // arguments);

  pkgs = {
    inherit callPackage lib system;
    stdenv = {
      hostPlatform = { inherit system; };
      buildPlatform = {
        inherit system;
        canExecute = _: true;
      };
    };
    buildPackages = pkgs;
    dockerTools = {
      streamLayeredImage = derive;
      buildLayeredImage = derive;
    };
    formats.toml = _: {
      type = lib.types.attrsOf lib.types.anything // {
        description = "TOML value";
      };
      generate = name: value: builtins.toFile name (builtins.toJSON value);
    };
    linuxPackages = kernel "6.18.30";
    linuxPackages_6_1 = kernel "6.1.170";
    linuxPackages_6_6 = kernel "6.6.130";
    linuxPackages_6_12 = kernel "6.12.80";
    linuxPackages_latest = kernel "7.0.10";
    llvmPackages.clang-unwrapped = package "clang";
    mkShell = attributes: derive ({ name = "nix-shell"; } // attributes);
    runCommand =
      name: attributes: script:
      derive (attributes // { inherit name script; });
    rustPlatform.buildRustPackage =
      attributes: builtins.seq (builtins.readFile attributes.cargoLock.lockFile) (derive attributes);
    testers.runNixOSTest = import ./nixos-test.nix { inherit lib pkgs derive; };
    writeText = builtins.toFile;
    writeScriptBin = name: _: package name;
    writeShellScriptBin = name: _: package name;
  }
  // lib.genAttrs [
    "bpftools"
    "cargo"
    "clang-tools"
    "clippy"
    "coreutils"
    "curl"
    "deadnix"
    "elfutils"
    "iproute2"
    "iputils"
    "jq"
    "nftables"
    "nixfmt"
    "nixfmt-tree"
    "openssh"
    "pkg-config"
    "python3"
    "rustc"
    "rustfmt"
    "zlib"
  ] package;
in
pkgs
