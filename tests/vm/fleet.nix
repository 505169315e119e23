# Four hosts: an authorization server, an HTTPS server that accepts its tokens, a gateway that asks that server for its
# own clients, and a client.
{
  client,
  host,
  onEveryKernel,
  pkgs,
  ...
}:
let
  issuer = "https://issuer:9443";
  token = "correct-horse-battery-staple-0123456789";
  # An authority, a certificate for each of two hosts, and the key that signs tokens, for this test only.
  keys = pkgs.runCommand "keys" { nativeBuildInputs = [ pkgs.openssl ]; } ''
    mkdir $out
    cd $out
    openssl req -x509 -newkey rsa:2048 -nodes -days 3650 -subj /CN=authority -keyout authority.key -out authority.pem \
      -addext basicConstraints=critical,CA:TRUE
    for name in issuer server; do
      openssl req -newkey rsa:2048 -nodes -subj "/CN=$name" -keyout "$name.key" -out "$name.csr"
      echo "subjectAltName=DNS:$name" >"$name.ext"
      openssl x509 -req -days 3650 -in "$name.csr" -CA authority.pem -CAkey authority.key -CAcreateserial \
        -extfile "$name.ext" -out "$name.pem"
    done
    openssl genrsa -out signing.key 2048
  '';
  trusting = {
    security.pki.certificateFiles = [ "${keys}/authority.pem" ];
  };
  # A real host keeps a secret outside the store: this file replaces it.
  secret = source: {
    inherit source;
    mode = "0400";
  };
in
onEveryKernel
  {
    name = "fleet";
    since = "6.1";
  }
  {
    nodes.client = {
      imports = [ trusting ];
      environment.systemPackages = client ++ [ pkgs.curl ];
    };

    nodes.gateway = {
      imports = [
        host
        trusting
      ];
      services.netmon-mcp = {
        http.enable = true;
        http.tokenFile = "/etc/netmon-tokens";
        hosts.server = {
          target = "https://server:8443/mcp";
          tokenFile = "/etc/server-token";
        };
      };
      environment.etc.netmon-tokens = secret (pkgs.writeText "tokens" "client ${token}\n");
      environment.etc.server-token = secret (pkgs.writeText "token" "${token}\n");
      environment.systemPackages = client;
    };

    nodes.issuer = {
      networking.firewall.allowedTCPPorts = [ 9443 ];
      systemd.services.issuer = {
        wantedBy = [ "multi-user.target" ];
        path = [
          pkgs.openssl
          pkgs.python3
        ];
        serviceConfig.ExecStart = "${pkgs.python3}/bin/python3 ${./issuer} serve ${issuer} ${keys}/issuer.pem ${keys}/issuer.key ${keys}/signing.key";
      };
      environment.systemPackages = [
        (pkgs.writeShellScriptBin "token" ''exec ${pkgs.python3}/bin/python3 ${./issuer} token ${issuer} ${keys}/signing.key "$@"'')
        pkgs.openssl
      ];
    };

    nodes.server = {
      imports = [
        host
        trusting
      ];
      services.netmon-mcp = {
        openFirewall = true;
        http = {
          enable = true;
          address = "0.0.0.0";
          port = 8443;
          tokenFile = "/etc/netmon-tokens";
          tls = {
            certificate = "/etc/netmon-certificate";
            key = "/etc/netmon-key";
          };
          oauth = {
            inherit issuer;
            audience = "https://server:8443/mcp";
          };
        };
        settings.http.allowed_hosts = [ "server" ];
      };
      environment.etc = {
        netmon-tokens = secret (pkgs.writeText "tokens" "gateway ${token}\n");
        netmon-certificate = secret "${keys}/server.pem";
        netmon-key = secret "${keys}/server.key";
      };
    };

    testScript = builtins.readFile ./fleet.py;
  }
