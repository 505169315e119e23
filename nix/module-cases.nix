# Hosts that use the module in different ways, and the expected results. A wrong case fails the evaluation, with its
# name.
{
  lib,
  pkgs,
  module,
  nixosSystem,
  overlay,
}:
let
  inherit (pkgs.stdenv.hostPlatform) system;
  host =
    configuration:
    (nixosSystem {
      inherit system;
      modules = [
        module
        {
          services.netmon-mcp.enable = true;
          services.netmon-mcp.http.enable = true;
        }
        configuration
      ];
    }).config;
  netmond = configuration: (host configuration).systemd.services.netmond;
  gateway = configuration: (host configuration).systemd.services.netmon-mcp;
  directive =
    name: configuration:
    lib.toList ((gateway { services.netmon-mcp = configuration; }).serviceConfig.${name} or [ ]);
  credentials = directive "LoadCredential";
  has = lib.elem;
  # The module's failed assertions for a host.
  faults =
    config: lib.filter (it: !it.assertion && lib.hasInfix "netmon-mcp" it.message) config.assertions;

  cases = {
    "the package of the overlay has the tests of its caller only" =
      let
        final = pkgs // overlay final pkgs;
      in
      final.netmon-mcp.tests == { };

    "a second import of the module changes nothing" =
      (host { imports = [ module ]; }).services.netmon-mcp.package == (host { })
      .services.netmon-mcp.package;

    "a host adds a dependency without mkForce" =
      let
        unit = netmond { systemd.services.netmond.after = [ "nftables.service" ]; };
      in
      has "nftables.service" unit.after && has "netmond.socket" unit.after;

    "a host changes a description without mkForce" =
      lib.hasInfix "Description=mine"
        (host { systemd.services.netmond.description = "mine"; }).systemd.units."netmond.service".text;

    "a host changes a directive without mkForce" =
      (netmond { systemd.services.netmond.serviceConfig.MemoryMax = "1G"; }).serviceConfig.MemoryMax
      == "1G";

    "a host adds a capability to those of the unit" =
      let
        unit = netmond {
          systemd.services.netmond.serviceConfig.AmbientCapabilities = [ "CAP_SYS_ADMIN" ];
        };
      in
      unit.serviceConfig.AmbientCapabilities == [
        "CAP_BPF CAP_NET_ADMIN CAP_PERFMON"
        "CAP_SYS_ADMIN"
      ];

    "a host adds a credential and the tokens stay" =
      let
        unit = gateway {
          services.netmon-mcp.http.tokenFile = "/run/secrets/tokens";
          systemd.services.netmon-mcp.serviceConfig.LoadCredential = [ "more:/run/secrets/more" ];
        };
      in
      has "tokens:/run/secrets/tokens" unit.serviceConfig.LoadCredential
      && has "more:/run/secrets/more" unit.serviceConfig.LoadCredential;

    "TLS files are credentials" =
      credentials {
        http.tls = {
          certificate = "/var/lib/acme/c";
          key = "/var/lib/acme/k";
        };
      } == [
        "tls-certificate:/var/lib/acme/c"
        "tls-key:/var/lib/acme/k"
      ];

    "a host's token is a credential" =
      credentials {
        hosts.db = {
          target = "https://db/mcp";
          tokenFile = "/run/secrets/db";
        };
      } == [ "host-token-db:/run/secrets/db" ];

    "ssh is in the path where a host needs it, and only there" =
      let
        path = target: (gateway { services.netmon-mcp.hosts.web = { inherit target; }; }).path;
        openssh = (host { }).programs.ssh.package;
      in
      has openssh (path "ssh:root@web") && !has openssh (path "https://web/mcp");

    "an upgrade restarts the services and stops none" =
      !(netmond { }).stopIfChanged && !(gateway { }).stopIfChanged;

    "OAuth suffices beyond loopback" =
      faults (host {
        services.netmon-mcp.http = {
          address = "0.0.0.0";
          oauth = {
            issuer = "https://as.example.org";
            audience = "https://netmon.example.org/mcp";
          };
        };
      }) == [ ];
  };
  failed = lib.attrNames (lib.filterAttrs (_: holds: !holds) cases);
in
if failed != [ ] then
  throw "the module does not hold: ${lib.concatStringsSep "; " failed}"
else
  pkgs.writeText "netmon-mcp-module-cases" (lib.concatStringsSep "\n" (lib.attrNames cases))
