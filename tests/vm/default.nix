# NixOS VM tests: every other *.nix of this folder is a set of them, by name.
{ self, pkgs }:
let
  inherit (pkgs) lib;
  files = lib.filter (file: lib.hasSuffix ".nix" file && file != "default.nix") (
    builtins.attrNames (builtins.readDir ./.)
  );
  load = file: import (./. + "/${file}") { inherit self pkgs; };
in
lib.mapAttrs' (name: lib.nameValuePair "vm-${name}") (
  lib.foldl' (all: file: all // load file) { } files
)
