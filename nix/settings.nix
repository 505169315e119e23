# The types of `services.netmon-mcp.settings`, the gateway's settings file. Unlisted keys are passed on unchanged;
# `netmon-mcp --check-config` rejects unknown ones.
{ lib, toml }:
let
  inherit (lib) mkOption types;
  optional =
    type: example: description:
    mkOption {
      type = types.nullOr type;
      default = null;
      inherit example description;
    };
  list =
    example: description:
    mkOption {
      type = types.listOf types.str;
      default = [ ];
      inherit example description;
    };
  http = types.submodule {
    freeformType = toml.type;
    options = {
      allowed_hosts = list [ "netmon.example.org" ] ''
        Names under which clients reach this server, besides `localhost`.
      '';
      allowed_origins = list [ "https://inspector.example.org" ] ''
        Origins whose web pages may use this server.
      '';
      max_calls = optional types.ints.positive 16 ''
        Tool calls of one client that run at once. The default is 32.
      '';
      max_connections = optional types.ints.positive 256 ''
        Connections at once. The default is 2048.
      '';
      max_sessions = optional types.ints.unsigned 128 ''
        Sessions at once. 0 serves every client without a session. The default is 512.
      '';
      open_metrics = optional types.bool true ''
        Whether `/metrics` needs no token. The default is `false`.
      '';
      rate = optional types.ints.unsigned 100 ''
        Requests per second that one client may sustain. 0 is no limit. The default is 200.
      '';
    };
  };
in
types.submodule {
  freeformType = toml.type;
  options = {
    http = mkOption {
      type = http;
      default = { };
      example = {
        max_calls = 16;
      };
      description = "The table `[http]`.";
    };
    interface = optional types.str "eth0" ''
      The interface that `network-monitor` measures if a call has no `interface`. The default is the interface with the default route.
    '';
  };
}
