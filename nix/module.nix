{
  config,
  lib,
  pkgs,
  ...
}:
let
  cfg = config.services.netmon-mcp;
  inherit (lib) mkOption types;
  toml = pkgs.formats.toml { };
  readUnit = import ./unit.nix { inherit lib; };

  # Only a socket on this host is within reach of this host's users alone.
  isLocal = address: lib.hasPrefix "127." address || address == "::1" || address == "localhost";
  endpoint =
    if lib.hasInfix ":" cfg.http.address then
      "[${cfg.http.address}]:${toString cfg.http.port}"
    else
      "${cfg.http.address}:${toString cfg.http.port}";

  # Checked when the system is built, so that a mistake does not wait for the restart.
  settings = pkgs.runCommand "netmon.toml" { } ''
    cp ${toml.generate "netmon.toml" cfg.settings} $out
    ${lib.optionalString (pkgs.stdenv.buildPlatform.canExecute pkgs.stdenv.hostPlatform) ''
      ${lib.getExe cfg.package} --config $out --check-config
    ''}
  '';

  # A unit as `make install` installs it, with what differs here. Every directive is a default, so
  # that a host may override it without mkForce.
  fromPackaged =
    name: type: section: differences:
    let
      packaged = readUnit ../packaging/systemd/${name}.${type};
    in
    {
      unitConfig = packaged.Unit;
      wantedBy = lib.splitString " " packaged.Install.WantedBy;
      "${type}Config" = lib.mapAttrs (_: lib.mkDefault) (packaged.${section} // differences);
    };
  service = name: fromPackaged name "service" "Service";
in
{
  options.services.netmon-mcp = {
    enable = lib.mkEnableOption "netmond, which measures this host's network with eBPF, and netmon-mcp, which answers over MCP";

    package = lib.mkPackageOption pkgs "netmon-mcp" { };

    users = mkOption {
      type = types.listOf types.str;
      default = [ ];
      example = [ "alice" ];
      description = ''
        Users who may ask netmond, besides root: they become members of the group `netmon`. Whoever may
        ask sees the connections, the processes and the DNS names of the whole host.
      '';
    };

    without = mkOption {
      type = types.listOf types.str;
      default = [ ];
      example = [ "trace_dns" ];
      description = "Tools to leave out. Their eBPF programs are not even loaded.";
    };

    settings = mkOption {
      inherit (toml) type;
      default = { };
      example = lib.literalExpression "{ http.max_calls = 16; }";
      description = ''
        The contents of `/etc/netmon/netmon.toml`. They are checked when the system is built. No secret
        belongs here: the file is in the Nix store, where everyone can read it.
      '';
    };

    http = {
      enable = lib.mkEnableOption "MCP over streamable HTTP";

      address = mkOption {
        type = types.str;
        default = "127.0.0.1";
        example = "::";
        description = "The address to listen on. Beyond loopback {option}`services.netmon-mcp.http.tokenFile` is needed.";
      };

      port = mkOption {
        type = types.port;
        default = 8080;
        example = 8443;
        description = "The TCP port to listen on.";
      };

      tokenFile = mkOption {
        type = types.nullOr types.path;
        default = null;
        example = "/run/secrets/netmon-tokens";
        description = ''
          A file with the bearer tokens that clients must show. systemd passes it to the service as a
          credential: only root needs to be able to read it, and it is never copied to the Nix store.
        '';
      };
    };

    openFirewall = mkOption {
      type = types.bool;
      default = false;
      example = true;
      description = "Whether to open {option}`services.netmon-mcp.http.port` in the firewall.";
    };
  };

  config = lib.mkIf cfg.enable {
    assertions = [
      {
        assertion = cfg.http.enable -> isLocal cfg.http.address || cfg.http.tokenFile != null;
        message = "services.netmon-mcp.http listens on ${cfg.http.address}, where others can reach it, so services.netmon-mcp.http.tokenFile must be set.";
      }
      {
        assertion =
          cfg.http.tokenFile == null || !lib.hasPrefix builtins.storeDir (toString cfg.http.tokenFile);
        message = "services.netmon-mcp.http.tokenFile is in the Nix store, where everyone can read it; name a file outside, as a string.";
      }
      {
        assertion =
          !(lib.any (key: cfg.settings.http or { } ? ${key}) [
            "listen"
            "port"
            "tokens"
          ]);
        message = "services.netmon-mcp.settings.http says where to listen or which tokens are good; set services.netmon-mcp.http.address, http.port and http.tokenFile instead, which also guard them.";
      }
      {
        assertion = cfg.openFirewall -> cfg.http.enable && !isLocal cfg.http.address;
        message = "services.netmon-mcp.openFirewall opens a port that nothing serves: set services.netmon-mcp.http.enable, and http.address beyond loopback.";
      }
      {
        assertion = lib.versionAtLeast config.boot.kernelPackages.kernel.version "5.10";
        message = "services.netmon-mcp needs Linux 5.10 or newer, and this system boots ${config.boot.kernelPackages.kernel.version}.";
      }
    ];

    environment.systemPackages = [ cfg.package ];
    environment.etc."netmon/netmon.toml".source = settings;
    users.groups.netmon.members = cfg.users;
    networking.firewall.allowedTCPPorts = lib.mkIf cfg.openFirewall [ cfg.http.port ];

    systemd.sockets.netmond = fromPackaged "netmond" "socket" "Socket" { };

    systemd.services.netmond = service "netmond" {
      ExecStart = lib.escapeShellArgs (
        [ "${cfg.package}/bin/netmond" ]
        ++ lib.concatMap (tool: [
          "--without"
          tool
        ]) cfg.without
      );
    };

    systemd.services.netmon-mcp = lib.mkIf cfg.http.enable (
      service "netmon-mcp" (
        {
          ExecStart = "${lib.getExe cfg.package} http --listen ${endpoint}";
        }
        // lib.optionalAttrs (cfg.http.tokenFile != null) {
          LoadCredential = "tokens:${cfg.http.tokenFile}";
        }
      )
      // {
        restartTriggers = [ settings ];
      }
    );
  };
}
