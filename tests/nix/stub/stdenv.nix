# Builds: `mkDerivation` with the phases of nixpkgs (setup.sh), over this machine's programs. Each package finds only
# its declared inputs. The sandbox has all of /usr, but none of its programs is in PATH and none of its libraries is
# found.
{ lib, system }:
let
  # A program of this machine, under its nixpkgs package name.
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

  # stdenv's default inputs.
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
        # Links the contents of the build inputs, and adds their paths.
        for compiler in cc:gcc gcc:gcc c++:g++ g++:g++; do
          /usr/bin/printf '#!/bin/bash\nexec /usr/bin/%s "$@" $NIX_LDFLAGS\n' "''${compiler#*:}" >"$out/bin/''${compiler%:*}"
          /bin/chmod +x "$out/bin/''${compiler%:*}"
        done
      '';

  # The attributes that are not for the builder.
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
