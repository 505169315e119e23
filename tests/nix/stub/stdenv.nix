# Builds: `mkDerivation` with the phases of nixpkgs' (setup.sh), over this machine's own programs. Each package has
# only what it names: of /usr, which the sandbox shows whole, no program is in PATH and no library is found.
{ lib, system }:
let
  # A program of this machine, under the name of the package that has it in nixpkgs.
  links = lib.concatMapStringsSep "\n" (
    program:
    let
      path = if lib.hasPrefix "/" program then program else "/usr/bin/${program}";
    in
    ''
      if [ -x ${path} ]; then
        /bin/ln -s ${path} "$out/bin/${baseNameOf program}"
      else
        echo "${path} is missing: see PREREQUISITES in the Makefile" >&2
        exit 1
      fi
    ''
  );
  host =
    name: programs: extra:
    derivation {
      inherit name system;
      builder = "/bin/bash";
      args = [
        "-euc"
        ''
          /bin/mkdir -p "$out/bin"
          ${links programs}
          ${extra}
          exit 0
        ''
      ];
    }
    // {
      meta = {
        mainProgram = baseNameOf (builtins.head (programs ++ [ name ]));
        description = name;
      };
    };

  # What stdenv gives every package.
  tools =
    host "stdenv-tools"
      (map (name: "/usr/bin/${name}") [
        "ar"
        "as"
        "awk"
        "bash"
        "cat"
        "chmod"
        "cmp"
        "cp"
        "cut"
        "date"
        "diff"
        "dirname"
        "basename"
        "env"
        "expr"
        "false"
        "find"
        "grep"
        "gzip"
        "head"
        "id"
        "install"
        "ld"
        "ln"
        "ls"
        "make"
        "mkdir"
        "mktemp"
        "mv"
        "nm"
        "nproc"
        "objcopy"
        "patch"
        "ranlib"
        "readelf"
        "readlink"
        "realpath"
        "rm"
        "rmdir"
        "sed"
        "seq"
        "sha256sum"
        "sh"
        "sleep"
        "sort"
        "strip"
        "tail"
        "tar"
        "tee"
        "test"
        "touch"
        "tr"
        "true"
        "uname"
        "uniq"
        "wc"
        "xargs"
        "xz"
      ])
      ''
        # Links what the build inputs have, and has it found where they are.
        for compiler in cc:gcc gcc:gcc c++:g++ g++:g++; do
          /usr/bin/printf '#!/bin/bash\nexec /usr/bin/%s "$@" $NIX_LDFLAGS\n' "''${compiler#*:}" >"$out/bin/''${compiler%:*}"
          /bin/chmod +x "$out/bin/''${compiler%:*}"
        done
      '';

  # The attributes that are not the builder's.
  apart = [
    "meta"
    "passthru"
  ];
  mkDerivation =
    argument:
    let
      final = if builtins.isFunction argument then argument self else argument;
      self = final // package;
      drv = derivation (
        {
          name = final.name or "${final.pname}-${final.version}";
          inherit system tools;
          builder = "/bin/bash";
          args = [ ./setup.sh ];
          __structuredAttrs = true;
          outputs = [ "out" ];
          env = { };
        }
        // removeAttrs final (apart ++ [ "__structuredAttrs" ])
      );
      more = {
        meta = final.meta or { };
        inherit overrideAttrs;
        src = final.src or null;
        finalPackage = package;
        passthru = final.passthru or { };
      }
      // builtins.intersectAttrs {
        pname = null;
        version = null;
      } final
      // final.passthru or { };
      overrideAttrs =
        f:
        mkDerivation (
          self:
          let
            before = if builtins.isFunction argument then argument self else argument;
          in
          before
          // (
            let
              change = f before;
            in
            if builtins.isFunction change then f self before else change
          )
        );
      package =
        drv
        // more
        // lib.genAttrs (final.outputs or [ "out" ]) (
          output: drv.${output} // { outputSpecified = true; } // removeAttrs more [ "overrideAttrs" ]
        );
    in
    package;
in
{
  inherit host mkDerivation tools;
  runCommand =
    name: attributes: script:
    mkDerivation (
      attributes
      // {
        inherit name;
        buildCommand = script;
      }
    );
}
