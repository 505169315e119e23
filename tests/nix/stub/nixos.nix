# The part of NixOS that the module and the tests configure, and its rendering of units.
{ pkgs }:
{
  lib,
  config,
  extendModules,
  ...
}:
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

  # NixOS renders these as directives of [Unit].
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
      enable = option types.bool true;
      unitConfig = directives;
      wantedBy = option strings [ ];
      restartTriggers = option (types.listOf types.anything) [ ];
    }
    // builtins.mapAttrs (_: _: option strings [ ]) relations
    // sections;
  };
  service = unit {
    environment = option anything { };
    path = option (types.listOf types.package) [ ];
    serviceConfig = directives;
    stopIfChanged = option types.bool true;
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
            Environment = lib.mapAttrsToList (key: value: "\"${key}=${toString value}\"") (
              { PATH = lib.makeBinPath (u.path ++ [ pkgs.coreutils ]); } // u.environment
            );
          }
          // lib.optionalAttrs (!u.stopIfChanged) { X-StopIfChanged = false; }
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
  etc =
    { config, ... }:
    {
      options = {
        text = option (types.nullOr types.lines) null;
        source = option types.path (pkgs.writeText "etc" config.text);
        mode = option types.str "symlink";
      };
    };
in
{
  options = {
    assertions = option (types.listOf types.anything) [ ];
    warnings = option strings [ ];
    boot.kernelPackages = option types.anything pkgs.linuxPackages;
    environment = {
      etc = option (types.attrsOf (types.submodule etc)) { };
      systemPackages = option (types.listOf types.package) [ ];
    };
    networking = {
      firewall = {
        enable = option types.bool true;
        allowedTCPPorts = option (types.listOf types.port) [ ];
      };
      hostName = option types.str "";
      hosts = option (types.attrsOf strings) { };
      nftables.enable = option types.bool false;
    };
    services.openssh = {
      enable = option types.bool false;
      settings = option anything { };
    };
    programs.ssh.package = option types.package pkgs.openssh;
    security.pki.certificateFiles = option (types.listOf types.path) [ ];
    specialisation = option (types.attrsOf types.anything) { };
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
    environment.etc."ssl/certs/ca-certificates.crt".source = pkgs.runCommand "certificates" {
      files = [ "${pkgs.cacert}/etc/ssl/certs/ca-bundle.crt" ] ++ config.security.pki.certificateFiles;
    } "cat \"\${files[@]}\" >$out";
    # Like NixOS: a failed assertion shows when the system is built.
    system.build.toplevel =
      let
        failed = lib.filter (a: !a.assertion) config.assertions;
        used = [
          config.networking
          config.virtualisation
        ];
      in
      if failed != [ ] then
        throw "Failed assertions: ${lib.concatMapStringsSep "; " (a: a.message) failed}"
      else
        builtins.deepSeq used (
          pkgs.runCommand "nixos-system" {
            nativeBuildInputs = [ pkgs.python3 ];
            switch = "${./switch.py}";
            units = lib.mapAttrs (_: unit: unit.text) config.systemd.units;
            wanted =
              lib.mapAttrs' (name: u: lib.nameValuePair "${name}.service" u.wantedBy) config.systemd.services
              // lib.mapAttrs' (name: u: lib.nameValuePair "${name}.socket" u.wantedBy) config.systemd.sockets;
            etc = lib.mapAttrs (_: file: { inherit (file) source mode; }) config.environment.etc;
            packages = config.environment.systemPackages;
            accounts = {
              inherit (config.users) groups;
              users = lib.mapAttrs (_: user: { inherit (user) isNormalUser extraGroups; }) config.users.users;
            };
            inherit (config.networking) hosts hostName;
            firewall = lib.optionals config.networking.firewall.enable (
              config.networking.firewall.allowedTCPPorts ++ lib.optional config.services.openssh.enable 22
            );
            hasFirewall = config.networking.firewall.enable;
            hasSsh = config.services.openssh.enable;
            specialisations = lib.mapAttrs (
              _: other:
              (extendModules {
                modules = [
                  { specialisation = lib.mkForce { }; }
                  other.configuration
                ];
              }).config.system.build.toplevel
            ) config.specialisation;
          } "python3 ${./system.py}"
        );
  };
}
