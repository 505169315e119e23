{
  config,
  lib,
  pkgs,
  utils,
  ...
}:
let
  cfg = config.services.netmon-mcp;
  inherit (lib) mkOption types;
  toml = pkgs.formats.toml { };
  unit = import ./unit.nix { inherit lib; };

  # Only this host's users can reach a loopback socket.
  isLocal = address: lib.hasPrefix "127." address || address == "::1" || address == "localhost";
  endpoint =
    if lib.hasInfix ":" cfg.http.address then
      "[${cfg.http.address}]:${toString cfg.http.port}"
    else
      "${cfg.http.address}:${toString cfg.http.port}";

  # Every user of the host can reach a TCP port, so without credentials the service listens on a Unix socket.
  secured =
    cfg.http.tokenFile != null
    || cfg.http.oauth != null
    || (cfg.settings.http.insecure_no_auth or false);

  # systemd passes secrets to the service under these names.
  credentials = {
    tokens = cfg.http.tokenFile;
    tls-certificate = cfg.http.tls.certificate or null;
    tls-key = cfg.http.tls.key or null;
  }
  // lib.mapAttrs' (name: host: lib.nameValuePair "host-token-${name}" host.tokenFile) cfg.hosts;
  passed = lib.filterAttrs (_: file: file != null) credentials;
  credential = name: "/run/credentials/netmon-mcp.service/${name}";

  # The common settings of the command line and the service; null values are omitted.
  common = cfg.settings // {
    http = cfg.settings.http;
    hosts = lib.mapAttrs (_: host: host.target) cfg.hosts;
  };
  served = common // {
    host_tokens = lib.mapAttrs (name: _: credential "host-token-${name}") (
      lib.filterAttrs (_: host: host.tokenFile != null) cfg.hosts
    );
    http =
      common.http
      // {
        listen = if secured then [ endpoint ] else [ "unix:/run/netmon-mcp/mcp.sock" ];
      }
      // lib.optionalAttrs (cfg.http.tls != null) {
        tls_certificate = credential "tls-certificate";
        tls_key = credential "tls-key";
      }
      // lib.optionalAttrs (cfg.http.oauth != null) {
        oauth_issuer = cfg.http.oauth.issuer;
        oauth_audience = cfg.http.oauth.audience;
        oauth_jwks = cfg.http.oauth.jwks;
      };
  };

  # Checked when the system is built, so that a mistake shows before a service restarts. The files named in the settings
  # are on the host and not in the build: only the syntax is checked.
  file =
    name: values:
    pkgs.runCommand name { } ''
      cp ${toml.generate name (lib.filterAttrsRecursive (_: value: value != null) values)} $out
      ${lib.optionalString (pkgs.stdenv.buildPlatform.canExecute pkgs.stdenv.hostPlatform) ''
        ${lib.getExe cfg.package} --config $out --check-config=syntax
      ''}
    '';

  # Options of this module set these keys, with assertions.
  reserved = {
    listen = "http.address and http.port";
    port = "http.port";
    tokens = "http.tokenFile";
    tls_certificate = "http.tls";
    tls_key = "http.tls";
    oauth_issuer = "http.oauth";
    oauth_audience = "http.oauth";
    oauth_jwks = "http.oauth";
  };
  misplaced = lib.filter (key: cfg.settings.http ? ${key}) (lib.attrNames reserved);
in
{
  _file = ./module.nix;

  options.services.netmon-mcp = {
    enable = lib.mkEnableOption "netmond, which measures this host's network with eBPF, and netmon-mcp, which serves the results over MCP";

    package = lib.mkPackageOption pkgs "netmon-mcp" { };

    users = mkOption {
      type = types.listOf types.str;
      default = [ ];
      example = [ "alice" ];
      description = ''
        Users who may use netmond, besides root. They become members of the group `netmon`. A member
        sees the connections, the processes and the DNS names of the whole host.
      '';
    };

    without = mkOption {
      type = types.listOf (types.enum (import ./tools.nix));
      default = [ ];
      example = [ "trace_dns" ];
      description = "Tools to leave out. netmond does not load their eBPF programs.";
    };

    settings = mkOption {
      type = import ./settings.nix { inherit lib toml; };
      default = { };
      example = lib.literalExpression ''{ interface = "eth0"; http.max_calls = 16; }'';
      description = ''
        The contents of `/etc/netmon/netmon.toml`. They are checked when the system is built. Put no
        secret here: the file is in the Nix store, where everyone can read it.
      '';
    };

    hosts = mkOption {
      default = { };
      example = lib.literalExpression ''
        {
          web = { target = "ssh:root@web"; };
          db = { target = "https://db.example.org/mcp"; tokenFile = "/run/secrets/db-token"; };
        }
      '';
      description = "Other hosts, which every tool accepts as `host`.";
      type = types.attrsOf (
        types.submodule {
          options = {
            target = mkOption {
              type = types.strMatching "(ssh:|https?://|unix:/).+";
              example = "https://db.example.org/mcp";
              description = "The address of this host: `ssh:USER@HOST`, `https://HOST/mcp` or `unix:/PATH`.";
            };
            tokenFile = mkOption {
              type = types.nullOr types.externalPath;
              default = null;
              example = "/run/secrets/db-token";
              description = ''
                A file with the bearer token for this host. systemd passes it to the service as a
                credential, so the file can be readable by root only.
              '';
            };
          };
        }
      );
    };

    record.enable = lib.mkEnableOption "the recorder, which stores measurements for `since` and `until`. The table `[recording]` of the settings configures it";

    http = {
      enable = lib.mkEnableOption "MCP over streamable HTTP";

      address = mkOption {
        type = types.str;
        default = "127.0.0.1";
        example = "::";
        description = ''
          The address to listen on, with {option}`services.netmon-mcp.http.tokenFile` or
          {option}`services.netmon-mcp.http.oauth`. Without either the service listens on the Unix socket
          `/run/netmon-mcp/mcp.sock`, for the group `netmon`.
        '';
      };

      port = mkOption {
        type = types.port;
        default = 8080;
        example = 8443;
        description = "The TCP port to listen on.";
      };

      tokenFile = mkOption {
        type = types.nullOr types.externalPath;
        default = null;
        example = "/run/secrets/netmon-tokens";
        description = ''
          A file with the bearer tokens of clients, one `NAME TOKEN` per line. systemd passes it to the
          service as a credential: the file can be readable by root only, and it is never copied to the
          Nix store.
        '';
      };

      tls = mkOption {
        default = null;
        example = lib.literalExpression ''
          {
            certificate = "/var/lib/acme/netmon.example.org/fullchain.pem";
            key = "/var/lib/acme/netmon.example.org/key.pem";
          }
        '';
        description = ''
          Serves HTTPS instead of HTTP. systemd passes both files to the service as credentials when it
          starts, so the service must restart after a renewal:
          `security.acme.certs.NAME.reloadServices = [ "netmon-mcp.service" ];` does that.
        '';
        type = types.nullOr (
          types.submodule {
            options = {
              certificate = mkOption {
                type = types.externalPath;
                example = "/var/lib/acme/netmon.example.org/fullchain.pem";
                description = "The certificate chain, in PEM.";
              };
              key = mkOption {
                type = types.externalPath;
                example = "/var/lib/acme/netmon.example.org/key.pem";
                description = "The private key, in PEM.";
              };
            };
          }
        );
      };

      oauth = mkOption {
        default = null;
        example = lib.literalExpression ''
          {
            issuer = "https://as.example.org";
            audience = "https://netmon.example.org/mcp";
          }
        '';
        description = ''
          Accepts the tokens of an OAuth 2.1 authorization server: JWTs with the scope `netmon:read`.
          The server's certificate must be one that this host trusts (`security.pki`).
        '';
        type = types.nullOr (
          types.submodule {
            options = {
              issuer = mkOption {
                type = types.str;
                example = "https://as.example.org";
                description = "The URL of the authorization server.";
              };
              audience = mkOption {
                type = types.str;
                example = "https://netmon.example.org/mcp";
                description = "The URL of this server, as clients know it.";
              };
              jwks = mkOption {
                type = types.nullOr types.str;
                default = null;
                example = "https://as.example.org/jwks";
                description = "The URL of the authorization server's keys. The default comes from its metadata.";
              };
            };
          }
        );
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
        assertion =
          cfg.http.enable -> isLocal cfg.http.address || cfg.http.tokenFile != null || cfg.http.oauth != null;
        message = "services.netmon-mcp.http listens on ${cfg.http.address}, which other hosts can reach: set services.netmon-mcp.http.tokenFile or http.oauth.";
      }
      {
        assertion = misplaced == [ ];
        message = "services.netmon-mcp.settings.http has ${lib.concatStringsSep ", " misplaced}: set ${
          lib.concatMapStringsSep ", " (key: "services.netmon-mcp.${reserved.${key}}") misplaced
        } instead.";
      }
      {
        assertion = !(cfg.settings ? hosts || cfg.settings ? host_tokens);
        message = "services.netmon-mcp.settings has hosts or host_tokens: set services.netmon-mcp.hosts instead.";
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

    warnings =
      lib.optional (cfg.http.enable && !isLocal cfg.http.address && cfg.http.tls == null)
        "services.netmon-mcp.http sends tokens in the clear on ${cfg.http.address}: set services.netmon-mcp.http.tls, or put a proxy in front.";

    environment.systemPackages = [ cfg.package ];
    environment.etc."netmon/netmon.toml".source = file "netmon.toml" common;
    users.groups.netmon.members = cfg.users;
    networking.firewall.allowedTCPPorts = lib.mkIf cfg.openFirewall [ cfg.http.port ];

    systemd.sockets.netmond = unit {
      name = "netmond";
      type = "socket";
    };

    # Restarted after an upgrade, not stopped before it: the socket stays, and requests wait in it.
    systemd.services.netmond = lib.mkMerge [
      (unit {
        name = "netmond";
        type = "service";
      })
      {
        stopIfChanged = false;
        serviceConfig.ExecStart = utils.escapeSystemdExecArgs (
          [ (lib.getExe' cfg.package "netmond") ]
          ++ lib.concatMap (tool: [
            "--without"
            tool
          ]) cfg.without
        );
      }
    ];

    users.users.netmon-recorder = lib.mkIf cfg.record.enable {
      isSystemUser = true;
      group = "netmon";
    };
    systemd.services.netmon-recorder = lib.mkIf cfg.record.enable (
      lib.mkMerge [
        (unit {
          name = "netmon-recorder";
          type = "service";
        })
        {
          restartTriggers = [ config.environment.etc."netmon/netmon.toml".source ];
          serviceConfig.ExecStart = utils.escapeSystemdExecArgs [
            (lib.getExe' cfg.package "netmon-mcp")
            "record"
          ];
        }
      ]
    );

    systemd.services.netmon-mcp = lib.mkIf cfg.http.enable (
      lib.mkMerge [
        (unit {
          name = "netmon-mcp";
          type = "service";
        })
        {
          stopIfChanged = false;
          path = lib.optional (lib.any (host: lib.hasPrefix "ssh:" host.target) (
            lib.attrValues cfg.hosts
          )) config.programs.ssh.package;
          serviceConfig.LoadCredential = lib.mapAttrsToList (name: path: "${name}:${path}") passed;
          serviceConfig.ExecStart = utils.escapeSystemdExecArgs [
            (lib.getExe cfg.package)
            "--config"
            "${file "netmon-mcp.toml" served}"
            "http"
          ];
        }
      ]
    );
  };
}
