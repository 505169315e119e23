# The packages that this flake uses. Our own are built (stdenv.nix, rust.nix, docker.nix). The others are this machine's
# programs under their nixpkgs names.
{ lib, system }:
let
  inherit (import ./stdenv.nix { inherit lib system; }) host mkDerivation runCommand;

  # A library: its headers, its libraries, and its pkg-config file.
  library =
    pname: headers: files:
    host pname [ ] ''
      /bin/mkdir -p "$out/include" "$out/lib/pkgconfig"
      cd /usr/include && /bin/cp -r ${headers} "$out/include"
      cd /usr/lib/x86_64-linux-gnu && /bin/cp -d ${files} "$out/lib"
      for file in "$out"/lib/*.so; do /bin/ln -sf "''${file##*/}.1" "$file"; done
      /bin/sed "s#^prefix=.*#prefix=$out#; s#^libdir=.*#libdir=$out/lib#" pkgconfig/${pname}.pc >"$out/lib/pkgconfig/${pname}.pc"
    '';
  # A package's additions to the builds that depend on it.
  setupHook =
    name: script:
    host name [ ] ''
      /bin/mkdir "$out/nix-support"
      /bin/cat >"$out/nix-support/setup-hook" <<'END'
      ${script}
      END
    '';

  # The kernel series of NixOS, each with the Debian kernel that replaces it in guests (tests/vm/driver/kernels.py).
  kernel = version: debian: {
    kernel = host "linux" [ ] "" // {
      inherit version debian;
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
  platform = {
    inherit system;
    canExecute = _: true;
    isLinux = true;
  };
  write =
    name: text: mode: target:
    runCommand name { inherit text; } ''
      mkdir -p "$(dirname "$out${target}")"
      printf %s "$text" >"$out${target}"
      chmod ${mode} "$out${target}"
    ''
    // {
      meta.mainProgram = name;
    };
  rust = host "rust" (map (name: "/toolchain/bin/${name}") [
    "cargo"
    "cargo-clippy"
    "cargo-fmt"
    "clippy-driver"
    "rustc"
    "rustfmt"
  ]) "";

  pkgs = {
    inherit
      callPackage
      lib
      mkDerivation
      runCommand
      system
      ;
    stdenv = {
      inherit mkDerivation;
      hostPlatform = platform;
      buildPlatform = platform;
    };
    buildPackages = pkgs;
    dockerTools = import ./docker.nix { inherit runCommand; };
    formats.toml = _: {
      type = lib.types.attrsOf lib.types.anything // {
        description = "TOML value";
        class = "conjunction";
      };
      generate =
        name: value:
        runCommand name {
          text = builtins.toJSON value;
          nativeBuildInputs = [ pkgs.python3 ];
        } "python3 ${./toml.py} >$out <<<\"$text\"";
    };
    rustPlatform = import ./rust.nix {
      inherit
        lib
        mkDerivation
        runCommand
        rust
        system
        ;
    };
    cargo = rust;
    clippy = rust;
    rustc = rust;
    rustfmt = rust;
    mkShell =
      {
        inputsFrom ? [ ],
        packages ? [ ],
        env ? { },
        ...
      }@attributes:
      mkDerivation (
        removeAttrs attributes [
          "inputsFrom"
          "packages"
        ]
        // {
          name = attributes.name or "nix-shell";
          inherit env;
          nativeBuildInputs = packages ++ lib.concatMap (input: input.nativeBuildInputs or [ ]) inputsFrom;
          buildInputs = lib.concatMap (input: input.buildInputs or [ ]) inputsFrom;
          phases = [ "buildPhase" ];
          buildPhase = "export >$out";
        }
      );
    # Like nixpkgs, where an argument of this name receives all of nixpkgs' tests.
    tests.everything = throw "every test of nixpkgs";
    testers.runNixOSTest = import ./nixos-test.nix { inherit lib pkgs; };
    writeText = name: text: write name text "644" "";
    writeScript = name: text: write name text "755" "";
    writeScriptBin = name: text: write name text "755" "/bin/${name}";
    writeShellScriptBin = name: text: write name "#!/bin/bash\n${text}\n" "755" "/bin/${name}";

    elfutils = library "libelf" "libelf.h gelf.h nlist.h elfutils" "libelf*.so*";
    zlib = library "zlib" "zlib.h zconf.h" "libz.so*";
    cacert = host "cacert" [ ] ''
      /bin/mkdir -p "$out/etc/ssl/certs" "$out/nix-support"
      /bin/cat /usr/share/ca-certificates/mozilla/*.crt >"$out/etc/ssl/certs/ca-bundle.crt"
      echo "export NIX_SSL_CERT_FILE=$out/etc/ssl/certs/ca-bundle.crt SSL_CERT_FILE=$out/etc/ssl/certs/ca-bundle.crt" >"$out/nix-support/setup-hook"
    '';
    versionCheckHook = setupHook "version-check-hook" ''
      versionCheck() { env -i "''${versionCheckProgram:-$out/bin/''${mainProgram:-$pname}}" --version | grep -F "$version"; }
      preInstallCheckHooks+=(versionCheck)
    '';

    linuxPackages = kernel "6.18.30" "6.18";
    linuxPackages_5_10 = kernel "5.10.250" "5.10";
    linuxPackages_5_15 = kernel "5.15.200" null;
    linuxPackages_6_1 = kernel "6.1.170" "6.1";
    linuxPackages_6_6 = kernel "6.6.130" null;
    linuxPackages_6_12 = kernel "6.12.80" "6.12";
    linuxPackages_6_18 = pkgs.linuxPackages;
    linuxPackages_latest = kernel "7.0.10" "7";

    bpftools = host "bpftools" [ "/usr/sbin/bpftool" ] "";
    clang-tools = host "clang-tools" [ ] "/bin/ln -s /usr/bin/clang-format-19 $out/bin/clang-format";
    coreutils = host "coreutils" [ "ls" ] "";
    curl = host "curl" [ "curl" ] "";
    deadnix = host "deadnix" [ "/nix-tools/bin/deadnix" ] "";
    fish = host "fish" [ "fish" ] "";
    iproute2 = host "iproute2" [ "/usr/sbin/ip" ] "";
    iputils = host "iputils" [ "ping" ] "";
    jq = host "jq" [ "jq" ] "";
    llvmPackages.clang-unwrapped = host "clang" [ "/usr/lib/llvm-19/bin/clang" ] "";
    nftables = host "nftables" [ "/usr/sbin/nft" ] "";
    nixfmt = host "nixfmt" [ "/nix-tools/bin/nixfmt" ] "";
    nixfmt-tree = pkgs.nixfmt;
    nodejs = host "nodejs" [ "node" "npm" ] "";
    openssh = host "openssh" [
      "ssh"
      "ssh-keygen"
      "/usr/sbin/sshd"
    ] "";
    openssl = host "openssl" [ "openssl" ] ''
      /bin/mkdir "$out/etc" "$out/nix-support"
      printf '[req]\ndistinguished_name = name\n[name]\n' >"$out/etc/openssl.cnf"
      echo "export OPENSSL_CONF=$out/etc/openssl.cnf" >"$out/nix-support/setup-hook"
    '';
    pkg-config = host "pkg-config" [ "pkg-config" ] "";
    procps = host "procps" [ "ps" ] "";
    python3 = host "python3" [ "python3" ] "";
    util-linux = host "util-linux" [
      "setpriv"
      "setsid"
    ] "";
    zsh = host "zsh" [ "zsh" ] "";
  };
in
pkgs
