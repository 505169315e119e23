# The part of NixOS that the module and the tests configure, and how it writes units.
{ pkgs }:
{ lib, config, ... }:
let
  inherit (lib) mkOption types;
  option =
    type: default:
    mkOption {
      inherit type default;
    };
  anything = types.attrsOf types.anything;
  strings = types.listOf types.str;
  directives = option (types.attrsOf types.unitOption) { };

  # What NixOS makes of these is a directive of [Unit].
  relations = {
    after = "After";
    before = "Before";
    bindsTo = "BindsTo";
    requires = "Requires";
    wants = "Wants";
  };
  unit = sections: {
    options = {
      description = option types.str "";
      documentation = option strings [ ];
      unitConfig = directives;
      wantedBy = option strings [ ];
      stopIfChanged = option types.bool true;
      restartTriggers = option (types.listOf types.anything) [ ];
    }
    // builtins.mapAttrs (_: _: option strings [ ]) relations
    // sections;
  };
  service = unit {
    environment = option anything { };
    path = option (types.listOf types.package) [ ];
    serviceConfig = directives;
  };
  socket = unit {
    listenStreams = option strings [ ];
    socketConfig = directives;
  };

  text =
    value:
    if value == true then
      "true"
    else if value == false then
      "false"
    else
      toString value;
  section =
    name: set:
    "[${name}]\n"
    + lib.concatStringsSep "" (
      lib.concatLists (
        lib.mapAttrsToList (key: value: map (v: "${key}=${text v}\n") (lib.toList value)) set
      )
    );
  head =
    u:
    section "Unit" (
      lib.concatMapAttrs (
        name: key: lib.optionalAttrs (u.${name} != [ ]) { ${key} = toString u.${name}; }
      ) (relations // { documentation = "Documentation"; })
      // lib.optionalAttrs (u.description != "") { Description = u.description; }
      // u.unitConfig
    );
  install =
    u: lib.optionalString (u.wantedBy != [ ]) "\n[Install]\nWantedBy=${toString u.wantedBy}\n";
  services = lib.mapAttrs' (
    name: u:
    lib.nameValuePair "${name}.service" {
      text =
        head u
        + "\n"
        + section "Service" (
          {
            Environment = lib.mapAttrsToList (key: value: "\"${key}=${toString value}\"") u.environment;
          }
          // u.serviceConfig
        )
        + install u;
    }
  ) config.systemd.services;
  sockets = lib.mapAttrs' (
    name: u:
    lib.nameValuePair "${name}.socket" {
      text =
        head u
        + "\n"
        + section "Socket" ({ ListenStream = u.listenStreams; } // u.socketConfig)
        + install u;
    }
  ) config.systemd.sockets;
  user.options = {
    extraGroups = option strings [ ];
    isNormalUser = option types.bool false;
    openssh.authorizedKeys = {
      keys = option strings [ ];
      keyFiles = option (types.listOf types.path) [ ];
    };
  };
  group.options.members = option strings [ ];
in
{
  options = {
    assertions = option (types.listOf types.anything) [ ];
    warnings = option strings [ ];
    boot.kernelPackages = option types.anything pkgs.linuxPackages;
    environment = {
      etc = option (types.attrsOf anything) { };
      systemPackages = option (types.listOf types.package) [ ];
    };
    networking = {
      firewall = {
        enable = option types.bool true;
        allowedTCPPorts = option (types.listOf types.port) [ ];
      };
      hostName = option types.str "";
      nftables.enable = option types.bool false;
    };
    services.openssh = {
      enable = option types.bool false;
      settings = option anything { };
    };
    specialisation = option anything { };
    systemd = {
      services = option (types.attrsOf (types.submodule service)) { };
      sockets = option (types.attrsOf (types.submodule socket)) { };
      units = option types.anything { };
    };
    users = {
      users = option (types.attrsOf (types.submodule user)) { };
      groups = option (types.attrsOf (types.submodule group)) { };
    };
    virtualisation = {
      cores = option types.int 1;
      memorySize = option types.int 1024;
      vlans = option (types.listOf types.int) [ 1 ];
    };
    system = {
      build = option anything { };
      switch.enable = option types.bool false;
    };
  };
  config = {
    systemd.units = services // sockets;
    # As NixOS does: an assertion that fails is found when the system is built.
    system.build.toplevel =
      let
        failed = lib.filter (a: !a.assertion) config.assertions;
      in
      if failed != [ ] then
        throw "Failed assertions: ${lib.concatMapStringsSep "; " (a: a.message) failed}"
      else
        builtins.deepSeq [
          config.systemd
          config.environment
          config.networking
          config.services.openssh
          config.users
          config.virtualisation
        ] (pkgs.writeText "nixos-system" "");
  };
}
