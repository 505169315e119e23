# Reads a unit of packaging/systemd as NixOS options, so that NixOS runs the same unit as `make install`.
#
# A host may override any directive without mkForce. A directive with one value is a default. A directive that systemd
# collects from several lines is a list, to which a host adds.
# `systemd.services.netmond.serviceConfig.AmbientCapabilities = [ "CAP_SYS_ADMIN" ]` adds a capability to the existing
# ones.
{ lib }:
{ name, type }:
let
  file = ../packaging/systemd/${name}.${type};
  section =
    {
      service = "Service";
      socket = "Socket";
    }
    .${type};

  # Directives of [Unit] with a NixOS option, besides Description: lists of words.
  options = {
    After = "after";
    Documentation = "documentation";
    Requires = "requires";
    Wants = "wants";
  };
  # systemd collects the values of all lines of these.
  collected = [
    "AmbientCapabilities"
    "CapabilityBoundingSet"
    "IPAddressDeny"
    "ListenStream"
    "RestrictAddressFamilies"
    "RuntimeDirectory"
    "SupplementaryGroups"
    "SystemCallFilter"
  ];

  value =
    text:
    if text == "true" then
      true
    else if text == "false" then
      false
    else
      text;

  # { Unit = { After = [ "network.target" ]; … }; … }: the values of each directive, in order.
  line =
    state: text:
    let
      header = builtins.match "\\[([A-Za-z]+)]" text;
      directive = builtins.match "([A-Za-z]+)=(.*)" text;
      key = builtins.head directive;
      current = state.sections.${state.current} or { };
    in
    if text == "" || lib.hasPrefix "#" text then
      state
    else if header != null then
      state // { current = builtins.head header; }
    else if directive != null then
      state
      // {
        sections = state.sections // {
          ${state.current} = current // {
            ${key} = current.${key} or [ ] ++ [ (value (lib.last directive)) ];
          };
        };
      }
    else
      throw "${toString file}: this line is not a directive: ${text}";
  unit =
    (lib.foldl' line {
      current = null;
      sections = { };
    } (lib.splitString "\n" (builtins.readFile file))).sections;

  words = lib.concatMap (lib.splitString " ");
  setting =
    key: values:
    if lib.elem key collected then
      lib.mkBefore values
    else if lib.length values == 1 then
      lib.mkDefault (lib.head values)
    else
      throw "${toString file}: ${key} stands here several times: add it to `collected` in nix/unit.nix";
  isOption = key: options ? ${key} || key == "Description";
in
{
  description = lib.mkDefault (lib.head unit.Unit.Description);
  wantedBy = words unit.Install.WantedBy;
  unitConfig = lib.mapAttrs setting (lib.filterAttrs (key: _: !isOption key) unit.Unit);
  "${type}Config" = lib.mapAttrs setting unit.${section};
}
// lib.mapAttrs' (key: values: lib.nameValuePair options.${key} (words values)) (
  lib.filterAttrs (key: _: options ? ${key}) unit.Unit
)
